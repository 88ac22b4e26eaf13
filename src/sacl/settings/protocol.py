"""Settings of a few-label comparison: what is compared with what, on how many labels and seeds."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sacl.settings.require import require

VERSION = 1
"""Of the protocol file and of the results; raised when either changes its meaning."""

Overrides = Mapping[str, Mapping[str, Any]]
"""Settings that differ from the base run's, by strategy and dotted name."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Compare strategies at several numbers of labeled subjects, each with several seeds."""

    version: int = VERSION
    """Version of the protocol's format."""
    name: str = "comparison"
    """Name of the comparison."""
    base: Path
    """Run configuration from which every strategy differs, relative to the protocol's file."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of all cells that differ from the base's, by dotted name or block."""
    work: Path = Path("work/comparison")
    """Folder of all cells, of what they share, and of the results."""
    labeled_subjects: tuple[int | None, ...] = (None,)
    """Numbers of labeled training subjects; null is all of them."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of pretraining and fine-tuning."""
    splits: tuple[Literal["validation", "test"], ...] = ("test",)
    """Splits that are scored."""
    scored_values: tuple[str, ...] = ()
    """Values of the scan-wise label `ingest.labeled_scan_label` whose scans are scored, all where
    empty: with `ingest.labeled_values`, to learn from labels in one phase and score another."""
    strategies: Overrides = field(default_factory=dict)
    """Settings by strategy, or a list of built-in ones."""
    ablations: Overrides = field(default_factory=dict)
    """Settings by ablation, on top of those of `ours`."""
    after: Mapping[str, str] = field(default_factory=dict)
    """Iterated attention: strategies whose coarse maps are the predictions of another one, of the
    same labels and seed; labeled scans keep their cross-fitted maps."""
    families: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Further families of tests: a strategy or ablation, and the others it is compared with."""
    ours: str = "semantic"
    """Strategy that every other one is compared with."""
    baseline: str = "scratch"
    """Strategy without pretraining, shown as the ground line."""
    vary_coarse: bool = False
    """Train the coarse networks anew for every seed; else the first seed's serve all."""
    minutes_per_cell: float | None = None
    """Guess of a cell's duration for the estimate of what is left, until cells have finished."""
    bootstrap: int = 5000
    """Resamples of every bootstrap."""

    def __post_init__(self) -> None:
        require(
            self.version == VERSION, f"version: this program reads {VERSION}, got {self.version}"
        )
        for name in ("labeled_subjects", "seeds", "splits", "strategies"):
            values: Sequence[Any] = tuple(getattr(self, name))
            require(len(values) > 0, f"{name}: empty, expected one at least")
            twice = [value for value, count in Counter(values).items() if count > 1]
            require(not twice, f"{name}: {_text(twice[:1])} stands twice; name each once")
        require(min(self.seeds) >= 0, f"seeds must be >= 0, got {min(self.seeds)}")
        few = [n for n in self.labeled_subjects if n is not None and n < 1]
        require(not few, f"labeled_subjects must be >= 1, got {_text(few[:1])}")
        require(bool(_NAME.fullmatch(self.name)), f"name: letters, digits, . _ -, got {self.name}")
        require(self.bootstrap >= 100, f"bootstrap must be >= 100, got {self.bootstrap}")
        self._check_names()

    def _check_names(self) -> None:
        for name in (*self.strategies, *self.ablations):
            require(
                bool(_NAME.fullmatch(name)),
                f"strategies: a name has letters, digits, . _ - only, got {name!r}",
            )
        both = sorted(set(self.strategies) & set(self.ablations))
        require(not both, f"ablations: '{_text(both[:1])}' is a strategy too; name it otherwise")
        known = (*self.strategies, *self.ablations)
        for name in (n for first, others in self.families.items() for n in (first, *others)):
            require(name in known, f"families: no strategy '{name}'; there are {', '.join(known)}")
        for name in (n for pair in self.after.items() for n in pair):
            require(name in known, f"after: no strategy '{name}'; there are {', '.join(known)}")
        for name in self.after:
            require(
                self.after[name] not in self.after,
                f"after: '{name}' comes after '{self.after[name]}', which itself comes after"
                " another; name one that does not",
            )
        for role in ("ours", "baseline"):
            name = getattr(self, role)
            require(
                name in self.strategies,
                f"{role}: no strategy '{name}'; the strategies are {', '.join(self.strategies)}",
            )


def _text(values: Sequence[Any]) -> str:
    return ", ".join("null" if value is None else str(value) for value in values)
