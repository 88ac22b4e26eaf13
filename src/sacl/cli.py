"""The command line: one program, a subcommand per stage, one line per error.

Exit codes: 0 done, 1 failed, 2 usage or input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import dataclasses
import errno
import gc
import json
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

from sacl import __version__, handlers
from sacl.commands import COMMANDS, SHARDED, engine_of, parsed, program
from sacl.errors import ConfigError, LostRankError, SaclError, SetAsideError
from sacl.progress import quiet_libraries, say, silent
from sacl.run import workers
from sacl.run.configure import load_config
from sacl.run.machine import is_short_of_memory
from sacl.settings import RunConfig

# Python looks for garbage at every 700th new object, and once more at the end. Among what torch
# and MONAI import it finds none; that takes two of the eight seconds that one scan is predicted in.
gc.set_threshold(10_000)
atexit.register(gc.freeze)

_OF_THE_USER = ("ENOENT", "EACCES", "EPERM", "EEXIST", "ENOTDIR", "EISDIR", "ELOOP", "ENAMETOOLONG")
_OF_THE_DISK = ("ENOSPC", "EDQUOT", "EROFS")
_ERRNOS = {getattr(errno, name, None) for name in (*_OF_THE_USER, *_OF_THE_DISK)}
"""What a file system refuses that another path or some room mends."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    quiet_libraries()
    if hasattr(sys.stdout, "reconfigure"):  # a terminal of ASCII alone
        sys.stdout.reconfigure(errors="backslashreplace")

    def command() -> int:
        with _ended_by_sigterm():
            return _dispatch(list(sys.argv[1:] if arguments is None else arguments))

    try:
        if _rank() is None:
            return command()
        from sacl import ranks

        return ranks.join_and_run(command)
    except BrokenPipeError:  # the reader, such as `head`, has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Exception, KeyboardInterrupt) as error:
        message, code = _told(error)
        whose = f"rank {_rank()}: " if _rank() else ""
        if not (whose and isinstance(error, KeyboardInterrupt)):
            print(f"sacl: {whose}{' '.join(message.split())}", file=sys.stderr)
        return code


def _rank() -> int | None:
    """Return which of several ranks this is that `torchrun` has started; None where it is none."""
    several = "TORCHELASTIC_RUN_ID" in os.environ and os.environ["WORLD_SIZE"] != "1"
    return int(os.environ["RANK"]) if several else None


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let a SIGTERM, by which batch systems end a program, end it as Ctrl-C does."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _told(error: BaseException) -> tuple[str, int]:
    """Return what ended the program in one line, and its exit code."""
    if isinstance(error, SaclError):
        return str(error), 1 if isinstance(error, (SetAsideError, LostRankError)) else 2
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; run the same command again to continue", 130
    if isinstance(error, OSError) and error.errno in _ERRNOS:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; free some disk or give another path", 2
    if is_short_of_memory(error):
        return "not enough memory; close other programs, or give fewer or smaller scans", 2
    return _unexpected(error), 1


def _unexpected(error: BaseException) -> str:
    """Write the traceback to a file, and return the line that names it."""
    what = f"unexpected {type(error).__name__}: {str(error)[:200]}"
    try:
        number, name = tempfile.mkstemp(prefix="sacl-error-", suffix=".log")
        with os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace") as log:
            log.write(f"sacl {__version__} {sys.argv}\n{traceback.format_exc()}")
    except OSError:
        return f"{what}; no file for the details could be written"
    return f"{what}; the details are in {name}, please report them"


def _dispatch(arguments: list[str]) -> int:
    known, flags = parsed(arguments)
    if known.command is None:
        program().print_help()
        return 0
    work = _HANDLERS if known.config else _HANDLERS | _OF_FOLDERS
    if (getattr(known, "workers", None) or 1) > 1 and known.engine != "ray":
        stage = f"sacl.stages.{'predict' if work.get(known.command) is _run else known.command}"
        workers.import_beside(stage, f"{stage}_folder", f"{stage}_folders")
    with silent(known.quiet):
        result = work.get(known.command, _stage)(known, flags)
    if known.json:
        print(json.dumps(dataclasses.asdict(result) if not isinstance(result, dict) else result))
    return 0


def _run(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    """Run all stages, planned where no settings file is given."""
    from sacl.run import clock, pipeline

    since, demo = None, known.command == "demo"
    config: RunConfig = load_config("demo", flags) if demo else handlers.config_of(known, flags)
    if known.command == "run" and known.config is None and "phantom.scans" not in flags:
        from sacl.planning import plan_run

        since = clock.now()
        config, plan = plan_run(flags, known.force)
        for line in plan.lines():
            say(f"plan: {line}")
    page = pipeline.run(config, known.force, since, engine_of(known))
    finished = pipeline.summary(config)
    if doubts := finished["doubts"]:
        say(f"ATTENTION, the label maps are in doubt ({len(doubts)}), first {doubts[0]}")
    print(f"report: {page}", file=sys.stderr)
    return finished


def _stage(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    """Run one stage; a flag of what the command does without a run is refused beside one."""
    from sacl.run import pipeline

    for flag in COMMANDS[known.command].flags if known.command in _OF_FOLDERS else ():
        if flag not in SHARDED and getattr(known, flag[2:].replace("-", "_"), None):
            raise ConfigError(
                f"{known.command}: {flag} cannot be combined with CONFIG.yaml; leave one out"
            )
    config = handlers.config_of(known, flags)
    workspace = pipeline.workspace_of(config, engine_of(known))
    folder = pipeline.run_stage(config, known.command, workspace=workspace, force=known.force)
    return {"stage": known.command, "folder": str(folder)}


def _ingest(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    """Read a cohort, or only say how it would be read."""
    return (handlers.explain_command if known.explain else _stage)(known, flags)


_Handler = Callable[[argparse.Namespace, dict[str, str]], Any]
_HANDLERS: dict[str, _Handler] = dict(
    run=_run,
    demo=_run,
    plan=handlers.plan_command,
    check=handlers.check_command,
    ingest=_ingest,
    export=handlers.export_command,
    pack=handlers.pack_command,
    doctor=handlers.doctor_command,
    serve=handlers.serve_command,
    completion=handlers.completion_command,
    merge=handlers.merge_command,
)
"""What the commands do that are more than a stage."""
_OF_FOLDERS: dict[str, _Handler] = dict(
    predict=handlers.predict_command, evaluate=handlers.evaluate_command
)
"""What the commands do where no run is given, but folders."""
