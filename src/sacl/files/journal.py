"""A journal: which cases were begun, done or refused, a line for each event, a file per worker.

What is done is what its files say: a journal only keeps what a case's files do not hold, and which
case was under way when a worker died. Lines of several workers may lie in one folder; of a case the
newest counts. What ends in the midst of a line, or was damaged, was not said.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import msgspec
from filelock import FileLock

from sacl.errors import DataError
from sacl.files.atomic import append_line, array_of, read_lines

Result = TypeVar("Result")
Event = Literal["begun", "done", "refused", "stopped", "set aside"]
_FOLDER = ".journal-of-sacl"
_MOST_DEATHS = 2
_TICK_S = 1e-6


@dataclass(frozen=True)
class Line:
    """What a journal says of a case at a time."""

    case: str
    event: Event
    at: float
    result: Any = None


@dataclass
class _Known:
    """The newest of a case: its last line, and how often it was begun since one with an end."""

    last: Line
    begun: int = 0


@dataclass(eq=False)
class Journal(Generic[Result]):
    """The journal of a folder's cases; a result is a record of `kind`, or what JSON has.

    It is read once; what others write meanwhile is not seen. What it notes is newer than what it
    has read, whatever the clocks of two machines say: `newest` is that of its last line.
    """

    folder: Path
    kind: type[Result]
    newest: float = 0.0

    def results(self) -> dict[str, Result]:
        """Return by name the results of the cases that are done."""
        known = {case: self.find(case) for case in self._cases}
        return {case: result for case, result in known.items() if result is not None}

    def find(self, case: str) -> Result | None:
        """Return a case's result, None where it is not done."""
        known = self._cases.get(case)
        with contextlib.suppress(msgspec.ValidationError, DataError):
            if known is not None and known.last.event == "done":
                return msgspec.convert(known.last.result, self.kind, dec_hook=array_of)
        return None

    def is_deadly(self, case: str) -> bool:
        """Tell whether a case's workers died, once and again, and it was not set aside since."""
        known = self._cases.get(case)
        return known is not None and known.begun >= _MOST_DEATHS

    def note(self, case: str, event: Event, result: Any = None) -> None:
        """Append a line to this process's own file."""
        self.newest = max(time.time(), self.newest + _TICK_S)
        line = Line(case, event, self.newest, result)
        append_line(self.folder / _FOLDER, line)
        if "_cases" in self.__dict__:
            _add(self._cases, line)

    @contextlib.contextmanager
    def alone(self) -> Iterator[Journal[Result]]:
        """Yield what all processes have noted so far, while others wait for their turn."""
        folder = self.folder / _FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):
            yield Journal(self.folder, self.kind)

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what another process needs: it reads for itself, and writes a file of its own."""
        return Journal, (self.folder, self.kind, self.newest)

    @cached_property
    def _cases(self) -> dict[str, _Known]:
        cases: dict[str, _Known] = {}
        for line in sorted(read_lines(self.folder / _FOLDER, Line), key=lambda line: line.at):
            _add(cases, line)
            self.newest = max(self.newest, line.at)
        return cases


def remove_journal(folder: Path) -> None:
    """Remove the journal of a folder whose cases are all done."""
    shutil.rmtree(folder / _FOLDER, ignore_errors=True)


def _add(cases: dict[str, _Known], line: Line) -> None:
    known = cases.setdefault(line.case, _Known(line))
    if line.event == "stopped" and not known.begun:  # it was done before it could be stopped
        return
    known.begun = known.begun + 1 if line.event == "begun" else 0
    if line.event != "begun" or known.last.event == "begun":
        known.last = line
