import numpy as np

from sacl.report.overlay import as_seen, extremes, fullest_slice, only_annotated
from sacl.types import Grid, LabelMap, LabelScheme


def test_right_is_on_the_left_and_front_is_at_the_top():
    plane = np.zeros((5, 4))
    plane[4, 3] = 1  # the patient's right (largest i), front (largest j)
    seen = as_seen(plane)
    assert seen.shape == (4, 5)
    assert seen[0, 0] == 1


def test_best_median_and_worst_of_a_cohort():
    scores = {"a": 0.9, "b": 0.2, "c": 0.5, "d": 0.7}
    assert extremes(scores) == {"best": "a", "median": "c", "worst": "b"}


def test_few_scans_are_shown_once_each():
    assert extremes({"a": 0.9}) == {"best": "a"}
    assert extremes({"a": 0.9, "b": 0.1}) == {"best": "a", "median": "b"}
    assert extremes({}) == {}


def test_undefined_scores_are_not_shown():
    assert extremes({"a": float("nan"), "b": 0.4}) == {"best": "b"}


def test_slice_with_the_largest_organ_area_is_chosen():
    reference, predicted = np.zeros((2, 4, 4, 3), np.uint8)
    reference[1, 1, 0] = 2
    reference[1:3, 1, 2] = 1
    predicted[:, :, 1] = 1
    assert fullest_slice(reference, predicted) == 2
    assert fullest_slice(np.zeros_like(reference), predicted) == 1


def test_an_organ_that_nobody_looked_for_is_not_shown_as_a_mistake():
    scheme = LabelScheme("s", ("liver", "spleen", "aorta"))
    voxels = np.arange(8, dtype=np.uint8).reshape(2, 2, 2) % 4
    shown = only_annotated(LabelMap(voxels, Grid((2, 2, 2), np.eye(4)), scheme), ("aorta", "liver"))
    np.testing.assert_array_equal(shown.voxels, np.where(voxels == 2, 0, voxels))
    assert shown.voxels.dtype == np.uint8
