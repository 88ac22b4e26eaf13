import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from sacl.patches.query import (
    crop,
    cut,
    organ_regions,
    plan_boxes,
    round_to_even,
    whole_slice_box,
)
from sacl.types import Box, Grid, LabelMap, LabelScheme

SCHEME = LabelScheme("two", ("liver", "aorta"))


def coarse_map(voxels, spacing_mm=(1.0, 1.0, 5.0)):
    grid = Grid(voxels.shape, np.diag([*spacing_mm, 1.0]))
    return LabelMap(voxels.astype(np.uint8), grid, SCHEME)


def one_block(shape=(40, 40, 10), span=((10, 20), (12, 32), (3, 6)), spacing_mm=(1.0, 1.0, 5.0)):
    voxels = np.zeros(shape)
    voxels[tuple(slice(*s) for s in span)] = 1
    return coarse_map(voxels, spacing_mm)


def test_gives_every_slice_of_the_organ_a_square_box_about_its_middle():
    boxes = plan_boxes(one_block(), "liver", context=1.5, min_side_mm=10, slice_margin=0)

    assert [box.start[2] for box in boxes] == [3, 4, 5]
    assert {box.shape for box in boxes} == {(30, 30, 1)}
    assert {box.start[:2] for box in boxes} == {(0, 7)}


def test_adds_slices_beyond_both_ends_but_none_outside_the_volume():
    at_the_floor = one_block(span=((10, 20), (12, 32), (0, 2)))

    boxes = plan_boxes(at_the_floor, "liver", slice_margin=2)

    assert [box.start[2] for box in boxes] == [0, 1, 2, 3]


def test_copies_the_center_of_the_nearest_slice_beyond_the_ends():
    voxels = np.zeros((40, 40, 6))
    voxels[4:8, 4:8, 2] = 1
    voxels[30:34, 30:34, 3] = 1

    below, first, second, above = plan_boxes(
        coarse_map(voxels), "liver", context=1.0, min_side_mm=4, slice_margin=1
    )

    assert below.start[:2] == first.start[:2] == (4, 4)
    assert above.start[:2] == second.start[:2] == (30, 30)


def test_bridges_a_gap_in_the_mask_only_as_far_as_the_slice_margin():
    voxels = np.zeros((20, 20, 12))
    voxels[5:9, 5:9, [2, 9]] = 1

    boxes = plan_boxes(coarse_map(voxels), "liver", slice_margin=2)

    assert [box.start[2] for box in boxes] == [0, 1, 2, 3, 4, 7, 8, 9, 10, 11]


def test_takes_the_side_of_the_widest_slice_for_all_slices():
    voxels = np.zeros((60, 60, 4))
    voxels[20:24, 20:24, 1] = 1
    voxels[10:40, 20:24, 2] = 1

    boxes = plan_boxes(coarse_map(voxels), "liver", context=1.4, min_side_mm=1)

    assert {box.shape[:2] for box in boxes} == {(42, 42)}


def test_lies_no_further_than_half_a_voxel_from_the_middle_on_either_side():
    odd_in_even = one_block(span=((10, 15), (10, 15), (0, 1)))

    box = plan_boxes(odd_in_even, "liver", context=1.0, min_side_mm=6)[0]

    assert (box.start[:2], box.stop[:2]) == ((10, 10), (16, 16))


def test_never_cuts_a_smaller_side_than_asked_for():
    boxes = plan_boxes(one_block(), "liver", context=1.0, min_side_mm=36.0)

    assert boxes[0].shape[:2] == (36, 36)


def test_is_square_in_mm_where_voxels_are_not():
    boxes = plan_boxes(one_block(spacing_mm=(2.0, 0.5, 5.0)), "liver", 1.0, 24.0)

    assert boxes[0].shape == (12, 48, 1)


def test_finds_no_box_of_an_organ_that_is_not_there():
    assert plan_boxes(one_block(), "aorta") == []


def test_takes_the_same_boxes_from_a_region_that_is_known_already():
    coarse = one_block()

    assert list(organ_regions(coarse)) == ["liver"]
    assert plan_boxes(coarse, "liver", region=organ_regions(coarse)["liver"]) == plan_boxes(
        coarse, "liver"
    )


def test_holds_the_whole_slice_in_the_smallest_centered_square():
    grid = Grid((50, 30, 4), np.diag([2.0, 2.0, 5.0, 1.0]))

    assert whole_slice_box(grid, 2) == Box((0, -10, 2), (50, 40, 3))


@given(
    shape=st.tuples(st.integers(5, 60), st.integers(5, 60)),
    spacing_mm=st.tuples(st.floats(0.4, 4), st.floats(0.4, 4)),
)
@settings(max_examples=50, deadline=None)
def test_no_voxel_of_a_slice_is_outside_its_square(shape, spacing_mm):
    box = whole_slice_box(Grid((*shape, 3), np.diag([*spacing_mm, 3.0, 1.0])), 1)

    assert all(box.start[a] <= 0 and box.stop[a] >= shape[a] for a in (0, 1))
    sides = [box.shape[a] * spacing_mm[a] for a in (0, 1)]
    assert abs(sides[0] - sides[1]) <= max(spacing_mm) + 1e-3


@pytest.mark.parametrize(("rows", "columns"), [(100, 70), (64, 64), (20, 33)])
def test_agrees_with_torchs_antialiased_resize_away_from_the_border(rows, columns):
    plane = np.random.default_rng(0).random((200, 180), dtype=np.float32)
    box = Box((40, 50, 0), (40 + rows, 50 + columns, 1))

    pixels = cut(plane, box, 64)

    inside = torch.from_numpy(plane[40 : 40 + rows, 50 : 50 + columns])[None, None]
    oracle = functional.interpolate(
        inside, size=(64, 64), mode="bilinear", antialias=True, align_corners=False
    )
    np.testing.assert_allclose(pixels[3:-3, 3:-3], oracle[0, 0, 3:-3, 3:-3], atol=1e-5)


@given(
    start=st.tuples(st.integers(-20, 60), st.integers(-20, 60)),
    sides=st.tuples(st.integers(4, 90), st.integers(4, 90)),
    scale=st.floats(1.0, 2.0),
)
@settings(max_examples=60, deadline=None)
def test_has_exactly_the_plain_patch_in_the_middle_of_a_cut_with_margin(start, sides, scale):
    plane = np.random.default_rng(1).random((60, 70), dtype=np.float32)
    box = Box((*start, 0), (start[0] + sides[0], start[1] + sides[1], 1))

    plain, wide = cut(plane, box, 16), cut(plane, box, 16, scale)

    edge = (wide.shape[0] - 16) // 2
    assert wide.shape == (round_to_even(16 * scale),) * 2
    np.testing.assert_allclose(wide[edge : edge + 16, edge : edge + 16], plain, atol=1e-5)


def test_puts_every_pixel_where_it_lies():
    i, j = np.mgrid[0:80, 0:90].astype(np.float32)
    box = Box((6, 30, 0), (70, 50, 1))

    pixels = cut(np.stack([i, j]), box, 32)

    # 64 and 20 voxels on 32 pixels: pixel p has its center at start - 0.5 + (p + 0.5) * pitch.
    np.testing.assert_allclose(pixels[0, :, 5], 5.5 + (np.arange(32) + 0.5) * 2, rtol=1e-5)
    np.testing.assert_allclose(pixels[1, 5, :], 29.5 + (np.arange(32) + 0.5) * 0.625, rtol=1e-5)


def test_cuts_voxels_unchanged_where_pixel_and_voxel_have_one_size():
    plane = np.random.default_rng(2).random((30, 30), dtype=np.float32)

    np.testing.assert_array_equal(cut(plane, Box((3, 4, 0), (19, 20, 1)), 16), plane[3:19, 4:20])


def test_is_zero_outside_the_slice():
    pixels = cut(np.ones((8, 8), np.float32), Box((-8, 0, 0), (8, 16, 1)), 16)

    np.testing.assert_array_equal(pixels[8:, :8], 1)
    assert pixels[:8].max() == 0
    assert pixels[:, 8:].max() == 0


def test_cuts_a_box_that_misses_the_slice_altogether():
    assert cut(np.ones((8, 8), np.float32), Box((20, 20, 0), (30, 30, 1)), 16).max() == 0


def test_never_mixes_labels_where_the_nearest_is_asked_for():
    labels = np.kron(np.array([[1, 7], [3, 0]], np.uint8), np.ones((10, 10), np.uint8))
    box = Box((0, 0, 0), (20, 20, 1))

    pixels = cut(labels, box, 8, 1.5, nearest=True)

    assert pixels.dtype == np.uint8
    assert set(np.unique(pixels)) == {0, 1, 3, 7}
    np.testing.assert_array_equal(pixels[2:-2, 2:-2], np.kron([[1, 7], [3, 0]], np.ones((4, 4))))


def test_crops_like_a_slice_inside_and_pads_outside():
    plane = np.arange(12).reshape(3, 4)

    np.testing.assert_array_equal(crop(plane, (1, 1), (2, 2)), plane[1:3, 1:3])
    np.testing.assert_array_equal(crop(plane, (-1, 3), (2, 2)), [[0, 0], [3, 0]])


@pytest.mark.parametrize(("value", "even"), [(96.0, 96), (95.9, 96), (97.2, 98), (160.0, 160)])
def test_rounds_to_even(value, even):
    assert round_to_even(value) == even
