"""Tables and figures for docs/does-it-work.md, from a comparison's `results.json`.

`python benchmarks/comparison_docs.py benchmarks/results/compare_acdc.json` prints a table in
Markdown per number of labeled subjects and family of tests. `--figures docs/figures` writes the
learning curves, the paired differences and the ablations as SVG; `--embedding
CELL/4-encoder/embedding.npz` adds the map of an encoder's query patches (`--label` names its
scan-wise label).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sacl.comparison.points import curve_of, differences_of
from sacl.comparison.tables import dice_comparisons
from sacl.report.embedding import flat_map, separabilities
from sacl.report.figures import palette, scatter_maps
from sacl.report.headline import points
from sacl.report.learning_curves import ablation_bars, forest_plot, learning_curves
from sacl.report.tables import number, p_text
from sacl.stages.report import read_embedding

_STYLE = "color:#222;--paper:#fff;background:#fff"
_HEAD = f'<svg xmlns="http://www.w3.org/2000/svg" width="760" style="{_STYLE}" '
_MOST_POINTS = 1500


def main() -> None:
    """Print the tables, and write the figures that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--figures", type=Path)
    parser.add_argument("--embedding", type=Path)
    parser.add_argument("--label", default="phase")
    known = parser.parse_args()
    document = json.loads(known.results.read_text(encoding="utf-8"))
    print(tables(document))
    name = known.results.stem.removeprefix("compare_")
    if known.figures:
        for kind, drawing in charts(document).items():
            write(known.figures / f"{name}-{kind}.svg", drawing)
    if known.figures and known.embedding:
        write(known.figures / f"{name}-embedding.svg", embedding(known.embedding, known.label))


def tables(document: Mapping[str, Any]) -> str:
    """Return a table of all strategies, and one per further family, at every number of labels."""
    protocol = document["protocol"]
    parts = []
    for level in document["levels"]:
        parts.append(f"### {level['labeled_subjects']} labeled subjects\n")
        comparisons = dice_comparisons(level)
        parts.append(_table(level, list(level["strategies"]), comparisons, protocol["ours"]))
        for first in level.get("families", {}):
            own = dice_comparisons(level, first)
            if own:
                parts.append(_table(level, [first, *own], own, first))
    return "\n".join(parts)


def _table(
    level: Mapping[str, Any],
    names: Sequence[str],
    comparisons: Mapping[str, Mapping[str, Any]],
    ours: str,
) -> str:
    ahead = f"`{ours}` ahead by, points"
    lines = [f"| strategy | Dice (interval) | by seed | {ahead} | relative | p (Holm) |"]
    lines.append("|---|---|---|---|---|---|")
    for name in names:
        figures, c = level["strategies"][name], comparisons.get(name)
        dice = figures["dice"]
        seeds = ", ".join(number(value) for value in figures["dice_by_seed"].values())
        mean = f"{number(dice['mean'])} ({number(dice['low'])} to {number(dice['high'])})"
        row = ["", "", ""]
        if c and c["mean_difference"] is not None:
            span = f"{points(c['low'])} to {points(c['high'])}" if c["low"] is not None else ""
            gain = c["relative_gain"]
            relative = "" if gain is None else f"{number(100 * gain, 1, sign=True)} %"
            row = [f"{points(c['mean_difference'])} ({span})", relative, p_text(c["p_holm"])]
        lines.append(f"| `{name}` | {mean} | {seeds} | {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def charts(document: Mapping[str, Any]) -> dict[str, str]:
    """Return the charts that the results are enough for, by kind."""
    names, ours = list(document["protocol"]["strategies"]), document["protocol"]["ours"]
    colors = palette(names)
    curves = {name: curve_of(document, name) for name in names}
    longer = {name: levels for name, levels in curves.items() if len(levels) > 1}
    found = {}
    if longer:
        found["curves"] = _with_legend(learning_curves(longer, colors, "Dice"), longer, colors)
    ahead = differences_of(document, "comparisons", sign=1)
    if ahead:
        found["differences"] = forest_plot(ahead, f"{ours} less the other, points of Dice")
    changed = differences_of(document, "ablations", sign=-1)
    if changed:
        label = f"change against {ours}, points of Dice"
        found["ablations"] = ablation_bars(changed, colors[ours], label)
    return found


def _with_legend(chart: str, names: Mapping[str, Any], colors: Mapping[str, str]) -> str:
    """Return the chart with the strategies' names in their colors, right of the middle, below."""
    first = 258 - 13 * len(names)
    texts = "".join(
        f'<text x="470" y="{first + 13 * n}" font-size="10" font-family="sans-serif"'
        f' fill="{colors[name]}">{name}</text>'
        for n, name in enumerate(names)
    )
    return chart.replace("</svg>", f"{texts}</svg>")


def embedding(path: Path, label: str) -> str:
    """Return the map of an encoder's query patches, and print how far apart their classes lie."""
    every = read_embedding(path)
    for line in separabilities(every, label, seed=0):
        print(
            f"{line.what}: k-NN accuracy {line.accuracy:.2f} (chance {line.chance:.2f}),"
            f" silhouette {line.silhouette:.2f}, held-out subjects"
        )
    shown = every.sample(_MOST_POINTS, 0)
    groups = {"organ": list(shown.organ), label: list(shown.scan_label)}
    colors = {title: palette(sorted(set(member))) for title, member in groups.items()}
    return scatter_maps(flat_map(shown.feature, 0), groups, colors)


def write_figure(description: str | None, figure: Callable[[Mapping[str, Any]], str]) -> None:
    """Write the one figure of a script that is called with RESULTS.json and FIGURE.svg."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("results", type=Path)
    parser.add_argument("figure", type=Path)
    known = parser.parse_args()
    write(known.figure, figure(json.loads(known.results.read_text(encoding="utf-8"))))


def write(path: Path, drawing: str) -> None:
    """Write an SVG that stands alone: with a namespace, a width and the colors of a page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(drawing.replace("<svg ", _HEAD, 1), encoding="utf-8")
    print(f"wrote {path.name}")


if __name__ == "__main__":
    main()
