"""A bad file is refused in one line with the file's name and no folder's."""

from __future__ import annotations

import gzip
import re

import nibabel
import numpy as np
import pytest

from sacl.errors import DataError
from sacl.files import nifti
from sacl.files.nifti import read_label_map, read_labels, read_volume, write_volume
from sacl.types import Grid, LabelScheme, Volume

SCHEME = LabelScheme("two", ("liver", "spleen"))


@pytest.fixture
def voxels():
    return np.random.default_rng(0).integers(-1000, 2000, (5, 6, 7)).astype(np.int16)


def save(path, voxels, affine=None, sform=1, qform=1):
    affine = np.diag([0.7, 0.9, 4.0, 1.0]) if affine is None else affine
    image = nibabel.Nifti1Image(voxels, affine)
    image.set_sform(affine, code=sform)
    image.set_qform(affine, code=qform)
    nibabel.save(image, path)
    return path


def patch_header(path, **fields):
    """Change header fields on disk, unchecked."""
    header = nibabel.Nifti1Header(path.read_bytes()[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + path.read_bytes()[348:])
    return path


def one_line(error, path):
    message = str(error.value)
    assert message.startswith(path.name)
    assert "\n" not in message
    assert str(path.parent) not in message
    return message


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_in_the_header(path):
    path.write_bytes(path.read_bytes()[:200])


def flip_bytes(path):
    content = bytearray(path.read_bytes())
    content[100:140] = bytes(40)
    path.write_bytes(bytes(content))


def write_text(path):
    path.write_text("these are not the voxels you are looking for" * 20)


def write_zipped_text(path):
    path.write_bytes(gzip.compress(b"no voxels" * 99))


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    "damage", [cut_in_half, cut_in_the_header, write_text, write_zipped_text, empty]
)
@pytest.mark.parametrize("read", [read_volume, read_labels])
def test_a_damaged_file_is_refused_in_one_line(tmp_path, voxels, suffix, damage, read):
    path = save(tmp_path / f"scan{suffix}", np.tile(voxels, (9, 9, 9)))
    damage(path)
    with pytest.raises(DataError, match="not a readable NIfTI file") as error:
        read(path)
    one_line(error, path)


def test_a_corrupt_gzip_stream_is_refused(tmp_path, voxels):
    path = save(tmp_path / "scan.nii.gz", np.tile(voxels, (9, 9, 9)))
    flip_bytes(path)
    with pytest.raises(DataError) as error:
        read_volume(path)
    one_line(error, path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such file") as error:
        read_volume(tmp_path / "scan.nii.gz")
    one_line(error, tmp_path / "scan.nii.gz")


def test_four_dimensions_are_refused_with_their_number(tmp_path, voxels):
    path = save(tmp_path / "scan.nii", np.stack([voxels] * 3, axis=3))
    with pytest.raises(DataError, match="4-D image of 3 volumes, expected one; split it") as error:
        read_volume(path)
    one_line(error, path)


def test_a_flat_image_is_refused(tmp_path):
    path = save(tmp_path / "scan.nii", np.zeros((4, 5), np.int16))
    with pytest.raises(DataError, match="2-D image"):
        read_volume(path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_affine_that_is_not_finite_is_refused(tmp_path, voxels, value):
    path = patch_header(save(tmp_path / "scan.nii", voxels), srow_x=[1, value, 0, 0])
    with pytest.raises(DataError, match="affine is not a finite 4 x 4 matrix") as error:
        read_volume(path)
    one_line(error, path)


def test_an_affine_without_spacing_is_refused(tmp_path, voxels):
    path = patch_header(save(tmp_path / "scan.nii", voxels), srow_x=[0] * 4)
    with pytest.raises(DataError, match="no scan has") as error:
        read_volume(path)
    one_line(error, path)


@pytest.mark.parametrize("value", [0, np.nan])
@pytest.mark.parametrize("qform", [0, 1])
def test_a_header_without_spacing_is_refused(tmp_path, voxels, value, qform):
    path = save(tmp_path / "scan.nii", voxels, np.eye(4), sform=0, qform=qform)
    patch_header(path, pixdim=[1, 1, value, 1, 0, 0, 0, 0])
    with pytest.raises(DataError, match="give no affine; repair") as error:
        read_volume(path)
    one_line(error, path)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_voxels_that_are_not_finite_are_counted_and_refused(tmp_path, value):
    voxels = np.zeros((3, 4, 5), np.float32)
    voxels[1, 2, :2] = value
    path = save(tmp_path / "scan.nii", voxels)
    for read in (read_volume, read_labels):
        with pytest.raises(DataError, match="2 of 60 voxels are NaN or infinite") as error:
            read(path)
        one_line(error, path)


def test_colors_are_no_intensities(tmp_path):
    rgb = np.zeros((3, 4, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    path = save(tmp_path / "scan.nii", rgb)
    for read in (read_volume, read_labels):
        with pytest.raises(DataError, match="voxels are colors or complex numbers"):
            read(path)


def test_fractional_labels_are_refused_with_the_value(tmp_path):
    path = save(tmp_path / "l.nii", np.full((2, 2, 2), 0.5, np.float32))
    with pytest.raises(DataError, match=re.escape("label value 0.5 is not a whole number")):
        read_labels(path)


def test_labels_outside_the_scheme_are_refused(tmp_path):
    path = save(tmp_path / "l.nii", np.full((2, 2, 2), 3, np.uint8))
    with pytest.raises(DataError, match="outside the scheme two with 2 organs"):
        read_label_map(path, SCHEME)


@pytest.mark.parametrize("reason", ["No space left on device", "Permission denied"])
def test_a_full_disk_leaves_nothing_behind(tmp_path, voxels, monkeypatch, reason):
    def full(image, path):
        path.write_bytes(b"half of it")
        raise OSError(28, reason)

    monkeypatch.setattr(nifti.nibabel, "save", full)
    volume = Volume(voxels, Grid(voxels.shape, np.eye(4)))
    for name in ("a.nii", "a.nii.gz"):
        with pytest.raises(DataError, match=f"{name}: cannot be written, {reason}"):
            write_volume(tmp_path / name, volume)
    assert list(tmp_path.iterdir()) == []
