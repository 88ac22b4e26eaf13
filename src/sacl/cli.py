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
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from sacl import __version__
from sacl.errors import ConfigError, DataError, SaclError
from sacl.run.configure import dotted_settings, is_config, load_config, nearest
from sacl.settings import RunConfig

_OF_THE_USER = ("ENOENT", "EACCES", "EPERM", "EEXIST", "ENOTDIR", "EISDIR", "ELOOP", "ENAMETOOLONG")
_OF_THE_DISK = ("ENOSPC", "EDQUOT", "EROFS")
_ERRNOS = {getattr(errno, name, None) for name in (*_OF_THE_USER, *_OF_THE_DISK)}
"""What a file system refuses that another path or some room mends."""
_SHORTHANDS = {
    "repair_grid": "ingest.repair_grid",
    **{name: name for name in ("work", "seed", "device", "name")},
}
"""The settings of the flags that have no dot."""


@dataclass(frozen=True)
class _Flag:
    """A flag of one command; without a `shown` value it is a switch."""

    name: str
    help: str
    shown: str = "DIR"
    many: bool = False

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Declare the flag; what is shown as a folder or file is a path."""
        target = self.name[2:].replace("-", "_")
        if not self.shown:
            parser.add_argument(self.name, action="store_true", help=self.help)
            return
        kind: Any = {"N": int, "DIR": _path, "HTML": _path}.get(self.shown, str)
        parser.add_argument(
            self.name,
            dest="from_" if target == "from" else target,
            type=kind,
            nargs="+" if self.many else None,
            metavar=self.shown,
            help=self.help,
        )


@dataclass(frozen=True)
class _Command:
    """A subcommand: what it does, what it reads, and its flags beside the common ones."""

    summary: str
    flags: tuple[_Flag, ...] = ()
    takes: str = "CONFIG.yaml"
    """The words after the command; none where empty, scans too where they end in `DATA`."""

    @property
    def takes_data(self) -> bool:
        """Whether scans may be named without a flag."""
        return self.takes.endswith("DATA")


_COMMON = (
    _Flag("--work", "work directory", "WORK"),
    _Flag("--name", "name of the run", "NAME"),
    _Flag("--seed", "seed of everything random", "SEED"),
    _Flag("--device", "auto, cpu, cuda, cuda:N or mps", "DEVICE"),
    _Flag("--force", "redo what is up to date; overwrite what is in the way", ""),
    _Flag("--json", "print the result as JSON on stdout", ""),
)
_DATA = (
    _Flag("--data", "folder of scans or cohort.csv, or several to be merged", "DATA", many=True),
    _Flag(
        "--repair-grid",
        "resample a label map that is on another grid than its image",
        "nearest",
    ),
)
_CONFIG_OR_DATA = "CONFIG.yaml|DATA"
COMMANDS = {
    "run": _Command(
        "run all stages on a cohort, skipping what is up to date", _DATA, _CONFIG_OR_DATA
    ),
    "demo": _Command("run all stages on a generated cohort", takes=""),
    "check": _Command(
        "write a page of what is wrong or odd in a cohort",
        (*_DATA, _Flag("--out", "HTML file to write (check.html)", "HTML")),
        _CONFIG_OR_DATA,
    ),
    "phantom": _Command("generate a CT cohort"),
    "ingest": _Command(
        "read a cohort into canonical volumes and a manifest",
        (
            *_DATA,
            _Flag(
                "--explain",
                "only say how the data would be read, series by series for DICOM",
                "",
            ),
        ),
        _CONFIG_OR_DATA,
    ),
    "locate": _Command(
        "give each scan a coarse label map, or take another tool's (--from)",
        (_Flag("--from", "folder of label maps that another tool made"),),
    ),
    "extract": _Command("cut query patches and dense slices"),
    "pretrain": _Command("pretrain the encoder on all scans, without annotation"),
    "finetune": _Command("train the segmenter on labeled and unlabeled scans"),
    "predict": _Command(
        "predict label maps of a run's scans, or of any folder (--segmenter)",
        (
            _Flag("--segmenter", "work directory of a finished run"),
            _Flag("--images", "folder of NIfTI scans, or one scan"),
            _Flag("--out", "folder for the label maps"),
            _Flag(
                "--arm",
                "the segmenter (default), or its twin (scratch), by name",
                "ARM",
            ),
            _Flag("--coarse", "folder of coarse label maps, for a run without coarse networks"),
        ),
    ),
    "evaluate": _Command(
        "score the predictions of a run, or of any folder (--predicted)",
        (
            _Flag("--reference", "folder of reference label maps"),
            _Flag("--predicted", "folder of predicted label maps"),
            _Flag("--out", "folder for the scores"),
            _Flag("--allow-missing", "score the pairs there are, name what has no counterpart", ""),
        ),
    ),
    "report": _Command(
        "write the HTML report of a run, or of several (--runs)",
        (
            _Flag("--runs", "work directories to compare in one page", many=True),
            _Flag("--out", "HTML file to write", "HTML"),
        ),
    ),
    "export": _Command(
        "write the predictions of a run, or any label maps (--predicted), for other programs",
        (
            _Flag("--out", "folder for the files"),
            _Flag(
                "--form",
                "nifti (default), nifti-per-organ, nnunet, nnssl, dicom-seg, dicom-seg-labelmap"
                " or rtstruct",
                "FORM",
            ),
            _Flag(
                "--arm",
                "the segmenter (default), or its twin (scratch), by name",
                "ARM",
            ),
            _Flag("--splits", "splits to export (default: all predicted)", "SPLIT", many=True),
            _Flag("--folds", "cross-validation folds, for nnunet (default: 5)", "N"),
            _Flag("--source", "the DICOM that was ingested, for dicom-seg and rtstruct", many=True),
            _Flag("--predicted", "folder of label maps to export, instead of a run's"),
            _Flag("--reference", "folder of reference label maps for these, for nnunet"),
        ),
        "WORK|CONFIG.yaml",
    ),
}
"""All commands with their flags; every setting is a dotted flag besides."""


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


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


def program() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = _Parser(
        prog="sacl",
        description="Train a multi-organ segmenter from many scans and few annotations.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"sacl {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    for name, command in COMMANDS.items():
        inner = commands.add_parser(
            name,
            help=command.summary,
            description=command.summary[0].upper() + command.summary[1:] + ".",
            epilog=_settings_help(name),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if command.takes:
            words = "settings in YAML, or the name of some that come with the program"
            inner.add_argument("words", nargs="*", metavar=command.takes, help=words)
        for flag in (*_COMMON, *command.flags):
            flag.add_to(inner)
    return parser


def _settings_help(command: str) -> str:
    """Return the settings of a command as text for `--help`."""
    lines = []
    for name, declared in dotted_settings().items():
        if command in ("run", name.split(".")[0]):
            lines += [f"  --{name}  {declared.kind} ({declared.usual or 'unset'})"]
            lines += [f"      {declared.text}"]
    return "\n".join(["settings, as dotted flags or YAML keys (default):", *lines] if lines else [])


def _path(text: str) -> Path:
    try:
        if text.strip():
            return Path(text).expanduser()
    except RuntimeError:
        pass
    raise argparse.ArgumentTypeError(f"expected a path, got '{text}'")


def take_dotted_flags(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Split `--a.b value` and `--a.b=value` from the rest; dashes may stand for underscores.

    Raises:
        ConfigError: the last flag has no value.
    """
    flags: dict[str, str] = {}
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        name, equals, value = word[2:].partition("=")
        if not word.startswith("--") or "." not in name:
            rest.append(word)
            continue
        given = value if equals else next(words, None)
        if given is None:
            raise ConfigError(f"--{name}: a value is missing")
        flags[name.replace("-", "_")] = given
    return flags, rest


def config_and_data(words: Sequence[str]) -> tuple[Path | None, str | None]:
    """Split what is given to read into the configuration and the data, as text of `ingest.data`.

    What ends in `.yaml` or `.yml`, or is the name of shipped settings, is the configuration, all
    else a folder or table of scans.

    Raises:
        ConfigError: there are two configurations.

    Example:
        >>> config_and_data(["run.yaml", "btcv", "flare"])
        (PosixPath('run.yaml'), '["btcv", "flare"]')
    """
    configs = [word for word in words if is_config(word)]
    data = [word for word in words if word not in configs]
    if len(configs) > 1:
        raise ConfigError(f"two configurations, {configs[0]} and {configs[1]}; give one")
    config = Path(configs[0]) if configs else None
    if not data:
        return config, None
    return config, data[0] if len(data) == 1 else json.dumps(data)


def _dispatch(arguments: list[str]) -> int:
    flags, rest = take_dotted_flags(arguments)
    parser = program()
    known, unknown = parser.parse_known_args(rest)
    if known.command is None and not unknown and not flags:
        parser.print_help()
        return 0
    command = COMMANDS.get(known.command, _Command("", takes=""))
    words = [w for w in unknown if not w.startswith("-") and command.takes]
    strange = [word for word in unknown if word not in words]
    if strange or known.command is None:
        word = next(iter(strange), "") or f"--{next(iter(flags))}"
        raise ConfigError(f"unknown argument '{word}'{nearest(word.lstrip('-'))}")
    _take_words(known, command, [*getattr(known, "words", ()), *words], flags)
    for name, setting in _SHORTHANDS.items():
        if getattr(known, name, None) is not None:
            flags[setting] = getattr(known, name)
    result = _HANDLERS.get(known.command, _stage)(known, flags)
    if known.json:
        print(json.dumps(dataclasses.asdict(result) if not isinstance(result, dict) else result))
    return 1 if isinstance(result, dict) and result.get("failed") else 0


def _take_words(
    known: argparse.Namespace, command: _Command, words: list[str], flags: dict[str, str]
) -> None:
    """Sort configuration and data, wherever they stand."""
    known.config = None
    if command.takes_data:
        known.config, data = config_and_data([*words, *(known.data or ())])
        flags |= {} if data is None else {"ingest.data": data}
    elif len(words) > 1:
        raise ConfigError(f"sacl {known.command}: one {command.takes} is expected, got {words[1]}")
    elif words:
        known.config = _path(words[0])


def _config(known: argparse.Namespace, flags: dict[str, str]) -> RunConfig:
    data = COMMANDS[known.command].takes_data
    starts = data or known.command == "phantom"
    if known.config is None and starts and not flags.keys() & {"ingest.data", "phantom.scans"}:
        scans = " or a folder of scans" if data else ""
        raise ConfigError(f"sacl {known.command}: which configuration? give CONFIG.yaml{scans}")
    return load_config(known.config, flags, getattr(known, "from_", None))


def _run(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    from sacl.run import pipeline

    config = load_config("demo", flags) if known.command == "demo" else _config(known, flags)
    page = pipeline.run(config, known.force)
    finished = pipeline.summary(config)
    if finished.doubts:
        others = len(finished.doubts) - 1
        more = f" ({others} more in the report)" if others else ""
        print(f"in doubt: {finished.doubts[0]}{more}", file=sys.stderr)
    print(f"report: {page}", file=sys.stderr)
    return finished


def _stage(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    from sacl.run import pipeline

    folder = pipeline.run_stage(_config(known, flags), known.command, force=known.force)
    return {"stage": known.command, "folder": str(folder)}


def _check(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    """Check a cohort; errors in it end the program like any other bad input, after the page."""
    config, out = _config(known, flags), known.out or Path("check.html")
    from sacl.check.page import terminal_text
    from sacl.stages.check import check

    record = check(config, out, force=known.force)
    errors = record.kinds["error"]
    if not known.json:
        print(terminal_text(record))
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
    if known.config is not None:
        return _stage(known, flags)
    _require_flags(known, "segmenter", "images", "out")
    from sacl.stages.predict_folder import predict_folder

    config = load_config(None, flags)
    given = [name for name in ("copies", "keep_component") if f"predict.{name}" in flags]
    predicted = predict_folder(
        known.segmenter,
        known.images,
        known.out,
        arm=known.arm,
        coarse=known.coarse,
        device=config.device,
        force=known.force,
        **{name: getattr(config.predict, name) for name in given},
    )
    written = [str(path) for path in predicted.written]
    return {"written": written, "doubts": dict(predicted.doubts)}


def _evaluate(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    if known.config is not None:
        return _stage(known, flags)
    _require_flags(known, "reference", "predicted", "out")
    from sacl.stages.evaluate import evaluate_folders

    settings = load_config(None, flags).evaluate
    folder = evaluate_folders(
        known.reference,
        known.predicted,
        known.out,
        settings,
        allow_missing=known.allow_missing,
        force=known.force,
    )
    return {"folder": str(folder)}


def _report(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    if known.config is not None:
        return _stage(known, flags)
    _require_flags(known, "runs", "out")
    from sacl.stages.report import report_runs

    return {"report": str(report_runs(known.runs, known.out, known.force))}


def _export(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    if known.out is None or (known.config is None) == (known.predicted is None):
        raise ConfigError("sacl export: give --out, and either WORK|CONFIG.yaml or --predicted")
    of_run = ("arm", "splits", "folds")
    foreign = of_run if known.predicted is not None else ("reference",)
    if misplaced := [name for name in foreign if getattr(known, name) is not None]:
        other = "a run" if known.predicted is not None else "--predicted"
        raise ConfigError(f"sacl export: --{misplaced[0]} goes with {other} only; leave it out")
    from sacl.stages.export import export, export_folder

    form, sources = known.form or "nifti", known.source or []
    if known.predicted is None:
        return export(
            _finished_run(known, flags),
            known.out,
            form,
            arm=known.arm,
            splits=tuple(known.splits or ()),
            folds=5 if known.folds is None else known.folds,
            sources=sources,
            force=known.force,
        )
    if len(sources) > 1:
        raise ConfigError("sacl export: --predicted goes with one --source folder")
    return export_folder(
        known.predicted,
        known.out,
        form,
        reference=known.reference,
        source=next(iter(sources), None),
        force=known.force,
    )


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
        raise ConfigError(f"sacl {known.command}: give CONFIG.yaml, or all of {listed}")


_HANDLERS: dict[str, Callable[[argparse.Namespace, dict[str, str]], Any]] = {
    "run": _run,
    "demo": _run,
    "check": _check,
    "ingest": _ingest,
    "predict": _predict,
    "evaluate": _evaluate,
    "report": _report,
    "export": _export,
}
"""What the commands do that are more than a stage."""
