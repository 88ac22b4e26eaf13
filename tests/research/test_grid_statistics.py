import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from research.statistics import (
    Draws,
    compare_strategies,
    compared,
    crossed_bootstrap_mean,
    paired,
    rank_biserial,
    relative_gain,
    strategy_figures,
    subject_by_seed,
)
from sacl.scores.summary import bootstrap_mean, holm

DRAWS = Draws(500, 0)


def table(values: dict[tuple[str, int, str, str, str], float]) -> pd.DataFrame:
    """Return scores from (strategy, seed, subject, case, organ) -> Dice; NSD is half of it."""
    return pd.DataFrame(
        [
            {
                "strategy": strategy,
                "seed": seed,
                "subject_id": subject,
                "case_id": case,
                "organ": organ,
                "dice": dice,
                "nsd": dice / 2,
                "hd95_mm": 1.0,
                "reference_ml": 1.0,
                "predicted_ml": 1.0,
            }
            for (strategy, seed, subject, case, organ), dice in values.items()
        ]
    )


def several(gains: dict[str, float], subjects: int = 8, seeds: int = 3) -> pd.DataFrame:
    generator = np.random.default_rng(1)
    level = generator.normal(0.6, 0.1, subjects)
    return table(
        {
            (name, seed, f"s{n}", f"s{n}-a", "liver"): level[n] + gain + generator.normal(0, 0.02)
            for name, gain in gains.items()
            for seed in range(seeds)
            for n in range(subjects)
        }
    )


def test_a_subject_weighs_once_however_many_scans_and_organs_it_has():
    scores = table(
        {
            ("a", 0, "s", "s1", "liver"): 0.2,
            ("a", 0, "s", "s1", "spleen"): 0.4,
            ("a", 0, "s", "s2", "liver"): 0.9,
            ("a", 0, "t", "t1", "liver"): 0.5,
        }
    )
    values = subject_by_seed(scores, "dice")
    assert values.loc["s", 0] == pytest.approx((0.3 + 0.9) / 2)
    assert strategy_figures(scores, DRAWS).dice.mean == pytest.approx((0.6 + 0.5) / 2)


def test_an_undefined_organ_is_left_out_of_its_scan_and_an_infinite_distance_of_the_mean():
    scores = table({("a", 0, "s", "s1", "liver"): 0.2, ("a", 0, "s", "s1", "spleen"): np.nan})
    scores["hd95_mm"] = [np.inf, 4.0]
    assert subject_by_seed(scores, "dice").loc["s", 0] == 0.2
    assert subject_by_seed(scores, "hd95_mm").loc["s", 0] == 4.0


def test_only_common_seeds_and_subjects_are_paired():
    scores = several({"a": 0.0, "b": 0.1})
    ours = subject_by_seed(scores[scores.strategy == "b"], "dice")
    other = subject_by_seed(scores[scores.strategy == "a"], "dice").drop(columns=1).drop("s3")
    pair = paired(ours, other)
    assert pair.ours.shape == pair.other.shape == (7, 2)
    assert np.allclose(pair.other, other)


def test_the_primary_test_is_scipys_on_the_subjects_means_over_seeds():
    scores = several({"a": 0.0, "b": 0.01})
    ours, other = (
        scores[scores.strategy == name].groupby("subject_id")["dice"].mean() for name in ("b", "a")
    )
    entry = compare_strategies(scores, "b", ["a"], DRAWS)[0]
    assert entry.p == pytest.approx(stats.wilcoxon(ours - other).pvalue)
    assert entry.subjects == 8
    assert entry.mean_difference == pytest.approx((ours - other).mean())
    assert entry.relative_gain == pytest.approx(ours.mean() / other.mean() - 1)
    assert (entry.won, entry.tied, entry.lost) == (
        (ours > other).sum(),
        0,
        (ours < other).sum(),
    )


def test_the_secondary_test_is_scipys_on_all_pairs_of_subject_and_seed():
    scores = several({"a": 0.0, "b": 0.01})
    ours, other = (
        scores[scores.strategy == name].set_index(["subject_id", "seed"])["dice"]
        for name in ("b", "a")
    )
    entry = compare_strategies(scores, "b", ["a"], DRAWS)[0].subject_seed_pairs
    assert entry.pairs == 24
    assert entry.p == pytest.approx(stats.wilcoxon(ours - other).pvalue)


def test_holms_correction_is_over_the_strategies_of_one_metric():
    scores = several({"ours": 0.02, "a": 0.01, "b": 0.0, "c": 0.015})
    entries = compare_strategies(scores, "ours", ["ours", "a", "b", "c", "absent"], DRAWS)
    for metric in ("dice", "nsd"):
        family = [e for e in entries if e.metric == metric]
        assert [e.against for e in family] == ["a", "b", "c"]
        assert [e.p_holm for e in family] == pytest.approx(holm([e.p for e in family]))


def test_without_ours_nothing_is_compared():
    assert compare_strategies(several({"a": 0.0}), "ours", ["a"], DRAWS) == []


def test_without_a_common_seed_there_is_no_p():
    scores = several({"a": 0.0, "b": 0.1})
    apart = scores[(scores.strategy == "a") == (scores.seed == 0)]
    entry = compare_strategies(apart, "b", ["a"], DRAWS)[0]
    assert np.isnan(entry.p)
    assert np.isnan(entry.p_holm)
    assert entry.seeds == 0


def test_the_spread_of_seeds_is_that_of_their_means():
    scores = several({"a": 0.0})
    figures = strategy_figures(scores, DRAWS)
    means = scores.groupby("seed")["dice"].mean()
    assert figures.seed_sd == pytest.approx(means.std(ddof=1))
    assert figures.dice_by_seed == pytest.approx({str(s): m for s, m in means.items()})
    assert np.isnan(strategy_figures(scores[scores.seed == 0], DRAWS).seed_sd)


def test_equal_strategies_are_tied_and_p_is_1():
    values = np.array([[0.1, 0.2], [0.3, 0.4]])
    frame = pd.DataFrame(values, index=["s", "t"])
    entry = compared("dice", ("a", "b"), paired(frame, frame), DRAWS)
    assert (entry.p, entry.tied, entry.effect_rank_biserial) == (1.0, 2, 0.0)


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([1, 2, 3], 1.0),
        ([-1, -2], -1.0),
        ([1, -2, 3], (1 - 2 + 3) / 6),
        ([2, -2, 5], (1.5 - 1.5 + 3) / 6),
        ([0, 0], 0.0),
        ([0, 4], 1.0),
    ],
)
def test_rank_biserial_by_hand(differences, expected):
    assert rank_biserial(differences) == pytest.approx(expected)


def test_rank_biserial_agrees_with_the_statistic_of_scipy():
    difference = np.random.default_rng(3).normal(0.3, 1, 20)
    smaller = stats.wilcoxon(difference).statistic
    total = 20 * 21 / 2
    assert abs(rank_biserial(difference)) == pytest.approx((total - 2 * smaller) / total)
    assert np.isnan(rank_biserial([np.nan]))


def test_relative_gain_agrees_with_scipys_paired_bootstrap():
    generator = np.random.default_rng(0)
    other = generator.normal(0.6, 0.1, 30)
    ours = other + generator.normal(0.05, 0.03, 30)
    ours_nan = np.append(ours, np.nan)
    gain = relative_gain(ours_nan, np.append(other, 0.3), 20_000, 0)
    reference = stats.bootstrap(
        (ours, other),
        lambda a, b, axis: a.mean(axis) / b.mean(axis) - 1,
        paired=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(5),
    ).confidence_interval
    assert gain.mean == pytest.approx(ours.mean() / other.mean() - 1)
    assert (gain.low, gain.high) == pytest.approx((reference.low, reference.high), abs=0.002)
    assert gain.subjects == 30


def test_a_gain_over_nothing_is_undefined():
    assert np.isnan(relative_gain([1, 1], [0, 0], 100, 0).mean)
    partly = relative_gain([1, 1], [0, 1], 100, 0)
    assert partly.mean == pytest.approx(1.0)
    assert np.isnan(partly.low)


def test_the_crossed_bootstrap_with_one_seed_is_that_over_subjects():
    value = np.random.default_rng(0).normal(size=(40, 1))
    crossed = crossed_bootstrap_mean(value, 20_000, 0)
    plain = bootstrap_mean(value[:, 0], 20_000, 0)
    assert (crossed.low, crossed.high) == pytest.approx((plain.low, plain.high), abs=0.02)
    assert crossed.mean == pytest.approx(plain.mean)


def test_the_crossed_bootstrap_knows_that_a_seed_moves_all_subjects():
    """Its variance is that of subjects' means plus that of seeds' means (and of their rest)."""
    generator = np.random.default_rng(0)
    value = generator.normal(0, 0.01, (50, 1)) + generator.normal(0, 1, (1, 4))
    wide = crossed_bootstrap_mean(value, 20_000, 0)
    drawn = value.mean(axis=0)[generator.integers(4, size=(20_000, 4))].mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (wide.low, wide.high) == pytest.approx((low, high), abs=0.06)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30))
def test_rank_biserial_turns_with_the_sign(differences):
    value = rank_biserial(differences)
    assert -1 <= value <= 1
    assert rank_biserial([-d for d in differences]) == pytest.approx(-value)
