"""Run a command line in a fork or as a program, and judge how it ended."""

from __future__ import annotations

import gc
import importlib
import os
import pkgutil
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

SECONDS, GIGABYTE_KB = 60, 1024**2
_LABORATORY = "research"
"""First word of a command of the laboratory instead of `sacl`."""


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, last words, processor time, and largest memory in KB."""

    code: int | None
    errors: str
    seconds: float
    peak_kb: int


def load_everything() -> None:
    """Import all modules, so that forked processes need not."""
    import sacl

    for module in pkgutil.walk_packages(sacl.__path__, "sacl."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    gc.collect()
    gc.freeze()  # else each fork's first collection copies all objects


def program_of(words: Sequence[str]) -> list[str]:
    """Return the words that start a command as a program of its own."""
    module, rest = ("sacl", words) if words[0] != _LABORATORY else (_LABORATORY, words[1:])
    return [sys.executable, "-m", module, *rest]


def forked(
    words: Sequence[str], root: Path, errors: Path, first: Callable[[], None] = lambda: None
) -> int:
    """Start a command line in a fork of this process, leader of its own group; return its id.

    `first` is called there before anything else.
    """
    child = os.fork()
    if child == 0:
        _be_the_program(words, root, errors, first)
    return child


def _be_the_program(
    words: Sequence[str], root: Path, errors: Path, first: Callable[[], None]
) -> None:
    code = 70
    try:
        os.setsid()
        first()
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.dup2(os.open(errors, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644), 2)
        os.chdir(root)
        tempfile.tempdir = str(root / "tmp")
        resource.setrlimit(resource.RLIMIT_AS, (12 * 1024**3,) * 2)
        name, rest = ("sacl.cli", words)
        if words[0] == _LABORATORY:
            name, rest = "research.__main__", words[1:]
        try:
            code = importlib.import_module(name).main(list(rest))
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else 0
        sys.stderr.flush()
    finally:
        os._exit(code)


def run_forked(words: Sequence[str], root: Path) -> Ended:
    """Run a command line in a fork of this process."""
    errors = root / "stderr"
    return _watched(forked(words, root, errors), errors)


def run_program(words: Sequence[str], root: Path) -> Ended:
    """Run a command line as a program of its own."""
    errors = root / "stderr"
    with errors.open("wb") as said:
        process = subprocess.Popen(
            [os.fsencode(word) for word in program_of(words)],
            cwd=root,
            env={**os.environ, "TMPDIR": str(root / "tmp")},
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,
        )
    process.returncode = 0  # waited for here
    return _watched(process.pid, errors)


def _watched(child: int, errors: Path) -> Ended:
    """Wait for a process, and kill it after too much work or where it stands still too long.

    The time is the processor's, since others may share the machine.
    """
    moved, spent = time.monotonic(), 0.0
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            code, seconds = os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
            return Ended(code, _text(errors), seconds, usage.ru_maxrss)
        if (now := _processor_s(child)) > spent + 0.02:
            moved, spent = time.monotonic(), now
        if spent > SECONDS or time.monotonic() - moved > SECONDS:
            os.killpg(child, signal.SIGKILL)
            os.wait4(child, 0)
            return Ended(None, _text(errors), spent, 0)
        time.sleep(0.005)


def _processor_s(process: int) -> float:
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def judged(ended: Ended) -> list[str]:
    """Return what is wrong with the way a command ended; nothing where it ended as it should."""
    if ended.code is None:
        return [f"no end in {SECONDS} s of work or of standing still"]
    ours = ("sacl: ", "research: ")
    lines = [line for line in ended.errors.splitlines() if line.startswith(ours)]
    faults = []
    if ended.code not in (0, 1, 2):
        faults.append(f"exit {ended.code}")
    if ended.code == 2 and len(lines) != 1:
        faults.append(f"exit 2 with {len(lines)} lines")
    if "Traceback" in ended.errors or "unexpected " in ended.errors:
        faults.append(f"unexpected: {(lines or ['?'])[-1][:200]}")
    elif ended.code == 1 and "failed" not in ended.errors:
        faults.append("exit 1 without a scan that failed")
    if "Warning" in ended.errors:
        faults.append("a library warns")
    if ended.peak_kb > GIGABYTE_KB:
        faults.append(f"{ended.peak_kb // 1024} MB")
    return faults


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""
