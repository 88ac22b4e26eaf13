"""Voxels and grids against SimpleITK's reader, an independent implementation (ITK and GDCM)."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pydicom
import pytest
import SimpleITK
from make_series import AXIAL, CORONAL, make_scan, oblique, other, tilted, write_scan

from sacl.dicom.intake import take_in
from sacl.dicom.stack import read_stack
from sacl.files.nifti import read_labels
from sacl.geometry import describe, same_grid, to_canonical
from sacl.types import Grid

SAGITTAL = ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0))


def by_simpleitk(folder):
    """Return voxels `[i, j, k]` and the RAS+ grid that SimpleITK reads, in canonical order."""
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    lps = np.eye(4)
    lps[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    lps[:3, 3] = image.GetOrigin()
    voxels = SimpleITK.GetArrayFromImage(image).T
    return to_canonical(voxels, Grid(voxels.shape, np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps))


def ours(folder):
    (verdict,) = take_in(folder).verdicts
    return read_stack(verdict.stack, "x")


def agree(folder):
    voxels, grid = by_simpleitk(folder)
    volume, native = ours(folder)
    assert same_grid(volume.grid, grid, 1e-6), f"{describe(volume.grid)}, {describe(grid)}"
    np.testing.assert_array_equal(volume.voxels, voxels)
    return native


@pytest.mark.parametrize("cosines", [AXIAL, CORONAL, SAGITTAL])
@pytest.mark.parametrize("way", [1.0, -1.0])
def test_agrees_on_all_planes_and_both_ways(tmp_path, cosines, way):
    rng = np.random.default_rng(1)
    step = tuple(float(x) for x in way * 3.0 * np.cross(*cosines))
    scan = make_scan(rng, 9, cosines=cosines, step_mm=step, spacing_mm=(0.6, 1.9))
    agree(write_scan(scan, tmp_path, rng))


@pytest.mark.parametrize("seed", range(4))
def test_agrees_on_oblique_anisotropic_series(tmp_path, seed):
    rng = np.random.default_rng(seed)
    spacing = tuple(float(x) for x in rng.uniform(0.4, 3.0, 2).round(4))
    scan = oblique(rng, slices=7, spacing_mm=spacing, modality=["CT", "MR"][seed % 2])
    agree(write_scan(scan, tmp_path, rng))


@pytest.mark.parametrize("flips", [(-1, 1), (1, -1), (-1, -1)])
def test_agrees_on_flipped_rows_and_columns(tmp_path, flips):
    rng = np.random.default_rng(2)
    cosines = tuple(tuple(f * x for x in c) for f, c in zip(flips, AXIAL, strict=True))
    scan = make_scan(rng, 6, cosines=cosines, slope=2.0)
    agree(write_scan(scan, tmp_path, rng))


def test_the_native_grid_is_that_of_the_files_themselves(tmp_path):
    rng = np.random.default_rng(3)
    scan = oblique(rng, slices=6)
    native = agree(write_scan(scan, tmp_path, rng))
    assert native.grid.shape == scan.stored.shape
    np.testing.assert_allclose(native.grid.affine, scan.affine, rtol=0, atol=1e-6)


def test_a_gantry_tilt_keeps_every_slice_where_its_header_puts_it(tmp_path):
    """SimpleITK's grids cannot be sheared: each slice is compared with the one it reads alone."""
    rng = np.random.default_rng(4)
    scan = tilted(rng, 15.0, slices=6)
    write_scan(scan, tmp_path, rng)
    _, native = ours(tmp_path)
    origins = sorted(SimpleITK.ReadImage(str(path)).GetOrigin() for path in tmp_path.iterdir())
    corners = [native.grid.affine @ (0, 0, k, 1) for k in range(6)]
    ours_lps = sorted((-x, -y, z) for x, y, z, _ in corners)
    np.testing.assert_allclose(sorted(ours_lps), sorted(origins), rtol=0, atol=1e-6)
    assert not same_grid(native.grid, by_simpleitk(tmp_path)[1], 1.0)
    np.testing.assert_allclose(native.grid.affine, scan.affine, rtol=0, atol=1e-6)


def test_agrees_on_a_series_in_a_zip(tmp_path):
    rng = np.random.default_rng(5)
    folder = write_scan(oblique(rng, slices=6), tmp_path / "a", rng)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in folder.iterdir():
            archive.write(path, f"deep/er/{path.name}")
    voxels, grid = by_simpleitk(folder)
    volume, _ = ours(tmp_path / "a.zip")
    assert same_grid(volume.grid, grid, 1e-6)
    np.testing.assert_array_equal(volume.voxels, voxels)


def test_a_second_scan_with_other_voxels_does_not_agree(tmp_path):
    rng = np.random.default_rng(6)
    scan = oblique(rng, slices=6)
    voxels, _ = by_simpleitk(write_scan(scan, tmp_path / "a", rng))
    volume, _ = ours(write_scan(other(scan, slope=2.0), tmp_path / "b", rng))
    assert not np.array_equal(volume.voxels, voxels)


@pytest.mark.real_data
def test_a_real_series_lies_on_its_segmentations_grid_with_plausible_organs(real_data, tmp_path):
    folder = real_data / "TotalSegmentator_CT"
    if not folder.is_dir():
        pytest.skip("SACL_DATA has no TotalSegmentator_CT")
    intake = take_in(folder / "dicom_series.zip")
    (verdict,) = intake.verdicts
    volume, _ = read_stack(verdict.stack, "x")
    labels, grid, _ = read_labels(folder / "segmentation_dicom.nii.gz")
    assert volume.voxels.dtype == np.int16
    assert same_grid(volume.grid, grid, 1e-3)
    names = json.loads((folder / "labels.json").read_text())
    hu = {
        name: float(np.median(volume.voxels[labels == int(value)]))
        for value, name in names.items()
        if np.any(labels == int(value))
    }
    for organ in ("liver", "spleen", "inferior_vena_cava"):
        assert 50 < hu[organ] < 150
    assert hu["vertebrae_T12"] > 150 > hu["autochthon_left"] > 0
    assert hu["colon"] < hu["liver"]
    assert hu["aorta"] > hu["portal_vein_and_splenic_vein"] > hu["liver"]
    assert verdict.labels["phase"] == "portal_venous"
    assert verdict.labels["contrast"] == "yes"
    with zipfile.ZipFile(folder / "dicom_series.zip") as archive:
        for name in archive.namelist():
            if not name.endswith("/"):
                (tmp_path / name.rpartition("/")[2]).write_bytes(archive.read(name))
    reader = SimpleITK.ImageSeriesReader()
    files = sorted(tmp_path.iterdir(), key=lambda p: pydicom.dcmread(p).ImagePositionPatient[2])
    reader.SetFileNames([str(path) for path in files])
    voxels = SimpleITK.GetArrayFromImage(reader.Execute()).T
    np.testing.assert_array_equal(np.flip(voxels, (0, 1)), volume.voxels)
