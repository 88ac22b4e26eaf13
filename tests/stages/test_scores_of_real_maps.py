"""Scores of real label maps, against SimpleITK's own overlap measures."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import SimpleITK

from sacl.cohort.layouts.listing import find
from sacl.scores.summary import read_scores
from sacl.settings import EvaluateSettings
from sacl.stages.evaluate_folders import evaluate_folders


@pytest.mark.real_data
def test_the_figures_agree_with_simpleitk_on_hippocampi(real_data, tmp_path):
    found, _ = find(real_data / "Dataset004_Hippocampus")
    cases = [case for case in found.cases if case.reference is not None][:6]
    for shift, case in enumerate(cases):
        image = nibabel.load(case.reference)
        voxels = np.roll(np.asarray(image.dataobj), shift, axis=shift % 3)
        for folder, array in (("references", np.asarray(image.dataobj)), ("predicted", voxels)):
            path = tmp_path / folder / f"{case.case_id}.nii.gz"
            path.parent.mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array.astype(np.uint8), image.affine), path)
    folders = tmp_path / "references", tmp_path / "predicted"
    rows = read_scores(
        evaluate_folders(*folders, tmp_path / "out", EvaluateSettings()) / "scores.csv"
    )
    assert len({row.score.case_id for row in rows}) == 6
    for row in rows:
        measures = SimpleITK.LabelOverlapMeasuresImageFilter()
        name = f"{row.score.case_id}.nii.gz"
        measures.Execute(*(SimpleITK.ReadImage(folder / name) for folder in folders))
        label = int(row.score.organ.removeprefix("label_"))
        assert row.score.dice == pytest.approx(measures.GetDiceCoefficient(label))
    assert {row.score.dice == 1.0 for row in rows} == {True, False}
