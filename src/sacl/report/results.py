"""The page's sections on the scores: runs compared, organ by organ, and where it failed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from sacl.report.figures import box_plots, palette
from sacl.report.headline import points
from sacl.report.page import Section, chart, legend, paragraph
from sacl.report.tables import DASH, Cell, html_table, number, p_text, score_cell

_UNTESTED_COLOR = "#8a939e"
_WORST_SHOWN = 10
_POOR = 0.5


def run_colors(summary: Mapping[str, Any]) -> dict[str, str]:
    """Return a color for every run, the same in all charts; untested runs are gray."""
    untested = {c["against"] for c in summary["comparisons"] if c["p"] is None}
    tested = [run for run in summary["runs"] if run not in untested]
    colors = palette(tested)
    return {run: colors.get(run, _UNTESTED_COLOR) for run in summary["runs"]}


def comparison_section(summary: Mapping[str, Any]) -> Section:
    """Return the table of all runs with intervals, differences and p-values."""
    dice = {c["against"]: c for c in summary["comparisons"] if c["metric"] == "dice"}
    head = [
        *("Run", "Dice", f"NSD, {summary['nsd_tolerance_mm']:g} mm", "HD95, mm"),
        *("first run ahead by, points", "relative", "p"),
    ]
    body: list[list[str | Cell]] = []
    for n, (run, figures) in enumerate(summary["runs"].items()):
        against = dice.get(run, {})
        body.append(
            [
                Cell(run, "best" if n == 0 else ""),
                score_cell(figures["dice"]),
                score_cell(figures["nsd"]),
                _hd95(figures),
                _difference(against),
                _percent(against.get("relative_gain")),
                p_text(against.get("p_holm")) if against else "",
            ]
        )
    return Section("The runs compared", html_table(head, body), _comparison_note(summary))


def _hd95(figures: Mapping[str, Any]) -> str:
    infinite = figures["infinite_hd95"]
    text = number(figures["hd95_mm"]["mean"], 1)
    return f"{text} ({infinite} infinite)" if infinite else text


def _difference(comparison: Mapping[str, Any]) -> str:
    if not comparison:
        return ""
    text = points(comparison["mean_difference"])
    if comparison["low"] is None:
        return text
    return f"{text} ({points(comparison['low'])} to {points(comparison['high'])})"


def _percent(share: float | None) -> str:
    return "" if share is None else number(100 * share, 1, sign=True) + " %"


def _comparison_note(summary: Mapping[str, Any]) -> str:
    subjects = "; ".join(f"{count} {split}" for split, count in summary["subjects"].items())
    return (
        f"Means over held-out subjects ({subjects}); in brackets 95 % bootstrap intervals. Points"
        " are hundredths of Dice. p: Wilcoxon signed-rank test of the Dice, paired over subjects,"
        " Holm-corrected for the number of runs. Coarse maps, where listed, are what the query head"
        " starts from, not a rival, and are not tested. " + summary["rule_for_empty_organs"]
    )


def organ_section(summary: Mapping[str, Any], scores: pd.DataFrame) -> Section:
    """Return the Dice per organ and run as a table, and as boxes over the scans."""
    runs = list(summary["runs"])
    body: list[list[str | Cell]] = []
    for organ in summary["organs"]:
        dice = [summary["runs"][run]["organs"].get(organ, {}).get("dice") for run in runs]
        best = max((value for value in dice if value), default=None)
        cells = [Cell(number(v), "best" if v is not None and v == best else "") for v in dice]
        body.append([organ.replace("_", " "), *cells, *_gain(dice), _scans(scores, organ)])
    rival = ["first less second, points"] if len(runs) > 1 else []
    colors = run_colors(summary)
    table = html_table(["Dice by organ", *runs, *rival, "scans with it"], body)
    values = {
        str(organ): {str(run): part["dice"].tolist() for run, part in own.groupby("run")}
        for organ, own in scores.groupby("organ", sort=False)
    }
    boxes = chart(box_plots(values, colors, "Dice"))
    note = "Best value of a row in bold. Box: quartiles and median over scans; every dot is a scan."
    body_html = table + "<h3>Spread over scans</h3>" + legend(list(colors.items())) + boxes
    return Section("Organ by organ", body_html, note)


def _gain(dice: list[float | None]) -> list[str]:
    if len(dice) < 2:
        return []
    ours, other = dice[:2]
    return [DASH if ours is None or other is None else points(ours - other)]


def _scans(scores: pd.DataFrame, organ: str) -> str:
    own = scores[(scores["organ"] == organ) & (scores["run"] == scores["run"].iloc[0])]
    return f"{int((own['reference_ml'] > 0).sum())} of {len(own)}"


def failure_section(
    summary: Mapping[str, Any], scores: pd.DataFrame, coverage: pd.DataFrame | None
) -> Section:
    """Return the main run's worst organs, and what the coarse maps did not find."""
    run, figures = next(iter(summary["runs"].items()))
    own = scores[scores["run"] == run]
    poor = own[own["dice"] < _POOR].sort_values(["dice", "case_id"])
    found = (
        f"Of {figures['pairs'] - figures['undefined'] - figures['invented']} organs to find,"
        f" the run {run} missed {figures['missed']};"
        f" it shows {figures['invented']} that are not there."
        f" {len(poor)} have a Dice below {_POOR:g}, misses included."
    )
    body = paragraph(found)
    if len(poor):
        title = "The worst of them" if len(poor) > _WORST_SHOWN else ""
        rows = [_failure(row) for row in poor.head(_WORST_SHOWN).itertuples()]
        head: list[str | Cell] = [
            *("Scan", Cell("organ", "text"), "Dice", "reference, ml", "predicted, ml"),
            Cell("what happened", "text"),
        ]
        body += html_table(head, rows, title)
    if coverage is not None and len(coverage):
        body += "<h3>Found by the coarse map</h3>" + _coverage_table(coverage)
    return Section("Where it failed", body, _COVERAGE_NOTE if coverage is not None else "")


_COVERAGE_NOTE = (
    "Found: scans in which the coarse map shows the organ; an organ may be truly absent from the"
    " others. Coarse Dice: on labeled scans, by a network that never saw the subject."
)


def _failure(row: Any) -> list[str | Cell]:
    what = "poor overlap"
    if row.predicted_ml == 0:
        what = "missed"
    elif row.reference_ml == 0:
        what = "invented"
    return [
        row.case_id,
        Cell(row.organ.replace("_", " "), "text"),
        number(row.dice),
        number(row.reference_ml, 1),
        number(row.predicted_ml, 1),
        Cell(what, "text"),
    ]


def _coverage_table(coverage: pd.DataFrame) -> str:
    body: list[list[str | Cell]] = []
    for organ, part in coverage.groupby("organ", sort=False):
        dice, found = part["dice"].dropna(), int(part["found"].sum())
        stress = "best" if found < len(part) else ""
        body.append(
            [
                str(organ).replace("_", " "),
                Cell(f"{found} of {len(part)}", stress),
                number(part.loc[part["found"], "volume_ml"].median() if found else None, 1),
                number(float(dice.mean()) if len(dice) else None),
            ]
        )
    return html_table(["Organ", "found in scans", "median volume, ml", "coarse Dice"], body)
