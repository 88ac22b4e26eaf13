"""What a plan measures of drawn organs."""

import numpy as np
import pytest

from sacl.plan.facts import extent_of
from sacl.types import Grid

GRID = Grid((20, 20, 10), np.diag([2.0, 2.0, 5.0, 1.0]))
WHOLE = (slice(0, 20), slice(0, 20), slice(0, 10))


@pytest.mark.parametrize(
    ("islands", "share"), [((), 0.0), ((1,), 0.0625), ((2, 1), 0.125), ((16,), 1.0)]
)
def test_the_second_piece_of_an_organ_is_told_relative_to_the_first(islands, share):
    mask = np.zeros((20, 20, 10), bool)
    mask[:4, :4, 0] = True
    for number, size in enumerate(islands):
        mask[10 + 2 * number, :size, 0] = True
    assert extent_of(mask, WHOLE, GRID).second_piece == pytest.approx(share)


def test_pieces_that_touch_at_an_edge_are_two_as_in_the_maps_that_are_cleaned():
    mask = np.zeros((20, 20, 10), bool)
    mask[:2, :2, 0] = mask[2:4, 2:4, 0] = True
    assert extent_of(mask, WHOLE, GRID).second_piece == 1.0
