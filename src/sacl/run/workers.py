"""The workers of an engine: processes of this machine, or actors of a Ray cluster."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import pickle
import platform
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Generic, TypeAlias

from sacl import __version__
from sacl.errors import ConfigError, DataError
from sacl.files.journal import Journal, Result
from sacl.progress import is_silent, quiet_libraries, silent
from sacl.run import machine
from sacl.run.machine import CAN_FORK, SAFE, available_cores, environment_with, free_memory_mb

DoCase = Callable[[str], Any]
"""Does a case, by its name, and returns a record of it; a bad case is a `DataError`."""
OpenWork = Callable[[], DoCase]
"""Loads what the work needs. It is pickled, so it holds paths and numbers, not networks."""
_THREADS, _GPUS = "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"
_HEADROOM_MB = 500.0
_USUAL_MB = 4000.0
"""What an actor is given where nobody says how many there are to be."""
_STORE_BYTES = 80 * 1024**2
"""Memory of a Ray of our own for objects, about the least; records of cases are small."""
_TOKEN = secrets.token_hex(32)
"""What opens a Ray of our own; it reads it once in a process."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PATIENCE_S, _LONGEST = 10.0, 300
"""How long a process that has nothing to do may take to end, and others to answer."""


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
            return Outcome(case, result, grown_mb=machine.peak_memory_mb() or 0.0)

        return do


class WorkerDied(Exception):
    """A process ended as it was started, or in the midst of a case."""


@dataclass
class _Inside:
    """What a worker does: a task, opened at its first case."""

    task: Task[Any]
    is_silent: bool
    do_case: Callable[[str], Outcome[Any]] | None = None

    def enter(self, folder: str, mark: str, version: str) -> Exception | None:
        """Go to the folder that the program was started in; return why that cannot be, if so."""
        with contextlib.suppress(OSError):
            os.chdir(folder)
        where = f"--engine ray: machine {platform.node()}"
        if not Path(mark).exists():
            return ConfigError(
                f"{where} does not see {Path(mark).parent}; the work directory has to lie on a file"
                " system that all machines of the cluster share, at the same path"
            )
        if version != __version__:
            return ConfigError(
                f"{where} has sacl {__version__} and this one {version}; install the same"
            )
        return None

    def do(self, case: str | None) -> Outcome[Any] | Exception | None:
        """Do a case, or none: that tells that the worker is ready. Return what went wrong."""
        quiet_libraries()
        if case is None:
            return None
        try:
            with silent(self.is_silent):
                self.do_case = self.do_case or self.task.opened()
                return self.do_case(case)
        except Exception as error:
            return _portable(error)


def _portable(error: Exception) -> Exception:
    """Return an error that another process can raise, with its traceback as a note."""
    if machine.is_short_of_memory(error):
        error = MemoryError("not enough memory")
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"In a worker:\n{traceback.format_exc()}")
    return error


class _Process:
    """A worker that is a process of its own; it ends with this one.

    Like every worker it does one case at a time, and returns an error that ends all work. Its
    futures raise one of its `deaths` where it died; `start` then starts another one in its place.
    """

    deaths: tuple[type[BaseException], ...] = (WorkerDied, MemoryError)

    def __init__(self, inside: _Inside, environment: Mapping[str, str], stack: ExitStack) -> None:
        self._inside, self._environment = inside, environment
        start = multiprocessing.get_context
        self._context = start("forkserver") if CAN_FORK else start("spawn")
        self._process: BaseProcess | None = None
        self._asked = Future[Any]()
        self._thread = stack.enter_context(ThreadPoolExecutor(1))  # waits for answers
        stack.callback(self._end)

    def start(self) -> Future[Any]:
        """Start a process; done when it is ready."""
        self._end()
        self._pipe, others = self._context.Pipe()
        with others, environment_with(self._environment):
            given = self._inside, dict(os.environ), others
            process = self._context.Process(target=_serve, args=given)
            process.start()
        self._process = process
        return self.submit(None)

    def submit(self, case: str | None) -> Future[Any]:
        """Begin a case."""
        assert self._process is not None, "started"
        self._asked = self._thread.submit(self._ask, self._process, case)
        return self._asked

    def _ask(self, process: BaseProcess, case: str | None) -> Any:
        try:
            self._pipe.send(case)
            return self._pipe.recv()
        except (EOFError, OSError):
            process.join()
            code = process.exitcode or 0
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise WorkerDied(how) from None

    def _end(self) -> None:
        """End the process; one in the midst of a case at once."""
        process, self._process = self._process, None
        if process is None:
            return
        if self._asked.done():
            self._pipe.close()
            process.join(_PATIENCE_S)
        process.kill()
        process.join()


def import_beside(*modules: str) -> None:
    """Start the process that workers are forked of, which imports modules while this one goes on.

    Nothing is done where it runs already, or where no worker is forked. Signals are not for it.
    """
    if not CAN_FORK:
        return
    from multiprocessing import forkserver, resource_tracker  # noqa: PLC0415

    forkserver.set_forkserver_preload(["sacl.cli", *modules])
    with environment_with({_THREADS: os.environ.get(_THREADS, "1"), **SAFE}):
        resource_tracker.ensure_running()  # before the mask, which its start would undo
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(inside: _Inside, environment: Mapping[str, str], pipe: Connection) -> None:
    """Answer until the pipe is closed; signals to a whole group are for the first process."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    os.environ.clear()
    os.environ.update(environment)
    torch, threads = sys.modules.get("torch"), environment.get(_THREADS, "")
    if torch is not None and threads.isdecimal():
        torch.set_num_threads(int(threads))
    parent = multiprocessing.parent_process()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    with contextlib.suppress(EOFError):
        while True:
            pipe.send(inside.do(pipe.recv()))


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def team_of(
    kind: str, count: int | None, most: int, address: str | None, task: Task[Any], stack: ExitStack
) -> Sequence[Worker]:
    """Return workers to be started, which end when the stack is closed.

    They share cores and GPUs out among themselves, unless the user has said in how many threads to
    compute. There are `most` at most, and where no `count` is given as many as pay.
    """
    inside = _Inside(task, is_silent())
    if kind == "ray":
        return _actors(inside, count, most, address, stack)
    count, gpus, shared = min(count or most_workers(), most), _gpus(), SAFE
    if _THREADS not in os.environ:
        shared = {**SAFE, _THREADS: str(max(1, available_cores() // count))}
    own = [shared | ({_GPUS: gpus[n % len(gpus)]} if gpus else {}) for n in range(count)]
    import_beside(getattr(task.work, "func", task.work).__module__)
    return [_Process(inside, environment, stack) for environment in own]


def _gpus() -> list[str]:
    """Return the names of the GPUs that this process sees, as a process that sees one is told."""
    torch = sys.modules.get("torch")
    count = torch.cuda.device_count() if torch is not None else 0
    told = os.environ.get(_GPUS)
    return (told.split(",") if told else [str(number) for number in range(count)])[:count]


def most_workers(need_mb: float = 0.0) -> int:
    """Return how many processes are worth a try here: one per core, or one beside a GPU.

    They are as many as fit into the memory. Where the user has said in how many threads to compute
    (`OMP_NUM_THREADS`) there is one.
    """
    torch = sys.modules.get("torch")
    if _THREADS in os.environ or (torch is not None and torch.cuda.is_available()):
        return 1
    return min(available_cores(), room_for(need_mb, free_memory_mb()))


def room_for(need_mb: float, free_mb: float | None) -> int:
    """Return how many workers fit into the free memory, at least one, if each takes so much."""
    if free_mb is None or not need_mb:
        return sys.maxsize
    return max(1, int((free_mb - _HEADROOM_MB) / need_mb))


class _Actor:
    """A worker that is an actor of a Ray cluster."""

    def __init__(self, ray: Any, kind: Any, mark: str, stack: ExitStack) -> None:
        self.deaths: tuple[type[BaseException], ...] = (ray.exceptions.RayError, MemoryError)
        self._ray, self._kind, self._mark = ray, kind, mark
        self._actor: Any = None
        stack.callback(self._end)

    def start(self) -> Future[Any]:
        """Ask for an actor; done when the cluster has a place for it, and it is ready."""
        self._end()
        self._actor = self._kind()
        entered = self._actor.enter.remote(str(Path.cwd()), self._mark, __version__)
        return entered.future()

    def submit(self, case: str) -> Future[Any]:
        """Begin a case."""
        return self._actor.do.remote(case).future()

    def _end(self) -> None:
        if self._actor is not None:
            self._ray.kill(self._actor)


Worker: TypeAlias = _Process | _Actor


def _actors(
    inside: _Inside, count: int | None, most: int, address: str | None, stack: ExitStack
) -> Sequence[Worker]:
    """Return actors, one per GPU where a cluster has GPUs; they share its cores."""
    ray = _connected_ray(address, count or available_cores(), stack)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    has_gpus = any(node.get("GPU") for node in nodes)

    def room(cores: int, need_mb: float = 1.0) -> int:
        wants = {"CPU": cores, "memory": need_mb * 1024**2} | ({"GPU": 1} if has_gpus else {})
        return sum(int(min(node.get(k, 0.0) // v for k, v in wants.items())) for node in nodes)

    count = min(count or max(1, room(1, _USUAL_MB)), most)
    largest = max((int(node.get("CPU", 0)) for node in nodes), default=0)
    cores = next((cores for cores in range(largest, 0, -1) if room(cores) >= count), 0)
    if not cores:
        what = "GPUs" if has_gpus else "cores"
        raise ConfigError(
            f"--workers {count}: the Ray cluster has room for {room(1)}, by its {what}; give fewer"
        )
    (folder := inside.task.journal.folder).mkdir(parents=True, exist_ok=True)
    mark = stack.enter_context(tempfile.TemporaryDirectory(prefix=".partial-", dir=folder))
    kind = ray.remote(num_cpus=cores, num_gpus=int(has_gpus), max_restarts=0)(_Inside)
    begin = functools.partial(kind.remote, inside.task, inside.is_silent)
    return [_Actor(ray, begin, mark, stack) for _ in range(count)]


def _connected_ray(address: str | None, cores: int, stack: ExitStack) -> Any:
    """Return the module of Ray, connected to a cluster, or to one of our own until the stack ends.

    That one is on this machine alone: others neither reach it nor know its token.
    """
    environment = {"RAY_DEDUP_LOGS_SKIP_REGEX": "."}  # it would print on stdout who died
    settings: dict[str, Any] = {"address": address, "log_to_driver": False}
    if address is None:
        folder = tempfile.mkdtemp(prefix="sacl-ray-")
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        settings |= {"address": "local", "num_cpus": cores, "include_dashboard": False}
        settings |= {"_temp_dir": folder, "object_store_memory": _STORE_BYTES}
        environment |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _TOKEN}
    else:
        _require_open(address)
    stack.enter_context(environment_with(environment))
    try:
        import ray  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(
            "--engine ray: ray is not installed; `pip install 'sacl[ray]'`"
        ) from error
    handler = signal.getsignal(signal.SIGTERM)
    stack.callback(ray.shutdown)
    try:
        ray.init(**settings, logging_level="CRITICAL")
    except Exception as error:
        where = f"no cluster to be used at {address}" if address else "Ray does not start here"
        token = "; for a cluster with a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
        why = str(error)[:_LONGEST].rstrip(".") + token * (address is not None)
        raise ConfigError(f"--engine ray: {where}: {why}") from error
    finally:
        signal.signal(signal.SIGTERM, handler)
    return ray


def _require_open(address: str) -> None:
    """Refuse an address that nobody answers at; Ray itself would wait for many minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), _PATIENCE_S).close()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--ray-address {address}: nothing answers there ({error}); give HOST:PORT, as"
            " `ray start --head` prints it"
        ) from error
