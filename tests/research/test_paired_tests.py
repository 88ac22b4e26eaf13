import math

import pytest

from research.paired_tests import compare

NAN = math.nan


def test_comparison_by_hand():
    comparison = compare([0.8, 0.9, 0.7], [0.6, 0.8, 0.6], 500, seed=0)
    assert comparison.difference.mean == pytest.approx(0.4 / 3)
    assert comparison.median_difference == pytest.approx(0.1)
    assert comparison.p == pytest.approx(2 / 8)
    assert comparison.smallest_p == pytest.approx(2 / 8)


def test_comparison_uses_only_subjects_that_both_runs_define():
    comparison = compare([0.8, NAN, 0.7], [0.6, 0.8, NAN], 500, seed=0)
    assert comparison.difference.subjects == 1
    assert comparison.difference.mean == pytest.approx(0.2)


def test_rounding_noise_is_no_difference():
    comparison = compare([0.1 + 0.2, 0.5], [0.3, 0.5], 100, seed=0)
    assert comparison.p == 1.0
    assert comparison.smallest_p == 1.0
    assert comparison.difference.mean == 0


def test_comparison_with_nothing_in_common_is_undefined():
    comparison = compare([NAN], [0.5], 100, seed=0)
    assert math.isnan(comparison.p)
    assert comparison.difference.subjects == 0
