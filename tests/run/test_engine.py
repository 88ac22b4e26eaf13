"""Cases on workers: nothing twice, nothing lost, whoever did it."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import types
from collections import Counter, deque
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import sacl
from sacl.errors import ConfigError, DataError, DeviceError, SetAsideError
from sacl.files.journal import Journal
from sacl.run import workers
from sacl.run.engine import Engine, Shard, ShardDone, _Parallel
from sacl.run.workers import DoCase, Outcome, Task

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
    with pytest.raises(SetAsideError, match=r"1 of 12 cases were set aside.*\(case-5\)"):
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
    program = started(tmp_path)
    deadline = time.monotonic() + 60
    while len([*tmp_path.glob("pid-*")]) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    program.kill()
    program.communicate()  # whose end is that of all that could write
    pids = [int(path.name[4:]) for path in tmp_path.glob("pid-*")]
    assert len(pids) == 2
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, pids))


def open_slow(folder: Path) -> DoCase:
    """Say which process it is, and take a minute."""

    def do(_case: str) -> None:
        (folder / f"pid-{os.getpid()}").touch()
        while True:  # a signal ends no sleep here
            time.sleep(60)

    return do


_ELSEWHERE = """
import functools, pathlib, sys
sys.path.append(sys.argv[2])
from sacl.run import workers
from sacl.run.engine import Engine
from tests.run import test_engine as tests
if __name__ == "__main__":
    workers.CAN_FORK = sys.argv[3] == "forked"
    folder = pathlib.Path(sys.argv[1])
    work = functools.partial(tests.open_work, folder)
    Engine(workers=2).each(work, tests.CASES, tests.journal_of(folder), "try")
"""


@pytest.mark.parametrize("how", ["forked", "spawned"])
def test_a_file_of_the_current_folder_never_runs_as_a_module(tmp_path: Path, how: str) -> None:
    """A user's `signal.py` is none of Python's, in workers too."""
    planted, done = tmp_path / "planted", tmp_path / "done"
    planted.mkdir()
    for name in ("signal", "socket", "json", "pickle", "struct", "numpy", "sacl"):
        (planted / f"{name}.py").write_text("open('ran', 'a')\nraise SystemExit(9)\n")
    (tmp_path / "program.py").write_text(_ELSEWHERE)
    root = str(Path(__file__).parents[2])
    command = [sys.executable, str(tmp_path / "program.py"), str(done), root, how]
    subprocess.run(command, cwd=planted, check=True, timeout=120)
    assert not (planted / "ran").exists()
    assert len([*done.glob("*.txt")]) == len(CASES)


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


_PROGRAM = """
import functools, pathlib, signal, sys
from sacl import cli
from sacl.run.engine import Engine
from tests.run import test_engine as tests
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it behind `&`
folder = pathlib.Path(sys.argv[1])
work = functools.partial(tests.open_slow, folder)
cli._dispatch = lambda _: Engine(workers=2).each(work, tests.CASES, tests.journal_of(folder), "try")
sys.exit(cli.main([]))
"""


def started(folder: Path) -> subprocess.Popen[str]:
    """Return a program with two workers, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(folder)],
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
        cwd=Path(__file__).parents[2],
    )


@pytest.mark.parametrize(
    ("number", "to_all"), [(signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGTERM, True)]
)
def test_a_signal_ends_the_program_and_its_workers_in_one_line(
    tmp_path: Path, number: signal.Signals, to_all: bool
) -> None:
    """Ctrl-C goes to all processes, a batch system signals some or all; no case is to blame."""
    program = started(tmp_path)
    deadline = time.monotonic() + 120
    while len([*tmp_path.glob("pid-*")]) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    (os.killpg if to_all else os.kill)(program.pid, number)
    _, said = program.communicate(timeout=60)
    assert program.returncode == 130
    assert said == "sacl: interrupted; run the same command again to continue\n"
    pids = [int(path.name[4:]) for path in tmp_path.glob("pid-*")]
    assert len(pids) == 2
    assert not any(map(is_alive, pids))
    lines = [*map(json.loads, filter(None, journal_lines(tmp_path)))]
    assert Counter(line["event"] for line in lines) == {"begun": 2, "stopped": 2}


def journal_lines(folder: Path) -> list[str]:
    paths = folder.glob(".journal-of-sacl/*.jsonl")
    return [line for path in paths for line in path.read_text().splitlines()]


class AwkwardError(Exception):
    """An error that cannot be pickled."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


def open_wrong(error: str) -> DoCase:
    """Fail in ways that no scan is to blame for."""

    def do(_case: str) -> None:
        if error == "awkward":
            raise AwkwardError("this", "that")
        if error == "device":
            raise DeviceError("device 'cuda:7' is not there")
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    return do


def test_cases_may_be_under_way_together_in_one_process(tmp_path: Path) -> None:
    work = functools.partial(open_pair, tmp_path, threading.Barrier(2))
    outcomes = Engine(workers=1).each(work, CASES, journal_of(tmp_path), "try", at_once=2)
    assert [o.result for o in outcomes] == [Length(len(case)) for case in CASES]
    assert {path.read_text() for path in tmp_path.glob("*.txt")} == {"x"}


def test_an_error_in_a_worker_ends_all_with_its_cause(tmp_path: Path) -> None:
    engine = Engine(workers=2)
    with pytest.raises(DeviceError, match="'cuda:7' is not there") as raised:
        engine.each(functools.partial(open_wrong, "device"), CASES, journal_of(tmp_path), "try")
    assert "in do\n" in raised.value.__notes__[0]
    with pytest.raises(RuntimeError, match="AwkwardError: this and that") as other:
        engine.each(functools.partial(open_wrong, "awkward"), CASES, journal_of(tmp_path), "try")
    assert 'raise AwkwardError("this", "that")' in other.value.__notes__[0]


@pytest.mark.parametrize("workers", [1, 2])
def test_cases_that_want_too_much_memory_are_set_aside(tmp_path: Path, workers: int) -> None:
    work = functools.partial(open_wrong, "memory")
    with pytest.raises(SetAsideError, match="2 of 2 cases were set aside"):
        Engine(workers=workers).each(work, CASES[:2], journal_of(tmp_path), "try")


def open_parent() -> DoCase:
    """Tell whose child a process is, and whether it has what that one imported."""

    def do(_case: str) -> list[Any]:
        return [os.getppid(), "sacl.handlers" in sys.modules]

    return do


@pytest.mark.skipif(not workers.CAN_FORK, reason="needs Linux without a GPU")
def test_processes_are_forked_of_one_that_has_imported_all(tmp_path: Path) -> None:
    outcomes = Engine(workers=2).each(open_parent, CASES, Journal(tmp_path, list), "try")
    (parent,) = {tuple(o.result or ()) for o in outcomes}
    assert parent[0] != os.getpid()
    assert parent[1]


_BLOCKED = """
from multiprocessing import forkserver
from sacl.run import workers
workers.import_beside()
print(open(f"/proc/{forkserver._forkserver._forkserver_pid}/status").read())
"""


@pytest.mark.skipif(not workers.CAN_FORK, reason="needs Linux without a GPU")
def test_signals_are_not_for_the_process_that_workers_are_forked_of() -> None:
    command = [sys.executable, "-c", _BLOCKED]
    status = subprocess.run(command, check=True, timeout=120, stdout=subprocess.PIPE, text=True)
    (blocked,) = [line[7:] for line in status.stdout.splitlines() if line.startswith("SigBlk:")]
    for number in (signal.SIGINT, signal.SIGTERM):
        assert int(blocked, 16) & 1 << (number - 1)


def open_environment() -> DoCase:
    """Tell what a process was told; the first cases take a moment, so that both workers do some."""

    def do(_case: str) -> list[str]:
        time.sleep(0.1)
        return [os.environ.get(name, "") for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")]

    return do


def test_each_process_sees_one_gpu_and_its_share_of_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = types.SimpleNamespace(cuda=types.SimpleNamespace(device_count=lambda: 2))
    monkeypatch.setitem(sys.modules, "torch", gpus)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(workers, "available_cores", lambda: 12)
    journal = Journal(tmp_path, list)
    outcomes = Engine(workers=2).each(open_environment, CASES, journal, "try")
    assert {tuple(o.result or ()) for o in outcomes} == {("4", "6"), ("GPU-7", "6")}
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,GPU-7"
    assert "OMP_NUM_THREADS" not in os.environ
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert workers._gpus() == ["0", "1"]


@dataclass
class Pretended:
    """A worker that takes some memory, dies of one case, and counts who is at work.

    It ends a case when `together` are at work, or after half a second.
    """

    at_work: Counter[str]
    seen: list[int]
    together: int
    deadly: str = ""
    deaths: tuple[type[BaseException], ...] = (workers.WorkerDied,)

    def start(self) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(None)
        return future

    def submit(self, case: str) -> Future[Any]:
        future: Future[Any] = Future()
        self.at_work["all"] += 1
        self.seen.append(self.at_work["all"] if case != self.deadly else -self.at_work["all"])

        def end() -> None:
            ends = time.monotonic() + 0.5
            while self.at_work["all"] < self.together and time.monotonic() < ends:
                time.sleep(0.005)
            time.sleep(0.01)  # one too many would be seen
            self.at_work["all"] -= 1
            if case == self.deadly:
                future.set_exception(workers.WorkerDied("signal 9"))
            else:
                future.set_result(Outcome(case, None, grown_mb=3000.0))

        threading.Thread(target=end).start()
        return future


@pytest.mark.parametrize(("free_mb", "most"), [(10_000.0, 3), (2_000.0, 1), (None, 6)])
def test_as_many_work_at_once_as_fit_into_the_memory(
    tmp_path: Path, free_mb: float | None, most: int
) -> None:
    seen: list[int] = []
    at_work = Counter[str]()
    team = [Pretended(at_work, seen, most) for _ in range(6)]
    task = Task(open_environment, journal_of(tmp_path))
    outcomes = [*_Parallel(task, deque(CASES), free_mb, 3000.0).by(team)]
    assert {o.case for o in outcomes} == set(CASES)
    assert max(seen) == most


def test_a_second_try_is_made_alone(tmp_path: Path) -> None:
    """It may have died of the memory that the others took."""
    seen: list[int] = []
    at_work = Counter[str]()
    team = [Pretended(at_work, seen, 3, deadly="case-0") for _ in range(3)]
    task = Task(open_environment, journal_of(tmp_path))
    outcomes = [*_Parallel(task, deque(CASES), 99_000.0, 0.0).by(team)]
    assert [o.case for o in outcomes if o.is_deadly] == ["case-0"]
    assert [count for count in seen if count < 0][1:] == [-1]
    assert max(seen) == 3


def test_workers_that_die_as_they_start_blame_no_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_serve", os._exit)
    with pytest.raises(ConfigError, match="workers died as they started"):
        Engine(workers=2).each(open_environment, CASES, journal_of(tmp_path), "try")
    assert not [*tmp_path.glob(".journal-of-sacl/*")]


def test_ray_is_asked_for_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"not installed; `pip install 'sacl\[ray\]'`"):
        Engine("ray", 2).each(open_environment, CASES, journal_of(tmp_path), "try")
    assert "RAY_AUTH_TOKEN" not in os.environ


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere"])
def test_a_cluster_that_does_not_answer_is_refused_at_once(tmp_path: Path, address: str) -> None:
    with pytest.raises(ConfigError, match=f"--ray-address {address}: nothing answers there"):
        Engine("ray", 2, address).each(open_environment, CASES, journal_of(tmp_path), "try")


def test_a_machine_has_to_see_the_work_directory_and_to_have_the_same_version(
    tmp_path: Path,
) -> None:
    inside = workers._Inside(Task(open_environment, journal_of(tmp_path)), False)
    here = str(Path.cwd())
    refused = inside.enter(here, str(tmp_path / "mark"), sacl.__version__)
    assert f"does not see {tmp_path}; the work directory has to lie on a file" in str(refused)
    assert "install the same" in str(inside.enter(here, str(tmp_path), "0.0.9"))
    assert inside.enter(here, str(tmp_path), sacl.__version__) is None
