"""Scans are found and read alike in every format; what is not read is said; names name nobody."""

import shutil
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from tests.dicom.make_series import Patient, enhanced, make_scan, oblique, tilted, write, write_scan

from sacl.errors import DataError
from sacl.prediction.new_scans import find_scans
from sacl.types import LabelMap, LabelScheme

SCHEME = LabelScheme("two", ("liver", "kidney_left"))


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def write_everywhere(scan, folder, rng):
    """Write a scan as NIfTI, NRRD, MetaImage, DICOM slices, a zip of them and a zip of that."""
    folder.mkdir(exist_ok=True)
    voxels = scan.values.astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, scan.affine), folder / "a.nii.gz")
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(voxels.T))
    lps = np.diag([-1, -1, 1, 1]) @ scan.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    for name in ("b.nrrd", "c.nhdr", "d.mha", "e.mhd"):
        SimpleITK.WriteImage(image, folder / name, useCompression=True)
    series = write_scan(scan, folder / "series", rng)
    write([enhanced(scan, rng)], folder / "frames", rng)
    zipped(series, folder / "packed.zip")
    zipped(folder / "packed.zip", folder / "twice.zip")
    return folder


def zipped(path, target):
    with zipfile.ZipFile(target, "w") as archive:
        for file in [path] if path.is_file() else path.iterdir():
            archive.write(file, file.name)


@pytest.mark.parametrize("make", [make_scan, oblique, tilted])
def test_a_scan_is_the_same_in_every_format_and_so_is_its_label_map(make, tmp_path, rng):
    folder = write_everywhere(make(rng), tmp_path / "in", rng)
    inputs = [
        "a.nii.gz",
        "b.nrrd",
        "c.nhdr",
        "d.mha",
        "e.mhd",
        "series",
        "frames",
        "packed.zip",
        "twice.zip",
    ]
    (first,) = find_scans(folder / inputs[0]).scans
    volume, native = first.load()
    labels = rng.integers(0, 3, volume.voxels.shape).astype(np.uint8)
    label_map = LabelMap(labels, volume.grid, SCHEME)
    for name in inputs[1:]:
        (scan,) = find_scans(folder / name).scans
        other, frame = scan.load()
        np.testing.assert_array_equal(other.voxels, volume.voxels, name)
        np.testing.assert_allclose(frame.grid.affine, native.grid.affine, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(scan.frame().grid.affine, frame.grid.affine)
        path = tmp_path / f"{scan.name}{scan.suffix}"
        doubts = scan.write(path, LabelMap(labels, other.grid, SCHEME), frame, "run")
        assert doubts == ()
        if scan.stack is None:
            (again,) = find_scans(path).scans
            back, its_frame = again.load()
            np.testing.assert_array_equal(back.voxels, labels)
            np.testing.assert_allclose(its_frame.grid.affine, frame.grid.affine, atol=1e-5)
    assert label_map.voxels.any()


def test_a_mixed_folder_is_read_whole_and_the_rest_is_named(tmp_path, rng):
    folder = write_everywhere(make_scan(rng), tmp_path / "in", rng)
    (folder / "packed.zip").unlink()
    (folder / "twice.zip").unlink()
    write_scan(make_scan(rng, slices=3), folder / "short", rng)
    write_scan(make_scan(rng, modality="MR"), folder / "mr", rng)
    (folder / "notes.txt").write_text("x")
    (folder / "a.seg.nrrd").write_bytes((folder / "b.nrrd").read_bytes())
    found = find_scans(folder, "ct")
    assert [scan.name for scan in found.scans] == ["a", "b", "c", "d", "e", "frames", "series"]
    assert found.notes == (
        "1 segmentation skipped: a.seg.nrrd",
        "2 of 4 series accepted; 1 too_few_slices, 1 wrong_modality",
        "`sacl ingest FOLDER --explain` says of each series why",
        "1 other file not read",
    )


def test_series_are_called_as_their_folders_longer_or_numbered_where_these_are_alike(tmp_path, rng):
    for place, number in (
        ("1/CT", 1),
        ("2/CT", 1),
        ("3", 4),
        ("3", 5),
        ("4 °C", 1),
        (".hidden", 1),
    ):
        write_scan(make_scan(rng, number=number), tmp_path / "in" / place, rng)
    found = find_scans(tmp_path / "in")
    names = sorted(scan.name for scan in found.scans)
    assert names == [
        "1-CT",
        "2-CT",
        "3-s4",
        "3-s5",
        "4_°C".replace("°", "_").replace("__", "_"),
        "hidden",
    ]


def test_no_name_of_a_result_names_the_patient(tmp_path, rng):
    folder = write_scan(make_scan(rng), tmp_path / "Zzyzxperson" / "PIDX4711 CT", rng)
    assert [scan.name for scan in find_scans(folder).scans] == ["scan"]
    shutil.copytree(folder, tmp_path / "Zzyzxperson" / "CT")
    names = [scan.name for scan in find_scans(tmp_path / "Zzyzxperson").scans]
    assert names == ["CT"], "the same images twice are one series, called as the first folder"
    anonymous = Patient(name="", patient_id="")
    other = write_scan(make_scan(rng, patient=anonymous), tmp_path / "b" / "Zzyzxperson", rng)
    assert [scan.name for scan in find_scans(other).scans] == ["Zzyzxperson"]


@pytest.mark.parametrize(
    "content", [{}, {"a.txt": b"x"}, {"b/c.nii.gz": b"x"}, {"z.zip": b"PK\3\4"}]
)
def test_a_folder_without_a_scan_is_one_line(content, tmp_path):
    for name, data in content.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match="no scan"):
        find_scans(tmp_path)


def test_what_is_not_there_or_no_scan_is_one_line(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        find_scans(tmp_path / "a.nii")
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    with pytest.raises(DataError, match=r"no scan; 1 other file not read; expected"):
        find_scans(tmp_path / "a.pdf")


def test_two_scans_of_one_name_are_one_line(tmp_path):
    for name in ("a.nii", "a.mha"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"a\.mha and a\.nii differ only in their ending"):
        find_scans(tmp_path)


def test_a_number_that_not_all_scans_have_is_part_of_the_name(tmp_path):
    for name in ("scan_0000.nii.gz", "scan_0001.nrrd"):
        (tmp_path / name).touch()
    assert [scan.name for scan in find_scans(tmp_path).scans] == ["scan_0000", "scan_0001"]
    (tmp_path / "scan_0001.nrrd").unlink()
    assert [scan.name for scan in find_scans(tmp_path).scans] == ["scan"]
    assert [s.name for s in find_scans(Path(tmp_path / "scan_0000.nii.gz")).scans] == ["scan"]
