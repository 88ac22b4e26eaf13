"""Where cases are processed: in this process, in several, or on a Ray cluster.

A case is the unit. What is done of it is its files, each whole or not there, and its line in the
folder's journal; so nothing depends on who did which case, and the same call goes on where an
earlier one stopped.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal

from sacl.errors import ConfigError, DataError, SetAsideError
from sacl.files.journal import Journal, Result
from sacl.progress import say, track
from sacl.run import workers
from sacl.run.machine import free_memory_mb, is_short_of_memory
from sacl.run.workers import OpenWork, Outcome, Task, Worker

_MOST_TRIES = 2
"""A case is tried again where its worker died, and set aside where that one dies too."""
_MOST_FAILED = 3
"""Workers in a row that may die as they start."""
_WORTH_S = 30.0
"""Several processes are started for work that takes longer than this in one."""
_NAMED = 5


@dataclass(frozen=True)
class Shard:
    """The n-th of several parts of a cohort; in which part a case is, its name alone decides.

    Example:
        >>> Shard.parse("2/7")
        Shard(number=2, count=7)
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Return the shard that `i/n` names, i from 1 to n."""
        number, _, count = text.partition("/")
        if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise ConfigError(f"--shard {text}: expected i/n, such as 2/7, with i from 1 to n")
        return cls(int(number), int(count))

    def holds(self, case: str) -> bool:
        """Tell whether a case belongs to this part."""
        digest = hashlib.sha256(case.encode(errors="surrogateescape")).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


class ShardDone(Exception):
    """A shard's cases are done; what is made of all cases together comes with `sacl merge`."""


@dataclass(frozen=True)
class Engine:
    """Where cases are worked on, and which of them.

    `workers` is the number of processes (or Ray actors), None for as many as pay and fit into the
    memory. `address` is of a Ray cluster, None for one on this machine. Where it `merges`, nothing
    is worked on, and what is missing is refused.
    """

    kind: Literal["local", "ray"] = "local"
    workers: int | None = None
    address: str | None = None
    shard: Shard | None = None
    merges: bool = False

    def each(
        self,
        work: OpenWork,
        cases: Sequence[str],
        journal: Journal[Result],
        what: str,
        is_there: Callable[[str], bool] | None = None,
        at_once: int = 1,
    ) -> list[Outcome[Result]]:
        """Do the cases that are not done, and return what became of all, in their order.

        Args:
            work: Is opened once in each worker.
            cases: Their names.
            journal: Says what was done before, and keeps what is done now.
            what: Names the work in progress and errors, such as `predict`.
            is_there: Tells whether a case's files are there; without it the journal alone counts.
            at_once: Cases under way in this process at the same time, in threads, where it does
                them alone: reading and writing then take place beside computing.

        Raises:
            DataError: cases are missing where nothing is to be worked on.
            SetAsideError: cases killed their workers twice; all others are done.
            ShardDone: the shard's cases are done.
        """
        chosen = [case for case in cases if self.shard is None or self.shard.holds(case)]
        found = {case: journal.find(case) for case in chosen}
        outcomes = {
            case: Outcome(case, result)
            for case, result in found.items()
            if result is not None and (is_there is None or is_there(case))
        }
        missing = [case for case in chosen if case not in outcomes]
        if self.merges and missing:
            raise DataError(
                f"{what}: {len(missing)} of {len(cases)} cases are not done ({_listed(missing)});"
                " run their shards again, and merge then"
            )
        with closing(self._work(Task(work, journal), missing, at_once)) as done:
            for outcome in track(done, what, len(missing)):
                outcomes[outcome.case] = outcome
                if outcome.reason:
                    say(f"  left out: {outcome.reason}")
        aside = [case for case in missing if outcomes[case].is_deadly]
        if aside:
            raise SetAsideError(
                f"{what}: {len(aside)} of {len(cases)} cases were set aside because their workers"
                f" died, usually for lack of memory ({_listed(aside)}); the others are done; run"
                " the same command again to retry these"
            )
        if self.shard is not None:
            bad = sum(1 for case in chosen if outcomes[case].reason)
            left_out = f", {bad} of them left out" if bad else ""
            say(f"{what}: shard {self.shard}: {len(chosen)} of {len(cases)} cases done{left_out}")
            raise ShardDone
        return [outcomes[case] for case in cases]

    def results_of(  # noqa: PLR0913
        self,
        work: OpenWork,
        cases: Sequence[str],
        folder: Path,
        kind: type[Result],
        what: str,
        *,
        is_there: Callable[[str], bool] | None = None,
        at_once: int = 1,
    ) -> dict[str, Result]:
        """Do the cases that are not done, and return the records of all, by name.

        The journal is that of a folder, its records are of a `kind`; all else is as for `each`.

        Raises:
            DataError: cases are bad; all others are done.
        """
        journal = Journal(folder, kind)
        outcomes = self.each(work, cases, journal, what, is_there, at_once)
        bad = [outcome for outcome in outcomes if outcome.result is None]
        if bad:
            more = f" ({len(bad) - 1} more are bad; their reasons are above)" * (len(bad) > 1)
            raise DataError(f"{bad[0].reason}{more}")
        return {outcome.case: outcome.result for outcome in outcomes if outcome.result is not None}

    def _work(
        self, task: Task[Result], cases: Sequence[str], at_once: int
    ) -> Generator[Outcome[Result]]:
        """Yield outcomes as they come."""
        deadly = {case for case in cases if task.journal.is_deadly(case)}
        for case in deadly:
            yield _set_aside(task, case, "its worker died, again")
        todo, need_mb = deque(case for case in cases if case not in deadly), 0.0
        if self.kind == "local" and self.workers in (None, 1):
            for outcome in self._here(task, todo, at_once):
                need_mb = max(need_mb, outcome.grown_mb)
                yield outcome
        if todo:
            is_local = self.kind == "local"
            count = self.workers or (workers.most_workers(need_mb) if is_local else None)
            free_mb = free_memory_mb() if is_local else None
            with ExitStack() as stack:
                team = workers.team_of(self.kind, count, len(todo), self.address, task, stack)
                yield from _Parallel(task, todo, free_mb, need_mb).by(team)

    def _here(
        self, task: Task[Result], todo: deque[str], at_once: int
    ) -> Generator[Outcome[Result]]:
        """Do cases in this process, until several are quicker, or one wants too much memory."""
        if not todo:
            return
        do, done, begun, need_mb = task.opened(), 0, time.monotonic(), 0.0
        is_over, under_way = False, dict[Future[Outcome[Result]], str]()
        with ExitStack() as stack:
            begin: Callable[..., Future[Outcome[Result]]] = _done_now
            if at_once > 1:
                begin = stack.enter_context(ThreadPoolExecutor(at_once)).submit
            while todo or under_way:
                pace = (time.monotonic() - begun) / max(done, 1)
                is_over = is_over or (done > 0 and self._pays(pace, todo, need_mb))
                while todo and not is_over and len(under_way) < at_once:
                    case = todo.popleft()
                    under_way[begin(copy_context().run, do, case)] = case
                if not under_way:
                    return
                for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                    case, error = under_way.pop(future), future.exception()
                    if error is not None and is_short_of_memory(error):
                        is_over = True
                        todo.append(case)
                        continue
                    outcome = future.result()
                    done, need_mb = done + 1, max(need_mb, outcome.grown_mb)
                    yield outcome

    def _pays(self, seconds: float, todo: Sequence[str], need_mb: float) -> bool:
        alone_s = seconds * len(todo)
        may_pay = self.workers is None and alone_s > _WORTH_S
        return may_pay and alone_s * (1 - 1 / workers.most_workers(need_mb)) > _WORTH_S


def _done_now(do: Callable[..., Result], *of: Any) -> Future[Result]:
    future = Future[Result]()
    try:
        future.set_result(do(*of))
    except Exception as error:
        future.set_exception(error)
    return future


HERE = Engine()
"""On this machine, in as many processes as pay."""


@dataclass(eq=False)
class _Parallel(Generic[Result]):
    """Cases to be done by several workers at once, as many as fit into the memory that is free.

    `need_mb` is what one takes, as far as that is known.
    """

    task: Task[Result]
    todo: deque[str]
    free_mb: float | None
    need_mb: float
    tries: Counter[str] = field(default_factory=Counter)
    running: dict[Future[Any], tuple[str | None, Worker]] = field(default_factory=dict)
    idle: list[Worker] = field(default_factory=list)
    failed: int = 0

    def by(self, team: Sequence[Worker]) -> Generator[Outcome[Result]]:
        """Yield outcomes as they come."""
        self.running |= {worker.start(): (None, worker) for worker in team}
        try:
            while self.todo or self._under_way():
                while self.idle and self.todo and self._may_begin():
                    case, worker = self.todo.popleft(), self.idle.pop()
                    self.running[worker.submit(case)] = case, worker
                for future in wait(self.running, return_when=FIRST_COMPLETED).done:
                    ended, worker = self.running.pop(future)
                    outcome = self._result(future, ended, worker)
                    if outcome is not None:
                        yield outcome
        except BaseException:
            with suppress(OSError):
                for case in self._under_way():
                    self.task.journal.note(case, "stopped")
            raise

    def _under_way(self) -> list[str]:
        return [case for case, _ in self.running.values() if case is not None]

    def _may_begin(self) -> bool:
        """Tell whether the next case fits beside the others; a second try is made alone."""
        count = len(self._under_way())
        if count and self.free_mb is not None and self.tries[self.todo[0]]:
            return False
        return count < workers.room_for(self.need_mb, self.free_mb)

    def _result(
        self, future: Future[Any], case: str | None, worker: Worker
    ) -> Outcome[Result] | None:
        """Return what became of a case, None where it is to be tried again, or where none was."""
        try:
            outcome = future.result()
            if isinstance(outcome, Exception):
                raise outcome
        except worker.deaths as error:
            reason = str(error).partition(".")[0]
            self.failed += case is None
            if self.failed > _MOST_FAILED:
                raise ConfigError(
                    f"workers died as they started ({reason}): there is too little memory for"
                    " so many, or sacl cannot be imported where they are"
                ) from error
            self.running[worker.start()] = None, worker
            if case is None:
                return None
            self.tries[case] += 1
            if self.tries[case] < _MOST_TRIES:
                self.todo.append(case)
                return None
            return _set_aside(self.task, case, f"its worker died, again ({reason})")
        if outcome is None:
            self.failed = 0
        else:
            self.need_mb = max(self.need_mb, outcome.grown_mb)
        self.idle.append(worker)
        return outcome


def _set_aside(task: Task[Result], case: str, reason: str) -> Outcome[Result]:
    task.journal.note(case, "set aside")
    return Outcome(case, None, f"case {case}: {reason}", is_deadly=True)


def _listed(cases: Sequence[str]) -> str:
    more = f" and {len(cases) - _NAMED} more" if len(cases) > _NAMED else ""
    return f"{', '.join(cases[:_NAMED])}{more}"
