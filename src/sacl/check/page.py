"""The page of a check: what is the matter, and what the cohort is."""

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
from sacl.report.page import Section, Top, bullets, paragraph, render_page
from sacl.report.tables import html_table
from sacl.types import SPLITS

_LISTED = 6
_COLORS = {"error": "#d55e00", "warning": "#e69f00", "note": "#9aa5b3"}


def check_page(cohort: CohortFacts, findings: Sequence[Finding], record: Mapping[str, Any]) -> str:
    """Return the page; `record` is the check's JSON: counts and origin."""
    sections = [
        _findings_section(findings),
        _cohort_section(record),
        organ_section(cohort),
        geometry_section(cohort),
        intensity_section(cohort),
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
    details = [
        f"{_plural(record['scans'], 'scan')} of {_plural(record['subjects'], 'subject')},"
        f" {sum(counts['labeled'] for counts in record['splits'].values())} with a reference",
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


def _plural(count: int, noun: str) -> str:
    if count == 1:
        return f"{count} {noun}"
    first, _, rest = noun.partition(" ")
    return f"{count} {first}s {rest}".rstrip() if rest.startswith("of") else f"{count} {noun}s"
