"""Prediction and the native grid commute, exactly, for every orientation, oblique ones too."""

import itertools

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sacl.model import Member, Model
from sacl.networks.encoder import EncoderSpec
from sacl.networks.segmenter import SegmenterSpec
from sacl.patches.region import Placement
from sacl.patches.window import WindowRule
from sacl.prediction.volume import Predictor
from sacl.stages.predict_folder import predict_folder

SHAPE = (20, 17, 6)


class Oracle(torch.nn.Module):
    """A network that segments by threshold, in the pixels' own place."""

    spec = SegmenterSpec(
        encoder=EncoderSpec(),
        decoder="unet",
        head="dense",
        scheme="two",
        organs=("liver", "spleen"),
        image_size=32,
        window=WindowRule("ct", (0.0, 200.0)),
        placement=Placement(region="slice", min_side_mm=8.0),
    )

    def forward(self, pixels):
        levels = torch.tensor([0.0, 0.5, 1.0])[None, :, None, None]
        return -20 * (pixels - levels).abs()


def predicted(voxels, affine, folder, codes=(1, 1)):
    """Write a scan, predict it as `sacl predict` does, and return both files."""
    scan = nibabel.Nifti1Image(voxels, affine)
    scan.set_qform(affine, code=codes[0])
    scan.set_sform(affine, code=codes[1])
    nibabel.save(scan, folder / "scan.nii.gz")
    predictor = Predictor(Oracle(), torch.device("cpu"))
    model = Model((Member("oracle", predictor, None),))
    (written,) = predict_folder(model, folder / "scan.nii.gz", folder / "out").written
    return nibabel.load(folder / "scan.nii.gz"), nibabel.load(written)


def scan_voxels(seed=0):
    """Return blobs of three intensities that touch each other and the edges."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 3, (4, 4, 3))
    return (100 * np.kron(coarse, np.ones((5, 5, 2)))[:20, :17, :6]).astype(np.int16)


def rotation(angles):
    """Return a rotation about x, then y, then z, in radians."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = [n for n in range(3) if n != axis]
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def affine_of(spacing, angles=(0.0, 0.0, 0.0), origin=(-11.0, 7.5, 120.0)):
    affine = np.eye(4)
    affine[:3, :3] = rotation(angles) @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


def reorient(voxels, affine, axes, flips):
    """Return the same scan with its axes stored in another order and direction."""
    turned, matrix = voxels.transpose(axes), affine.copy()
    matrix[:, :3] = affine[:, list(axes)]
    for axis, flip in enumerate(flips):
        if flip:
            turned = np.flip(turned, axis)
            matrix[:3, 3] += matrix[:3, axis] * (turned.shape[axis] - 1)
            matrix[:3, axis] *= -1
    return np.ascontiguousarray(turned), matrix


ORIENTATIONS = list(
    itertools.product(itertools.permutations(range(3)), itertools.product([0, 1], repeat=3))
)


@pytest.mark.parametrize(("axes", "flips"), ORIENTATIONS[::5])
@pytest.mark.parametrize(
    ("spacing", "angles"),
    [
        ((1.0, 1.0, 1.0), (0, 0, 0)),
        ((0.7, 1.3, 5.0), (0, 0, 0)),
        ((0.7, 1.3, 5.0), (0.3, -0.2, 0.4)),
    ],
    ids=["isotropic", "anisotropic", "oblique"],
)
def test_a_reoriented_scan_gets_the_reoriented_prediction(tmp_path, axes, flips, spacing, angles):
    voxels, affine = scan_voxels(), affine_of(spacing, angles)
    _, label = predicted(voxels, affine, tmp_path)
    straight = np.asarray(label.dataobj)
    assert len(np.unique(straight)) == 3
    turned, matrix = reorient(voxels, affine, axes, flips)
    scan, again = predicted(turned, matrix, tmp_path)
    expected, _ = reorient(straight, affine, axes, flips)
    assert np.array_equal(np.asarray(again.dataobj), expected)
    assert np.array_equal(again.affine, scan.affine)
    assert again.shape == scan.shape


@settings(max_examples=15, deadline=None)
@given(
    spacing=st.tuples(*[st.floats(0.4, 6.0)] * 3),
    angles=st.tuples(*[st.floats(-0.6, 0.6)] * 3),
    codes=st.sampled_from([(1, 1), (1, 2), (2, 1), (0, 1), (0, 4)]),
    seed=st.integers(0, 99),
)
def test_the_headers_geometry_is_kept_to_the_bit(tmp_path_factory, spacing, angles, codes, seed):
    folder = tmp_path_factory.mktemp("scan")
    scan, label = predicted(scan_voxels(seed), affine_of(spacing, angles), folder, codes)
    for field in ("srow_x", "srow_y", "srow_z", "qform_code", "sform_code", "xyzt_units"):
        assert np.array_equal(scan.header[field], label.header[field]), field
    if codes[0]:
        for field in ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"):
            assert np.array_equal(scan.header[field], label.header[field]), field
    assert np.array_equal(scan.header["pixdim"][:4], label.header["pixdim"][:4])
    assert np.array_equal(scan.affine, label.affine)


def test_a_sheared_scan_keeps_its_affine_too(tmp_path):
    affine = affine_of((1.0, 1.0, 2.0))
    affine[0, 2] = 0.5
    scan, label = predicted(scan_voxels(), affine, tmp_path, codes=(0, 2))
    assert np.array_equal(scan.affine, label.affine)
    assert np.array_equal(scan.header["srow_x"], label.header["srow_x"])


def test_at_the_scans_own_pixels_the_threshold_comes_back(tmp_path):
    voxels = np.zeros((32, 32, 4), np.int16)
    voxels[4:20, 6:25, 1:3] = 100
    voxels[21:30, 10:20] = 200
    voxels, affine = reorient(
        voxels, affine_of((2.0, 2.0, 5.0), (0.2, 0.1, -0.3)), (2, 0, 1), (1, 0, 1)
    )
    _, label = predicted(voxels, affine, tmp_path)
    assert np.array_equal(np.asarray(label.dataobj), voxels // 100)
