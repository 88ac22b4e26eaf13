"""The workers of an engine: processes of this machine, or actors of a Ray cluster."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any, Generic, Protocol, TypeVar

from sacl.errors import ConfigError, DataError
from sacl.files.journal import Journal
from sacl.progress import is_silent, silent
from sacl.run.machine import available_cores, free_memory_mb, peak_memory_mb

Result = TypeVar("Result")
DoCase = Callable[[str], Any]
"""Does a case, by its name, and returns a record of it; a bad case is a `DataError`."""
OpenWork = Callable[[], DoCase]
"""Loads what the work needs. It is pickled, so it holds paths and numbers, not networks."""
_THREADS = "OMP_NUM_THREADS"
_HEADROOM_MB = 500.0


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """A case's record, or the reason why there is none.

    `grown_mb` is how much memory its worker took at most.
    """

    case: str
    result: Result | None
    reason: str = ""
    is_deadly: bool = False
    grown_mb: float = 0.0


@dataclass(frozen=True)
class Task(Generic[Result]):
    """Work on cases, and the journal in which it is noted."""

    work: OpenWork
    journal: Journal[Result]

    def opened(self) -> Callable[[str], Outcome[Result]]:
        """Load what is needed, and return what does a case and notes it."""
        do_case, journal = self.work(), self.journal

        def do(case: str) -> Outcome[Result]:
            journal.note(case, "begun")
            try:
                result = do_case(case)
            except DataError as error:
                journal.note(case, "refused", str(error))
                return Outcome(case, None, str(error))
            except BaseException:
                journal.note(case, "stopped")
                raise
            journal.note(case, "done", result)
            return Outcome(case, result, grown_mb=peak_memory_mb() or 0.0)

        return do


class Worker(Protocol):
    """Does one case at a time."""

    deaths: tuple[type[BaseException], ...]
    """What a case's future raises where its worker died."""

    def submit(self, case: str) -> Future[Any]:
        """Begin a case."""

    def replace(self) -> None:
        """Start another worker in the place of one that died."""


class _Process:
    """A worker that is a process of its own, started at its first case; it ends with this one."""

    deaths: tuple[type[BaseException], ...] = (BrokenProcessPool, MemoryError)

    def __init__(self, task: Task[Any], stack: ExitStack) -> None:
        self._start = task, is_silent()
        self._pool = self._new()
        stack.callback(lambda: self._pool.shutdown(cancel_futures=True))

    def submit(self, case: str) -> Future[Any]:
        """Begin a case."""
        return self._pool.submit(_do, case)

    def replace(self) -> None:
        """Start another process in the place of one that died."""
        self._pool.shutdown()
        self._pool = self._new()

    def _new(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(1, context, _start, self._start)


def team_of(
    kind: str, count: int, address: str | None, task: Task[Any], stack: ExitStack
) -> list[Worker]:
    """Return new workers, which end when the stack is closed.

    They share the cores out among themselves, unless the user has said in how many threads to
    compute.
    """
    if kind == "ray":
        raise ConfigError("--engine ray: not there yet")
    if _THREADS not in os.environ:
        os.environ[_THREADS] = str(max(1, available_cores() // count))
        stack.callback(os.environ.pop, _THREADS)
    return [_Process(task, stack) for _ in range(count)]


def most_workers() -> int:
    """Return how many processes are worth a try here: one per core, or one beside a GPU.

    Where the user has said in how many threads to compute (`OMP_NUM_THREADS`) there is one.
    """
    torch = sys.modules.get("torch")
    if _THREADS in os.environ or (torch is not None and torch.cuda.is_available()):
        return 1
    return available_cores()


def fits(need_mb: float) -> bool:
    """Tell whether another worker that takes so much fits into the memory."""
    free_mb = free_memory_mb()
    return free_mb is None or free_mb - _HEADROOM_MB > need_mb


@dataclass
class _Inside:
    """What a worker process does: a task, opened at its first case."""

    task: Task[Any] | None = None
    is_silent: bool = False
    do: Callable[[str], Outcome[Any]] | None = None


_INSIDE = _Inside()


def _start(task: Task[Any], is_silent: bool) -> None:
    """Prepare a process, which ends with the one that started it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    _INSIDE.task, _INSIDE.is_silent = task, is_silent


def _do(case: str) -> Outcome[Any]:
    assert _INSIDE.task is not None, "started"
    with silent(_INSIDE.is_silent):
        _INSIDE.do = _INSIDE.do or _INSIDE.task.opened()
        return _INSIDE.do(case)


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
