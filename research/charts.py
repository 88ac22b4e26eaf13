"""The charts of a comparison: learning curves, paired differences, ablations.

Scores are in [0, 1]; their differences are drawn in points (hundredths).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from research.results import Difference, Figures, Results
from sacl.report.figures import INK, drawn, grid, palette

ALPHA = 0.05
"""A difference whose corrected p-value is below it is drawn, and called, a clear one."""
_APART = 0.035
"""Strategies at one number of labels are drawn beside each other, this share of the axis apart."""
_WIDEST = 0.08
"""Share of the axis that all of them together take at most."""
_FEW = 4
"""Of more strategies than that the bands are drawn fainter, since they lie on one another."""
_BETWEEN = 0.5
"""Space between the bars of two ablations, in units of a bar."""


def curves_of(results: Results) -> dict[str, dict[int, Figures]]:
    """Return the figures of every strategy that has any, by number of labeled subjects."""
    names = results.scored(list(results.protocol.strategies))
    return {
        name: {
            level.labeled_subjects: level.strategies[name]
            for level in results.levels
            if name in level.strategies and level.strategies[name].dice.mean is not None
        }
        for name in names
    }


def learning_curves(
    curves: Mapping[str, Mapping[int, Figures]], colors: Mapping[str, str], beside: bool = False
) -> str:
    """Return a line of the Dice per strategy over the number of labels, on a logarithmic axis.

    A band is the interval of the mean over subjects, every dot the mean of one seed. Strategies are
    shifted a little against each other, so that their dots do not hide one another.

    Args:
        curves: Figures by strategy and number of labels.
        colors: Color of every strategy.
        beside: Whether the chart stands alone, and names its lines.
    """
    counts = sorted({count for levels in curves.values() for count in levels})
    spread = np.log(counts[-1] / counts[0]) or 1.0
    apart = min(_APART / 2, _WIDEST / max(1, len(curves) - 1))
    shifts = np.exp(spread * apart * (np.arange(len(curves)) - (len(curves) - 1) / 2))
    shade = 0.12 if len(curves) <= _FEW else 0.05

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for shift, (name, levels) in zip(shifts, curves.items(), strict=True):
            _curve(axes, levels, shift, colors[name], (name, shade))
        axes.set_xscale("log")
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.set_xticks([], minor=True)
        margin = np.exp(0.05 * spread)
        axes.set_xlim(counts[0] * shifts[0] / margin, counts[-1] * shifts[-1] * margin)
        axes.set_xlabel("labeled subjects")
        axes.set_ylabel("Dice")
        grid(axes, "y")
        if beside:
            axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))

    return drawn((8.6, 4.2), "Dice over the number of labeled subjects", draw)


def _curve(
    axes: Any, levels: Mapping[int, Figures], shift: float, color: str, look: tuple[str, float]
) -> None:
    label, shade = look
    at = np.array([count * shift for count in levels])
    dice = [figures.dice for figures in levels.values()]
    axes.plot(at, [d.mean for d in dice], "-", color=color, lw=1.8, label=label)
    axes.plot(at, [d.mean for d in dice], "_", color=color, ms=9, mew=2)
    for place, figures in zip(at, levels.values(), strict=True):
        seeds = [value for value in figures.dice_by_seed.values() if value is not None]
        axes.plot([place] * len(seeds), seeds, ".", color=color, ms=6, alpha=0.8)
    if any(d.low is None for d in dice):
        return
    low, high = [d.low for d in dice], [d.high for d in dice]
    if len(dice) > 1:
        axes.fill_between(at, low, high, color=color, alpha=shade, lw=0)
    else:
        axes.vlines(at, low, high, color=color, lw=5, alpha=0.2)


def by_level(results: Results, ablations: bool = False) -> dict[str, list[Difference]]:
    """Return the defined differences of the Dice under a heading per number of labels."""
    groups = {
        f"{level.labeled_subjects} labeled": [
            d
            for d in (level.ablations if ablations else level.comparisons)
            if d.metric == "dice" and d.mean_difference is not None
        ]
        for level in results.levels
    }
    return {heading: own for heading, own in groups.items() if own}


def forest_plot(groups: Mapping[str, Sequence[Difference]], label: str) -> str:
    """Return paired differences with their intervals, a row each, grouped under headings.

    A filled dot marks a difference that is clear after correction, a hollow one any other.
    """
    rows = sum(len(differences) for differences in groups.values()) + len(groups)

    def draw(figure: Any) -> None:
        axes, row, ticks = figure.subplots(), 0, []
        for heading, differences in groups.items():
            ticks.append((row, heading, "bold"))
            for d in differences:
                row += 1
                ticks.append((row, d.against, "normal"))
                if d.low is not None and d.high is not None:
                    axes.plot([100 * d.low, 100 * d.high], [row, row], color=INK, lw=1.4)
                face = INK if d.p_holm is not None and d.p_holm < ALPHA else "none"
                axes.plot(_points(d), row, "o", ms=6, color=INK, mfc=face)
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
    """Return a bar with its interval per ablation and number of labels; ours is at 0."""
    names = list(dict.fromkeys(d.against for group in groups.values() for d in group))
    bars = [
        (name, n, d)
        for name in names
        for n, group in enumerate(groups.values())
        for d in group
        if d.against == name
    ]
    at = np.array([k + _BETWEEN * names.index(name) for k, (name, _, _) in enumerate(bars)])

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for n, heading in enumerate(groups):
            own = [k for k, bar in enumerate(bars) if bar[1] == n]
            shade = color + ("ff", "a0", "60", "30")[min(n, 3)]
            values = [-_points(bars[k][2]) for k in own]
            axes.barh(at[own], values, 0.85, color=shade, label=heading)
        for place, (_, _, d) in zip(at, bars, strict=True):
            if d.low is not None and d.high is not None:
                axes.plot([-100 * d.high, -100 * d.low], [place, place], color=INK, lw=1.2)
        axes.axvline(0, color=INK, lw=0.8)
        middle = [at[[bar[0] == name for bar in bars]].mean() for name in names]
        axes.set_yticks(middle, names)
        axes.set_ylim(at[-1] + 0.5 + _BETWEEN, at[0] - 0.5 - _BETWEEN)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(label)
        grid(axes, "x")
        if len(groups) > 1:
            axes.legend(fontsize=8.5, loc="best")

    return drawn((8.6, 0.8 + 0.17 * (len(bars) + _BETWEEN * len(names))), label, draw)


def charts(results: Results) -> dict[str, str]:
    """Return the charts that the results are enough for, by kind, as SVG that names its lines."""
    ours = results.protocol.ours
    colors = palette(list(results.protocol.strategies))
    lines = {name: own for name, own in curves_of(results).items() if len(own) > 1}
    drawings = {}
    if lines:
        drawings["curves"] = learning_curves(lines, colors, beside=True)
    if ahead := by_level(results):
        drawings["differences"] = forest_plot(ahead, f"{ours} less the other, points of Dice")
    if changed := by_level(results, ablations=True):
        label = f"change against {ours}, points of Dice"
        drawings["ablations"] = ablation_bars(changed, colors[ours], label)
    return drawings


def alone(drawing: str) -> str:
    """Return an SVG that stands alone: with a namespace, a width and the colors of a page."""
    style = "color:#222;--paper:#fff;background:#fff"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="760" style="{style}" '
    return str(drawing).replace("<svg ", head, 1)  # of Markup, `replace` would escape


def _points(difference: Difference) -> float:
    assert difference.mean_difference is not None, "only defined differences are drawn"
    return 100 * difference.mean_difference


def seeds_of(figures: Iterable[Figures]) -> list[list[float]]:
    """Return the defined means by seed."""
    return [[v for v in own.dice_by_seed.values() if v is not None] for own in figures]
