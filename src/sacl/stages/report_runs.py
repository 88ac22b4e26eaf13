"""report: several work directories -> one self-contained HTML page that compares their runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sacl.errors import DataError
from sacl.files.atomic import real, require_ours, write_text
from sacl.report.page import GENERATOR, render
from sacl.report.results import scores_part
from sacl.run.workspace import Workspace
from sacl.scores.summary import in_common, read_scores, read_summary, summarize


def report_runs(works: Sequence[Path], out: Path, force: bool = False) -> Path:
    """Write one page that compares the runs of several work directories, and return `out`.

    Every run is compared with the first work directory's main run, on the scans and organs that
    all of them scored.

    Raises:
        DataError: two works were scored with different tolerances, or share no scan; or `out` is
            a file of the user's, and `force` is off.
        WorkspaceError: a work directory has not been evaluated.
    """
    require_ours(out, GENERATOR, force)
    if len({real(work) for work in works}) < len(works):
        raise DataError("report: a work directory is named twice; name each once")
    folders = {_name(work, works): Workspace(work).require("evaluate") for work in works}
    tolerances = {read_summary(f / "summary.json").nsd_tolerance_mm for f in folders.values()}
    if len(tolerances) > 1:
        raise DataError(
            f"report: NSD tolerances of {sorted(tolerances)} mm differ; evaluate all runs alike"
        )
    rows = in_common(
        {name: read_scores(f / "scores.csv") for name, f in folders.items()}, ["coarse"]
    )
    summary = summarize(rows, tolerances.pop())
    page = render("results.html", works=len(works), summary=summary, scores=scores_part(rows))
    write_text(out, page)
    return out


def _name(work: Path, works: Sequence[Path]) -> str:
    """Return the work directory's name, with its parent's where two are named alike."""
    alike = sum(other.name == work.name for other in works) > 1
    return f"{work.parent.name}/{work.name}" if alike else work.name
