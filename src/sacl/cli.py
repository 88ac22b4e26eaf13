"""The command line: one program, a subcommand per stage, one line per error, exit code 2."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sacl.arguments import config_and_data, take_dotted_flags
from sacl.commands import READS_DATA, program
from sacl.errors import ConfigError, DataError, SaclError
from sacl.run.configure import load_config, nearest
from sacl.settings import RunConfig

_SHORTHANDS = {
    "repair_grid": "ingest.repair_grid",
    **{name: name for name in ("work", "seed", "device", "name")},
}
"""The settings of the flags that have no dot."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0 done, 1 failed, 2 usage or input."""
    logging.getLogger("lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(lightning|monai|torch)\b.*")
    try:
        return _dispatch(list(sys.argv[1:] if arguments is None else arguments))
    except SaclError as error:
        print(f"sacl: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as `head`, has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        print(f"sacl: {error.strerror}; free some disk or take another folder", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sacl: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130


def _dispatch(arguments: list[str]) -> int:
    flags, rest = take_dotted_flags(arguments)
    parser = program()
    known, unknown = parser.parse_known_args(rest)
    if known.command is None:
        parser.print_help()
        return 0
    if known.command in READS_DATA:
        unknown = _take_data(known, unknown, flags)
    if unknown:
        raise ConfigError(f"unknown argument '{unknown[0]}'{nearest(unknown[0].lstrip('-'))}")
    for name, setting in _SHORTHANDS.items():
        if getattr(known, name, None) is not None:
            flags[setting] = getattr(known, name)
    handler: Callable[[argparse.Namespace, dict[str, str]], Any] = {
        "demo": _demo,
        "run": _run,
        "check": _check,
        "ingest": _ingest,
        "predict": _predict,
        "evaluate": _evaluate,
        "report": _report,
        "export": _export,
    }.get(known.command, _stage)
    result = handler(known, flags)
    if known.json:
        print(json.dumps(result))
    return 1 if isinstance(result, dict) and result.get("failed") else 0


def _take_data(known: argparse.Namespace, unknown: list[str], flags: dict[str, str]) -> list[str]:
    """Sort configuration and data, wherever they stand, and return what is still unknown."""
    further = [word for word in unknown if not word.startswith("-")]
    known.config, data = config_and_data([*known.config, *(known.data or ()), *further])
    flags |= {} if data is None else {"ingest.data": data}
    return [word for word in unknown if word.startswith("-")]


def _config(known: argparse.Namespace, flags: dict[str, str]) -> RunConfig:
    starts = known.command in ("phantom", *READS_DATA)
    if known.config is None and starts and not flags.keys() & {"ingest.data", "phantom.scans"}:
        data = " or a folder of scans" if known.command in READS_DATA else ""
        raise ConfigError(f"sacl {known.command}: which configuration? give CONFIG.yaml{data}")
    return load_config(known.config, flags, getattr(known, "from_", None))


def _run(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    return _run_config(_config(known, flags), known.force)


def _demo(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    return _run_config(load_config("demo", flags), known.force)


def _check(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    """Check a cohort; errors in it end the program like any other bad input, after the page."""
    config, out = _config(known, flags), known.out or Path("check.html")
    from sacl.check.record import terminal_text
    from sacl.stages.check import check

    checked = check(config, out)
    errors = checked.record["kinds"]["error"]
    if not known.json:
        print(terminal_text(checked.record, checked.findings))
    elif errors:
        print(json.dumps(checked.record))
    print(f"page: {out}", file=sys.stderr)
    if errors:
        kinds = "1 kind of error" if errors == 1 else f"{errors} kinds of errors"
        raise DataError(f"check: {kinds} in {checked.cohort.name}; see {out.name}")
    return checked.record


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


def _run_config(config: RunConfig, force: bool) -> Any:
    from sacl.run import pipeline

    page = pipeline.run(config, force)
    print(f"report: {page}", file=sys.stderr)
    return pipeline.summary(config)


def _stage(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    from sacl.run import pipeline

    folder = pipeline.run_stage(_config(known, flags), known.command, force=known.force)
    return {"stage": known.command, "folder": str(folder)}


def _predict(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    if known.config is not None:
        return _stage(known, flags)
    if not (known.segmenter and known.images and known.out):
        raise ConfigError("sacl predict: give CONFIG.yaml, or --segmenter, --images and --out")
    from sacl.stages.predict import predict_folder

    config = load_config(None, flags)
    written = predict_folder(
        known.segmenter,
        known.images,
        known.out,
        arm=known.arm,
        coarse=known.coarse,
        settings=config.predict,
        device=config.device,
    )
    return {"written": [str(path) for path in written]}


def _evaluate(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    if known.config is not None:
        return _stage(known, flags)
    if not (known.reference and known.predicted and known.out):
        raise ConfigError("sacl evaluate: give CONFIG.yaml, or --reference, --predicted and --out")
    from sacl.stages.evaluate import evaluate_folders

    settings = load_config(None, flags).evaluate
    folder = evaluate_folders(known.reference, known.predicted, known.out, settings)
    return {"folder": str(folder)}


def _report(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    if known.config is not None:
        return _stage(known, flags)
    if not (known.runs and known.out):
        raise ConfigError("sacl report: give CONFIG.yaml, or --runs and --out")
    from sacl.stages.report import report_runs

    return {"report": str(report_runs(known.runs, known.out))}


def _export(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    if known.out is None or (known.config is None) == (known.predicted is None):
        raise ConfigError("sacl export: give --out, and either WORK|CONFIG.yaml or --predicted")
    of_run = ("arm", "splits", "folds")
    foreign = of_run if known.predicted is not None else ("reference",)
    if misplaced := [name for name in foreign if getattr(known, name) is not None]:
        other = "a run" if known.predicted is not None else "--predicted"
        raise ConfigError(f"sacl export: --{misplaced[0]} goes with {other} only; leave it out")
    from sacl.stages.export import export, export_folder

    form = known.form or "nifti"
    sources = known.source or []
    if known.predicted is not None:
        if len(sources) > 1:
            raise ConfigError("sacl export: --predicted goes with one --source folder")
        exported = export_folder(
            known.predicted,
            known.out,
            form,
            reference=known.reference,
            source=next(iter(sources), None),
            force=known.force,
        )
    else:
        exported = export(
            _finished_run(known, flags),
            known.out,
            form,
            arm=known.arm,
            splits=tuple(known.splits or ()),
            folds=5 if known.folds is None else known.folds,
            sources=sources,
            force=known.force,
        )
    return dataclasses.asdict(exported)


def _finished_run(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    """Return the work directory that is given, or that a configuration names."""
    if known.config.is_dir():
        from sacl.run.record import workspace_at

        return workspace_at(known.config)
    from sacl.run.pipeline import workspace_of

    return workspace_of(_config(known, flags))
