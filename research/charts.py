"""The charts of a comparison: learning curves, paired differences, ablations.

All values are scores in [0, 1], or differences of them, which are drawn in points (hundredths).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sacl.report.figures import INK, drawn, grid

_APART = 0.035
"""Strategies at one number of labels are drawn beside each other, this share of the axis apart."""
_WIDEST = 0.08
"""Share of the axis that all of them together take at most."""
_FEW = 4
"""Of more strategies than that the bands are drawn fainter, since they lie on one another."""
_BETWEEN = 0.5
"""Space between the bars of two ablations, in units of a bar."""


@dataclass(frozen=True)
class Level:
    """A strategy's score at one number of labeled subjects: mean, interval, and every seed's."""

    labeled_subjects: int
    mean: float
    low: float | None
    high: float | None
    by_seed: Sequence[float]


@dataclass(frozen=True)
class Difference:
    """A paired difference of two strategies with its interval, and whether it is significant."""

    name: str
    mean: float
    low: float | None
    high: float | None
    clear: bool


def learning_curves(
    levels_of: Mapping[str, Sequence[Level]], colors: Mapping[str, str], label: str
) -> str:
    """Return a line per strategy over the number of labeled subjects, on a logarithmic axis.

    A band is the interval of the mean over subjects, every dot the mean of one seed. Strategies are
    shifted a little against each other, so that their dots do not hide one another.
    """
    counts = sorted({level.labeled_subjects for levels in levels_of.values() for level in levels})
    spread = np.log(counts[-1] / counts[0]) or 1.0
    apart = min(_APART / 2, _WIDEST / max(1, len(levels_of) - 1))
    shifts = np.exp(spread * apart * (np.arange(len(levels_of)) - (len(levels_of) - 1) / 2))
    shade = 0.12 if len(levels_of) <= _FEW else 0.05

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for shift, (name, levels) in zip(shifts, levels_of.items(), strict=True):
            _curve(axes, levels, shift, colors[name], shade)
        axes.set_xscale("log")
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.set_xticks([], minor=True)
        margin = np.exp(0.05 * spread)
        axes.set_xlim(counts[0] * shifts[0] / margin, counts[-1] * shifts[-1] * margin)
        axes.set_xlabel("labeled subjects")
        axes.set_ylabel(label)
        grid(axes, "y")

    return drawn((8.6, 4.2), f"{label} over the number of labeled subjects", draw)


def forest_plot(groups: Mapping[str, Sequence[Difference]], label: str) -> str:
    """Return paired differences with their intervals, a row each, grouped under headings.

    A filled dot marks a significant difference, a hollow one any other.
    """
    rows = sum(len(differences) for differences in groups.values()) + len(groups)

    def draw(figure: Any) -> None:
        axes, row, ticks = figure.subplots(), 0, []
        for heading, differences in groups.items():
            ticks.append((row, heading, "bold"))
            for d in differences:
                row += 1
                ticks.append((row, d.name, "normal"))
                _interval(axes, d, row)
            row += 1
        axes.axvline(0, color=INK, lw=0.8, alpha=0.6)
        axes.set_yticks([at for at, _, _ in ticks], [name for _, name, _ in ticks])
        for text, (_, _, weight) in zip(axes.get_yticklabels(), ticks, strict=True):
            text.set_fontweight(weight)
        axes.set_ylim(rows - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(label)
        grid(axes, "x")

    return drawn((8.6, 0.7 + 0.27 * rows), label, draw)


def ablation_bars(groups: Mapping[str, Sequence[Difference]], color: str, label: str) -> str:
    """Return a bar with its interval per ablation and group, relative to the whole at 0."""
    names = list(dict.fromkeys(d.name for group in groups.values() for d in group))
    bars = [
        (name, n, d)
        for name in names
        for n, group in enumerate(groups.values())
        for d in group
        if d.name == name
    ]
    at = np.array([k + _BETWEEN * names.index(name) for k, (name, _, _) in enumerate(bars)])

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for n, heading in enumerate(groups):
            shade = color + ("ff", "a0", "60", "30")[min(n, 3)]
            own = [k for k, bar in enumerate(bars) if bar[1] == n]
            value = [100 * bars[k][2].mean for k in own]
            axes.barh(at[own], value, 0.85, color=shade, label=heading)
        for place, (_, _, d) in zip(at, bars, strict=True):
            if d.low is not None and d.high is not None:
                axes.plot([100 * d.low, 100 * d.high], [place, place], color=INK, lw=1.2)
        axes.axvline(0, color=INK, lw=0.8)
        middle = [at[[bar[0] == name for bar in bars]].mean() for name in names]
        axes.set_yticks(middle, names)
        axes.set_ylim(at[-1] + 0.5 + _BETWEEN, at[0] - 0.5 - _BETWEEN)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(label)
        grid(axes, "x")
        if len(groups) > 1:
            axes.legend(fontsize=8.5, loc="best")

    size = (8.6, 0.8 + 0.17 * (len(bars) + _BETWEEN * len(names)))
    return drawn(size, label, draw)


def _curve(axes: Any, levels: Sequence[Level], shift: float, color: str, shade: float) -> None:
    at = np.array([level.labeled_subjects * shift for level in levels])
    axes.plot(at, [level.mean for level in levels], "-", color=color, lw=1.8)
    axes.plot(at, [level.mean for level in levels], "_", color=color, ms=9, mew=2)
    for place, level in zip(at, levels, strict=True):
        axes.plot([place] * len(level.by_seed), level.by_seed, ".", color=color, ms=6, alpha=0.8)
    known = [level for level in levels if level.low is not None]
    if len(known) == len(levels):
        low, high = [level.low for level in levels], [level.high for level in levels]
        if len(levels) > 1:
            axes.fill_between(at, low, high, color=color, alpha=shade, lw=0)
        else:
            axes.vlines(at, low, high, color=color, lw=5, alpha=0.2)


def _interval(axes: Any, difference: Difference, row: int) -> None:
    color = INK
    if difference.low is not None and difference.high is not None:
        ends = [100 * difference.low, 100 * difference.high]
        axes.plot(ends, [row, row], color=color, lw=1.4)
    face = color if difference.clear else "none"
    axes.plot(100 * difference.mean, row, "o", ms=6, color=color, mfc=face)
