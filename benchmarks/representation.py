"""Figure for docs/does-it-work.md: what an encoder is worth by how much is trained on top of it.

`python benchmarks/representation.py benchmarks/results/compare_acdc.json
docs/figures/acdc-representation.svg` reads what `sacl compare runs/compare-acdc.yaml` found with 3
labeled subjects. A row is a pretraining; its marks are a linear classifier on the frozen encoder, a
decoder on the frozen encoder, and the whole network fine-tuned, each in as many labeled steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comparison_docs import write_figure

from sacl.report.figures import drawn, grid, palette

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


def figure(document: Mapping[str, Any]) -> str:
    """Return the figure as SVG."""
    colors = palette(_TOPS)
    levels = {level["labeled_subjects"]: level for level in document["levels"]}
    dice = levels[_LABELED_SUBJECTS]["strategies"]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for n, (top, mark) in enumerate(zip(_TOPS, _MARKS, strict=True)):
            found = [
                (row, dice[names[n]])
                for row, names in enumerate(_ROWS.values())
                if names[n] in dice
            ]
            for row, scores in found:
                seeds = list(scores["dice_by_seed"].values())
                axes.plot(seeds, [row] * len(seeds), ".", color=colors[top], ms=4, alpha=0.7)
            mean = [scores["dice"]["mean"] for _, scores in found]
            rows = [row for row, _ in found]
            axes.plot(mean, rows, mark, color=colors[top], ms=8, mfc="none", mew=1.8, label=top)
        axes.set_yticks(range(len(_ROWS)), list(_ROWS))
        axes.set_ylim(len(_ROWS) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("Dice, 500 labeled steps, 3 labeled subjects")
        axes.legend(fontsize=8.5, loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=len(_TOPS))
        grid(axes, "x")
        grid(axes, "y")

    return drawn((8.6, 4.2), "Dice by pretraining and by what is trained on top", draw)


if __name__ == "__main__":
    write_figure(__doc__, figure)
