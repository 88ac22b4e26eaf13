import math

import numpy as np
import pytest
from scipy import stats

from research.paired_tests import compare, holm, wilcoxon_p

NAN = math.nan


def test_holm_on_the_textbook_example():
    # p = 0.01, 0.04, 0.03, 0.005: Holm multiplies by 4, 3, 2, 1 in rising order
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_never_exceeds_one_and_never_falls():
    assert holm([0.6, 0.9, 0.5]) == [1.0, 1.0, 1.0]
    assert holm([0.02, 0.021]) == pytest.approx([0.04, 0.04])


def test_holm_does_not_count_what_was_not_tested():
    adjusted = holm([0.01, NAN, 0.03])
    assert adjusted[0] == pytest.approx(0.02)
    assert math.isnan(adjusted[1])
    assert adjusted[2] == pytest.approx(0.03)
    assert holm([]) == []


def test_wilcoxon_of_five_equal_signs_is_two_of_the_32_outcomes():
    assert wilcoxon_p([0.1, 0.2, 0.3, 0.4, 0.5]) == pytest.approx(2 / 32)


def test_wilcoxon_by_enumeration():
    difference = np.array([1.3, -0.4, 2.1, 0.9, -0.2, 1.7])
    rank = stats.rankdata(abs(difference))
    signs = 1 - 2 * ((np.arange(64)[:, None] >> np.arange(6)) & 1)
    sums = (signs * rank).sum(axis=1)
    expected = np.mean(abs(sums) >= abs((np.sign(difference) * rank).sum()))
    assert wilcoxon_p(difference) == pytest.approx(expected)


def test_wilcoxon_agrees_with_scipy_on_many_subjects():
    difference = np.random.default_rng(0).normal(0.2, 1.0, 40)
    assert wilcoxon_p(difference) == pytest.approx(stats.wilcoxon(difference).pvalue)


def test_wilcoxon_of_equal_runs_is_one_and_of_no_pair_undefined():
    assert wilcoxon_p([0.0, 0.0, 0.0]) == 1.0
    assert math.isnan(wilcoxon_p([]))
    assert math.isnan(wilcoxon_p([NAN]))


def test_wilcoxon_drops_zero_differences():
    assert wilcoxon_p([0.0, 0.1, 0.2, 0.3]) == wilcoxon_p([0.1, 0.2, 0.3])


def test_comparison_by_hand():
    comparison = compare([0.8, 0.9, 0.7], [0.6, 0.8, 0.6], 500, seed=0)
    assert comparison.difference.mean == pytest.approx(0.4 / 3)
    assert comparison.median_difference == pytest.approx(0.1)
    assert comparison.relative_gain == pytest.approx(0.8 / (2.0 / 3) - 1)
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
    assert math.isnan(comparison.relative_gain)
    assert comparison.difference.subjects == 0
