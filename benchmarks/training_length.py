"""Figure for docs/does-it-work.md: the Dice over the number of fine-tuning steps.

`python benchmarks/training_length.py benchmarks/results/compare_acdc.json
docs/figures/acdc-length.svg` reads what `sacl compare runs/compare-acdc.yaml` found. The strategies
of a line differ in their steps alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from comparison_docs import write_figure

from sacl.report.figures import INK, drawn, grid, palette

_ABOVE = {"textcoords": "offset points", "fontsize": 8.5}
_TEACHER = ("scratch", "scratch-teacher", "long-scratch", "longer-scratch")
_ALONE = ("scratch", "scratch-long", "longest-scratch")
_PRETRAINED = ("pooled", "pooled-teacher", "fast-long", "fast-longer")


@dataclass(frozen=True)
class Line:
    """Strategies at one number of labeled subjects, and whether the line is broken."""

    labeled_subjects: int
    strategies: Sequence[str]
    name: str
    style: str = "-"


LINES = (
    Line(7, _TEACHER, "7 labels, with a teacher"),
    Line(3, _TEACHER, "3 labels, with a teacher"),
    Line(3, _PRETRAINED, "3 labels, pretrained, with a teacher", "--"),
    Line(3, _ALONE, "3 labels, labeled slices alone"),
)


def figure(document: Mapping[str, Any]) -> str:
    """Return the figure as SVG."""
    colors = palette([line.name for line in LINES])
    dice = {level["labeled_subjects"]: level["strategies"] for level in document["levels"]}
    steps = {
        (cell["labeled_subjects"], cell["strategy"]): cell["steps"]["finetune"]
        for cell in document["cells"]
        if cell["state"] == "done"
    }

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for line in LINES:
            found = [
                (steps[line.labeled_subjects, name], dice[line.labeled_subjects][name])
                for name in line.strategies
                if (line.labeled_subjects, name) in steps
            ]
            color = colors[line.name]
            at = [count for count, _ in found]
            mean = [scores["dice"]["mean"] for _, scores in found]
            axes.plot(at, mean, line.style, color=color, lw=1.8, label=line.name)
            for count, scores in found:
                seeds = list(scores["dice_by_seed"].values())
                axes.plot([count] * len(seeds), seeds, ".", color=color, ms=6, alpha=0.8)
        ticks = sorted({count for (_, name), count in steps.items() if name in _TEACHER})
        every, all_labels = max(dice), dice[max(dice)]["long-scratch"]["dice"]["mean"]
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


if __name__ == "__main__":
    write_figure(__doc__, figure)
