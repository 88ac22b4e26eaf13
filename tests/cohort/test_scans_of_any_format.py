"""NRRD and MetaImage in a dataset: read as NIfTI is, and converted alike."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from listed_layout import write_json

from sacl.cohort.layouts.listing import find
from sacl.cohort.manifest import read_cohort, read_image, read_reference
from sacl.errors import DataError
from sacl.files.itk import labels_in
from sacl.run.workspace import Workspace
from sacl.scores.summary import read_scores
from sacl.settings import EvaluateSettings, IngestSettings
from sacl.stages.evaluate import SCORES
from sacl.stages.evaluate_folders import evaluate_folders
from sacl.stages.ingest import ingest

SPACING_MM = (1.0, 2.0, 3.0)


def save(voxels, path):
    """Write voxels so that every format has them at the same place in the world."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".nii.gz"):
        nib.save(nib.Nifti1Image(voxels, np.diag([*SPACING_MM, 1.0])), path)
        return
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(voxels.T))
    image.SetSpacing(SPACING_MM)
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    SimpleITK.WriteImage(image, str(path), useCompression=True)


def voxels_of(seed):
    rng = np.random.default_rng(seed)
    labels = np.zeros((12, 10, 8), np.uint8)
    labels[2:5, 3:6, 2:5], labels[7:9, 2:4, 3:6] = 1, 2
    return (rng.normal(0, 20, labels.shape) - 900 * (labels == 0)).astype(np.int16), labels


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".mhd"])
def test_a_cohort_is_the_same_whatever_its_files_format(tmp_path, ending):
    read = []
    for name, suffix in (("nifti", ".nii.gz"), ("other", ending)):
        for seed in (1, 2):
            scan, labels = voxels_of(seed)
            save(scan, tmp_path / name / f"images/s{seed}{suffix}")
            save(labels, tmp_path / name / f"labels/s{seed}{suffix}")
        write_json(tmp_path / name, {"liver": 1, "spleen": 2}, "labels.json")
        work = Workspace(tmp_path / "work" / name)
        folder = ingest(IngestSettings(data=tmp_path / name), work)
        cohort = read_cohort(folder)
        read.append(
            [
                (
                    case.annotated,
                    read_image(folder, case),
                    read_reference(folder, case, cohort.scheme),
                )
                for case in cohort.cases
            ]
        )
    for (organs, image, reference), (others, other, theirs) in zip(*read, strict=True):
        assert organs == others == ("liver", "spleen")
        assert np.array_equal(image.voxels, other.voxels)
        assert np.allclose(image.grid.affine, other.grid.affine)
        assert np.array_equal(reference.voxels, theirs.voxels)


def test_nnunets_file_ending_may_be_that_of_metaimage(tmp_path):
    scan, labels = voxels_of(1)
    save(scan, tmp_path / "imagesTr/a_0000.mha")
    save(labels, tmp_path / "labelsTr/a.mha")
    document = {"channel_names": {"0": "CT"}, "labels": {"liver": 1}, "file_ending": ".mha"}
    write_json(tmp_path, document)
    [case] = find(tmp_path)[0].cases
    assert (case.case_id, case.reference.name) == ("a", "a.mha")
    assert np.array_equal(np.unique(labels_in(case.reference)[0]), [0, 1, 2])


def test_names_of_a_segmentation_of_slicer_are_those_of_its_segments(tmp_path):
    _, labels = voxels_of(1)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(labels.T))
    for n, (name, value) in enumerate({"spleen": 2, "liver": 1}.items()):
        image.SetMetaData(f"Segment{n}_Name", name)
        image.SetMetaData(f"Segment{n}_LabelValue", str(value))
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    SimpleITK.WriteImage(image, str(tmp_path / "labels/a.seg.nrrd"))
    save(voxels_of(1)[0], tmp_path / "images/a.nrrd")
    found, _ = find(tmp_path)
    assert found.organs == {1: "liver", 2: "spleen"}
    assert [case.reference.name for case in found.cases] == ["a.seg.nrrd"]


def test_a_label_map_that_is_damaged_is_one_line(tmp_path):
    (tmp_path / "a.nrrd").write_bytes(b"NRRD0004\ntype: short\n\n")
    with pytest.raises(DataError, match=r"^a\.nrrd: not a readable NRRD or MetaImage file"):
        labels_in(tmp_path / "a.nrrd")


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".mhd"])
def test_label_maps_of_two_formats_are_scored_against_each_other(tmp_path, ending):
    for seed in (1, 2):
        _, labels = voxels_of(seed)
        save(labels, tmp_path / f"reference/s{seed}{ending}")
        save(labels * (labels == 1), tmp_path / f"predicted/s{seed}.nii.gz")
    folders = (tmp_path / "reference", tmp_path / "predicted", tmp_path / "scores")
    rows = read_scores(evaluate_folders(*folders, EvaluateSettings()) / SCORES)
    assert [(r.score.case_id, r.score.organ, r.score.dice) for r in rows] == [
        (f"s{seed}", organ, dice)
        for seed in (1, 2)
        for organ, dice in (("label_1", 1), ("label_2", 0))
    ]
