"""Where the cases of a cohort are worked on: in this process, in several, or on a Ray cluster.

A case is the unit. What is done of it is its files, each whole or not there, and its line in the
folder's journal; so nothing depends on who did which case, and the same call goes on where an
earlier one stopped.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from contextvars import copy_context
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from sacl.errors import ConfigError, DataError, SetAsideError
from sacl.files.journal import Journal
from sacl.progress import say, track
from sacl.run import workers
from sacl.run.workers import OpenWork, Outcome, Task, Worker

Result = TypeVar("Result")
_MOST_TRIES = 2
"""A case is tried again where its worker died, and set aside where that one dies too."""
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
        outcomes = {
            case: Outcome(case, result)
            for case, result in journal.results().items()
            if is_there is None or is_there(case)
        }
        missing = [case for case in chosen if case not in outcomes]
        if self.merges and missing:
            raise DataError(
                f"{what}: {len(missing)} of {len(cases)} cases are not done ({_listed(missing)});"
                " run their shards again, and merge then"
            )
        done_now = self._work(Task(work, journal), missing, at_once)
        for outcome in track(done_now, what, len(missing)):
            outcomes[outcome.case] = outcome
            if outcome.reason:
                say(f"  left out: {outcome.reason}")
        aside = [case for case in missing if outcomes[case].is_deadly]
        if aside:
            raise SetAsideError(
                f"{what}: {len(aside)} of {len(cases)} cases are set aside, since their workers"
                f" died, mostly for want of memory ({_listed(aside)}); the others are done; the"
                " same command tries them again"
            )
        if self.shard is not None:
            bad = sum(1 for case in chosen if outcomes[case].reason)
            left_out = f", {bad} of them left out" if bad else ""
            say(f"{what}: shard {self.shard}: {len(chosen)} of {len(cases)} cases done{left_out}")
            raise ShardDone
        return [outcomes[case] for case in cases]

    def _work(
        self, task: Task[Result], cases: Sequence[str], at_once: int
    ) -> Iterator[Outcome[Result]]:
        """Yield outcomes as they come."""
        deadly = [case for case in cases if task.journal.is_deadly(case)]
        for case in deadly:
            yield _set_aside(task, case)
        todo = deque(case for case in cases if case not in deadly)
        if self.kind == "local" and self.workers in (None, 1):
            yield from self._here(task, todo, at_once)
        if todo:
            count = min(len(todo), self.workers or workers.most_workers())
            with ExitStack() as stack:
                team = workers.team_of(self.kind, count, self.address, task, stack)
                yield from _in_parallel(team, todo, task)

    def _here(
        self, task: Task[Result], todo: deque[str], at_once: int
    ) -> Iterator[Outcome[Result]]:
        """Do cases in this process, until it is known that several would be quicker."""
        if not todo:
            return
        do, done, begun = task.opened(), 0, time.monotonic()
        under_way: set[Future[Outcome[Result]]] = set()
        with ThreadPoolExecutor(at_once) if at_once > 1 else _Now() as pool:
            while todo or under_way:
                pays = done and self._pays((time.monotonic() - begun) / done, len(todo))
                while todo and not pays and len(under_way) < at_once:
                    under_way.add(pool.submit(copy_context().run, do, todo.popleft()))
                if not under_way:
                    return
                over, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                for future in over:
                    yield future.result()
                done += len(over)

    def _pays(self, seconds: float, left: int) -> bool:
        most = workers.most_workers() if self.workers is None else 1
        return most > 1 and seconds * left * (1 - 1 / most) > _WORTH_S


def require_done(outcomes: Sequence[Outcome[Result]], what: str) -> dict[str, Result]:
    """Return the results of all cases, by name.

    Raises:
        DataError: some cases are bad, with the reason of the first; all others are done.
    """
    bad = [outcome for outcome in outcomes if outcome.result is None]
    if len(bad) == 1:
        raise DataError(bad[0].reason)
    if bad:
        named = _listed([outcome.case for outcome in bad])
        raise DataError(
            f"{what}: {len(bad)} of {len(outcomes)} cases are bad ({named}), the first since"
            f" {bad[0].reason}; the others are done"
        )
    return {outcome.case: outcome.result for outcome in outcomes if outcome.result is not None}


class _Now(Executor):
    """Does at once, in this thread, what is submitted."""

    def submit(self, do: Callable[..., Any], /, *of: Any, **more: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(do(*of, **more))
        return future


HERE = Engine()
"""On this machine, in as many processes as pay."""


def _in_parallel(
    team: Sequence[Worker], todo: deque[str], task: Task[Result]
) -> Iterator[Outcome[Result]]:
    """Yield outcomes as they come, with as many workers at a time as fit into the memory."""
    idle, tries, need_mb = list(team), Counter[str](), 0.0
    running: dict[Future[Outcome[Result]], tuple[str, Worker]] = {}
    while todo or running:
        while todo and idle and (not running or workers.fits(need_mb)):
            case, worker = todo.popleft(), idle.pop()
            running[worker.submit(case)] = case, worker
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            case, worker = running.pop(future)
            idle.append(worker)
            try:
                outcome = future.result()
            except worker.deaths:
                worker.replace()
                tries[case] += 1
                if tries[case] < _MOST_TRIES:
                    todo.append(case)
                    continue
                outcome = _set_aside(task, case)
            need_mb = max(need_mb, outcome.grown_mb)
            yield outcome


def _set_aside(task: Task[Result], case: str) -> Outcome[Result]:
    task.journal.note(case, "set aside")
    return replace(Outcome(case, None, f"case {case}: its worker died, again"), is_deadly=True)


def _listed(cases: Sequence[str]) -> str:
    more = f" and {len(cases) - _NAMED} more" if len(cases) > _NAMED else ""
    return f"{', '.join(cases[:_NAMED])}{more}"
