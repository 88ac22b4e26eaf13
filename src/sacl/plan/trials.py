"""What a short trial on the labeled scans has shown: one record per candidate, and the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SHARE = 0.15
"""Part of a run's time that trials may take."""
LEAST_S = 40.0
"""Seconds below which a training says nothing; on a CPU a few hundred steps."""
_MARGIN = 0.02
"""Mean Dice by which another candidate has to be ahead of the first to be taken."""


@dataclass(frozen=True)
class Tried:
    """What one candidate reached on labeled scans that its networks did not see.

    `dice` is the mean over organs of the mean over scans, `organs` the latter; `steps` those of its
    networks together.
    """

    candidate: str
    dice: float
    organs: Mapping[str, float]
    steps: int
    seconds: float


def best_of(tried: Sequence[Tried]) -> Tried:
    """Return the best candidate; the first unless another is clearly ahead of it."""
    first, best = tried[0], max(tried, key=lambda one: one.dice)
    return best if best.dice > first.dice + _MARGIN else first


def in_words(tried: Sequence[Tried]) -> str:
    """Return what a trial has shown in a line."""
    figures = ", ".join(f"{one.candidate} {one.dice:.2f}" for one in tried)
    return f"Dice on labeled scans not seen, after a short training each: {figures}"
