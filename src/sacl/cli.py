"""The command line: one program, a subcommand per stage, one line per error, exit code 2."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import json
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from sacl import __version__
from sacl.config import dotted_settings, load_config, nearest, type_name
from sacl.errors import ConfigError, SaclError
from sacl.settings import RunConfig

_SUMMARIES = {
    "run": "run all stages of a configuration, skipping what is up to date",
    "demo": "run everything on a generated phantom cohort",
    "phantom": "generate a phantom cohort",
    "ingest": "read a cohort into canonical volumes and a manifest",
    "locate": "give every scan a coarse label map (--from DIR: somebody else's)",
    "extract": "cut the query patches",
    "pretrain": "pretrain the encoder by contrast",
    "finetune": "train the segmenter and its from-scratch twins on the labeled scans",
    "predict": "predict label maps, of a run's scans or of any folder (--segmenter)",
    "evaluate": "score predictions, of a run or of any two folders (--reference)",
    "report": "write the HTML report of a run, or of several (--runs)",
    "export": "write the predictions of a run, or any label maps (--predicted), in another form",
}
_SHORTHANDS = {"data": "ingest.data", "from_": "locate.source"}
_TEXT_FLAGS = ("--data", "--from", "--arm", "--form", "--splits")
_SHOWN = {"--arm": "ARM", "--form": "FORM", "--splits": "SPLIT", "--folds": "N"}


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0 done, 1 failed, 2 usage or input."""
    logging.getLogger("lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(lightning|monai|torch)\b.*")
    try:
        return _dispatch(list(sys.argv[1:] if arguments is None else arguments))
    except SaclError as error:
        print(f"sacl: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        print(f"sacl: {error.strerror}; free some disk or take another folder", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("sacl: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130


def _dispatch(arguments: list[str]) -> int:
    flags, rest = _take_dotted_flags(arguments)
    parser = _parser()
    known, unknown = parser.parse_known_args(rest)
    if known.command is None:
        parser.print_help()
        return 0
    if unknown:
        raise ConfigError(f"unknown argument '{unknown[0]}'{nearest(unknown[0].lstrip('-'))}")
    for name, setting in _SHORTHANDS.items():
        if getattr(known, name, None) is not None:
            flags[setting] = getattr(known, name)
    for name in ("work", "seed", "device", "name"):
        if getattr(known, name, None) is not None:
            flags[name] = getattr(known, name)
    handler: Callable[[argparse.Namespace, dict[str, str]], Any] = {
        "demo": _demo,
        "run": _run,
        "predict": _predict,
        "evaluate": _evaluate,
        "report": _report,
        "export": _export,
    }.get(known.command, _stage)
    result = handler(known, flags)
    if known.json:
        print(json.dumps(result))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="sacl",
        description="Train a multi-organ segmenter from many scans and few annotations.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"sacl {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    for name, summary in _SUMMARIES.items():
        command = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=_settings_help(name),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        _add_arguments(command, name)
    return parser


def _add_arguments(command: argparse.ArgumentParser, name: str) -> None:
    if name != "demo":
        shown = "WORK|CONFIG.yaml" if name == "export" else "CONFIG.yaml"
        command.add_argument("config", nargs="?", type=Path, metavar=shown)
    command.add_argument("--work", metavar="DIR", help="work directory")
    command.add_argument("--name", metavar="NAME", help="name of the run")
    command.add_argument("--seed", metavar="N", help="seed of everything random")
    command.add_argument("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps")
    command.add_argument("--force", action="store_true", help="redo what is up to date")
    command.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    own: dict[str, tuple[tuple[str, str], ...]] = {
        "run": (("--data", "folder of scans, or cohort.csv"),),
        "ingest": (("--data", "folder of scans, or cohort.csv"),),
        "locate": (("--from", "folder of label maps to use as coarse label maps"),),
        "predict": (
            ("--segmenter", "work directory of a finished run"),
            ("--images", "folder of NIfTI scans, or one scan"),
            ("--out", "folder for the label maps"),
            ("--arm", "which segmenter of the run (default: the pretrained one)"),
            ("--coarse", "folder of coarse label maps, for a query head without a network"),
        ),
        "evaluate": (
            ("--reference", "folder of reference label maps"),
            ("--predicted", "folder of predicted label maps"),
            ("--out", "folder for the scores"),
        ),
        "report": (
            ("--runs", "work directories to compare in one page"),
            ("--out", "HTML file to write"),
        ),
        "export": (
            ("--out", "folder for the files"),
            ("--form", "nifti (default), nifti-per-organ, nnunet or nnssl"),
            ("--arm", "which segmenter's predictions (default: the pretrained one's)"),
            ("--splits", "splits to export: train, validation, test (default: all predicted)"),
            ("--folds", "nnunet: number of cross-validation folds (default: 5)"),
            ("--predicted", "folder of label maps to export, instead of a run's"),
            ("--reference", "folder of their reference label maps, for nnunet's summary.json"),
        ),
    }
    for flag, text in own.get(name, ()):
        kind: Any = str if flag in _TEXT_FLAGS else int if flag == "--folds" else Path
        target = "from_" if flag == "--from" else flag[2:]
        many = "+" if flag in ("--runs", "--splits") else None
        shown = _SHOWN.get(flag, "DIR")
        command.add_argument(flag, dest=target, type=kind, nargs=many, metavar=shown, help=text)


def _settings_help(command: str) -> str:
    """Return the settings of a command as text for `--help`, from the settings classes."""
    shown = {} if command == "demo" else dotted_settings()
    lines = ["settings, as dotted flags or YAML keys (default):"] if shown else []
    for name, (hint, default, text) in shown.items():
        if command not in ("run", name.split(".")[0]):
            continue
        value = "unset" if default in (None, dataclasses.MISSING) else default
        lines += [f"  --{name}  {type_name(hint)} ({value})", f"      {text}"]
    return "\n".join(lines) if len(lines) > 1 else ""


def _take_dotted_flags(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Split `--a.b value` and `--a.b=value` from the rest; dashes may stand for underscores."""
    flags: dict[str, str] = {}
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        name, equals, value = word[2:].partition("=")
        if not word.startswith("--") or "." not in name:
            rest.append(word)
            continue
        if not equals and (value := next(words, "")) == "":
            raise ConfigError(f"--{name}: a value is missing")
        flags[name.replace("-", "_")] = value
    return flags, rest


def _config(known: argparse.Namespace, flags: dict[str, str]) -> RunConfig:
    if known.config is None:
        raise ConfigError(f"sacl {known.command}: which configuration? give CONFIG.yaml")
    return load_config(known.config, flags)


def _run(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    return _run_config(_config(known, flags), known.force)


def _demo(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    return _run_config(load_config(Path(__file__).with_name("demo.yaml"), flags), known.force)


def _run_config(config: RunConfig, force: bool) -> Any:
    from sacl import pipeline

    page = pipeline.run(config, force)
    print(f"report: {page}", file=sys.stderr)
    return pipeline.summary(config)


def _stage(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    from sacl import pipeline

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
    from sacl.stages.export import export, export_folder

    form = known.form or "nifti"
    if known.predicted is not None:
        return export_folder(
            known.predicted, known.out, form, reference=known.reference, force=known.force
        )
    return export(
        _finished_run(known, flags),
        known.out,
        form,
        arm=known.arm,
        splits=tuple(known.splits or ()),
        folds=known.folds or 5,
        force=known.force,
    )


def _finished_run(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    """Return the work directory that is given, or that a configuration names."""
    if known.config.is_dir():
        from sacl.io.run_record import workspace_at

        return workspace_at(known.config)
    from sacl.pipeline import workspace_of

    return workspace_of(_config(known, flags))
