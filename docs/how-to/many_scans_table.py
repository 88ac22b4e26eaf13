"""Write the tables of `many-scans.md` from `research/results/full_size.json`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("many-scans.md")
RESULTS = Path(__file__).parents[2] / "research" / "results"
COHORTS = (100, 1000, 10_000, 100_000)
SETTINGS = {
    "ours": "our best on slices",
    "volume": "our best on volumes",
    "paper": "the paper's setting",
}
STAGES = ("ingest", "locate", "extract", "predict", "evaluate", "report")
TABLE = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def many_scans_page() -> str:
    """Return the page, its tables made of what was measured."""
    known = json.loads((RESULTS / "full_size.json").read_text(encoding="utf-8"))["stages"]

    def table(match: re.Match[str]) -> str:
        named = {stage: known.get(f"{match[2]}: {stage}") for stage in STAGES}
        of_stage = {stage: measured for stage, measured in named.items() if measured}
        if "extract" in of_stage:  # coarse maps of two training steps show few organs: few patches
            of_stage["extract"] = known["paper: extract"]
        lines = [
            f"| stage, {SETTINGS[match[2]]} | memory, GB | s per scan | MB per scan |"
            + "".join(f" {count:,} scans |" for count in COHORTS),
            "|---|---|---|---|" + "---|" * len(COHORTS),
            *(_line(stage, measured) for stage, measured in of_stage.items()),
            _line("in all", _sum([*of_stage.values()])),
        ]
        return match[1] + "\n".join(lines) + "\n" + match[3]

    return TABLE.sub(table, PAGE.read_text(encoding="utf-8"))


def _sum(measured: list[dict[str, Any]]) -> dict[str, Any]:
    names = ("seconds_per_scan", "disk_mb_per_scan")
    return {
        **{name: sum(stage[name] for stage in measured) for name in names},
        "above_idle_mb": max(stage["above_idle_mb"] for stage in measured),
    }


def _line(name: str, measured: dict[str, Any]) -> str:
    seconds, disk_mb = measured["seconds_per_scan"], measured["disk_mb_per_scan"]
    cells = [name, f"{measured['above_idle_mb'] / 1000:.1f}", f"{seconds:.1f}", f"{disk_mb:.1f}"]
    for count in COHORTS:
        disk = _disk(count * disk_mb)
        cells.append(f"{_hours(count * seconds / 3600)}{disk and ', '}{disk}")
    return f"| {' | '.join(cells)} |"


def _hours(hours: float) -> str:
    return f"{hours:,.0f} h" if hours >= 10 else f"{hours:.1f} h" if hours >= 1 else _minutes(hours)


def _minutes(hours: float) -> str:
    return f"{max(1, round(60 * hours))} min"


def _disk(megabytes: float) -> str:
    if megabytes >= 1e6:
        return f"{megabytes / 1e6:.1f} TB"
    return f"{megabytes / 1000:.0f} GB" if megabytes >= 500 else ""


if __name__ == "__main__":
    PAGE.write_text(many_scans_page(), encoding="utf-8")
