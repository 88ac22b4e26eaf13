import math

import numpy as np
import pytest
from scipy import stats

from sacl.scores.summary import (
    ScoreRow,
    bootstrap_mean,
    holm,
    paired_differences,
    score_table,
    wilcoxon_p,
)
from sacl.types import OrganScore

NAN = math.nan


def test_bootstrap_is_that_of_the_quantiles_of_resampled_means():
    value = np.random.default_rng(1).beta(8, 2, size=25)
    estimate = bootstrap_mean(value, 5000, seed=3)
    drawn = np.random.default_rng(3).integers(25, size=(5000, 25))
    low, high = np.quantile(value[drawn].mean(axis=1), [0.025, 0.975])
    assert estimate.mean == pytest.approx(value.mean(), rel=1e-12)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), rel=1e-12)


def test_bootstrap_of_equal_subjects_is_their_value():
    estimate = bootstrap_mean([0.5, 0.5, 0.5], 100, seed=0)
    assert (estimate.mean, estimate.low, estimate.high) == (0.5, 0.5, 0.5)


def test_bootstrap_of_two_subjects_spans_them():
    estimate = bootstrap_mean([0.2, 0.6], 2000, seed=0)
    assert (estimate.low, estimate.high, estimate.subjects) == (0.2, 0.6, 2)


def test_bootstrap_is_the_same_for_the_same_seed():
    value = [0.1, 0.7, 0.4, 0.9]
    assert bootstrap_mean(value, 500, seed=4) == bootstrap_mean(value, 500, seed=4)
    assert bootstrap_mean(value, 500, seed=4) != bootstrap_mean(value, 500, seed=5)


def test_bootstrap_leaves_undefined_subjects_out():
    assert bootstrap_mean([0.2, NAN, 0.6], 200, seed=0).subjects == 2


def test_one_subject_has_a_mean_without_interval():
    estimate = bootstrap_mean([0.5], 200, seed=0)
    assert estimate.mean == 0.5
    assert math.isnan(estimate.low)
    assert math.isnan(estimate.high)


def test_no_subject_has_no_mean():
    assert math.isnan(bootstrap_mean([], 200, seed=0).mean)


def test_bootstrap_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    hit = 0
    for seed in range(300):
        estimate = bootstrap_mean(generator.normal(size=30), 400, seed)
        hit += estimate.low <= 0 <= estimate.high
    assert 0.89 <= hit / 300 <= 0.98


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


def rows_of(run, dice):
    """Return a run's scores from Dice by subject, scan and organ; NSD is half of it."""
    return [
        ScoreRow(run, subject, "test", OrganScore(scan, organ, value, 1.0, value / 2, 1.0, 1.0))
        for (subject, scan, organ), value in dice.items()
    ]


def test_runs_are_paired_over_subjects_by_organ_and_over_all_organs():
    keys = [("a", "a1", "liver"), ("a", "a2", "liver"), ("a", "a1", "spleen")]
    keys += [("b", "b1", "liver"), ("b", "b1", "spleen"), ("c", "c1", "liver")]
    ours = rows_of("ours", dict(zip(keys, [0.9, 0.7, 0.6, 0.8, 0.5, 0.4], strict=True)))
    other = rows_of("other", dict(zip(keys, [0.8, 0.6, 0.5, 0.9, NAN, 0.2], strict=True)))
    found = {
        (d.metric, d.organ): d
        for d in paired_differences(score_table(ours + other), "ours", "other")
    }
    # liver: subject a has two scans of 0.1 more, b 0.1 less, c 0.2 more
    assert found["dice", "liver"].difference.mean == pytest.approx((0.1 - 0.1 + 0.2) / 3)
    assert found["dice", "liver"].p == pytest.approx(stats.wilcoxon([0.1, -0.1, 0.2]).pvalue)
    # spleen: only subject a is defined for both
    assert found["dice", "spleen"].difference.subjects == 1
    assert found["dice", "spleen"].difference.mean == pytest.approx(0.1)
    assert found["dice", "spleen"].p == 1.0
    # all organs: a is the mean of its scans' means, b has a spleen in one run alone
    means = [(0.75 + 0.7) / 2 - (0.65 + 0.6) / 2, 0.65 - 0.9, 0.2]
    assert found["dice", ""].difference.mean == pytest.approx(np.mean(means))
    assert found["nsd", ""].difference.mean == pytest.approx(np.mean(means) / 2)
    assert found["dice", ""].p_holm == found["dice", ""].p
    organs = [found["dice", organ] for organ in ("liver", "spleen")]
    assert [d.p_holm for d in organs] == holm([d.p for d in organs])


def test_a_run_against_its_own_copy_differs_in_nothing():
    dice = {(f"s{n}", f"s{n}", "liver"): 0.1 * n + 0.1 for n in range(6)}
    both = score_table(rows_of("a", dice) + rows_of("b", dice))
    for one in paired_differences(both, "a", "b", 200):
        assert (one.difference.mean, one.difference.low, one.p, one.p_holm) == (0.0, 0.0, 1.0, 1.0)
