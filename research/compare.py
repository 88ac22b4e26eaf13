"""Run the cells of a comparison, here or as processes, and keep its results up to date."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from research.collect import LOCK, require_results_of, write_results
from research.grid import Cell, Grid, prepare, run_cell, write_failure
from research.page import page
from research.protocol import require_known
from research.results import Results
from research.tables import Table, as_text, plain
from sacl.errors import ConfigError, SaclError
from sacl.files.atomic import remove_partials, write_text
from sacl.progress import say

ROOT = Path(__file__).parents[1]
"""Folder from which `research` is imported."""
PAGE = "comparison.html"
LOG = "log.txt"
_WRITE_EVERY_S = 60.0


@dataclass(frozen=True)
class Wanted:
    """Which cells are run, and how many at once."""

    only: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    jobs: int = 1


def choose(grid: Grid, wanted: Wanted) -> tuple[Cell, ...]:
    """Return the wanted cells.

    Raises:
        ConfigError: the comparison has no such strategy or seed.
    """
    protocol = grid.protocol
    require_known("--only", wanted.only, protocol.names)
    strange = [seed for seed in wanted.seeds if seed not in protocol.seeds]
    if strange:
        raise ConfigError(f"--seeds: {strange[0]} is none of the protocol's {list(protocol.seeds)}")
    return tuple(
        cell
        for cell in grid.cells
        if (not wanted.only or cell.strategy in wanted.only)
        and (not wanted.seeds or cell.seed in wanted.seeds)
    )


def run_comparison(grid: Grid, wanted: Wanted, command: Sequence[str]) -> dict[str, str]:
    """Run the wanted cells that are not done, and return why some failed.

    Results and page are written when a cell has finished, once a minute at most, and at the end. A
    cell that fails stops no other, and is tried again by the next call.

    Args:
        grid: All cells.
        wanted: Which of them are run, and how many at once.
        command: Arguments of `python -m research` with which a process of its own runs the cell
            whose name is added (`wanted.jobs` > 1).

    Raises:
        SaclError: a mistake that no cell could be run with.
    """
    chosen = choose(grid, wanted)
    require_results_of(grid.protocol)
    prepare(grid, chosen)
    todo = [cell for cell in chosen if grid.state(cell) != "done"]
    say(f"{grid.protocol.name}: {len(todo)} of {len(chosen)} cells to run")
    tally = _Tally(len(todo), wanted.jobs, time.monotonic())
    write = _now_and_then(lambda: write_all(grid))
    if wanted.jobs > 1:

        def came_of(cell: Cell, cause: str) -> None:
            is_left = not cause and grid.state(cell) != "done"  # to another process
            tally.note(cell, None if is_left else cause)
            write()

        _run_beside(grid, todo, wanted.jobs, command, came_of)
    else:
        for cell in todo:
            try:
                is_ours = run_cell(grid, cell)
            except SaclError as error:
                tally.note(cell, str(error))
            else:
                tally.note(cell, "" if is_ours else None)
                write()
    say(as_text(write_all(grid)))
    for name, cause in tally.failed.items():
        say(f"failed: {name}: {cause}")
    return tally.failed


def write_all(grid: Grid) -> Results:
    """Write table, figures and page of the cells that have finished, and return the figures."""
    results = write_results(grid)
    with FileLock(grid.protocol.work / LOCK):
        remove_partials(grid.protocol.work, [PAGE])
        write_text(grid.protocol.work / PAGE, page(results))
    return results


def listing(grid: Grid, wanted: Wanted) -> list[dict[str, str]]:
    """Return the wanted cells with their state, and why they failed."""
    states = ((cell, grid.state(cell)) for cell in choose(grid, wanted))
    return [
        {"cell": c.name, "state": s, "cause": grid.failure(c) if s == "failed" else ""}
        for c, s in states
    ]


def listing_text(entries: Sequence[dict[str, str]]) -> str:
    """Return a listing as lines of text."""
    return plain(Table(["cell", "state", "cause"], [list(entry.values()) for entry in entries]))


@dataclass
class _Tally:
    """What came of the cells, and how long the rest will take."""

    total: int
    jobs: int
    start: float

    def __post_init__(self) -> None:
        self.failed: dict[str, str] = {}
        self.finished = 0

    def note(self, cell: Cell, cause: str | None) -> None:
        """Count a cell and say what came of it; `cause` is None where another process is at it."""
        self.finished += 1
        rest = self.total - self.finished
        seconds = (time.monotonic() - self.start) / self.finished * rest
        left = f"; about {seconds / 60:.0f} min left" if rest and seconds >= 60 else ""
        if cause:
            self.failed[cell.name] = cause
        what = (
            "another process is at it" if cause is None else f"failed, {cause}" if cause else "done"
        )
        say(f"[{self.finished}/{self.total}] {cell.name}: {what}{left}")


def _run_beside(
    grid: Grid,
    cells: Sequence[Cell],
    jobs: int,
    command: Sequence[str],
    note: Callable[[Cell, str], object],
) -> None:
    """Run cells as processes of their own, with the processor's cores dealt out.

    What a process says goes to `log.txt` in its cell's folder. When this one ends early, so do
    they.
    """
    children: list[subprocess.Popen[bytes]] = []

    def run(cell: Cell) -> str:
        folder = grid.folder(cell)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOG).open("wb") as log:
            child = start([*command, cell.name], max(1, (os.cpu_count() or 1) // jobs), log)
            children.append(child)
            return _cause(grid, cell, child.wait())

    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(run, cell): cell for cell in cells}
        try:
            for future in as_completed(futures):
                note(futures[future], future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in children:
                child.terminate()
            raise


def start(arguments: Sequence[str], threads: int, log: Any) -> subprocess.Popen[bytes]:
    """Start `python -m research` as a process of its own.

    It imports from where this process does, never from the current folder (`-P`), where a file
    named like a module of the library would otherwise run.
    """
    path = [str(ROOT), *(p for p in sys.path if p and Path(p) not in (Path.cwd(), ROOT))]
    environment = {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(path)}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "research", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=log,
        env={**os.environ, **environment},
    )


def _cause(grid: Grid, cell: Cell, code: int) -> str:
    """Return why a process failed, empty where it did not."""
    if code == 0:
        return ""
    if code > 0:
        return grid.failure(cell) or f"exit code {code}, see {LOG} in its folder"
    cause = f"ended by signal {-code}" + (", perhaps out of memory" if code == -9 else "")
    write_failure(grid.folder(cell), cause)
    return cause


def _now_and_then(act: Callable[[], object]) -> Callable[[], None]:
    """Return a function that acts when it is first called, and then once a minute at most."""
    last = -math.inf

    def maybe() -> None:
        nonlocal last
        if time.monotonic() - last >= _WRITE_EVERY_S:
            act()
            last = time.monotonic()

    return maybe
