"""A lock file between processes, on one machine or on several that share a disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sacl.progress import say

BEAT_S = 20.0
"""The holder touches the file this often."""
STALE_S = 180.0
"""A lock not touched for so long is nobody's any more."""
_POLL_S = 1.0


@contextlib.contextmanager
def locked(path: Path, what: str, *, wait: bool = True) -> Iterator[bool]:
    """Hold a lock file while the body runs; yield whether it was got.

    A lock whose process is gone (on this machine) or that was not touched for `STALE_S` seconds is
    taken over. With `wait=False` a lock that somebody holds is not waited for: False is yielded.

    Args:
        path: The lock file.
        what: What is being waited for, in words, for the one line that says so.
        wait: Wait for whoever holds it.
    """
    token = uuid.uuid4().hex
    said = False
    while not _take(path, token):
        if not wait:
            yield False
            return
        if not said:
            say(f"  waiting for another process: {what}")
            said = True
        time.sleep(_POLL_S)
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, stop), daemon=True)
    beat.start()
    try:
        yield True
    finally:
        stop.set()
        beat.join()
        if _holder(path).get("token") == token:
            path.unlink(missing_ok=True)


def is_held(path: Path) -> bool:
    """Tell whether a living process holds the lock."""
    return path.is_file() and not _is_stale(path)


def _take(path: Path, token: str) -> bool:
    """Try once to make the file, after a stale one is moved away."""
    if _is_stale(path):
        _remove_stale(path, path.with_name(f"{path.name}.stale-{token}"))
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf-8") as file:
            holder = {"token": token, "machine": _machine(), "process": os.getpid()}
            file.write(json.dumps(holder))
    except FileExistsError:
        return False
    return True


def _remove_stale(path: Path, aside: Path) -> None:
    """Move a stale file away, by a rename that only one of several processes can do.

    Where another process was quicker and the file is already its fresh one, it is put back.
    """
    with contextlib.suppress(OSError):
        path.rename(aside)
        if not _is_stale(aside):
            os.link(aside, path)
    aside.unlink(missing_ok=True)


def _is_stale(path: Path) -> bool:
    """Tell whether a lock is there that nobody holds any more."""
    try:
        age_s = time.time() - path.stat().st_mtime
    except OSError:
        return False
    holder = _holder(path)
    gone = holder.get("machine") == _machine() and not _lives(int(holder["process"]))
    return age_s > STALE_S or gone


def _holder(path: Path) -> dict[str, Any]:
    """Return what a lock file says; nothing where it is being written, or gone."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _machine() -> str:
    """Return a mark of this machine that does not tell its name."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:12]


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(BEAT_S):
        with contextlib.suppress(OSError):
            os.utime(path)
