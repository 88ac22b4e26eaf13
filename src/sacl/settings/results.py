"""Settings of prediction, scores and report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sacl.settings.require import require


@dataclass(frozen=True, kw_only=True)
class PredictSettings:
    """Predict label maps on the scans' own grids."""

    batch: int = 32
    """Slices or patches per forward pass."""
    keep_component: float = 0.1
    """Components below this share of the organ's largest one are removed; 0 keeps all."""
    copies: int = 0
    """Turned and scaled copies that a prediction is the mean of, with the plain one: test-time
    augmentation. With 4 the network reads everything 5 times."""
    splits: tuple[Literal["train", "validation", "test"], ...] = ("train", "validation", "test")
    """Splits to predict; the twins predict only scans that have a reference."""

    def __post_init__(self) -> None:
        require(self.copies >= 0, f"predict.copies must be >= 0, got {self.copies}")


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """Score predicted against reference label maps, with statistics."""

    splits: tuple[Literal["train", "validation", "test"], ...] = ("validation", "test")
    """Splits to score."""
    nsd_tolerance_mm: float = 2.0
    """Tolerance of the normalized surface Dice."""
    bootstrap: int = 5000
    """Resamples of the bootstrap over subjects."""


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """Write one self-contained HTML page."""

    title: str = ""
    """Title of the page; the run's name where empty."""
    embedded_patches: int = 1500
    """Query patches shown in the embedding map."""


@dataclass(frozen=True, kw_only=True)
class CheckSettings:
    """Look at a cohort before any training, and estimate the run ahead."""

    probe: bool = True
    """Time a few training steps on this machine (about 15 seconds) to estimate the run's time."""
