import math

import numpy as np
import pytest

from sacl.scores.organs_of_case import dice, score_case, surface_distances
from sacl.types import Grid, LabelMap, LabelScheme

SCHEME = LabelScheme("two", ("liver", "spleen", "gallbladder"))
GRID = Grid((12, 10, 8), np.diag([1.0, 2.0, 3.0, 1.0]))


def _map(seed):
    generator = np.random.default_rng(seed)
    voxels = np.zeros(GRID.shape, np.uint8)
    start = generator.integers(0, 3, size=3)
    voxels[start[0] : 6, start[1] : 7, start[2] : 6] = 1
    voxels[8:11, 2:8, start[2] :] = 2
    return LabelMap(voxels, GRID, SCHEME)


def test_scores_in_boxes_are_the_scores_of_whole_masks():
    reference, predicted = _map(0), _map(1)
    for score in score_case("a", reference, predicted, ("liver", "spleen"), 2.0):
        masks = reference.mask(score.organ), predicted.mask(score.organ)
        assert score.dice == dice(*masks)
        distances = surface_distances(*masks, GRID.spacing_mm)
        assert score.hd95_mm == distances.hd95_mm()
        assert score.nsd == distances.nsd(2.0)
        assert score.reference_ml == pytest.approx(masks[0].sum() * 6 / 1000)
        assert score.predicted_ml == pytest.approx(masks[1].sum() * 6 / 1000)


def test_organ_absent_from_both_is_undefined():
    (score,) = score_case("a", _map(0), _map(1), ("gallbladder",), 2.0)
    assert math.isnan(score.dice)
    assert math.isnan(score.hd95_mm)
    assert math.isnan(score.nsd)
    assert (score.reference_ml, score.predicted_ml) == (0, 0)


def test_missed_and_invented_organs_score_zero_and_infinite():
    there = _map(0)
    absent = LabelMap(np.where(there.voxels == 1, 0, there.voxels), GRID, SCHEME)
    for pair in ((there, absent), (absent, there)):
        (score,) = score_case("a", *pair, ("liver",), 2.0)
        assert (score.dice, score.nsd, score.hd95_mm) == (0, 0, math.inf)


def test_organs_that_nobody_annotated_are_not_scored():
    assert [s.organ for s in score_case("a", _map(0), _map(1), ("spleen",), 2.0)] == ["spleen"]
