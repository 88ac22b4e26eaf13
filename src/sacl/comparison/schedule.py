"""Run many cells, one after the other or several at once; one that fails stops no other."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sacl.comparison.cells import Cell
from sacl.comparison.running import (
    FAILED,
    Confirmed,
    cell_state,
    failure_of,
    run_cell,
    seconds_and_steps,
    write_failure,
)
from sacl.errors import SaclError
from sacl.progress import say

LOG = "log.txt"
_POLL_S = 0.2


@dataclass
class Tally:
    """What came of the cells, and the estimate of what is left."""

    total: int
    jobs: int = 1
    guess_s: float | None = None
    failed: dict[str, str] = field(default_factory=dict)
    elsewhere: list[str] = field(default_factory=list)
    finished: int = 0
    _seconds: list[float] = field(default_factory=list)

    def note(self, cell: Cell, cause: str, seconds: float | None = None) -> None:
        """Count a cell, and say what came of it; `cause` is why it failed, or empty."""
        self.finished += 1
        if cause:
            self.failed[cell.name] = cause
            say(f"{self._at()} {cell.name}: failed, {cause}")
        elif seconds is None:
            say(f"{self._at()} {cell.name}: up to date")
        else:
            own = seconds_and_steps(cell)["seconds"].values()
            self._seconds.append(
                min(seconds, sum(value or 0.0 for value in own))
            )  # what all cells share is done once
            say(f"{self._at()} {cell.name}: done in {minutes(seconds)}{self.left()}")

    def note_elsewhere(self, cell: Cell) -> None:
        """Count a cell that another process is running."""
        self.finished += 1
        self.elsewhere.append(cell.name)
        say(f"{self._at()} {cell.name}: another process is running it")

    def left(self) -> str:
        """Return how long the rest will take, as far as that can be told."""
        mean = sum(self._seconds) / len(self._seconds) if self._seconds else self.guess_s
        rest = self.total - self.finished
        return f"; about {minutes(mean * rest / self.jobs)} left" if mean and rest else ""

    def _at(self) -> str:
        return f"[{self.finished}/{self.total}]"


def run_here(
    cells: Sequence[Cell],
    confirmed: Confirmed,
    tally: Tally,
    after: Callable[[], None],
    *,
    force: bool = False,
) -> None:
    """Run cells one after the other in this process; `after` is called when one has finished."""
    for cell in cells:
        if not force and cell_state(cell, confirmed) == "done":
            tally.note(cell, "")
            continue
        start = time.monotonic()
        try:
            mine = run_cell(cell, confirmed, force=force)
        except SaclError as error:
            tally.note(cell, str(error))
            continue
        if mine:
            tally.note(cell, "", time.monotonic() - start)
            after()
        else:
            tally.note_elsewhere(cell)


def run_beside(
    cells: Sequence[Cell],
    arguments: Sequence[str],
    jobs: int,
    tally: Tally,
    after: Callable[[], None],
) -> None:
    """Run cells as processes of their own, `jobs` at a time, with the processor's cores dealt out.

    `arguments` are those of the command line, to which `--cell NAME` is added. What a process says
    goes to `log.txt` in its cell's folder. When this process is interrupted, so are they.
    """
    waiting, running = list(cells), list[_Child]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(_start(waiting.pop(0), arguments, jobs))
            time.sleep(_POLL_S)
            for child in [c for c in running if c.process.poll() is not None]:
                running.remove(child)
                cause = _cause(child)
                tally.note(child.cell, cause, time.monotonic() - child.start)
                after()
    finally:
        for child in running:
            child.process.terminate()
        for child in running:
            child.process.wait()


def minutes(seconds: float) -> str:
    """Return a duration in the unit that suits it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@dataclass(frozen=True, eq=False)
class _Child:
    cell: Cell
    process: subprocess.Popen[bytes]
    start: float


def _start(cell: Cell, arguments: Sequence[str], jobs: int) -> _Child:
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    program = "import sys; from sacl.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, *arguments, "--cell", cell.name]
    cell.root.mkdir(parents=True, exist_ok=True)
    (cell.root / FAILED).unlink(missing_ok=True)
    say(f"{cell.name} ...")
    with Path(cell.root / LOG).open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": threads},
        )
    return _Child(cell, process, time.monotonic())


def _cause(child: _Child) -> str:
    """Return why a process failed, empty where it did not."""
    code = child.process.returncode
    if code == 0:
        return ""
    if code > 0:
        return failure_of(child.cell) or f"exit code {code}, see {LOG} in its folder"
    cause = f"ended by signal {-code}" + (", perhaps out of memory" if code == -9 else "")
    write_failure(child.cell, cause)
    return cause
