"""Strategies compared at one number of labeled subjects: means, paired tests, spread of seeds.

Scores come as a table with a line per strategy, seed, scan and organ. The subject is the unit of
every interval and of the primary test: its value is the mean over its organs, scans and seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from research.paired_tests import compare
from research.results import Difference, Figures, Interval, SeedPairs
from sacl.scores.summary import (
    CONFIDENCE,
    TESTED,
    Estimate,
    bootstrap_mean,
    holm,
    wilcoxon_p,
)

METRICS = ("dice", "nsd", "hd95_mm")

PRIMARY = (
    "Wilcoxon's signed-rank test, paired over subjects; a subject's value is the mean over its"
    " organs, scans and seeds; Holm-corrected over all strategies at that number of labels"
)
SECONDARY = (
    "Wilcoxon's signed-rank test over pairs of subject and seed, which counts a subject once per"
    " seed and is no test over independent subjects; the interval resamples subjects and seeds"
)
_DECIMALS = 12


@dataclass(frozen=True)
class Draws:
    """How often a bootstrap resamples, and its seed."""

    resamples: int
    seed: int


@dataclass(frozen=True, eq=False)
class Paired:
    """Two strategies' scores `[subject, seed]` on the same subjects and seeds.

    Both are NaN where either is undefined.
    """

    ours: np.ndarray
    other: np.ndarray

    @property
    def difference(self) -> np.ndarray:
        """Ours less the other one, `[subject, seed]`."""
        return np.round(self.ours - self.other, _DECIMALS)


def subject_by_seed(scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return one strategy's metric per subject (row) and seed (column).

    A scan's value is the mean over its organs with a finite score, a subject's over its scans.
    """
    finite = scores.assign(value=scores[metric].replace([np.inf, -np.inf], np.nan))
    scans = finite.groupby(["subject_id", "seed", "case_id"])["value"].mean()
    return scans.groupby(["subject_id", "seed"]).mean().unstack("seed")


def paired(ours: pd.DataFrame, other: pd.DataFrame) -> Paired:
    """Return two tables of `subject_by_seed` on the subjects and seeds that both have."""
    subjects = ours.index.intersection(other.index)
    seeds = ours.columns.intersection(other.columns)
    a = ours.loc[subjects, seeds].to_numpy(np.float64)
    b = other.loc[subjects, seeds].to_numpy(np.float64)
    both = np.isfinite(a) & np.isfinite(b)
    return Paired(np.where(both, a, np.nan), np.where(both, b, np.nan))


def compared(metric: str, names: tuple[str, str], pair: Paired, draws: Draws) -> Difference:
    """Return the primary and the secondary comparison of a pair of strategies.

    `won`, `tied` and `lost` count subjects. Without a common seed or subject all figures are NaN.
    """
    ours, other = _over_seeds(pair.ours), _over_seeds(pair.other)
    primary = compare(ours, other, draws.resamples, draws.seed)
    gain = relative_gain(ours, other, draws.resamples, draws.seed)
    crossed = crossed_bootstrap_mean(pair.difference, draws.resamples, draws.seed)
    difference = np.round(ours - other, _DECIMALS)
    return Difference(
        metric=metric,
        run=names[0],
        against=names[1],
        seeds=pair.ours.shape[1],
        mean_difference=primary.difference.mean,
        low=primary.difference.low,
        high=primary.difference.high,
        subjects=primary.difference.subjects,
        median_difference=primary.median_difference,
        relative_gain=gain.mean,
        relative_low=gain.low,
        relative_high=gain.high,
        p=primary.p,
        smallest_p=primary.smallest_p,
        effect_rank_biserial=rank_biserial(difference),
        won=int((difference > 0).sum()),
        tied=int((difference == 0).sum()),
        lost=int((difference < 0).sum()),
        subject_seed_pairs=SeedPairs(
            pairs=int(np.isfinite(pair.difference).sum()),
            low=crossed.low,
            high=crossed.high,
            p=wilcoxon_p(pair.difference.ravel()),
        ),
    )


def compare_strategies(
    scores: pd.DataFrame, ours: str, others: Sequence[str], draws: Draws
) -> list[Difference]:
    """Compare one strategy with each of several on Dice and on NSD, a family of tests each.

    A strategy without scores is left out; the list is empty where `ours` has none.
    """
    scored = set(scores["strategy"])
    rivals = [name for name in others if name in scored and name != ours]
    if ours not in scored:
        return []
    entries = []
    for metric in TESTED:
        table = {s: subject_by_seed(_of(scores, s), metric) for s in (ours, *rivals)}
        family = [
            compared(metric, (ours, name), paired(table[ours], table[name]), draws)
            for name in rivals
        ]
        _correct(family)
        _correct([entry.subject_seed_pairs for entry in family])
        entries += family
    return entries


def strategy_figures(scores: pd.DataFrame, draws: Draws) -> Figures:
    """Return one strategy's means with intervals over subjects, by seed and by organ.

    `seed_sd` is the standard deviation of the seeds' means; NaN with one seed.
    """
    means = {m: _interval(subject_by_seed(scores, m), draws) for m in METRICS}
    by_seed = subject_by_seed(scores, "dice").mean()
    in_reference, predicted = scores["reference_ml"] > 0, scores["predicted_ml"] > 0
    return Figures(
        dice=means["dice"],
        nsd=means["nsd"],
        hd95_mm=means["hd95_mm"],
        dice_by_seed={str(seed): float(mean) for seed, mean in by_seed.items()},
        seed_sd=float(by_seed.std(ddof=1)) if len(by_seed) > 1 else math.nan,
        organs={
            str(organ): _interval(subject_by_seed(own, "dice"), draws)
            for organ, own in scores.groupby("organ", sort=False)
        },
        missed=int((in_reference & ~predicted).sum()),
        invented=int((~in_reference & predicted).sum()),
    )


def _of(scores: pd.DataFrame, strategy: str) -> pd.DataFrame:
    return scores[scores["strategy"] == strategy]


def _over_seeds(values: np.ndarray) -> np.ndarray:
    """Return each subject's mean over its finite seeds, NaN where it has none."""
    finite = np.isfinite(values)
    count = finite.sum(axis=1)
    total = np.where(finite, values, 0.0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _interval(values: pd.DataFrame, draws: Draws) -> Interval:
    means = _over_seeds(values.to_numpy(np.float64))
    estimate = bootstrap_mean(means, draws.resamples, draws.seed)
    return Interval(estimate.mean, estimate.low, estimate.high, estimate.subjects)


def _correct(family: Sequence[Difference | SeedPairs]) -> None:
    p_values = [math.nan if entry.p is None else entry.p for entry in family]
    for entry, adjusted in zip(family, holm(p_values), strict=True):
        entry.p_holm = adjusted


def relative_gain(ours: ArrayLike, other: ArrayLike, resamples: int, seed: int) -> Estimate:
    """Return the ratio of two runs' means over the same subjects, less 1, with its interval.

    Pairs of subjects are resampled together, and both means taken of the same subjects (95 %
    percentile bootstrap). NaN where the other run's mean is 0, and no interval where it can be.
    """
    pair = np.stack([np.asarray(ours, np.float64), np.asarray(other, np.float64)])
    pair = pair[:, np.isfinite(pair).all(axis=0)]
    count = pair.shape[1]
    mean = float(pair[0].mean() / pair[1].mean()) - 1 if count and pair[1].mean() else math.nan
    if count < 2 or math.isnan(mean):
        return Estimate(mean, math.nan, math.nan, count)
    drawn = np.random.default_rng(seed).integers(count, size=(resamples, count))
    ours_mean, other_mean = pair[0][drawn].mean(axis=1), pair[1][drawn].mean(axis=1)
    if not other_mean.all():
        return Estimate(mean, math.nan, math.nan, count)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(ours_mean / other_mean - 1, [tail, 1 - tail])
    return Estimate(mean, float(low), float(high), count)


def crossed_bootstrap_mean(values: ArrayLike, resamples: int, seed: int) -> Estimate:
    """Return the mean of `[subject, seed]` with an interval for other subjects and other seeds.

    Subjects and seeds are resampled each on their own, since a seed's network scores every subject
    (the product bootstrap: McCullagh, Bernoulli 2000, 6:285). Subjects with a NaN are left out.
    One seed gives the interval over subjects alone.
    """
    value = np.asarray(values, dtype=np.float64)
    value = value[np.isfinite(value).all(axis=1)]
    subjects, seeds = value.shape
    mean = float(value.mean()) if value.size else math.nan
    if subjects < 2 or not seeds:
        return Estimate(mean, math.nan, math.nan, subjects)
    generator = np.random.default_rng(seed)
    of_subject = generator.multinomial(subjects, np.full(subjects, 1 / subjects), resamples)
    of_seed = generator.multinomial(seeds, np.full(seeds, 1 / seeds), resamples)
    means = ((of_subject @ value) * of_seed).sum(axis=1) / (subjects * seeds)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(mean, float(low), float(high), subjects)


def rank_biserial(differences: ArrayLike) -> float:
    """Return the matched-pairs rank-biserial correlation, the effect size of Wilcoxon's test.

    The rank sum of the positive differences less that of the negative ones, over both: 1 where all
    are positive, 0 where they balance (Kerby, Comprehensive Psychology 2014, 3:11.IT.3.1). Zero
    differences are dropped; 0 where all are zero, NaN where there is no pair.
    """
    difference = np.asarray(differences, np.float64)
    difference = difference[np.isfinite(difference)]
    if not difference.size:
        return math.nan
    difference = difference[difference != 0]
    if not difference.size:
        return 0.0
    ranks = stats.rankdata(np.abs(difference))
    return float((ranks * np.sign(difference)).sum() / ranks.sum())
