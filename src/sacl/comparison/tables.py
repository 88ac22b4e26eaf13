"""Tables of a comparison: strategies by number of labels, tests, organs, costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from sacl.report.headline import points
from sacl.report.tables import DASH, Cell, html_table, number, p_text, score_cell

Document = Mapping[str, Any]
Row = list[str | Cell]


def dice_comparisons(
    level: Mapping[str, Any], family: str | None = None
) -> dict[str, Mapping[str, Any]]:
    """Return the comparisons of the Dice at one number of labels, by the strategy compared with.

    With `family`, those of that further family of tests, none where it has no figure.
    """
    if family is not None:
        entries = level["families"].get(family, [])
    else:
        entries = [*level["comparisons"], *level["ablations"]]
    return {entry["against"]: entry for entry in entries if entry["metric"] == "dice"}


def overview_table(document: Document) -> str:
    """Return strategies (rows) by number of labeled subjects (columns): Dice, interval and p."""
    levels = document["levels"]
    head: Row = ["Dice"]
    for level in levels:
        count = level["labeled_subjects"]
        head += [f"{count} labeled", "p"]
    names = [n for n in document["protocol"]["strategies"] if _is_scored(document, n)]
    best = [max((_dice(level, name) for name in names), default=0.0) for level in levels]
    body: list[Row] = []
    for name in names:
        row: Row = [name]
        for level, top in zip(levels, best, strict=True):
            figures = level["strategies"].get(name)
            comparison = dice_comparisons(level).get(name)
            stress = "best" if figures and figures["dice"]["mean"] == top else ""
            row.append(Cell(score_cell(figures["dice"]) if figures else DASH, stress))
            row.append(Cell(p_text(comparison["p_holm"]) if comparison else "", "faint"))
        body.append(row)
    return html_table(head, body)


def versus_table(level: Mapping[str, Any], names: Sequence[str], family: str | None = None) -> str:
    """Return how far ours is ahead of some strategies at one number of labels.

    With `family`, how far that strategy is ahead of those it is compared with.
    """
    comparisons = dice_comparisons(level, family)
    head = [
        *("Strategy", "Dice", f"{family or 'ours'} ahead by, points", "relative"),
        *("effect", "won / tied / lost", "p"),
    ]
    body: list[Row] = []
    for name in names:
        figures, c = level["strategies"].get(name), comparisons.get(name)
        if figures:
            row: Row = [name, number(figures["dice"]["mean"])]
            body.append(row + (_versus(c) if c else [""] * 5))
    return html_table(head, body)


def scores_table(level: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return surface scores, the spread of the seeds and what was missed, at one number of labels.

    The p-value is that of the NSD, of which ours is compared with the strategy.
    """
    p_of = {c["against"]: c["p_holm"] for c in level["comparisons"] if c["metric"] == "nsd"}
    head = [
        *("Strategy", "NSD", "p", "HD95, mm", "Dice by seed", "SD of seeds"),
        *("organs missed", "invented"),
    ]
    body: list[Row] = [
        [
            name,
            score_cell(figures["nsd"]),
            p_text(p_of[name]) if name in p_of else "",
            number(figures["hd95_mm"]["mean"], 1),
            " ".join(number(value) for value in figures["dice_by_seed"].values()),
            number(figures["seed_sd"]),
            str(figures["missed"]),
            str(figures["invented"]),
        ]
        for name, figures in level["strategies"].items()
        if name in names
    ]
    return html_table(head, body)


def secondary_table(document: Document) -> str:
    """Return the secondary tests, over pairs of subject and seed."""
    head = ["Labels", "ours against", "pairs", "difference, points", "interval", "p"]
    body: list[Row] = []
    for level in document["levels"]:
        for name, c in dice_comparisons(level).items():
            pairs = c["subject_seed_pairs"]
            body.append(
                [
                    str(level["labeled_subjects"]),
                    Cell(name, "text"),
                    str(pairs["pairs"]),
                    points(c["mean_difference"]),
                    _span(pairs),
                    p_text(pairs["p_holm"]),
                ]
            )
    return html_table([Cell(h, "text") if h == "ours against" else h for h in head], body)


def organ_table(level: Mapping[str, Any], organs: Sequence[str], names: Sequence[str]) -> str:
    """Return the Dice by organ (rows) and strategy (columns) at one number of labels."""
    there = [name for name in names if name in level["strategies"]]
    body: list[Row] = []
    for organ in organs:
        dice = [level["strategies"][n]["organs"].get(organ, {}).get("mean") for n in there]
        best = max((value for value in dice if value is not None), default=None)
        cells = [Cell(number(v), "best" if v is not None and v == best else "") for v in dice]
        body.append([organ.replace("_", " "), *cells])
    return html_table(["Dice", *there], body)


def cost_table(document: Document) -> str:
    """Return the seconds of every stage by strategy (median over cells), and of what is shared."""
    stages = ("pretrain", "finetune", "predict", "evaluate")
    done = [cell for cell in document["cells"] if cell["state"] == "done"]
    body: list[Row] = []
    for name in dict.fromkeys(cell["strategy"] for cell in done):
        own = [cell for cell in done if cell["strategy"] == name]
        steps = own[0]["steps"]
        seconds = [_median([cell["seconds"].get(stage) for cell in own]) for stage in stages]
        steps_text = f"{steps['pretrain']} + {steps['finetune']}"
        body.append([name, str(len(own)), steps_text, *(number(s, 0) for s in seconds)])
    shared: list[Row] = [
        [folder, ", ".join(f"{stage} {number(s, 0)} s" for stage, s in seconds.items())]
        for folder, seconds in document["shared"].items()
    ]
    head = ["Strategy", "cells", "steps", *(f"{stage}, s" for stage in stages)]
    apart = [[row[0], Cell(str(row[1]), "text")] for row in shared]
    together = html_table(["Folder", Cell("stages", "text")], apart)
    return html_table(head, body) + "<h3>Shared by several cells</h3>" + together


def _is_scored(document: Document, name: str) -> bool:
    return any(name in level["strategies"] for level in document["levels"])


def _dice(level: Mapping[str, Any], name: str) -> float:
    figures = level["strategies"].get(name)
    return (figures["dice"]["mean"] if figures else None) or 0.0


def _versus(c: Mapping[str, Any]) -> Row:
    return [
        f"{points(c['mean_difference'])} ({_span(c)})",
        _relative(c),
        number(c["effect_rank_biserial"], 2, sign=True),
        f"{c['won']} / {c['tied']} / {c['lost']}",
        p_text(c["p_holm"]),
    ]


def _span(interval: Mapping[str, Any]) -> str:
    if interval["low"] is None:
        return DASH
    return f"{points(interval['low'])} to {points(interval['high'])}"


def _relative(c: Mapping[str, Any]) -> str:
    if c["relative_gain"] is None:
        return DASH
    text = f"{number(100 * c['relative_gain'], 1, sign=True)} %"
    if c["relative_low"] is None:
        return text
    low, high = (number(100 * c[key], 1, sign=True) for key in ("relative_low", "relative_high"))
    return f"{text} ({low} to {high})"


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
