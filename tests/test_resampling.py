"""Nearest-neighbor resampling of label maps against its definition and SimpleITK."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from sacl.geometry import resample_nearest, to_canonical
from sacl.types import Grid


def oblique(angles_deg, spacing_mm, origin_mm):
    affine = np.eye(4)
    rotation = Rotation.from_euler("xyz", angles_deg, degrees=True).as_matrix()
    affine[:3, :3] = rotation @ np.diag(spacing_mm)
    affine[:3, 3] = origin_mm
    return affine


def labels_on(shape, seed=0):
    return np.random.default_rng(seed).integers(1, 9, shape).astype(np.uint8)


def by_definition(voxels, source, target):
    """Look at every target voxel's center for the source voxel whose center is nearest to it."""
    inverse = np.linalg.inv(source.affine)
    found = np.zeros(target.shape, voxels.dtype)
    for index in itertools.product(*map(range, target.shape)):
        place = (inverse @ target.affine @ [*index, 1])[:3]
        nearest = tuple(round(float(x)) for x in place)
        if all(0 <= n < count for n, count in zip(nearest, source.shape, strict=True)):
            found[index] = voxels[nearest]
    return found


def halfway(source, target):
    """Tell which of the target's centers lie on the border of two source voxels, or very nearly."""
    places = np.linalg.inv(source.affine) @ target.affine
    place = places[:3, :3] @ np.indices(target.shape).reshape(3, -1) + places[:3, 3:]
    return (np.abs(place % 1 - 0.5) < 2e-3).any(axis=0).reshape(target.shape)


@st.composite
def grids(draw):
    spacing_mm = draw(st.tuples(*[st.floats(0.5, 4.0)] * 3))
    angles_deg = draw(st.tuples(*[st.floats(-180, 180)] * 3))
    origin_mm = draw(st.tuples(*[st.floats(-4, 4)] * 3))
    shape = draw(st.tuples(*[st.integers(1, 6)] * 3))
    return Grid(shape, oblique(angles_deg, spacing_mm, origin_mm))


@settings(max_examples=100, deadline=None)
@given(grids(), grids())
def test_every_voxel_takes_the_value_of_the_nearest_one(source, target):
    voxels, clear = labels_on(source.shape), ~halfway(source, target)
    expected = by_definition(voxels, source, target)
    actual = resample_nearest(voxels, source, target)
    np.testing.assert_array_equal(actual[clear], expected[clear])


def test_agrees_with_simpleitk():
    source = Grid((31, 27, 14), oblique((10, 0, -20), (1.0, 1.5, 3.0), (-20, 5, 9)))
    target = Grid((40, 33, 25), oblique((0, 5, 3), (0.9, 1.1, 2.0), (-22, 4, 3)))
    voxels = labels_on(source.shape)
    images = []
    for grid, values in ((source, voxels), (target, np.zeros(target.shape, np.uint8))):
        image = SimpleITK.GetImageFromArray(values.transpose())
        image.SetSpacing(grid.spacing_mm)
        image.SetOrigin(grid.affine[:3, 3])
        image.SetDirection((grid.affine[:3, :3] / grid.spacing_mm).ravel())
        images.append(image)
    identity = SimpleITK.Transform()
    expected = SimpleITK.Resample(images[0], images[1], identity, SimpleITK.sitkNearestNeighbor)
    actual = resample_nearest(voxels, source, target)
    clear = ~halfway(source, target)
    assert np.count_nonzero(actual[clear]) > 10000
    assert clear.mean() > 0.95
    by_simpleitk = SimpleITK.GetArrayFromImage(expected).transpose()
    np.testing.assert_array_equal(actual[clear], by_simpleitk[clear])


def test_the_same_grid_gives_the_same_voxels():
    grid = Grid((5, 6, 7), oblique((3, 1, 7), (1, 2, 3), (-70, 8, 99)))
    voxels = labels_on(grid.shape)
    assert resample_nearest(voxels, grid, Grid(grid.shape, grid.affine.copy())) is voxels


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", list(itertools.product((1, -1), repeat=3)))
def test_permuted_and_flipped_grids_are_exact(axes, signs):
    turned = np.eye(4)
    turned[:3, :3] = oblique((9, -4, 13), (0.7, 0.9, 2.5), (0, 0, 0))[:3, axes] * signs
    turned[:3, 3] = (-171.3, 212.9, -1023.7)
    source = Grid((4, 5, 6), turned.astype(np.float32))
    voxels = labels_on(source.shape)
    canonical, target = to_canonical(voxels, source)
    np.testing.assert_array_equal(resample_nearest(voxels, source, target), canonical)
    np.testing.assert_array_equal(resample_nearest(canonical, target, source), voxels)


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
def test_halfway_the_voxel_to_the_right_front_and_head_is_taken(signs):
    source = Grid((2, 2, 2), np.diag([*signs, 1.0]))
    voxels = np.arange(1, 9, dtype=np.uint8).reshape(2, 2, 2)
    canonical, grid = to_canonical(voxels, source)
    shifted = grid.affine.copy()
    shifted[:3, 3] += 0.5
    found = resample_nearest(voxels, source, Grid((2, 2, 2), shifted))
    assert found[0, 0, 0] == canonical[1, 1, 1]
    assert found[1, 1, 1] == 0


def test_outside_is_background():
    source, away = Grid((3, 3, 3), np.eye(4)), np.eye(4)
    away[0, 3] = 2
    found = resample_nearest(np.full((3, 3, 3), 7, np.uint16), source, Grid((3, 3, 3), away))
    assert found.dtype == np.uint16
    assert found[:, 0, 0].tolist() == [7, 0, 0]


def test_memory_stays_below_two_scans():
    source = Grid((96, 96, 96), oblique((5, 5, 5), (1, 1, 1), (0, 0, 0)))
    voxels = labels_on(source.shape).astype(np.int16)
    tracemalloc.start()
    resample_nearest(voxels, source, Grid((96, 96, 96), np.eye(4)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The result is one scan; what comes on top are some arrays of one slice.
    assert peak < 1.5 * voxels.nbytes
