"""The two figures of `findings.md` that one protocol, ACDC, is enough for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from research.charts import seeds_of
from research.results import Figures, Results
from sacl.report.figures import INK, drawn, grid, palette

_LABELED_SUBJECTS = 3
_TOPS = ("linear classifier, frozen encoder", "decoder, frozen encoder", "all fine-tuned")
_MARKS = ("s", "o", "D")
_ROWS = {
    "none: random weights": ("linear-random", "frozen-random", "scratch"),
    "query patches (the paper's)": ("linear-semantic", "frozen-semantic", "semantic"),
    "query patches, attention hidden in half": ("linear-dropout", "frozen-dropout", "dropout"),
    "query patches, no attention": ("linear-supcon", "frozen-supcon", "supcon"),
    "SimCLR": ("linear-simclr", "frozen-simclr", "simclr"),
    "SimCLR on slices": ("linear-simclr-slices", "frozen-simclr-slices", "simclr-slices"),
    "self-training": ("linear-self-training", "frozen-self-training", "self-training"),
    "pooled queries": ("linear-pooled", "frozen-pooled", "pooled"),
    "queries of parts": ("linear-parts", "frozen-parts", "parts"),
    "parts, in the encoder": ("linear-direct", "frozen-direct", "direct"),
}
_ABOVE = {"textcoords": "offset points", "fontsize": 8.5}
_TEACHER = ("scratch", "scratch-teacher", "long-scratch", "longer-scratch")


@dataclass(frozen=True)
class Line:
    """Strategies at one number of labeled subjects that differ in their steps alone."""

    labeled_subjects: int
    strategies: Sequence[str]
    name: str
    style: str = "-"


LINES = (
    Line(7, _TEACHER, "7 labels, with a teacher"),
    Line(3, _TEACHER, "3 labels, with a teacher"),
    Line(
        3,
        ("pooled", "pooled-teacher", "fast-long", "fast-longer"),
        "3 labels, pretrained, with a teacher",
        "--",
    ),
    Line(3, ("scratch", "scratch-long", "longest-scratch"), "3 labels, labeled slices alone"),
)


def _by_labels(results: Results) -> dict[int, dict[str, Figures]]:
    return {level.labeled_subjects: level.strategies for level in results.levels}


def representation(results: Results) -> str:
    """Return what encoders are worth: a row per pretraining, a mark per what is trained on top.

    With 3 labeled subjects, as many labeled steps each.
    """
    colors, scored = palette(_TOPS), _by_labels(results)[_LABELED_SUBJECTS]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for n, (top, mark) in enumerate(zip(_TOPS, _MARKS, strict=True)):
            own = {
                r: scored[names[n]] for r, names in enumerate(_ROWS.values()) if names[n] in scored
            }
            for row, seeds in zip(own, seeds_of(own.values()), strict=True):
                axes.plot(seeds, [row] * len(seeds), ".", color=colors[top], ms=4, alpha=0.7)
            means = [figures.dice.mean for figures in own.values()]
            axes.plot(
                means, list(own), mark, color=colors[top], ms=8, mfc="none", mew=1.8, label=top
            )
        axes.set_yticks(range(len(_ROWS)), list(_ROWS))
        axes.set_ylim(len(_ROWS) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("Dice, 500 labeled steps, 3 labeled subjects")
        axes.legend(fontsize=8.5, loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=len(_TOPS))
        grid(axes, "x")
        grid(axes, "y")

    return drawn((8.6, 4.2), "Dice by pretraining and by what is trained on top", draw)


def length(results: Results) -> str:
    """Return the Dice over the number of fine-tuning steps, a line per kind of training."""
    colors, scored = palette([line.name for line in LINES]), _by_labels(results)
    steps = {
        (cell.labeled_subjects, cell.strategy): cell.steps["finetune"]
        for cell in results.cells
        if cell.state == "done"
    }

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for line in LINES:
            names = [n for n in line.strategies if (line.labeled_subjects, n) in steps]
            at = [steps[line.labeled_subjects, name] for name in names]
            own = [scored[line.labeled_subjects][name] for name in names]
            color = colors[line.name]
            means = [figures.dice.mean for figures in own]
            axes.plot(at, means, line.style, color=color, lw=1.8, label=line.name)
            for count, seeds in zip(at, seeds_of(own), strict=True):
                axes.plot([count] * len(seeds), seeds, ".", color=color, ms=6, alpha=0.8)
        ticks = sorted({count for (_, name), count in steps.items() if name in _TEACHER})
        every = max(scored)
        all_labels = scored[every]["long-scratch"].dice.mean
        axes.axhline(all_labels, color=INK, lw=1, ls=":")
        axes.annotate(f"all {every} labels", (ticks[0], all_labels), (0, 4), **_ABOVE)
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{count:,}" for count in ticks])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("steps of fine-tuning, the first 500 on labeled slices alone")
        axes.set_ylabel("Dice")
        axes.legend(fontsize=8.5, loc="lower right")
        grid(axes, "y")

    return drawn((8.6, 4.2), "Dice over the number of steps", draw)


OF_PROTOCOL = {"compare-acdc": {"representation": representation, "length": length}}
"""The figures that suit the strategies of one protocol only."""
