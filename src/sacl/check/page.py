"""The page of a check: what is the matter, what the cohort is, and what a run of it will take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from sacl.check.cohort_checks import CohortFacts
from sacl.check.findings import Finding, grouped
from sacl.check.tables import (
    geometry_section,
    intensity_section,
    matrix_section,
    organ_section,
)
from sacl.report.page import Section, Top, bullets, facts, paragraph, render_page
from sacl.report.tables import html_table, number
from sacl.types import SPLITS

_LISTED = 6
_COLORS = {"error": "#d55e00", "warning": "#e69f00", "note": "#9aa5b3"}
_STAGES = {
    "ingest": "ingest",
    "locate": "coarse networks",
    "extract": "extract patches",
    "pretrain": "pretrain",
    "finetune": "fine-tune, twins included",
    "predict": "predict",
    "evaluate": "evaluate",
    "report": "report",
}


def check_page(cohort: CohortFacts, findings: Sequence[Finding], record: Mapping[str, Any]) -> str:
    """Return the page; `record` is the check's JSON: counts, origin and forecast."""
    sections = [
        _findings_section(findings),
        _cohort_section(record),
        organ_section(cohort),
        geometry_section(cohort),
        intensity_section(cohort),
        _forecast_section(record["forecast"]),
        matrix_section(cohort, findings),
    ]
    return render_page(_top(record), [section for section in sections if section.body])


def _top(record: Mapping[str, Any]) -> Top:
    errors, warnings = record["kinds"]["error"], record["kinds"]["warning"]
    words = [_plural(errors, "kind of error")] * bool(errors)
    words += [_plural(warnings, "kind of warning")] * bool(warnings)
    headline = f"{' and '.join(words)} in this cohort." if words else "No fault was found."
    if errors:
        headline += " Correct the data before a run."
    elif warnings:
        headline += " Look at them before a run."
    forecast = record["forecast"]
    details = [
        f"{_plural(record['scans'], 'scan')} of {_plural(record['subjects'], 'subject')},"
        f" {sum(counts['labeled'] for counts in record['splits'].values())} with a reference",
        f"A run is estimated at {_duration(sum(forecast['seconds'].values()))},"
        f" {_gb(sum(forecast['disk_gb'].values()))} of disk and"
        f" {_gb(max(forecast['memory_gb'].values()))} of memory"
        if forecast["seconds"]
        else f"A run is estimated at {_gb(sum(forecast['disk_gb'].values()))} of disk",
    ]
    kind = f"{record['modality'].upper()}, {_plural(len(record['organs']), 'organ')}"
    return Top(f"Check of {record['name']}", f"{kind} · {record['origin']}", headline, details)


def _findings_section(findings: Sequence[Finding]) -> Section:
    """Return the findings by kind, the grave ones first; of each kind the first few cases."""
    parts = []
    for code, group in grouped(findings).items():
        rule = group[0].rule
        title = f"{rule.level.capitalize()}: {rule.title}"
        texts = [f"{f.case_id}: {f.message}" if f.case_id else f.message for f in group]
        shown, rest = texts[:_LISTED], texts[_LISTED:]
        count = f" ({len(group)})" if len(group) > 1 else ""
        more = (
            f"<details><summary>{len(rest)} more</summary>{bullets(rest)}</details>" if rest else ""
        )
        mark = f'<span class="swatch" style="background:{_COLORS[rule.level]}"></span>'
        parts.append(
            f'<h3 id="{escape(code)}">{mark}{escape(title)}{count}</h3>{bullets(shown)}{more}'
            f'<p class="note">{escape(rule.remedy)}</p>'
        )
    return Section(
        "Findings",
        "".join(parts) or paragraph("None: no error, no warning, no note."),
        "Errors stop a run or make its results wrong. Warnings are worth a look. Notes say what is"
        " particular to this cohort and need nothing.",
    )


def _cohort_section(record: Mapping[str, Any]) -> Section:
    head = ("split", "subjects", "scans", "labeled", "unlabeled")
    body = [
        (split, *(str(counts[name]) for name in head[1:]))
        for split, counts in record["splits"].items()
    ]
    parts = [html_table(head, body)]
    for name, values in record["scan_labels"].items():
        if len(values) > 20:
            parts.append(paragraph(f"{name}: {len(values)} values, in the table of scans"))
            continue
        rows = [
            (value.replace("_", " "), *(str(counts[split]) for split in SPLITS))
            for value, counts in values.items()
        ]
        parts.append(
            f"<h3>{escape(name.replace('_', ' '))}</h3>" + html_table((name, *SPLITS), rows)
        )
    if record["notes"]:
        parts.append("<h3>Said while listing</h3>" + bullets(record["notes"]))
    note = (
        "" if record["scan_labels"] else "No scan-wise label, such as a contrast phase, is known."
    )
    return Section("Cohort", "".join(parts), note)


def _forecast_section(forecast: Mapping[str, Any]) -> Section:
    """Return the estimate of a run: time by stage, disk by use, memory by stage."""
    parts = []
    seconds, counts = forecast["seconds"], forecast["counts"]
    if seconds:
        rows = [(_STAGES[stage], _duration(value)) for stage, value in seconds.items()]
        rows.append(("in all", _duration(sum(seconds.values()))))
        parts.append("<h3>Time</h3>" + html_table(("stage", "estimate"), rows))
    disk, memory = forecast["disk_gb"], forecast["memory_gb"]
    rows = [(name, _gb(value)) for name, value in disk.items() if value]
    rows.append(("in all", f"{_gb(sum(disk.values()))} of {_gb(forecast['free_disk_gb'])} free"))
    parts.append("<h3>Disk</h3>" + html_table(("for", "estimate"), rows))
    rows = [(name, _gb(value)) for name, value in memory.items()]
    installed = forecast["installed_memory_gb"]
    if installed:
        rows.append(("in this machine", _gb(installed)))
    parts.append("<h3>Memory</h3>" + html_table(("to", "estimate"), rows))
    steps = ", ".join(f"{name} {value}" for name, value in forecast["steps"].items())
    pairs = [
        ("Patches", f"{counts['patches']}, of them {counts['labeled_patches']} labeled"),
        ("Labeled", f"{counts['labeled_scans']} scans of {counts['labeled_subjects']} subjects"),
        ("Training steps", steps),
        ("Measured", _measured(forecast)),
    ]
    note = "An estimate: counts of patches and slices follow from the references."
    if seconds:
        note += (
            " A few steps were timed with random pixels. On an idle machine three finished runs"
            " took 1 % less to 19 % more in all, single stages differed by up to a factor of four."
        )
    return Section(
        "The run ahead, estimated", "".join(parts) + "<h3>From</h3>" + facts(pairs), note
    )


def _measured(forecast: Mapping[str, Any]) -> str:
    measured = forecast["measured"]
    if not measured:
        return str(forecast["not_measured"])
    text = (
        f"{measured['locate_s']:.2f} s per step of a coarse network, {measured['pretrain_s']:.2f} s"
        f" of pretraining, {measured['finetune_s']:.2f} s of fine-tuning, on {measured['device']}"
    )
    if measured["device"] == "cpu":
        text += f" with {_plural(measured['threads'], 'thread')}"
    if measured["load"] > measured["cores"]:
        busy = f"load {measured['load']:g} on {measured['cores']} cores"
        text += f", while the machine was busy ({busy}): an idle one is faster"
    return text


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{number(seconds / 3600, 1)} h"


def _gb(value: float) -> str:
    return f"{max(1, round(value * 1000))} MB" if value < 1 else f"{value:.1f} GB"


def _plural(count: int, noun: str) -> str:
    if count == 1:
        return f"{count} {noun}"
    first, _, rest = noun.partition(" ")
    return f"{count} {first}s {rest}".rstrip() if rest.startswith("of") else f"{count} {noun}s"
