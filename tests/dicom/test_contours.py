"""Outlines of masks, filled again by the definition: count the edges left of a pixel's center."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

from sacl.dicom.rtstruct import outlines


def crossings(polygon, shape):
    """Return how often the polygon passes left of each pixel's center, and in which sense."""
    row, column = np.mgrid[: shape[0], : shape[1]] + 0.5
    count, winding = np.zeros(shape, int), np.zeros(shape, int)
    for (r0, c0), (r1, c1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        assert r0 == r1 or c0 == c1, "outlines run along pixel edges"
        passes = (np.minimum(r0, r1) < row) & (row < np.maximum(r0, r1)) & (c0 < column)
        count += passes
        winding += passes * int(np.sign(r1 - r0))
    return count, winding


def filled(polygons, shape):
    """Return the pixels inside, which have to be the same by every rule that readers have."""
    even_odd, winding, union = np.zeros(shape, int), np.zeros(shape, int), np.zeros(shape, bool)
    for polygon in polygons:
        count, turns = crossings(polygon, shape)
        even_odd += count
        winding += turns
        union |= count % 2 == 1
    np.testing.assert_array_equal(union, even_odd % 2 == 1)
    np.testing.assert_array_equal(union, winding != 0)
    return union


masks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12))


@settings(max_examples=100, deadline=None)
@given(masks)
def test_filling_the_outlines_gives_the_mask_by_every_rule(mask):
    np.testing.assert_array_equal(filled(outlines(mask), mask.shape), mask)


@settings(max_examples=100, deadline=None)
@given(masks)
def test_no_corner_lies_on_a_straight_line(mask):
    for polygon in outlines(mask):
        steps = np.roll(polygon, -1, axis=0) - polygon
        directions = np.sign(steps)
        assert (np.abs(directions).sum(axis=1) == 1).all()
        assert (directions != np.roll(directions, 1, axis=0)).any(axis=1).all()


def test_a_box_is_its_four_corners():
    mask = np.zeros((5, 6), bool)
    mask[1:3, 2:6] = True
    (polygon,) = outlines(mask)
    assert sorted(map(tuple, polygon.tolist())) == [(1, 2), (1, 6), (3, 2), (3, 6)]


def test_a_ring_is_one_polygon_with_a_cut():
    mask = np.ones((5, 5), bool)
    mask[2, 2] = False
    (polygon,) = outlines(mask)
    np.testing.assert_array_equal(filled([polygon], mask.shape), mask)


def test_pixels_that_touch_at_a_corner_are_outlined_apart():
    assert len(outlines(np.eye(3, dtype=bool))) == 3


def test_an_island_in_a_hole_is_outlined_too():
    mask = np.ones((9, 9), bool)
    mask[2:7, 2:7] = False
    mask[4, 4] = True
    assert len(outlines(mask)) == 2
    np.testing.assert_array_equal(filled(outlines(mask), mask.shape), mask)


@pytest.mark.parametrize("shape", [(1, 1), (3, 4)])
def test_an_empty_mask_has_no_outline(shape):
    assert outlines(np.zeros(shape, bool)) == []
