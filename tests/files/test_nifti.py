from __future__ import annotations

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from sacl.files.nifti import (
    is_nifti,
    map_volume,
    read_label_map,
    read_label_table,
    read_labels,
    read_volume,
    stem,
    write_label_map,
    write_volume,
)
from sacl.types import Grid, LabelMap, LabelScheme, NativeFrame, Volume

SCHEME = LabelScheme("two", ("liver", "spleen & <co>"))
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = (
    Rotation.from_euler("xyz", (12, -7, 31), degrees=True).as_matrix()
    @ np.array([[0, 0, -1], [-1, 0, 0], [0, 1, 0]])
    @ np.diag([0.7, 0.9, 4.0])
)
OBLIQUE[:3, 3] = (-31.7, 88.1, -402.3)


@pytest.fixture
def voxels():
    return np.random.default_rng(0).integers(-1000, 2000, (5, 6, 7)).astype(np.int16)


def save(path, voxels, affine=OBLIQUE, sform=1, qform=1, **header):
    image = nibabel.Nifti1Image(voxels, affine)
    image.set_sform(affine, code=sform)
    image.set_qform(affine, code=qform)
    for key, value in header.items():
        image.header[key] = value
    nibabel.save(image, path)
    return path


def patch_header(path, **fields):
    """Change header fields on disk, unchecked."""
    header = nibabel.Nifti1Header(path.read_bytes()[:348], check=False)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock + path.read_bytes()[348:])
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_integers_stay_int16_and_canonical(tmp_path, voxels, suffix):
    path = save(tmp_path / f"a{suffix}", voxels)
    volume, frame = read_volume(path)
    expected = nibabel.as_closest_canonical(nibabel.load(path))
    assert volume.voxels.dtype == np.int16
    np.testing.assert_array_equal(volume.voxels, np.asarray(expected.dataobj))
    np.testing.assert_allclose(volume.grid.affine, expected.affine)
    assert frame.grid.shape == voxels.shape


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.uint16, np.int32, ">i2", ">u2", np.int64])
def test_integers_that_fit_become_int16(tmp_path, voxels, kind):
    voxels = (np.abs(voxels) % 100).astype(kind)
    image = nibabel.Nifti1Image(voxels, np.eye(4), dtype=kind)
    nibabel.save(image, tmp_path / "a.nii")
    volume, _ = read_volume(tmp_path / "a.nii")
    assert volume.voxels.dtype == np.dtype(np.int16)
    np.testing.assert_array_equal(volume.voxels, voxels)


def test_integers_that_do_not_fit_become_float32(tmp_path, voxels):
    big = voxels.astype(np.int32) * 1000
    volume, _ = read_volume(save(tmp_path / "a.nii", big, np.eye(4)))
    assert volume.voxels.dtype == np.float32
    np.testing.assert_array_equal(volume.voxels, big)


def test_a_whole_intercept_keeps_int16(tmp_path):
    stored = np.arange(24, dtype=np.uint16).reshape(2, 3, 4) + 40000
    path = save(tmp_path / "a.nii", stored, np.eye(4))
    patch_header(path, scl_slope=1, scl_inter=-41024)
    volume, _ = read_volume(path)
    assert volume.voxels.dtype == np.int16
    np.testing.assert_array_equal(volume.voxels, stored.astype(int) - 41024)


def test_large_integers_that_an_intercept_brings_into_range_are_exact(tmp_path):
    stored = np.arange(24, dtype=np.uint32).reshape(2, 3, 4) + np.uint32(4_000_000_000)
    path = save(tmp_path / "a.nii", stored, np.eye(4))
    patch_header(path, scl_slope=1, scl_inter=np.float32(-4_000_000_000))
    volume, _ = read_volume(path)
    assert volume.voxels.dtype == np.int16
    np.testing.assert_array_equal(volume.voxels, np.arange(24).reshape(2, 3, 4))


def test_a_fractional_slope_gives_float32(tmp_path, voxels):
    path = patch_header(save(tmp_path / "a.nii", voxels, np.eye(4)), scl_slope=0.37, scl_inter=-3)
    volume, _ = read_volume(path)
    assert volume.voxels.dtype == np.float32
    np.testing.assert_allclose(volume.voxels, nibabel.load(path).get_fdata(), rtol=1e-5)


def test_a_trailing_axis_of_one_is_dropped(tmp_path, voxels):
    path = save(tmp_path / "a.nii.gz", voxels[..., None])
    labels = save(tmp_path / "l.nii.gz", np.abs(voxels[..., None]))
    plain = save(tmp_path / "b.nii.gz", voxels)
    np.testing.assert_array_equal(read_volume(path)[0].voxels, read_volume(plain)[0].voxels)
    np.testing.assert_array_equal(read_labels(labels)[0], np.abs(read_volume(plain)[0].voxels))


def test_a_written_volume_is_mapped_not_read(tmp_path, voxels):
    volume, _ = read_volume(save(tmp_path / "a.nii.gz", voxels))
    write_volume(tmp_path / "c.nii", volume)
    mapped = map_volume(tmp_path / "c.nii")
    assert isinstance(mapped.voxels, np.memmap)
    assert mapped.voxels.dtype == np.int16
    np.testing.assert_array_equal(mapped.voxels, volume.voxels)
    np.testing.assert_allclose(mapped.grid.affine, volume.grid.affine, rtol=1e-6)


@pytest.mark.parametrize(("sform", "qform"), [(1, 1), (2, 0), (0, 1), (4, 2), (0, 0)])
@pytest.mark.parametrize("affine", [OBLIQUE, np.diag([-1.5, -1.5, 10, 1])])
def test_a_prediction_lies_on_exactly_the_scans_grid(tmp_path, voxels, sform, qform, affine):
    if (sform, qform) == (0, 0):  # no orientation at all: nibabel takes LAS about the center
        affine = nibabel.Nifti1Image(voxels, None).affine
    source = save(tmp_path / "a.nii.gz", voxels, affine, sform, qform, xyzt_units=10)
    volume, frame = read_volume(source)
    label_map = LabelMap((volume.voxels > 0).astype(np.uint8), volume.grid, SCHEME)
    write_label_map(tmp_path / "p.nii.gz", label_map, frame)
    scan, predicted = nibabel.load(source), nibabel.load(tmp_path / "p.nii.gz")
    assert predicted.get_data_dtype() == np.uint8
    assert predicted.affine.astype(np.float32).tobytes() == scan.affine.astype(np.float32).tobytes()
    for field in ("sform_code", "qform_code", "xyzt_units"):
        assert predicted.header[field] == scan.header[field]
    np.testing.assert_array_equal(np.asarray(predicted.dataobj), voxels > 0)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[st.floats(-180, 180)] * 3),
    st.tuples(*[st.floats(0.2, 9)] * 3),
    st.booleans(),
)
def test_a_quaternion_only_header_comes_back_bit_exact(tmp_path_factory, angles, spacing, flip):
    folder = tmp_path_factory.mktemp("q")
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * spacing
    if flip:
        affine[:3, 0] *= -1
    source = save(folder / "a.nii", np.ones((2, 3, 4), np.int16), affine, sform=0, qform=1)
    volume, frame = read_volume(source)
    label_map = LabelMap(volume.voxels.astype(np.uint8), volume.grid, SCHEME)
    write_label_map(folder / "p.nii", label_map, frame)
    scan, predicted = nibabel.load(source).affine, nibabel.load(folder / "p.nii").affine
    assert predicted.astype(np.float32).tobytes() == scan.astype(np.float32).tobytes()


def test_a_prediction_overlays_the_scan_for_an_independent_reader(tmp_path, voxels):
    source = save(tmp_path / "a.nii.gz", voxels)
    volume, frame = read_volume(source)
    label_map = LabelMap((volume.voxels > 0).astype(np.uint8), volume.grid, SCHEME)
    write_label_map(tmp_path / "p.nii.gz", label_map, frame)
    scan = SimpleITK.ReadImage(str(source))
    predicted = SimpleITK.ReadImage(str(tmp_path / "p.nii.gz"))
    assert predicted.GetSize() == scan.GetSize()
    assert predicted.GetOrigin() == pytest.approx(scan.GetOrigin())
    assert predicted.GetDirection() == pytest.approx(scan.GetDirection(), abs=1e-6)
    np.testing.assert_array_equal(
        SimpleITK.GetArrayFromImage(predicted), SimpleITK.GetArrayFromImage(scan) > 0
    )


def test_label_names_travel_in_the_file(tmp_path):
    label_map = LabelMap(np.ones((2, 2, 2), np.uint8), Grid((2, 2, 2), np.eye(4)), SCHEME)
    write_label_map(tmp_path / "l.nii.gz", label_map)
    assert read_label_table(tmp_path / "l.nii.gz") == {"liver": 1, "spleen & <co>": 2}
    (extension,) = nibabel.load(tmp_path / "l.nii.gz").header.extensions
    assert extension.code == 30
    assert b"<CaretExtension>" in extension.content


def test_a_file_without_a_label_table_has_none(tmp_path, voxels):
    assert read_label_table(save(tmp_path / "a.nii", voxels)) is None


def test_many_organs_are_written_in_16_bits(tmp_path):
    scheme = LabelScheme("many", tuple(f"organ_{n}" for n in range(300)))
    grid = Grid((5, 6, 10), np.eye(4))
    label_map = LabelMap(np.arange(1, 301).reshape(grid.shape), grid, scheme)
    write_label_map(tmp_path / "l.nii.gz", label_map)
    assert nibabel.load(tmp_path / "l.nii.gz").get_data_dtype() == np.uint16
    read, _ = read_label_map(tmp_path / "l.nii.gz", scheme)
    np.testing.assert_array_equal(read.voxels, label_map.voxels)


def test_labels_stored_as_floats_are_read_as_integers(tmp_path, voxels):
    whole = (np.abs(voxels) % 5).astype(np.float64)
    labels, _, _ = read_labels(save(tmp_path / "l.nii", whole, np.eye(4)))
    assert labels.dtype.kind == "i"
    np.testing.assert_array_equal(labels, whole)


@pytest.mark.parametrize("kind", [np.int16, np.uint8, np.float32])
def test_a_volume_is_written_byte_for_byte_as_nibabel_writes_it(tmp_path, voxels, kind):
    volume, _ = read_volume(save(tmp_path / "a.nii.gz", voxels))
    volume = Volume(volume.voxels.astype(kind), volume.grid)
    write_volume(tmp_path / "c.nii", volume)
    image = nibabel.Nifti1Image(volume.voxels, volume.grid.affine)
    image.set_sform(volume.grid.affine, code=1)
    image.set_qform(volume.grid.affine, code=0)
    image.header["xyzt_units"] = 2
    nibabel.save(image, tmp_path / "n.nii")
    assert (tmp_path / "c.nii").read_bytes() == (tmp_path / "n.nii").read_bytes()


def test_writing_twice_gives_the_same_bytes(tmp_path):
    label_map = LabelMap(np.ones((2, 2, 2), np.uint8), Grid((2, 2, 2), np.eye(4)), SCHEME)
    for name in ("a", "b"):
        write_label_map(tmp_path / f"{name}.nii.gz", label_map, NativeFrame(label_map.grid))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_macos_companions_are_no_scan_files(tmp_path):
    assert [is_nifti(tmp_path / n) for n in ("a.nii", "a.nii.gz", "._a.nii.gz", "a.mha")] == [
        True,
        True,
        False,
        False,
    ]
    assert stem(tmp_path / "case.1.nii.gz") == "case.1"
