"""The page of a few-label comparison: strategies at every number of labeled subjects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sacl.reporting.page import Section, Top, render_page
from sacl.reporting.tables import html_table, p_text, plain_table, score_cell

Document = Mapping[str, Any]


def comparison_page(document: Document) -> str:
    """Return the whole page of a comparison's results."""
    top = Top(document["protocol"]["name"], "", "", [])
    body = html_table(["labels"], [[str(x["labeled_subjects"])] for x in document["levels"]])
    return render_page(top, [Section("Strategies", body)])


def comparison_text(document: Document) -> str:
    """Return the means with intervals and corrected p-values as lines of text."""
    body = []
    for level in document["levels"]:
        p_of = {
            c["against"]: c["p_holm"]
            for c in (*level["comparisons"], *level["ablations"])
            if c["metric"] == "dice"
        }
        body += [
            [
                str(level["labeled_subjects"]),
                name,
                str(len(figures["dice_by_seed"])),
                score_cell(figures["dice"]),
                score_cell(figures["nsd"]),
                p_text(p_of[name]) if name in p_of else "",
            ]
            for name, figures in level["strategies"].items()
        ]
    if not body:
        return "no cell has finished"
    return plain_table(["labels", "strategy", "seeds", "Dice", "NSD", "p (Holm)"], body)
