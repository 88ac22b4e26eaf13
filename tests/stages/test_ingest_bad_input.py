"""Each kind of bad input gets one line that says what to do, and leaves nothing half-written."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from sacl.errors import ConfigError, DataError, SaclError
from sacl.run.workspace import Workspace
from sacl.settings import IngestSettings
from sacl.stages.ingest import ingest

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
SHAPE = (5, 6, 7)


def save(path, voxels, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)


def image(seed=0):
    return np.random.default_rng(seed).integers(-900, 900, SHAPE).astype(np.int16)


def labels(value=1):
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[1:3, 1:3, 1:3] = value
    return voxels


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "secret" / "Dataset001_Bad"
    for n, case in enumerate(("good", "bad")):
        save(root / f"imagesTr/{case}_0000.nii.gz", image(n))
        save(root / f"labelsTr/{case}.nii.gz", labels())
    document = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "spleen": 4, "ignore": 9},
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(document))
    return root


@pytest.fixture
def refused(tmp_path, data):
    """Ingest the data, expecting a refusal, and return its one line."""

    def run(kind=DataError, **settings):
        with pytest.raises(SaclError) as error:
            ingest(IngestSettings(data=data, **settings), Workspace(tmp_path / "work"))
        assert type(error.value) is kind
        message = str(error.value)
        assert "\n" not in message
        assert "secret" not in message
        folder = tmp_path / "work" / "1-cohort"
        paths = [p for p in folder.rglob("*.*") if "journal" not in p.as_posix()]
        written = sorted(p.relative_to(folder).as_posix() for p in paths)
        whole = {"partial.json", "images/good.nii", "references/good.nii.gz"}
        assert set(written) <= whole, "of the bad case nothing may be left"
        return message

    return run


def test_a_truncated_file(data, refused):
    path = data / "imagesTr/bad_0000.nii.gz"
    path.write_bytes(path.read_bytes()[:150])
    assert refused().startswith("bad_0000.nii.gz: not a readable NIfTI file, it is truncated")


def test_a_truncated_reference(data, refused):
    path = data / "labelsTr/bad.nii.gz"
    path.write_bytes(path.read_bytes()[:60])
    assert refused().startswith("bad.nii.gz: not a readable NIfTI file")


def test_a_file_that_is_not_nifti(data, refused):
    (data / "imagesTr/bad_0000.nii.gz").write_text("DICM")
    assert "of another format" in refused()


def test_an_affine_that_is_not_finite(data, refused):
    broken = nibabel.Nifti1Image(image(), AFFINE)
    broken.header["srow_z"] = [0, 0, np.nan, 0]
    broken.header["sform_code"] = 1
    with_header = nibabel.Nifti1Image(image(), None, broken.header)
    nibabel.save(with_header, data / "imagesTr/bad_0000.nii.gz")
    assert refused().startswith("bad_0000.nii.gz: grid: the affine is not a finite 4 x 4 matrix")


def test_an_affine_with_zero_spacing(data, refused):
    broken = nibabel.Nifti1Image(image(), AFFINE)
    broken.header["srow_z"] = [0, 0, 0, 0]
    broken.header["sform_code"] = 1
    with_header = nibabel.Nifti1Image(image(), None, broken.header)
    nibabel.save(with_header, data / "imagesTr/bad_0000.nii.gz")
    assert "mm, or axes in one plane; repair the header" in refused()


def test_a_four_dimensional_image(data, refused):
    save(data / "imagesTr/bad_0000.nii.gz", np.stack([image()] * 2, axis=3))
    assert "a 4-D image of 2 volumes, expected one; split it" in refused()


def test_voxels_that_are_not_finite(data, refused):
    voxels = image().astype(np.float32)
    voxels[0, 0, :3] = np.nan
    save(data / "imagesTr/bad_0000.nii.gz", voxels)
    assert "3 of 210 voxels are NaN or infinite" in refused()


def test_image_and_label_map_on_different_grids(data, refused):
    moved = AFFINE.copy()
    moved[2, 3] = 1.0
    save(data / "labelsTr/bad.nii.gz", labels(), moved)
    message = refused()
    assert message.startswith("case bad: image and label map lie on different grids")
    assert "5 x 6 x 7 voxels of 1 x 1 x 2 mm at (0, 0, 0)" in message
    assert "at (0, 0, 1) (first voxels 1 mm apart, last voxels 1 mm apart" in message
    assert "resample the label map onto the image's grid" in message
    assert "repair" in message


@pytest.mark.parametrize(
    ("kind", "values"), [(np.uint8, (3, 7)), (np.int16, (-2, 3)), (np.int32, (3, 70000))]
)
def test_labels_outside_the_scheme(data, refused, kind, values):
    voxels = labels().astype(kind)
    voxels[4, 4, :2] = values
    save(data / "labelsTr/bad.nii.gz", voxels)
    message = refused()
    assert f"case bad: label values {sorted(values)} outside the dataset's scheme" in message
    assert "which has [1, 4]" in message


def test_a_fractional_label(data, refused):
    save(data / "labelsTr/bad.nii.gz", labels() * np.float32(0.5))
    assert "bad.nii.gz: label value 0.5 is not a whole number" in refused()


def test_voxels_to_be_ignored(data, refused):
    save(data / "labelsTr/bad.nii.gz", labels(9))
    assert "case bad: its label map has voxels of the value 9, 'ignore'" in refused()


def test_an_empty_label_map(data, refused):
    save(data / "labelsTr/bad.nii.gz", labels(0))
    message = refused()
    assert message.startswith("case bad: empty label map, every voxel is background")
    assert "remove it so that the scan counts as unlabeled" in message


def test_an_empty_label_map_is_no_matter_where_it_is_hidden(data, tmp_path):
    save(data / "labelsTr/bad.nii.gz", labels(0))
    order = tmp_path / "order.txt"
    order.write_text("good\nbad\n")
    settings = IngestSettings(data=data, labeled_order=order, labeled_subjects=1)
    assert (ingest(settings, Workspace(tmp_path / "work")) / "run.json").is_file()


@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_a_constant_image(data, refused, modality):
    save(data / "imagesTr/bad_0000.nii.gz", np.full(SHAPE, 7, np.int16))
    message = refused(modality=modality)
    assert message.startswith("case bad: constant image, every voxel is 7; check the file")


def test_a_duplicate_case(data, refused):
    save(data / "imagesTs/bad_0000.nii.gz", image())
    assert "case bad appears twice" in refused()


def test_a_duplicate_row(data, refused):
    (data / "scan_labels.csv").write_text("case_id,phase\nbad,native\nbad,portal\n")
    assert refused() == "scan_labels.csv: case bad appears twice; remove one row"


def test_a_subject_in_two_splits(data, refused):
    save(data / "imagesTs/third_0000.nii.gz", image())
    (data / "scan_labels.csv").write_text("case_id,subject_id\nbad,s1\nthird,s1\n")
    message = refused()
    assert "subject s1 is in two splits, case bad in train (imagesTr)" in message
    assert "case third in test (imagesTs); keep a subject's scans in one" in message


def test_more_labeled_subjects_than_there_are(refused):
    assert "labeled_subjects: 3 asked for, but only 2 training subjects" in refused(
        ConfigError, labeled_subjects=3
    )


def test_more_held_out_subjects_than_there_are(refused):
    message = refused(ConfigError, validation_subjects=1, test_subjects=1)
    assert "1 validation and 1 test subjects asked for, but only 2 training subjects" in message


def test_a_table_that_is_not_there(refused, tmp_path):
    message = refused(scan_labels=tmp_path / "secret" / "gone.csv")
    assert message.startswith("ingest.scan_labels: no gone.csv beside the YAML file")


def test_data_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="/gone': no such file or directory"):
        ingest(IngestSettings(data=tmp_path / "gone"), Workspace(tmp_path / "work"))


@pytest.mark.parametrize("at", ["good.nii", "good.nii.gz", "cohort.json"])
def test_a_full_disk(data, tmp_path, monkeypatch, at):
    whole, save = Path.open, nibabel.save

    def half(image, path):
        if Path(path).name.endswith(f"-{at}"):
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(image, path)

    def failing(path, mode="r", *rest, **named):
        file = whole(path, mode, *rest, **named)
        if "w" in mode and path.name.endswith(f"-{at}"):
            file.close()
            raise OSError(28, "No space left on device")
        return file

    monkeypatch.setattr(Path, "open", failing)
    monkeypatch.setattr(nibabel, "save", half)
    with pytest.raises(DataError) as error:
        ingest(IngestSettings(data=data), Workspace(tmp_path / "work"))
    assert str(error.value) == f"{at}: cannot be written, No space left on device"
    folder = tmp_path / "work" / "1-cohort"
    left = {path.name for path in folder.rglob("*") if path.is_file()}
    assert not left & {at, "run.json", "cohort.json"}
    assert not any(name.startswith(".partial-") for name in left)


@pytest.mark.parametrize("both", [False, True])
def test_a_label_map_whose_header_contradicts_itself_is_said_once(tmp_path, data, capsys, both):
    for path in [data / "labelsTr/bad.nii.gz", data / "imagesTr/bad_0000.nii.gz"][: 1 + both]:
        raw = bytearray(gzip.decompress(path.read_bytes()))
        raw[88:92] = np.float32(7.0).tobytes()  # pixdim[3], beside an sform of 2 mm
        path.write_bytes(gzip.compress(raw))
    settings = IngestSettings(data=(data,), organs=("liver",))
    folder = ingest(settings, Workspace(tmp_path / "work"))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "pixdim" in line]
    words = "the spacing is 1 x 1 x 2 mm by the sform"
    place = "" if both else "label map: "
    assert f"contradicts itself in case bad: {place}{words}" in line
    results = json.loads((folder / "run.json").read_text())["results"]
    assert results["contradictions"]["bad"].startswith(place + words)
