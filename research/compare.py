"""Run the cells of a comparison by the engine that works on scans, and keep its results up to date.

A cell is to the engine what a scan is in a run: it goes on where it stopped, one that fails stops
no other, and one whose process died twice is set aside.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from research.collect import LOCK, RESULTS, require_results_of, write_results
from research.grid import Cell, Grid, prepare, read_grid, run_cell, write_failure
from research.page import page
from research.protocol import require_known
from research.results import Results
from research.tables import Table, as_text, plain
from sacl.errors import ConfigError, DataError, SaclError, SetAsideError
from sacl.files.atomic import remove_partials, write_text
from sacl.files.journal import Journal
from sacl.progress import say
from sacl.run.engine import Engine, ShardDone

PAGE = "comparison.html"
LOG = "log.txt"
_WRITE_EVERY_S = 60.0
_ONE_BY_ONE = Engine(workers=1)


@dataclass(frozen=True)
class Wanted:
    """Which cells are run."""

    only: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Source:
    """What a grid is read from again, by another process: `read_grid`'s arguments."""

    protocol: Path
    flags: Mapping[str, str]
    work: Path | None = None

    def grid(self) -> Grid:
        """Return the grid."""
        return read_grid(self.protocol, self.flags, self.work)


@dataclass(frozen=True)
class Ran:
    """What came of a cell that did not fail; it `is_ours` unless another call is at it."""

    is_ours: bool


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


def run_comparison(source: Source, wanted: Wanted, engine: Engine = _ONE_BY_ONE) -> dict[str, str]:
    """Run the wanted cells that are not done, and return why some failed.

    Results and page are written when a cell has finished, once a minute at most, and at the end. A
    cell that fails stops no other, and is tried again by the next call.

    Args:
        source: Names the protocol.
        wanted: Which cells are run.
        engine: Where they are run, and how many at once; each of several then has a log.

    Raises:
        SaclError: a mistake that no cell could be run with.
    """
    grid = source.grid()
    chosen = choose(grid, wanted)
    require_results_of(grid.protocol)
    prepare(grid, chosen)
    todo = [cell for cell in chosen if grid.state(cell) != "done"]
    say(f"{grid.protocol.name}: {len(todo)} of {len(chosen)} cells to run")
    is_beside = engine.kind != "local" or engine.workers != 1
    work, names = functools.partial(open_cells, source, is_beside), [cell.name for cell in todo]
    journal = Journal(grid.protocol.work, Ran)
    try:
        engine.each(work, names, journal, "cells", is_there=lambda _: False)
    except SetAsideError:
        for cell in todo:
            if engine.shard is None or engine.shard.holds(cell.name):
                _note_death(grid, cell)
    except ShardDone:
        pass
    failed = {cell.name: grid.failure(cell) for cell in todo if grid.state(cell) == "failed"}
    say(as_text(write_all(grid)))
    for name, cause in failed.items():
        say(f"failed: {name}: {cause}")
    return failed


def open_cells(source: Source, is_beside: bool) -> Callable[[str], Ran]:
    """Return what runs a cell by its name; `is_beside` others it says what it does in its log."""
    grid = source.grid()
    cells = {cell.name: cell for cell in grid.cells}

    def run(name: str) -> Ran:
        with contextlib.ExitStack() as stack:
            if is_beside:
                folder = grid.folder(cells[name])
                folder.mkdir(parents=True, exist_ok=True)
                log = stack.enter_context((folder / LOG).open("w", encoding="utf-8"))
                stack.enter_context(contextlib.redirect_stderr(log))
            try:
                is_ours = run_cell(grid, cells[name])
            except SaclError as error:
                raise DataError(f"{name}: failed, {error}") from error
        say(f"{name}: {'done' if is_ours else 'another process is at it'}")
        _write_now_and_then(grid)
        return Ran(is_ours)

    return run


def _note_death(grid: Grid, cell: Cell) -> None:
    """Keep of a cell that is neither done nor at work that its process died."""
    folder = grid.folder(cell)
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(Timeout), FileLock(folder / ".lock", timeout=0):
        if grid.state(cell) not in ("done", "failed"):
            write_failure(folder, "its process died, and once more; perhaps out of memory")


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


def _write_now_and_then(grid: Grid) -> None:
    """Write the results unless that was done within the last minute."""
    path = grid.protocol.work / RESULTS
    if not path.is_file() or time.time() - path.stat().st_mtime >= _WRITE_EVERY_S:
        write_all(grid)
