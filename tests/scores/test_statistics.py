import math

import numpy as np
import pytest

from sacl.scores.summary import bootstrap_mean

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
