import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage

from sacl.scores.organs_of_case import surface_distances

ANISOTROPIC = (0.7, 1.1, 3.0)


def hd95_mm(reference, predicted, spacing):
    return surface_distances(reference, predicted, spacing).hd95_mm()


def nsd(reference, predicted, spacing, tolerance_mm):
    return surface_distances(reference, predicted, spacing).nsd(tolerance_mm)


def _blobs(seed, shape=(20, 18, 12)):
    generator = np.random.default_rng(seed)
    noise = [ndimage.gaussian_filter(generator.normal(size=shape), 2.0) for _ in range(2)]
    first, second = noise[0], 0.6 * noise[0] + 0.4 * noise[1]
    return first > np.quantile(first, 0.8), second > np.quantile(second, 0.75)


def _batch(mask):
    return torch.from_numpy(mask)[None, None].float()


def _point(*voxel, shape=(9, 9, 9)):
    mask = np.zeros(shape, dtype=bool)
    mask[voxel] = True
    return mask


def test_single_voxels_lie_as_far_apart_as_their_centers():
    a, b = _point(1, 1, 1), _point(4, 5, 1)
    assert hd95_mm(a, b, (1, 1, 1)) == 5
    assert hd95_mm(a, b, (2, 0.5, 7)) == pytest.approx(math.hypot(6, 2))


def test_shifted_cube_by_hand():
    reference, predicted = np.zeros((2, 12, 12, 12), dtype=bool)
    reference[2:6, 2:6, 2:6] = True
    predicted[4:8, 2:6, 2:6] = True
    # 56 surface voxels each; the four layers of the one lie 0 or 2, 0 or 1, 0 or 1 and 2 mm away
    distances = surface_distances(reference, predicted, (1, 1, 1))
    assert distances.from_reference.size == 56
    assert distances.hd95_mm() == 2
    assert np.sum(distances.from_reference == 2) == 16
    assert distances.nsd(1.0) == pytest.approx(1 - 2 * 16 / 112)


def test_percentile_interpolates_linearly_like_numpy():
    distance = surface_distances(_point(0, 0, 0), _point(0, 0, 8), (1, 1, 2)).from_reference
    assert distance.tolist() == [16.0]
    reference = _point(0, 0, 0) | _point(8, 0, 0)
    assert hd95_mm(reference, _point(0, 0, 0), (1, 1, 1)) == pytest.approx(0.95 * 8)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), ANISOTROPIC])
@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_monai(seed, spacing):
    reference, predicted = _blobs(seed)
    y, y_pred = _batch(reference), _batch(predicted)
    options = {"include_background": True, "spacing": spacing}
    hd95 = compute_hausdorff_distance(y_pred, y, percentile=95, **options).item()
    share = compute_surface_dice(y_pred, y, [2.0], **options).item()
    assert hd95_mm(reference, predicted, spacing) == pytest.approx(hd95, rel=1e-6)
    assert nsd(reference, predicted, spacing, 2.0) == pytest.approx(share, rel=1e-6)


def test_agrees_loosely_with_surface_distance():
    # surface-distance weighs subvoxel areas on a grid between the voxels
    module = pytest.importorskip("surface_distance")
    reference, predicted = _blobs(1, shape=(40, 40, 30))
    theirs = module.compute_surface_distances(reference, predicted, ANISOTROPIC)
    hd95 = module.compute_robust_hausdorff(theirs, 95)
    share = module.compute_surface_dice_at_tolerance(theirs, 2.0)
    assert hd95_mm(reference, predicted, ANISOTROPIC) == pytest.approx(hd95, abs=1.2)
    assert nsd(reference, predicted, ANISOTROPIC, 2.0) == pytest.approx(share, abs=0.08)


def test_distance_transform_gives_the_same_distances():
    reference, predicted = _blobs(7)
    surface = [m & ~ndimage.binary_erosion(m) for m in (reference, predicted)]
    transform = ndimage.distance_transform_edt(~surface[1], sampling=ANISOTROPIC)
    ours = surface_distances(reference, predicted, ANISOTROPIC).from_reference
    np.testing.assert_allclose(ours, transform[surface[0]], rtol=1e-12, atol=1e-12)


def test_mask_cut_off_by_the_edge_of_the_volume_has_a_surface_there():
    mask = np.ones((4, 4, 4), dtype=bool)
    assert surface_distances(mask, mask, (1, 1, 1)).from_reference.size == 64 - 8
    assert hd95_mm(mask, mask, (1, 1, 1)) == 0


def test_voxel_at_exactly_the_tolerance_is_within_it():
    a, b = _point(0, 0, 0), _point(0, 0, 3)
    assert 3 * 0.7 != 2.1
    assert nsd(a, b, (1, 1, 0.7), 2.1) == 1
    assert nsd(a, b, (1, 1, 0.7), 2.09) == 0


def test_both_empty_masks_are_undefined():
    empty = np.zeros((3, 3, 3), dtype=bool)
    assert math.isnan(hd95_mm(empty, empty, (1, 1, 1)))
    assert math.isnan(nsd(empty, empty, (1, 1, 1), 2.0))


@pytest.mark.parametrize("swap", [False, True])
def test_exactly_one_empty_mask_is_infinitely_far(swap):
    pair = [np.zeros((9, 9, 9), dtype=bool), _point(1, 1, 1) | _point(7, 7, 7)]
    first, second = pair[::-1] if swap else pair
    assert hd95_mm(first, second, (1, 1, 1)) == math.inf
    assert nsd(first, second, (1, 1, 1), 2.0) == 0


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    shift=st.tuples(*[st.integers(0, 4)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 6.0)] * 3),
)
def test_is_symmetric_and_does_not_depend_on_where_the_organ_lies(seed, shift, spacing):
    a, b = _blobs(seed, shape=(9, 8, 7))
    moved = []
    for mask in (a, b):
        room = np.zeros((14, 13, 12), dtype=bool)
        room[tuple(slice(s, s + n) for s, n in zip(shift, mask.shape, strict=True))] = mask
        moved.append(room)
    here = surface_distances(a, b, spacing)
    there = surface_distances(moved[1], moved[0], spacing)
    assert here.hd95_mm() == pytest.approx(there.hd95_mm())
    assert here.nsd(1.5) == pytest.approx(there.nsd(1.5))
