"""The square around all organs: where it lies, how large it is, and what does not count."""

import numpy as np
import pytest

from sacl.patches.region import region_boxes, slice_boxes
from sacl.types import Grid, LabelMap, LabelScheme

SCHEME = LabelScheme("two", ("liver", "spleen"))


def label_map(*blocks, shape=(60, 50, 6), spacing=(2.0, 2.0, 5.0)):
    labels = np.zeros(shape, np.uint8)
    for label, region in blocks:
        labels[region] = label
    return LabelMap(labels, Grid(shape, np.diag([*spacing, 1.0])), SCHEME)


def block(i, j, k=(1, 5)):
    return tuple(slice(*ends) for ends in (i, j, k))


def test_every_slice_gets_the_same_square_around_all_organs():
    boxes = region_boxes(
        label_map((1, block((10, 20), (20, 30))), (2, block((20, 30), (20, 30)))),
        context=1.5,
        min_side_mm=10,
    )
    assert [box.start[2] for box in boxes] == list(range(6))
    assert {box.start[:2] for box in boxes} == {(5, 10)}
    assert {box.shape for box in boxes} == {(30, 30, 1)}


def test_the_square_is_square_in_mm():
    wide = label_map((1, block((10, 20), (10, 30))), spacing=(2.0, 1.0, 5.0))
    box = region_boxes(wide, context=2.0, min_side_mm=1)[0]
    assert box.shape[:2] == (20, 40)


def test_an_island_away_from_the_organs_does_not_count():
    organs = (1, block((10, 26), (20, 36)))
    island = (2, block((50, 56), (2, 8)))
    assert region_boxes(label_map(organs, island), 1.5, 10) == region_boxes(
        label_map(organs), 1.5, 10
    )


def test_two_organs_of_like_size_that_do_not_touch_both_count():
    boxes = region_boxes(
        label_map((1, block((5, 15), (20, 30))), (2, block((40, 50), (20, 30)))), 1.0, 10
    )
    assert boxes[0].start[0] == 5
    assert boxes[0].stop[0] == 50


def test_a_thin_spur_does_not_widen_the_square():
    organ = (1, block((20, 40), (20, 40)))
    spur = (1, block((40, 58), (30, 31), (2, 3)))
    assert region_boxes(label_map(organ, spur), 1.5, 10) == region_boxes(label_map(organ), 1.5, 10)


def test_a_map_without_organs_gives_the_whole_slices():
    empty = label_map()
    assert region_boxes(empty, 1.5, 10) == slice_boxes(empty.grid)
    assert slice_boxes(empty.grid)[3].shape == (60, 60, 1)


@pytest.mark.parametrize(("least", "side"), [(10, 15), (80, 40)])
def test_the_square_has_a_smallest_side(least, side):
    assert region_boxes(label_map((1, block((20, 30), (20, 30)))), 1.5, least)[0].shape[0] == side
