"""A DICOM node: studies come in, are predicted once each, and their segmentations go back."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from filelock import FileLock, Timeout

from sacl.errors import ConfigError, SaclError
from sacl_node.destination import NotThereError, Orthanc, destination
from sacl_node.health import health_page
from sacl_node.pull import Archive, Folder
from sacl_node.queue import Queue
from sacl_node.receiver import listen
from sacl_node.store import Store
from sacl_node.work import Model, UnsuitableError, open_model, segment_study

log = logging.getLogger("sacl.node")
_IDLE_S = 0.5
_LOOK_EVERY_S = 2.0
_STATES = ("receiving", "predicting", "sending", "done", "unsuitable", "aside")


@dataclass(frozen=True, kw_only=True)
class Node:
    """How a node works: where it listens, whom it hears, where results go.

    Without a folder or an Orthanc to fetch from, it receives by C-STORE. `max_disk` is in bytes,
    `settle_s` how long a study, or a file, has to be unchanged to be complete.
    """

    store: Path
    send_to: str
    max_disk: int = 20 * 10**9
    host: str = "127.0.0.1"
    port: int = 11112
    health_port: int = 11180
    title: str = "SACL"
    allowed: tuple[str, ...] = ()
    folder: Path | None = None
    orthanc: str | None = None
    settle_s: float = 30.0
    grace_s: float = 8.0

    def __post_init__(self) -> None:
        if self.folder is not None and self.orthanc is not None:
            raise ConfigError("serve: --folder and --orthanc; give one of them")
        if self.folder is None and self.orthanc is None and not self.allowed:
            raise ConfigError("serve: who may send? name the AE titles with --allow AET ...")
        if self.folder is not None and not self.folder.is_dir():
            raise ConfigError(f"--folder {self.folder.name}: no such folder")
        if self.folder is not None and self.folder.resolve() in self.store.resolve().parents:
            raise ConfigError("--store: lies within --folder; give a folder of its own")
        if self.max_disk < 1 or self.settle_s < 0:
            raise ConfigError("serve: --max-disk and --settle are not negative")


def serve_by_flags(flags: argparse.Namespace, device: str) -> dict[str, Any]:
    """Serve as a command line says; the defaults are those of `Node`."""
    send_to = flags.send_to or flags.orthanc
    if not (flags.model and flags.store and send_to):
        raise ConfigError("serve: give --model, --store and --send-to")
    chosen = {
        "max_disk": flags.max_disk and bytes_of(flags.max_disk),
        "allowed": flags.allow and tuple(flags.allow),
        **dict(title=flags.aet, host=flags.host, port=flags.port, folder=flags.folder),
        **dict(health_port=flags.health_port, orthanc=flags.orthanc, settle_s=flags.settle),
    }
    given = {name: value for name, value in chosen.items() if value is not None}
    node = Node(store=flags.store, send_to=send_to, **given)
    log_to_stderr()
    return serve(node, open_model(flags.model, device))


def bytes_of(text: str) -> int:
    """Return a size such as `20GB` in bytes.

    Example:
        >>> bytes_of("20GB"), bytes_of("1.5 tb")
        (20000000000, 1500000000000)
    """
    size = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)B?", text.strip().upper())
    if size is None:
        raise ConfigError(f"--max-disk {text}: expected a size such as 20GB")
    return int(float(size[1]) * 1000 ** " KMGT".index(size[2] or " "))


def serve(node: Node, model: Model, stop: threading.Event | None = None) -> dict[str, Any]:
    """Work until SIGTERM, SIGINT or the event; return how many studies are in which state.

    Raises:
        ConfigError: a port is taken, or another node has the store.
    """
    stop = stop or stopped_by_signals()
    node.store.mkdir(parents=True, exist_ok=True)
    send = destination(node.send_to, node.title)
    with contextlib.ExitStack() as ends:
        try:
            ends.enter_context(FileLock(node.store / ".lock", timeout=0))
        except Timeout as error:
            raise ConfigError(f"--store {node.store.name}: another node uses it") from error
        queue = Queue(node.store / "queue.sqlite", model.fingerprint)
        ends.callback(queue.end)
        store = Store(node.store, node.max_disk, queue)
        since = time.monotonic()
        ends.enter_context(_source(node, store, stop))
        ends.callback(stop.set)  # also where the next port is taken
        page = health_page(lambda: _state(store, since), node.host, node.health_port)
        ends.enter_context(page)
        log.info("ready, model %s", model.fingerprint)
        workers = [
            _repeat(lambda: predict_next(store, model, node.settle_s), stop, _IDLE_S),
            _repeat(lambda: send_next(store, send), stop, _IDLE_S),
        ]
        stop.wait()
        log.info("stopping")
        end = time.monotonic() + node.grace_s
        for worker in workers:
            worker.join(max(end - time.monotonic(), 0))
        queue.release()
        counts = queue.counts()
        if any(worker.is_alive() for worker in workers):
            log.info("stopped within a study; it is taken up at the next start")
            logging.shutdown()
            os._exit(0)  # a network in the midst of its work cannot be ended otherwise
    log.info("stopped")
    return {"studies": counts}


def predict_next(store: Store, model: Model, settle_s: float) -> bool:
    """Predict a study that is complete; False where none is."""
    queue = store.queue
    study = queue.take_settled(settle_s)
    if study is None:
        return False
    start = time.monotonic()
    try:
        if queue.lacks(study):
            raise UnsuitableError("images were refused as the disk was full; send it again")
        said = segment_study(store.images(study), store.result(study), model)
    except UnsuitableError as error:
        if store.end(study, "predicting", "unsuitable", str(error)):
            log.warning("study %s: not predicted: %s", study, error)
        return True
    except Exception as error:
        reason = _reason(error)
        is_aside = queue.failed(study, "predicting", "receiving", reason, forgive=False)
        log.error("study %s: %s%s", study, "set aside: " if is_aside else "", reason)
        return True
    store.count()
    if queue.move(study, "predicting", "sending"):
        for words in (*said, f"predicted in {time.monotonic() - start:.1f} s"):
            log.info("study %s: %s", study, words)
    return True


def send_next(store: Store, send: Callable[[Path], None]) -> bool:
    """Send a result, and remove what it was made of; False where none is to be sent."""
    queue = store.queue
    study = queue.take_predicted()
    if study is None:
        return False
    try:
        send(store.result(study))
    except Exception as error:
        reason, later = _reason(error), isinstance(error, NotThereError)
        is_aside = queue.failed(study, "sending", "sending", reason, forgive=later)
        log.error("study %s: not sent%s: %s", study, ", set aside" if is_aside else "", reason)
        return True
    store.end(study, "sending", "done")
    log.info("study %s: sent", study)
    return True


def _reason(error: Exception) -> str:
    """Return why something failed, without the words of libraries, which may name someone."""
    if isinstance(error, SaclError):
        return str(error)
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" in {Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else ""
    return f"{type(error).__name__}{place}"


@contextlib.contextmanager
def _source(node: Node, store: Store, stop: threading.Event) -> Iterator[None]:
    """Take studies in while the body runs."""
    if node.folder is None and node.orthanc is None:
        server = listen(store, node.host, node.port, node.title, node.allowed)
        try:
            yield
        finally:
            server.shutdown()
        return
    puller: Folder | Archive
    if node.folder is not None:
        puller = Folder(node.folder, store, node.settle_s)
    else:
        puller = Archive(Orthanc(node.orthanc or ""), store)

    thread = _repeat(puller.look, stop, _LOOK_EVERY_S)
    try:
        yield
    finally:
        thread.join(node.grace_s)


def _repeat(
    step: Callable[[], bool | None], stop: threading.Event, pause_s: float
) -> threading.Thread:
    """Do a step in a thread again and again, with a pause where it did nothing."""

    def run() -> None:
        while not stop.is_set():
            try:
                idle = not step()
            except Exception as error:
                log.error("unexpected %s", _reason(error))
                idle = True
            if idle:
                stop.wait(pause_s)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def _state(store: Store, since: float) -> dict[str, Any]:
    counts, aside = store.queue.counts(), list(store.queue.in_state("aside").items())
    wrong = {
        "the disk is nearly full": store.used > 0.95 * store.limit,
        "results wait for their receiver": store.queue.is_waiting(),
        "some studies were set aside": bool(aside),
    }
    return {
        "status": next((words for words, holds in wrong.items() if holds), "ok"),
        "studies": {name: counts.get(name, 0) for name in _STATES},
        "aside": aside,
        "late": store.late,
        "disk": {"used_gb": store.used / 1e9, "limit_gb": store.limit / 1e9},
        "up_s": round(time.monotonic() - since),
        "model": store.queue.model,
    }


def stopped_by_signals() -> threading.Event:
    """Return an event that SIGTERM and SIGINT set, however often they come.

    They only put a word into a queue, which needs no lock: the event's may be held by what they
    interrupt.
    """
    stop, told = threading.Event(), SimpleQueue[int]()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: told.put(number))

    def wait() -> None:
        told.get()
        stop.set()

    threading.Thread(target=wait, daemon=True).start()
    return stop


def log_to_stderr() -> None:
    """Write the node's own log on stderr; what libraries log may hold identifiers, and is not."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    for name in ("pynetdicom", "pydicom", "highdicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
