from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from nibabel import Nifti1Image, aff2axcodes, as_closest_canonical
from scipy.spatial.transform import Rotation

from sacl.errors import DataError
from sacl.geometry import (
    describe,
    orientation_of,
    require_same_grid,
    same_grid,
    to_canonical,
    to_native,
)
from sacl.types import Grid

ORIENTATIONS = [
    (axes, signs)
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


@st.composite
def grids(draw, max_angle_deg=180.0, max_shear=0.6):
    """Random oblique, flipped, anisotropic and sheared grids."""
    axes, signs = draw(st.sampled_from(ORIENTATIONS))
    shape = draw(st.tuples(*[st.integers(1, 5)] * 3))
    spacing = draw(st.tuples(*[st.floats(0.2, 9.0)] * 3))
    angles = draw(st.tuples(*[st.floats(-max_angle_deg, max_angle_deg)] * 3))
    shear = np.eye(3)
    shear[np.triu_indices(3, 1)] = draw(st.tuples(*[st.floats(-max_shear, max_shear)] * 3))
    axis = np.zeros((3, 3))
    axis[axes, range(3)] = signs
    rotation = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = rotation @ shear @ axis @ np.diag(spacing)
    affine[:3, 3] = draw(st.tuples(*[st.floats(-500, 500)] * 3))
    return Grid(shape, affine)


def voxels_of(grid):
    return np.arange(np.prod(grid.shape), dtype=np.int32).reshape(grid.shape)


@given(grids())
@settings(deadline=None)
def test_the_way_to_canonical_and_back_is_exact(grid):
    voxels = voxels_of(grid)
    canonical, canonical_grid = to_canonical(voxels, grid)
    assert canonical.shape == canonical_grid.shape
    np.testing.assert_array_equal(to_native(canonical, grid), voxels)


def test_a_thousand_random_affines_lead_back_exactly_and_as_nibabel_orients():
    rng = np.random.default_rng(0)
    for number in range(1000):
        axes, signs = ORIENTATIONS[number % len(ORIENTATIONS)]
        turn = np.zeros((3, 3))
        turn[axes, range(3)] = signs
        tilt = Rotation.from_euler("xyz", rng.uniform(-15, 15, 3), degrees=True).as_matrix()
        shear = np.eye(3) + np.triu(rng.uniform(-0.05, 0.05, (3, 3)), 1)
        affine = np.eye(4)
        affine[:3, :3] = tilt @ shear @ turn * rng.uniform(0.2, 9.0, 3)
        affine[:3, 3] = rng.uniform(-900, 900, 3)
        grid = Grid(tuple(rng.integers(1, 7, 3)), affine)
        voxels = voxels_of(grid)
        canonical, canonical_grid = to_canonical(voxels, grid)
        assert np.array_equal(to_native(canonical, grid), voxels)
        closest = as_closest_canonical(Nifti1Image(voxels, affine))
        assert np.array_equal(canonical, np.asarray(closest.dataobj))
        assert np.abs(canonical_grid.affine - closest.affine).max() < 1e-9


@given(grids())
@settings(deadline=None)
def test_every_voxel_keeps_its_place_in_the_world(grid):
    voxels = voxels_of(grid)
    canonical, canonical_grid = to_canonical(voxels, grid)
    for index in itertools.product(*[(0, n - 1) for n in grid.shape]):
        here = np.argwhere(canonical == voxels[index])[0]
        np.testing.assert_allclose(
            canonical_grid.affine @ [*here, 1], grid.affine @ [*index, 1], atol=1e-9
        )


@given(grids())
@settings(deadline=None)
def test_canonical_stays_canonical_also_when_a_file_rounds_it(grid):
    canonical, canonical_grid = to_canonical(voxels_of(grid), grid)
    cosine = grid.affine[:3, :3] / np.linalg.norm(grid.affine[:3, :3], axis=0)
    sums = sorted(np.abs(cosine)[range(3), p].sum() for p in itertools.permutations(range(3)))
    assume(sums[-1] - sums[-2] > 1e-4 or sums[-1] - sums[-2] < 1e-6)
    for affine in (canonical_grid.affine, canonical_grid.affine.astype(np.float32)):
        again = orientation_of(Grid(canonical.shape, affine))
        assert again == ((0, False), (1, False), (2, False))


@pytest.mark.parametrize("degrees", [45, 135, -45])
def test_a_tie_keeps_the_axes_as_they_are(degrees):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("z", degrees, degrees=True).as_matrix()
    assert [axis for axis, _ in orientation_of(Grid((2, 3, 4), affine))] == [0, 1, 2]


@given(grids(max_angle_deg=15.0, max_shear=0.05))
@settings(max_examples=200, deadline=None)
def test_agrees_with_nibabel_on_nearly_orthogonal_grids(grid):
    voxels = voxels_of(grid)
    expected = as_closest_canonical(Nifti1Image(voxels, grid.affine))
    canonical, canonical_grid = to_canonical(voxels, grid)
    np.testing.assert_array_equal(canonical, np.asarray(expected.dataobj))
    np.testing.assert_allclose(canonical_grid.affine, expected.affine, atol=1e-9)
    assert aff2axcodes(canonical_grid.affine) == ("R", "A", "S")


@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS)
def test_axis_aligned_grids_become_positive_diagonal(axes, signs):
    affine = np.eye(4)
    affine[:3, :3] = 0
    affine[list(axes), range(3)] = np.array(signs) * (1.0, 2.0, 3.0)
    _, grid = to_canonical(np.zeros((2, 3, 4)), Grid((2, 3, 4), affine))
    linear = grid.affine[:3, :3]
    assert (np.diag(linear) > 0).all()
    assert np.count_nonzero(linear - np.diag(np.diag(linear))) == 0


def test_canonical_is_a_view_and_costs_no_memory():
    voxels = np.zeros((2, 3, 4))
    canonical, _ = to_canonical(voxels, Grid((2, 3, 4), np.diag([-1.0, -1, 2, 1])))
    assert np.shares_memory(canonical, voxels)


def test_grids_that_differ_by_float32_rounding_are_the_same():
    affine = np.diag([0.7, 0.7, 3.3, 1.0])
    affine[:3, 3] = (-171.3, 212.9, -1023.7)
    rounded = affine.astype(np.float32).astype(np.float64)
    assert same_grid(Grid((512, 512, 300), affine), Grid((512, 512, 300), rounded))


def test_a_tilt_that_shows_only_in_the_far_corner_is_another_grid():
    affine = np.eye(4)
    affine[0, 2] = 1e-3
    assert not same_grid(Grid((9, 9, 99), np.eye(4)), Grid((9, 9, 99), affine))


@pytest.mark.parametrize(
    ("affine", "said"),
    [
        (np.diag([6.0, 1e30, 8, 1]), "no scan has 6 x 1e+30 x 8 mm"),
        (np.diag([6.0, 1e-4, 8, 1]), "no scan has 6 x 0.0001 x 8 mm"),
        (np.diag([6.0, 6, 0, 1]), "no scan has 6 x 6 x 0 mm"),
        (np.ones((4, 4)), "axes in one plane"),
    ],
)
def test_voxels_that_no_scan_has_are_refused(affine, said):
    with pytest.raises(DataError, match=re.escape(said)):
        Grid((4, 4, 4), affine)


def test_thin_and_thick_voxels_are_scans_all_the_same():
    for sizes in ((0.002, 0.002, 1.0), (0.1, 0.1, 50.0), (900.0, 900.0, 1000.0)):
        assert Grid((4, 4, 4), np.diag([*sizes, 1.0])).spacing_mm == sizes


def test_a_mismatch_names_the_case_and_both_grids():
    other = np.diag([1.0, 1.0, 2.5, 1.0])
    with pytest.raises(DataError) as error:
        require_same_grid(Grid((4, 4, 4), np.eye(4)), Grid((4, 4, 3), other), "case 7")
    assert str(error.value).startswith("case 7: ")
    assert "4 x 4 x 4 voxels of 1 x 1 x 1 mm" in str(error.value)
    assert "4 x 4 x 3 voxels of 1 x 1 x 2.5 mm" in str(error.value)
    assert "(other shape, other spacing, first voxels 0 mm apart" in str(error.value)
    assert str(error.value).endswith("; resample the label map onto the image's grid")
    assert "\n" not in str(error.value)


def test_a_mismatch_tells_shift_and_angle():
    moved = np.eye(4)
    moved[:3, :3] = Rotation.from_euler("z", 12.5, degrees=True).as_matrix()
    moved[:3, 3] = (3, 4, 0)
    with pytest.raises(
        DataError, match=r"first voxels 5 mm apart.*axes up to 12\.5 degrees"
    ) as error:
        require_same_grid(Grid((4, 4, 4), np.eye(4)), Grid((4, 4, 4), moved), "case 7", "mend it")
    assert "other" not in str(error.value)
    assert str(error.value).endswith("; mend it")


def test_a_grid_is_told_in_words():
    affine = np.diag([0.75, 0.75, 3.0, 1.0])
    affine[:3, 3] = (-10, 20, -30.5)
    assert describe(Grid((5, 6, 7), affine)) == (
        "5 x 6 x 7 voxels of 0.75 x 0.75 x 3 mm at (-10, 20, -30.5)"
    )
