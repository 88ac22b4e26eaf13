"""How fast a report of 500 scans opens, sorts and filters in a browser, and how large it is.

`python -m research benchmark page_of_500` writes 500 small generated scans with label maps, 100 of
them scored, lets the stage `report` make its pages, and `sacl check` its own; then a headless
Chromium with an empty profile opens them from disk, five times on a desktop and five on a phone. It
writes `results/page_of_500.json`. Goal: 2 s at most. What a scan's page takes is measured in the
processor's seconds, for the small scans and for one of 512 x 520 x 320.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from research.benchmarks.browser import Browser
from research.benchmarks.circumstances import circumstances
from sacl.cohort.manifest import write_cohort
from sacl.files.nifti import write_label_map, write_volume
from sacl.run.record import recorded
from sacl.run.workspace import Workspace
from sacl.scores.organs_of_case import score_case
from sacl.scores.summary import ScoreRow, summarize, write_score_summary, write_scores
from sacl.settings import (
    EvaluateSettings,
    IngestSettings,
    ReportSettings,
    RunConfig,
)
from sacl.stages.check import check
from sacl.stages.report import report
from sacl.types import Case, Cohort, Grid, LabelMap, LabelScheme, NativeFrame, Volume

SCANS, SCORED, ORGANS, RUN = 500, 100, 13, "pooled"
SHAPE, SPACING_MM = (64, 52, 32), (6.0, 6.0, 7.5)
LARGER = (8, 10, 10)
"""How many times larger the large scan is along each axis."""
GOAL_S, TIMES = 2.0, 5
WINDOWS = {"desktop": (1200, 900), "phone": (375, 812)}
RESULT = Path(__file__).parents[1] / "results" / "page_of_500.json"
_LOADED = """new Promise((done) => {
  const look = () => {
    const [all] = performance.getEntriesByType("navigation");
    const [paint] = performance.getEntriesByName("first-contentful-paint");
    if (paint || performance.now() > 10000) done([all.loadEventEnd, paint?.startTime ?? NaN]);
    else requestAnimationFrame(look);
  };
  look();
})"""
_SORTED = """new Promise((done) => { const start = performance.now();
  document.querySelector("table.scans thead th:nth-child(2) button").click();
  requestAnimationFrame(() => setTimeout(() => done(performance.now() - start))); })"""
_FOUND = """new Promise((done) => { const start = performance.now();
  const find = document.querySelector("form.tools input"); find.value = "scan-04";
  find.dispatchEvent(new Event("input", {bubbles: true}));
  requestAnimationFrame(() => setTimeout(() => done(performance.now() - start))); })"""


def main() -> None:
    """Make the pages, measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scans", type=int, default=SCANS)
    parser.add_argument("--work", type=Path, help="keep the pages there")
    known = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = known.work or Path(folder)
        large_s, _ = drawn(make_work(Path(folder) / "large", 1, LARGER))
        drawing_s, page = drawn(make_work(work / "work", known.scans))
        checked = work / "check.html"
        config = RunConfig(work=work / "work", ingest=IngestSettings(data=(work / "work",)))
        check(config, checked, force=True)
        scan = page.parent / "scans" / "scan-0000.html"
        pages = {"report": page, "check": checked, "one scan": scan}
        result = {
            "scans": known.scans,
            "voxels": SHAPE,
            "organs": ORGANS,
            "goal_s": GOAL_S,
            "bytes": sizes(page, checked),
            "cpu_s_per_scan": round(drawing_s / known.scans, 2),
            "cpu_s_of_large_scan": round(large_s, 2),
            "opened": {name: opened(path) for name, path in pages.items()},
            **circumstances(),
        }
    text = json.dumps(result, indent=1) + "\n"
    print(text)
    RESULT.write_text(text, encoding="utf-8")


def drawn(workspace: Workspace) -> tuple[float, Path]:
    """Let the stage make its pages; return the processor's seconds and the first page."""
    start = time.process_time()
    page = report(ReportSettings(), workspace)
    return time.process_time() - start, page


def make_work(root: Path, scans: int, larger: tuple[int, int, int] = (1, 1, 1)) -> Workspace:
    """Write a work directory with everything that the report reads."""
    workspace, generator = Workspace(root, "five hundred"), np.random.default_rng(0)
    scheme = LabelScheme("generated", tuple(f"organ_{n:02d}" for n in range(ORGANS)))
    predicted, cases, rows = workspace.folder("predict"), [], []
    with recorded(workspace, "ingest", IngestSettings(), {}) as (home, _):
        for n in range(scans):
            image, reference = generated(scheme, generator, larger)
            voxels = np.roll(reference.voxels, generator.integers(0, 3, 3), (0, 1, 2))
            label_map = LabelMap(voxels, image.grid, scheme)
            case = case_of(n, image.grid, scheme)
            cases.append(case)
            write_volume(home / case.image, image)
            write_label_map(predicted / RUN / f"{case.case_id}.nii.gz", label_map)
            if case.reference:
                write_label_map(home / case.reference, reference)
                scores = score_case(case.case_id, reference, label_map, scheme.names, 2.0)
                rows += [ScoreRow(RUN, case.subject_id, case.split, score) for score in scores]
        write_cohort(home, Cohort("generated", scheme, tuple(cases)))
    with recorded(workspace, "evaluate", EvaluateSettings(), {}) as (folder, _):
        write_scores(folder / "scores.csv", rows)
        write_score_summary(folder / "summary.json", summarize(rows, 2.0))
    return workspace


def case_of(n: int, grid: Grid, scheme: LabelScheme) -> Case:
    """Return the n-th case; the first ones are held out and have a reference."""
    name, scored = f"scan-{n:04d}", n < SCORED
    return Case(
        case_id=name,
        subject_id=f"subject-{n:04d}",
        image=f"images/{name}.nii",
        reference=f"references/{name}.nii.gz" if scored else None,
        split="test" if scored else "train",
        native=NativeFrame(grid),
        window=(-175.0, 275.0),
        annotated=scheme.names if scored else (),
    )


def generated(
    scheme: LabelScheme, generator: np.random.Generator, larger: tuple[int, int, int]
) -> tuple[Volume, LabelMap]:
    """Return a noisy body with ellipsoids in it, each voxel so many times along each axis."""
    places = np.moveaxis(np.indices(SHAPE), 0, -1) / np.array(SHAPE) - 0.5
    labels = np.zeros(SHAPE, np.uint8)
    hu = np.where((places[..., :2] ** 2).sum(axis=-1) < 0.2, 20.0, -1000.0)
    for label in range(1, len(scheme.names) + 1):
        center, radius = generator.uniform(-0.25, 0.25, 3), generator.uniform(0.06, 0.16, 3)
        inside = (((places - center) / radius) ** 2).sum(axis=-1) < 1
        labels[inside] = label
        hu[inside] = 40 + 12 * label
    hu += generator.normal(0, 15, SHAPE)
    spacing_mm = np.array(SPACING_MM) / larger
    image = hu.astype(np.int16)
    for axis, times in enumerate(larger):
        image, labels = image.repeat(times, axis), labels.repeat(times, axis)
    grid = Grid(image.shape, np.diag([*spacing_mm, 1.0]))
    return Volume(image, grid), LabelMap(labels, grid, scheme)


def sizes(page: Path, checked: Path) -> dict[str, int]:
    """Return the bytes of the pages, and of the largest page and picture of a scan."""
    files = list((page.parent / "scans").iterdir())
    largest = {
        suffix: max(path.stat().st_size for path in files if path.suffix == suffix)
        for suffix in (".html", ".webp")
    }
    return {
        "report": page.stat().st_size,
        "check": checked.stat().st_size,
        "largest page of a scan": largest[".html"],
        "largest strip of a scan": largest[".webp"],
        "folder of all scans": sum(path.stat().st_size for path in files),
    }


def opened(page: Path) -> dict[str, Any]:
    """Return in seconds how long a page takes to open, to sort and to be searched, by window."""
    result: dict[str, Any] = {}
    for window, (width, height) in WINDOWS.items():
        taken: dict[str, list[float]] = defaultdict(list)
        for _ in range(TIMES):
            with Browser() as browser:
                browser.open(page, width, height)
                load_ms, paint_ms = browser.run(_LOADED)
                taken["load_s"].append(load_ms / 1000)
                taken["first_paint_s"].append(paint_ms / 1000)
                if browser.run('document.querySelectorAll("table.scans").length'):
                    taken["sort_s"].append(browser.run(_SORTED) / 1000)
                    taken["search_s"].append(browser.run(_FOUND) / 1000)
                sideways = browser.run("document.documentElement.scrollWidth > innerWidth")
        result[window] = {name: spread(seconds) for name, seconds in taken.items()}
        result[window]["scrolls_sideways"] = sideways
    return result


def spread(values: list[float]) -> dict[str, float]:
    """Return median and maximum."""
    return {"median": round(statistics.median(values), 3), "max": round(max(values), 3)}


if __name__ == "__main__":
    main()
