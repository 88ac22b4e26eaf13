"""nnU-Net's summary on real label maps, against SimpleITK's own overlap measures."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest
import SimpleITK

from sacl.cohort.layouts.recognize import find
from sacl.stages.export import export_folder


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
    out = tmp_path / "out"
    export_folder(tmp_path / "predicted", out, "nnunet", reference=tmp_path / "references")
    summary = json.loads((out / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == 6
    for row in summary["metric_per_case"]:
        measures = SimpleITK.LabelOverlapMeasuresImageFilter()
        reference = SimpleITK.ReadImage(tmp_path / "references" / row["reference_file"])
        measures.Execute(reference, SimpleITK.ReadImage(out / row["prediction_file"]))
        for label in (1, 2):
            figures = row["metrics"][str(label)]
            assert figures["Dice"] == pytest.approx(measures.GetDiceCoefficient(label))
            assert figures["IoU"] == pytest.approx(measures.GetJaccardCoefficient(label))
            missed = measures.GetFalseNegativeError(label)
            assert figures["FN"] / figures["n_ref"] == pytest.approx(missed)
    exact = {row["metrics"]["1"]["Dice"] == 1.0 for row in summary["metric_per_case"]}
    assert exact == {True, False}
