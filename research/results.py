"""`results.json`: all figures of a comparison as records, read back from any that was published."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field

from sacl.errors import DataError

VERSION = 1
"""Of the file; raised when a field changes its meaning."""


class Interval(Struct, frozen=True):
    """A mean over subjects with its interval; None where it is undefined."""

    mean: float | None
    low: float | None
    high: float | None
    subjects: int


class Figures(Struct, frozen=True, kw_only=True):
    """A strategy's scores at one number of labels."""

    dice: Interval
    nsd: Interval
    hd95_mm: Interval
    dice_by_seed: dict[str, float | None]
    seed_sd: float | None
    organs: dict[str, Interval]
    missed: int
    invented: int


class SeedPairs(Struct, kw_only=True):
    """The secondary test, over pairs of subject and seed."""

    pairs: int
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None = None


class Difference(Struct, kw_only=True):
    """How far a strategy is ahead of another: difference of the means over common subjects."""

    metric: str
    run: str
    against: str
    seeds: int
    mean_difference: float | None
    low: float | None
    high: float | None
    subjects: int
    median_difference: float | None
    relative_gain: float | None
    relative_low: float | None
    relative_high: float | None
    p: float | None
    smallest_p: float
    effect_rank_biserial: float | None
    won: int
    tied: int
    lost: int
    subject_seed_pairs: SeedPairs
    p_holm: float | None = None


class Level(Struct, frozen=True, kw_only=True):
    """All figures at one number of labeled subjects."""

    labeled_subjects: int
    scored: dict[str, dict[str, int]]
    """Subjects and cases by split."""
    strategies: dict[str, Figures]
    comparisons: list[Difference]
    ablations: list[Difference]
    families: dict[str, list[Difference]] = {}

    def dice(self, family: str | None = None) -> dict[str, Difference]:
        """Return the differences of the Dice by the strategy compared with.

        Those of `ours`, or of the first of a further family of tests.
        """
        every = [*self.comparisons, *self.ablations]
        if family is not None:
            every = self.families.get(family, [])
        return {entry.against: entry for entry in every if entry.metric == "dice"}


class CellEntry(Struct, frozen=True, kw_only=True):
    """A cell, how far it is, and what it cost."""

    name: str
    labeled_subjects: int | None
    strategy: str
    seed: int
    state: str
    cause: str = ""
    seconds: dict[str, float | None] = {}
    steps: dict[str, int] = {}
    entries: dict[str, str] = {}
    """The store's entry of every stage."""


class ProtocolEntry(Struct, frozen=True, kw_only=True):
    """What a page needs of the protocol; the file keeps all of it."""

    name: str
    seeds: list[int]
    strategies: dict[str, Any]
    ablations: dict[str, Any]
    ours: str
    baseline: str
    families: dict[str, list[str]] = {}
    vary_coarse: bool = False


class Bootstrap(Struct, frozen=True):
    """How often the bootstraps resampled, and their seed."""

    resamples: int
    seed: int


class Results(Struct, frozen=True, kw_only=True):
    """A comparison's results."""

    version: int
    protocol: ProtocolEntry
    settings_hash: str
    cohort: str | None
    modality: str | None
    organs: list[str]
    nsd_tolerance_mm: float
    rule_for_empty_organs: str
    confidence: float
    bootstrap: Bootstrap
    tests: dict[str, str]
    levels: list[Level]
    cells: list[CellEntry]
    shared: dict[str, dict[str, float]] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    git_revision: str | None = None
    date: str = ""

    @property
    def is_complete(self) -> bool:
        """Tell whether all cells are in the figures."""
        return all(cell.state == "done" for cell in self.cells)

    def scored(self, names: list[str]) -> list[str]:
        """Return those of some strategies that have a figure at any number of labels."""
        return [n for n in names if any(n in level.strategies for level in self.levels)]

    def dice(self) -> Iterator[tuple[Level, Difference]]:
        """Yield the differences of the Dice of `ours`, with the level of each."""
        for level in self.levels:
            for difference in level.dice().values():
                yield level, difference


def read_results(path: Path) -> Results:
    """Read a comparison's results.

    Raises:
        DataError: the file is not there, or holds no results of a comparison.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Results)
    except OSError as error:
        raise DataError(f"{path}: cannot be read, {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise DataError(f"{path}: not the results of a comparison ({error})") from error
