"""Run a comparison's cells and keep its results up to date; list them; render the page again."""

from __future__ import annotations

import difflib
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from sacl.comparison.cells import Cell, plan_cells, shard_of
from sacl.comparison.checks import prepare, require_results_of
from sacl.comparison.collecting import write_results
from sacl.comparison.lock import locked
from sacl.comparison.page import comparison_page, comparison_text
from sacl.comparison.reading import load_protocol
from sacl.comparison.running import Confirmed, cell_state, failure_of, run_cell, seconds_and_steps
from sacl.comparison.schedule import Tally, minutes, run_beside, run_here
from sacl.errors import ConfigError, SaclError
from sacl.files.atomic import write_text
from sacl.progress import say
from sacl.report.tables import plain_table
from sacl.settings.protocol import Protocol

PAGE = "comparison.html"
_WRITE_EVERY_S = 60.0


@dataclass(frozen=True)
class Wanted:
    """Which cells are run, and how."""

    shard: str | None = None
    only: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    jobs: int = 1
    force: bool = False


@dataclass(frozen=True)
class Comparison:
    """A protocol with its cells."""

    protocol: Protocol
    cells: tuple[Cell, ...]


def read_comparison(
    path: Path, flags: Mapping[str, str] | None = None, work: str | None = None
) -> Comparison:
    """Read a protocol and plan its cells.

    Raises:
        SaclError: a mistake in the protocol, or its folder holds another comparison.
    """
    protocol, base, config_of = load_protocol(path, flags, work)
    require_results_of(protocol)
    return Comparison(protocol, plan_cells(protocol, base, config_of))


def run_comparison(
    comparison: Comparison, wanted: Wanted, arguments: Sequence[str]
) -> dict[str, Any]:
    """Run the wanted cells that are not up to date, and return what came of it.

    Results and page are written when a cell has finished, once a minute at most, and at the end. A
    cell that fails is told at the end and tried again by the next call.

    Args:
        comparison: All cells.
        wanted: Which of them are run, and how.
        arguments: Of the command line, for processes of their own (`wanted.jobs` > 1).

    Raises:
        SaclError: a mistake that no cell could be run with.
    """
    protocol, confirmed = comparison.protocol, Confirmed()
    chosen = choose(comparison, wanted)
    with _stopped_by_sigterm():
        prepare(protocol, comparison.cells, confirmed, redo=wanted.force)
        guess = protocol.minutes_per_cell
        tally = Tally(len(chosen), wanted.jobs, None if guess is None else 60 * guess)
        say(f"{protocol.name}: {len(chosen)} of {len(comparison.cells)} cells{tally.left()}")

        after = _now_and_then(lambda: _write(comparison, confirmed))
        if wanted.jobs > 1:
            todo = _not_done(chosen, confirmed, tally, wanted.force)
            run_beside(todo, arguments, wanted.jobs, tally, after)
        else:
            run_here(chosen, confirmed, tally, after, force=wanted.force)
        document = _write(comparison, confirmed)
    say(comparison_text(document))
    for name, cause in tally.failed.items():
        say(f"failed: {name}: {cause}")
    return {
        "page": str(protocol.work / PAGE),
        "cells": len(comparison.cells),
        "done": sum(cell["state"] == "done" for cell in document["cells"]),
        "elsewhere": tally.elsewhere,
        "failed": tally.failed,
    }


def run_one(comparison: Comparison, name: str, force: bool = False) -> dict[str, Any]:
    """Run one cell by its name and write no results.

    Raises:
        ConfigError: there is no such cell.
    """
    by_name = {cell.name: cell for cell in comparison.cells}
    if name not in by_name:
        raise ConfigError(f"--cell: no cell '{name}'{_did_you_mean(name, by_name)}")
    confirmed, failed = Confirmed(), {}
    with _stopped_by_sigterm():
        prepare(comparison.protocol, [by_name[name]], confirmed)
        try:
            run_cell(by_name[name], confirmed, force=force)
        except SaclError as error:
            failed = {name: str(error)}
            say(f"{name}: failed, {error}")
    return {"cell": name, "failed": failed}


def list_cells(comparison: Comparison, wanted: Wanted) -> list[dict[str, Any]]:
    """Return the wanted cells with their state, how long they took, and why they failed."""
    confirmed, entries = Confirmed(), []
    for cell in choose(comparison, wanted):
        state = cell_state(cell, confirmed)
        seconds = seconds_and_steps(cell)["seconds"] if state == "done" else {}
        total = sum(value or 0.0 for value in seconds.values())
        cause = failure_of(cell) if state == "failed" else ""
        entries.append({"cell": cell.name, "state": state, "seconds": total, "cause": cause})
    return entries


def cells_text(entries: Sequence[Mapping[str, Any]]) -> str:
    """Return what `list_cells` found as lines of text."""
    body = [
        [e["cell"], e["state"], minutes(e["seconds"]) if e["seconds"] else "", e["cause"]]
        for e in entries
    ]
    return plain_table(["cell", "state", "took", "cause"], body)


def render(comparison: Comparison) -> dict[str, Any]:
    """Write results and page anew from the cells that have finished, running none."""
    document = _write(comparison, Confirmed())
    say(comparison_text(document))
    return {"page": str(comparison.protocol.work / PAGE), "failed": {}}


def choose(comparison: Comparison, wanted: Wanted) -> tuple[Cell, ...]:
    """Return the wanted cells.

    Raises:
        ConfigError: the comparison has no such strategy or seed, or the shard is none.
    """
    protocol = comparison.protocol
    names = (*protocol.strategies, *protocol.ablations)
    for name in wanted.only:
        if name not in names:
            raise ConfigError(f"--only: no strategy '{name}'{_did_you_mean(name, names)}")
    strange = [seed for seed in wanted.seeds if seed not in protocol.seeds]
    if strange:
        raise ConfigError(f"--seeds: {strange[0]} is none of the protocol's {list(protocol.seeds)}")
    cells = tuple(
        cell
        for cell in comparison.cells
        if (not wanted.only or cell.strategy in wanted.only)
        and (not wanted.seeds or cell.seed in wanted.seeds)
    )
    return shard_of(cells, wanted.shard) if wanted.shard else cells


def _not_done(
    chosen: Sequence[Cell], confirmed: Confirmed, tally: Tally, force: bool
) -> list[Cell]:
    """Return the cells to run; those that are done, or run by another process, are counted."""
    todo = []
    for cell in chosen:
        state = cell_state(cell, confirmed)
        if state == "running":
            tally.note_elsewhere(cell)
        elif state == "done" and not force:
            tally.note(cell, "")
        else:
            todo.append(cell)
    return todo


def _now_and_then(act: Callable[[], object]) -> Callable[[], None]:
    """Return a function that acts when it is first called, and then once a minute at most."""
    last = -math.inf

    def maybe() -> None:
        nonlocal last
        if time.monotonic() - last >= _WRITE_EVERY_S:
            act()
            last = time.monotonic()

    return maybe


def _write(comparison: Comparison, confirmed: Confirmed) -> dict[str, Any]:
    """Write results and page; one process at a time, so that the last one saw all cells."""
    work = comparison.protocol.work
    with locked(work / ".results.lock", "the results are being written"):
        document = write_results(comparison.protocol, comparison.cells, confirmed)
        write_text(work / PAGE, comparison_page(document))
    return document


def _did_you_mean(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    listed = list(known)
    few = ", ".join(listed[:8]) + (", ..." if len(listed) > 8 else "")
    return f"; did you mean '{close[0]}'?" if close else f"; there are {few}"


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the body as Ctrl-C does, so that locks and processes are cleared away."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
