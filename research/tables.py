"""Tables of a comparison's results, as text, in Markdown and for the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from research.results import CellEntry, Difference, Figures, Interval, Level, Results
from sacl.report.page import DASH, number

_STAGES = ("pretrain", "finetune", "predict", "evaluate")


class Best(str):
    """A cell that holds the best value of its row or column."""

    best = True


@dataclass(frozen=True)
class Table:
    """A table of text; its first column names the rows."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def points(difference: float | None) -> str:
    """Return a difference of Dice in points (hundredths) with its sign."""
    return number(None if difference is None else 100 * difference, 1, sign=True)


def p_text(p: float | None) -> str:
    """Return a p-value with two or three decimals; very small ones as `< 0.001`."""
    if p is None or math.isnan(p):
        return DASH
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def p_equals(p: float | None) -> str:
    """Return `p = 0.012`, or `p < 0.001`, that no line break tears apart."""
    text = p_text(p)
    return (f"p {text}" if text.startswith("<") else f"p = {text}").replace(
        " ", "\N{NO-BREAK SPACE}"
    )


def interval_text(value: Interval, between: str = DASH) -> str:
    """Return a mean with its interval, such as `0.812 (0.790-0.834)`."""
    if value.mean is None or value.low is None:
        return number(value.mean)
    return f"{number(value.mean)} ({number(value.low)}{between}{number(value.high)})"


def span(low: float | None, high: float | None, text: Callable[[float | None], str]) -> str:
    """Return the ends of an interval, a dash where there is none."""
    return DASH if low is None else f"{text(low)} to {text(high)}"


def overview(results: Results) -> Table:
    """Return strategies (rows) by number of labeled subjects (columns): Dice, interval and p."""
    names = results.scored(list(results.protocol.strategies))
    head = ["Dice"]
    columns: list[list[str]] = []
    for level in results.levels:
        head += [f"{level.labeled_subjects} labeled", "p"]
        means = {n: level.strategies[n].dice.mean or 0.0 for n in names if n in level.strategies}
        differences = level.dice()
        scores, p_values = [], []
        for name in names:
            text = interval_text(level.strategies[name].dice) if name in means else DASH
            is_best = name in means and means[name] == max(means.values())
            scores.append(Best(text) if is_best else text)
            p_values.append(p_text(differences[name].p_holm) if name in differences else "")
        columns += [scores, p_values]
    return Table(head, [list(row) for row in zip(names, *columns, strict=True)])


def versus(level: Level, names: Sequence[str], family: str | None = None) -> Table:
    """Return how far ours, or the first of a family, is ahead of some strategies."""
    differences = level.dice(family)
    ahead = f"{family or 'ours'} ahead by, points"
    head = ["Strategy", "Dice", ahead, "relative", "effect", "won / tied / lost", "p"]
    rows = []
    for name in (n for n in names if n in level.strategies):
        row = [name, number(level.strategies[name].dice.mean)]
        rows.append(row + (_versus(differences[name]) if name in differences else [""] * 5))
    return Table(head, rows)


def scores(level: Level, names: Sequence[str]) -> Table:
    """Return surface scores, the spread of the seeds and what was missed.

    The p-value is that of the NSD, of which ours is compared with the strategy.
    """
    p_of = {c.against: p_text(c.p_holm) for c in level.comparisons if c.metric == "nsd"}
    head = ["Strategy", "NSD", "p", "HD95, mm", "Dice by seed", "SD of seeds"]
    return Table(
        [*head, "organs missed", "invented"],
        [
            [
                name,
                interval_text(figures.nsd),
                p_of.get(name, ""),
                number(figures.hd95_mm.mean, 1),
                _by_seed(figures, " "),
                number(figures.seed_sd),
                str(figures.missed),
                str(figures.invented),
            ]
            for name, figures in level.strategies.items()
            if name in names
        ],
    )


def organs(level: Level, organ_names: Sequence[str], names: Sequence[str]) -> Table:
    """Return the Dice by organ (rows) and strategy (columns)."""
    scored = [name for name in names if name in level.strategies]
    rows = []
    for organ in organ_names:
        of = [level.strategies[n].organs.get(organ) for n in scored]
        means = [None if value is None else value.mean for value in of]
        best = max((mean for mean in means if mean is not None), default=None)
        cells = [Best(number(m)) if m is not None and m == best else number(m) for m in means]
        rows.append([organ.replace("_", " "), *cells])
    return Table(["Dice", *scored], rows)


def secondary(results: Results) -> Table:
    """Return the secondary tests, over pairs of subject and seed."""
    return Table(
        ["Ours against", "labels", "pairs", "difference, points", "interval", "p"],
        [
            [
                d.against,
                str(level.labeled_subjects),
                str(d.subject_seed_pairs.pairs),
                points(d.mean_difference),
                span(d.subject_seed_pairs.low, d.subject_seed_pairs.high, points),
                p_text(d.subject_seed_pairs.p_holm),
            ]
            for level, d in results.dice()
        ],
    )


def costs(results: Results) -> Table:
    """Return the steps and the seconds of every stage by strategy, medians over its cells."""
    done = [cell for cell in results.cells if cell.state == "done"]
    rows = []
    for name in dict.fromkeys(cell.strategy for cell in done):
        own = [cell for cell in done if cell.strategy == name]
        steps = own[0].steps
        seconds = [number(_median(own, stage), 0) for stage in _STAGES]
        rows.append([name, str(len(own)), f"{steps['pretrain']} + {steps['finetune']}", *seconds])
    return Table(["Strategy", "cells", "steps", *(f"{stage}, s" for stage in _STAGES)], rows)


def shared_costs(results: Results) -> Table:
    """Return how long the stages took that several cells rest on."""
    rows = [
        [folder, ", ".join(f"{stage} {number(s, 0)} s" for stage, s in seconds.items())]
        for folder, seconds in results.shared.items()
    ]
    return Table(["Folder", "stages"], rows)


def as_text(results: Results) -> str:
    """Return the means with intervals and corrected p-values as lines of text."""
    rows = []
    for level in results.levels:
        differences = level.dice()
        for name, own in level.strategies.items():
            p = p_text(differences[name].p_holm) if name in differences else ""
            seeds = str(len(own.dice_by_seed))
            scored = [interval_text(own.dice), interval_text(own.nsd)]
            rows.append([str(level.labeled_subjects), name, seeds, *scored, p])
    if not rows:
        return "no cell has finished"
    return plain(Table(["labels", "strategy", "seeds", "Dice", "NSD", "p (Holm)"], rows))


def plain(table: Table) -> str:
    """Return a table as lines of text with aligned columns."""
    lines = [table.head, *table.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def as_markdown(results: Results) -> str:
    """Return a table of all strategies, and one per further family, at every number of labels."""
    parts = []
    for level in results.levels:
        parts.append(f"### {level.labeled_subjects} labeled subjects\n")
        own = level.dice()
        parts.append(_markdown(level, list(level.strategies), own, results.protocol.ours))
        for first in level.families:
            own = level.dice(first)
            if own:
                parts.append(_markdown(level, [first, *own], own, first))
    return "\n".join(parts)


def _markdown(
    level: Level, names: Sequence[str], differences: Mapping[str, Difference], ours: str
) -> str:
    ahead = f"`{ours}` ahead by, points"
    lines = [
        f"| strategy | Dice (interval) | by seed | {ahead} | relative | p (Holm) |",
        "|---|---|---|---|---|---|",
    ]
    for name in names:
        figures, d = level.strategies[name], differences.get(name)
        row = ["", "", ""]
        if d is not None and d.mean_difference is not None:
            ends = "" if d.low is None else f"{points(d.low)} to {points(d.high)}"
            row = [f"{points(d.mean_difference)} ({ends})", _percent(d.relative_gain)]
            row.append(p_text(d.p_holm))
        dice = interval_text(figures.dice, " to ")
        lines.append(f"| `{name}` | {dice} | {_by_seed(figures, ', ')} | {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def _versus(d: Difference) -> list[str]:
    relative = _percent(d.relative_gain)
    if d.relative_low is not None:
        relative += f" ({span(d.relative_low, d.relative_high, _percent)})"
    return [
        f"{points(d.mean_difference)} ({span(d.low, d.high, points)})",
        relative,
        number(d.effect_rank_biserial, 2, sign=True),
        f"{d.won} / {d.tied} / {d.lost}",
        p_text(d.p_holm),
    ]


def _percent(gain: float | None) -> str:
    return DASH if gain is None else f"{number(100 * gain, 1, sign=True)} %"


def _by_seed(figures: Figures, separator: str) -> str:
    return separator.join(number(value) for value in figures.dice_by_seed.values())


def _median(cells: Sequence[CellEntry], stage: str) -> float | None:
    known = [s for cell in cells if (s := cell.seconds.get(stage)) is not None]
    return median(known) if known else None
