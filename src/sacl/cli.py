"""The command line: one program, a subcommand per stage, one line per error.

Exit codes: 0 done, 1 failed, 2 usage or input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import json
import logging
import os
import re
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sacl import __version__
from sacl.commands import COMMANDS, parsed, program
from sacl.errors import ConfigError, DataError, SaclError
from sacl.progress import say
from sacl.run.configure import load_config
from sacl.settings import RunConfig

if TYPE_CHECKING:
    from sacl.plan.document import RunPlan

_OF_THE_USER = ("ENOENT", "EACCES", "EPERM", "EEXIST", "ENOTDIR", "EISDIR", "ELOOP", "ENAMETOOLONG")
_OF_THE_DISK = ("ENOSPC", "EDQUOT", "EROFS")
_SHORT_OF_MEMORY = re.compile(
    "out of memory|not enough memory|could not create a primitive|allocate memory|failed to map",
    re.IGNORECASE,
)
"""What torch, and the loading of its libraries, say where an allocation fails."""
_ERRNOS = {getattr(errno, name, None) for name in (*_OF_THE_USER, *_OF_THE_DISK)}
"""What a file system refuses that another path or some room mends."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    _quiet_libraries()
    try:
        return _dispatch(list(sys.argv[1:] if arguments is None else arguments))
    except BrokenPipeError:  # the reader, such as `head`, has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Exception, KeyboardInterrupt) as error:
        message, code = _told(error)
        print(f"sacl: {' '.join(message.split())}", file=sys.stderr)
        return code


def _told(error: BaseException) -> tuple[str, int]:
    """Return what ended the program in one line, and its exit code."""
    if isinstance(error, SaclError):
        return str(error), 2
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; the same command goes on where it stopped", 130
    if isinstance(error, OSError) and error.errno in _ERRNOS:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; free some disk or give another path", 2
    if isinstance(error, MemoryError) or _SHORT_OF_MEMORY.search(str(error)):
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


def _quiet_libraries() -> None:
    """Keep the libraries' warnings off the terminal: they name no scan and mend nothing."""
    warnings.simplefilter("ignore")
    for name in ("lightning", "nibabel.global", "pydicom", "highdicom"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if hasattr(sys.stdout, "reconfigure"):  # a terminal of ASCII alone
        sys.stdout.reconfigure(errors="backslashreplace")


def _dispatch(arguments: list[str]) -> int:
    known, flags = parsed(arguments)
    if known.command is None:
        program().print_help()
        return 0
    handlers = _HANDLERS if known.config else _HANDLERS | _OF_FOLDERS
    result = handlers.get(known.command, _stage)(known, flags)
    if known.json:
        print(json.dumps(dataclasses.asdict(result) if not isinstance(result, dict) else result))
    return 1 if isinstance(result, dict) and result.get("failed") else 0


def _config(known: argparse.Namespace, flags: dict[str, str]) -> RunConfig:
    data = COMMANDS[known.command].takes_data
    starts = data or known.command == "phantom"
    if known.config is None and starts and not flags.keys() & {"ingest.data", "phantom.scans"}:
        scans = " or a folder of scans" if data else ""
        raise ConfigError(f"{known.command}: which configuration? give CONFIG.yaml{scans}")
    return load_config(known.config, flags, getattr(known, "from_", None))


def _run(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    from sacl.run import clock, pipeline

    if known.command == "run" and known.config is None and "phantom.scans" not in flags:
        since = clock.now()
        config, planned = _planned(known, flags)
        for line in planned.lines():
            say(f"plan: {line}")
        page = pipeline.run(config, known.force, since)
    else:
        config = load_config("demo", flags) if known.command == "demo" else _config(known, flags)
        page = pipeline.run(config, known.force)
    finished = pipeline.summary(config)
    print(f"report: {page}", file=sys.stderr)
    return finished


def _planned(known: argparse.Namespace, flags: dict[str, str]) -> tuple[RunConfig, RunPlan]:
    _config(known, flags)
    from sacl.run.planning import plan_run

    return plan_run(flags, known.force)


def _plan(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    """Print a plan as YAML, and nothing else on stdout."""
    if known.config is not None:
        raise ConfigError("plan: settings are given already; give a folder of scans alone")
    config, plan = _planned(known, flags)
    from sacl.run.planning import as_file

    if not known.json:
        print(as_file(flags, config, plan), end="")
    return dataclasses.asdict(plan)


def _stage(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    from sacl.run import pipeline

    folder = pipeline.run_stage(_config(known, flags), known.command, force=known.force)
    return {"stage": known.command, "folder": str(folder)}


def _check(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    """Check a cohort; errors in it end the program like any other bad input, after the page."""
    config, out = _config(known, flags), known.out or Path("check.html")
    from sacl.stages.check import check

    given = None
    if known.config is None:
        from sacl.run.planning import given_of

        given = given_of(config, flags)
    record = check(config, out, force=known.force, given=given)
    errors = record.kinds["error"]
    if not known.json:
        print(record.as_text())
    elif errors:
        print(json.dumps(record.as_json()))
    print(f"page: {out}", file=sys.stderr)
    if errors:
        kinds = "1 kind of error" if errors == 1 else f"{errors} kinds of errors"
        raise DataError(f"check: {kinds} in {record.name}; see {out}")
    return record.as_json()


def _ingest(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    """Read a cohort, or only say how it would be read."""
    if not known.explain:
        return _stage(known, flags)
    config = _config(known, flags)
    from sacl.cohort.layouts.explain import as_text
    from sacl.run.pipeline import workspace_of
    from sacl.stages.ingest import explain

    sources = explain(config.ingest, workspace_of(config))
    if not known.json:
        print("\n\n".join(map(as_text, sources)))
    return {"sources": [dataclasses.asdict(source) for source in sources]}


def _predict(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    _require_flags(known, "segmenter", "images", "out")
    from sacl.stages.predict_folder import predict_folder

    config = load_config(None, flags)
    given = [name for name in ("copies", "keep_component") if f"predict.{name}" in flags]
    options = {name: getattr(known, name) for name in ("arm", "coarse", "force")}
    options |= {name: getattr(config.predict, name) for name in given}
    predicted = predict_folder(
        known.segmenter, known.images, known.out, device=config.device, **options
    )
    return {"written": [str(p) for p in predicted.written], "doubts": dict(predicted.doubts)}


def _evaluate(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    _require_flags(known, "reference", "predicted", "out")
    from sacl.stages.evaluate import evaluate_folders

    settings = load_config(None, flags).evaluate
    folders = (known.reference, known.predicted, known.out)
    options = {"allow_missing": known.allow_missing, "force": known.force}
    return {"folder": str(evaluate_folders(*folders, settings, **options))}


def _report(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    _require_flags(known, "runs", "out")
    from sacl.stages.report import report_runs

    page = report_runs(known.runs, known.out, known.force)
    print(f"report: {page}", file=sys.stderr)
    return {"report": str(page)}


def _export(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    if known.out is None or (known.config is None) == (known.predicted is None):
        raise ConfigError("export: give --out, and either WORK|CONFIG.yaml or --predicted")
    misplaced = [name for name in ("arm", "splits", "folds") if getattr(known, name) is not None]
    if known.predicted is not None and misplaced:
        raise ConfigError(f"export: --{misplaced[0]} goes with a run only; leave it out")
    from sacl.stages.export import export, export_folder

    form, sources = known.form or "nifti", known.source or []
    if known.predicted is None:
        folds = 5 if known.folds is None else known.folds
        options = {"arm": known.arm, "splits": tuple(known.splits or ()), "folds": folds}
        options |= {"sources": sources, "force": known.force}
        return export(_finished_run(known, flags), known.out, form, **options)
    if len(sources) > 1:
        raise ConfigError("export: --predicted goes with one --source folder")
    source = next(iter(sources), None)
    return export_folder(known.predicted, known.out, form, source=source, force=known.force)


def _finished_run(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    """Return the work directory that is given, or that a configuration names."""
    if known.config.is_dir():
        from sacl.run.record import workspace_at

        return workspace_at(known.config)
    from sacl.run.pipeline import workspace_of

    return workspace_of(_config(known, flags))


def _require_flags(known: argparse.Namespace, *names: str) -> None:
    if not all(getattr(known, name) for name in names):
        listed = ", ".join(f"--{name}" for name in names)
        raise ConfigError(f"{known.command}: give CONFIG.yaml, or all of {listed}")


_Handler = Callable[[argparse.Namespace, dict[str, str]], Any]
_HANDLERS: dict[str, _Handler] = dict(
    run=_run, demo=_run, plan=_plan, check=_check, ingest=_ingest, export=_export
)
"""What the commands do that are more than a stage."""
_OF_FOLDERS: dict[str, _Handler] = {"predict": _predict, "evaluate": _evaluate, "report": _report}
"""What the commands do where no run is given, but folders."""
