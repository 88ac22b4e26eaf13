"""The commands of the program, and the flags and positions of each."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NoReturn

from sacl import __version__
from sacl.errors import ConfigError
from sacl.run.configure import dotted_settings

_SUMMARIES = {
    "run": "run all stages of a configuration, skipping what is up to date",
    "demo": "run everything on a generated phantom cohort",
    "check": "look at a cohort before any training",
    "phantom": "generate a phantom cohort",
    "ingest": "read a cohort into canonical volumes and a manifest",
    "locate": "give every scan a coarse label map (--from DIR: somebody else's)",
    "extract": "cut the query patches",
    "pretrain": "pretrain the encoder by contrast",
    "finetune": "train the segmenter on the labeled scans",
    "predict": "predict label maps, of a run's scans or of any folder (--segmenter)",
    "evaluate": "score predictions, of a run or of any two folders (--reference)",
    "report": "write the HTML report of a run, or of several (--runs)",
    "export": "write the predictions of a run, or any label maps (--predicted), in another form",
}
READS_DATA = ("run", "check", "ingest")
"""The commands that take scans."""
_TEXT_FLAGS = ("--data", "--repair-grid", "--arm", "--form", "--splits")
_SHOWN = {
    "--repair-grid": "nearest",
    "--arm": "ARM",
    "--form": "FORM",
    "--splits": "SPLIT",
    "--folds": "N",
}


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def program() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
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
        if name in READS_DATA:
            command.add_argument("config", nargs="*", metavar="CONFIG.yaml|DATA")
        else:
            shown = "WORK|CONFIG.yaml" if name == "export" else "CONFIG.yaml"
            command.add_argument("config", nargs="?", type=Path, metavar=shown)
    command.add_argument("--work", metavar="DIR", help="work directory")
    command.add_argument("--name", metavar="NAME", help="name of the run")
    command.add_argument("--seed", metavar="N", help="seed of everything random")
    command.add_argument("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps")
    command.add_argument("--force", action="store_true", help="redo what is up to date")
    command.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    data = (
        ("--data", "folder of scans or cohort.csv, or several to be merged"),
        ("--repair-grid", "resample label maps onto their image's grid where it differs"),
    )
    own: dict[str, tuple[tuple[str, str], ...]] = {
        "run": data,
        "check": (*data, ("--out", "HTML file to write (check.html)")),
        "ingest": data,
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
            ("--form", "nifti (default), nifti-per-organ, nnunet, nnssl, dicom-seg, ..."),
            ("--arm", "which segmenter's predictions (default: the pretrained one's)"),
            ("--splits", "splits to export: train, validation, test (default: all predicted)"),
            ("--folds", "nnunet: number of cross-validation folds (default: 5)"),
            ("--source", "dicom-seg, dicom-seg-labelmap, rtstruct: DICOM that was ingested"),
            ("--predicted", "folder of label maps to export, instead of a run's"),
            ("--reference", "folder of their reference label maps, for nnunet's summary.json"),
        ),
    }
    if name == "ingest":
        told = "say how the data would be read, of DICOM every series, and write nothing"
        command.add_argument("--explain", action="store_true", help=told)
    for flag, text in own.get(name, ()):
        kind: Any = str if flag in _TEXT_FLAGS else int if flag == "--folds" else Path
        target = "from_" if flag == "--from" else flag[2:].replace("-", "_")
        many = "+" if flag in ("--data", "--runs", "--splits", "--source") else None
        shown = _SHOWN.get(flag, "DIR")
        command.add_argument(flag, dest=target, type=kind, nargs=many, metavar=shown, help=text)


def _settings_help(command: str) -> str:
    """Return the settings of a command as text for `--help`, from the settings classes."""
    shown = {} if command == "demo" else dotted_settings()
    lines = ["settings, as dotted flags or YAML keys (default):"] if shown else []
    for name, declared in shown.items():
        if command in ("run", name.split(".")[0]):
            lines += [f"  --{name}  {declared.kind} ({declared.usual or 'unset'})"]
            lines += [f"      {declared.text}"]
    return "\n".join(lines) if len(lines) > 1 else ""
