"""Cases on workers: nothing twice, nothing lost, whoever did it."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from sacl.errors import ConfigError, DataError, SetAsideError
from sacl.files.journal import Journal
from sacl.run.engine import Engine, Shard, ShardDone
from sacl.run.workers import DoCase

CASES = [f"case-{number}" for number in range(12)]


@dataclass(frozen=True)
class Length:
    """What is known of a case that is done."""

    length: int


def open_work(folder: Path, deadly: str = "", bad: str = "", once: str = "") -> DoCase:
    """Write a file per case; some cases are bad, or kill their worker, always or once."""

    def do(case: str) -> Length:
        if case == bad:
            raise DataError(f"case {case}: cannot be read")
        mark = folder / f"tried-{case}"
        if case == deadly or (case == once and not mark.exists()):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        with (folder / f"{case}.txt").open("a") as file:
            file.write("x")
        return Length(len(case))

    return do


def journal_of(folder: Path) -> Journal[Length]:
    return Journal(folder, Length)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_cases_are_done_once_whoever_does_them(tmp_path: Path, workers: int) -> None:
    work = functools.partial(open_work, tmp_path)
    outcomes = Engine(workers=workers).each(work, CASES, journal_of(tmp_path), "try")
    assert [(o.case, o.result) for o in outcomes] == [(c, Length(len(c))) for c in CASES]
    again = Engine(workers=workers).each(work, CASES, journal_of(tmp_path), "try")
    assert [o.result for o in again] == [o.result for o in outcomes]
    assert {path.read_text() for path in tmp_path.glob("*.txt")} == {"x"}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_case_is_left_out_and_tried_again(tmp_path: Path, workers: int) -> None:
    engine = Engine(workers=workers)
    work = functools.partial(open_work, tmp_path, bad="case-3")
    reasons = {o.case: o.reason for o in engine.each(work, CASES, journal_of(tmp_path), "try")}
    assert [c for c, reason in reasons.items() if reason] == ["case-3"]
    mended = functools.partial(open_work, tmp_path)
    assert not any(o.reason for o in engine.each(mended, CASES, journal_of(tmp_path), "try"))
    assert {path.read_text() for path in tmp_path.glob("*.txt")} == {"x"}


def test_a_case_that_kills_its_worker_once_is_done(tmp_path: Path) -> None:
    work = functools.partial(open_work, tmp_path, once="case-5")
    outcomes = Engine(workers=2).each(work, CASES, journal_of(tmp_path), "try")
    assert all(o.result for o in outcomes)


def test_a_case_that_kills_its_worker_twice_is_set_aside_and_the_others_go_on(
    tmp_path: Path,
) -> None:
    work = functools.partial(open_work, tmp_path, deadly="case-5")
    with pytest.raises(SetAsideError, match=r"1 of 12 cases are set aside.*\(case-5\)"):
        Engine(workers=2).each(work, CASES, journal_of(tmp_path), "try")
    done = {path.stem for path in tmp_path.glob("*.txt")}
    assert done == set(CASES) - {"case-5"}
    mended = functools.partial(open_work, tmp_path)
    assert all(o.result for o in Engine(workers=1).each(mended, CASES, journal_of(tmp_path), "try"))


def test_a_case_under_way_at_two_deaths_of_the_program_is_set_aside_for_once(
    tmp_path: Path,
) -> None:
    for _ in range(2):
        journal_of(tmp_path).note("case-5", "begun")
    work = functools.partial(open_work, tmp_path)
    with pytest.raises(SetAsideError, match="case-5"):
        Engine(workers=1).each(work, CASES, journal_of(tmp_path), "try")
    assert all(o.result for o in Engine(workers=1).each(work, CASES, journal_of(tmp_path), "try"))


def test_shards_share_the_cases_out_and_merging_wants_them_all(tmp_path: Path) -> None:
    work = functools.partial(open_work, tmp_path)
    for number in (1, 2, 3):
        with pytest.raises(DataError, match="not done"):
            Engine(merges=True).each(work, CASES, journal_of(tmp_path), "try")
        with pytest.raises(ShardDone):
            Engine(shard=Shard(number, 3)).each(work, CASES, journal_of(tmp_path), "try")
    merged = Engine(merges=True).each(work, CASES, journal_of(tmp_path), "try")
    assert [o.result for o in merged] == [Length(len(case)) for case in CASES]
    assert {path.read_text() for path in tmp_path.glob("*.txt")} == {"x"}


def test_a_case_is_in_one_shard_and_new_cases_move_nobody() -> None:
    for count in (1, 2, 3, 7):
        shards = [Shard(number, count) for number in range(1, count + 1)]
        parts = Counter(sum(shard.holds(f"c{n}") for shard in shards) for n in range(500))
        assert parts == {1: 500}
    held = [sum(Shard(n, 7).holds(f"c{case}") for case in range(7000)) for n in range(1, 8)]
    assert min(held) > 900
    assert max(held) < 1100


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "1/0", "-1/2", "a/b", "1/2/3"])
def test_shards_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected i/n"):
        Shard.parse(text)


def test_a_file_that_is_gone_is_made_again(tmp_path: Path) -> None:
    work = functools.partial(open_work, tmp_path)
    there = lambda case: (tmp_path / f"{case}.txt").is_file()  # noqa: E731
    Engine(workers=1).each(work, CASES, journal_of(tmp_path), "try", there)
    (tmp_path / "case-7.txt").unlink()
    Engine(workers=1).each(work, CASES, journal_of(tmp_path), "try", there)
    assert {path.read_text() for path in tmp_path.glob("*.txt")} == {"x"}
    assert len([*tmp_path.glob("*.txt")]) == 12


def test_workers_end_with_the_program(tmp_path: Path) -> None:
    """A process whose parent is killed does not stay."""
    pid = os.fork()
    if pid == 0:
        work = functools.partial(open_slow, tmp_path)
        Engine(workers=2).each(work, CASES, journal_of(tmp_path), "try")
        os._exit(0)
    deadline = time.monotonic() + 60
    while len([*tmp_path.glob("pid-*")]) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    pids = [int(path.name[4:]) for path in tmp_path.glob("pid-*")]
    assert len(pids) == 2
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, pids))


def open_slow(folder: Path) -> DoCase:
    """Say which process it is, and take a minute."""

    def do(_case: str) -> None:
        (folder / f"pid-{os.getpid()}").touch()
        time.sleep(60)

    return do


def is_alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def open_pair(folder: Path, barrier: threading.Barrier) -> DoCase:
    """Do a case when another one is under way too."""

    def do(case: str) -> Length:
        barrier.wait(30)
        return open_work(folder)(case)

    return do


def test_cases_may_be_under_way_together_in_one_process(tmp_path: Path) -> None:
    work = functools.partial(open_pair, tmp_path, threading.Barrier(2))
    outcomes = Engine(workers=1).each(work, CASES, journal_of(tmp_path), "try", at_once=2)
    assert [o.result for o in outcomes] == [Length(len(case)) for case in CASES]
    assert {path.read_text() for path in tmp_path.glob("*.txt")} == {"x"}
