"""The commands of the program, their flags, and what a command line says."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from sacl import __version__
from sacl.checked import converted_value
from sacl.errors import ConfigError
from sacl.run.configure import Declared, dotted_settings, is_config, nearest, shipped

_SHORTHANDS = {
    "repair_grid": "ingest.repair_grid",
    **{name: name for name in ("work", "seed", "device", "name", "time")},
}
"""The settings of the flags that have no dot."""


@dataclass(frozen=True)
class _Flag:
    """A flag of one command; without a `shown` value it is a switch."""

    name: str
    help: str
    shown: str = "DIR"
    many: bool = False
    also: tuple[str, ...] = ()

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Declare the flag; what is shown as a folder or file is a path."""
        if not self.shown:
            parser.add_argument(self.name, *self.also, action="store_true", help=self.help)
            return
        paths = dict.fromkeys(("DIR", "PATH", "HTML", "MODEL"), self._path)
        kind: Any = {"N": int, **paths}.get(self.shown, str)
        parser.add_argument(
            self.name,
            *self.also,
            dest="from_" if self.name == "--from" else None,
            type=kind,
            nargs="+" if self.many else None,
            metavar=self.shown,
            help=self.help,
        )

    def _path(self, text: str) -> Path:
        return converted_value(text, Path, self.name)


@dataclass(frozen=True)
class _Command:
    """A subcommand: what it does, what it reads, and its flags beside the common ones."""

    summary: str
    flags: tuple[_Flag, ...] = ()
    takes: str = "CONFIG.yaml"
    """The words after the command; none where empty, scans too where they end in `DATA`.

    Of two the second is the file to write.
    """

    @property
    def takes_data(self) -> bool:
        """Whether scans may be named without a flag."""
        return self.takes.endswith("DATA")


_COMMON = (
    _Flag("--work", "work directory: each stage has a numbered folder in it (work)", "WORK"),
    _Flag("--name", "name of the run", "NAME"),
    _Flag("--seed", "seed of everything random", "SEED"),
    _Flag("--device", "auto, cpu, cuda, cuda:N or mps", "DEVICE"),
    _Flag("--time", "how long all stages of the command may take, such as 30m or 2h", "TIME"),
    _Flag("--force", "redo what is up to date; overwrite what is in the way", ""),
    _Flag("--json", "print the result as JSON on stdout", ""),
    _Flag("--quiet", "say nothing but what went wrong", "", also=("-q",)),
)
ENGINE = (
    _Flag("--workers", "processes that work on scans at once (as many as pay and fit)", "N"),
    _Flag("--engine", "where they run: local (default), or ray with its actors", "ENGINE"),
    _Flag("--ray-address", "of a cluster that runs (default: one is started here)", "HOST:PORT"),
)
"""Flags of what works on a cohort's scans."""
SHARDED = (*ENGINE, _Flag("--shard", "only the i-th of n parts, as i/n; then `sacl merge`", "I/N"))
"""Flags of a stage that several machines may share."""
_REPAIR = "resample a label map that is on another grid than its image"
_DATA = (
    _Flag("--data", "folder of scans or cohort.csv, or several to be merged", "DATA", many=True),
    _Flag("--repair-grid", _REPAIR, "nearest"),
)
_EXPLAIN = "only say how the data would be read, series by series for DICOM"
_FORM = (
    "nifti (default), nifti-per-organ, nnunet, nnssl, dicom-seg, dicom-seg-labelmap or rtstruct;"
    " of the network: weights, onnx, monai-bundle or nnunet-encoder"
)
_MODEL = "work directory of a finished run, or file of `sacl pack`; several predict together"
_LICENSE = "under what terms others may use the model; it stands in its card"
_SCANS = "scans: a file, a folder or a zip of NIfTI, NRRD, MetaImage or DICOM (also --images)"
_MODELS = "finished runs or files of `sacl pack`; the first is compared with each of the others"
_COARSE = _Flag("--coarse", "folder of coarse label maps, for a run without coarse networks")
_OR_DATA = "CONFIG.yaml|DATA"
SHARDED_STAGES = ("predict",)
"""Stages that may be done in shards."""
_WORDS = {
    "STAGE": "name of the stage",
    "WORK": "work directory of a run",
    "CONFIG": "YAML file, or a shipped configuration ({shipped})",
    "DATA": "folders of scans",
    "MODEL": "file of `sacl pack`",
    "SHELL": "name of the shell",
}
"""What the words after a command may be."""
COMMANDS = {
    "run": _Command(
        "run all stages on a cohort, by settings or planned by itself; skips what is up to date",
        (*_DATA, *ENGINE),
        _OR_DATA,
    ),
    "plan": _Command(
        "write the settings that `run` would choose for a cohort, as YAML with reasons",
        _DATA,
        "DATA",
    ),
    "demo": _Command("run all stages on a generated cohort", takes=""),
    "check": _Command(
        "write a page of what is wrong or odd in a cohort",
        (*_DATA, _Flag("--out", "HTML file to write (check.html)", "HTML")),
        _OR_DATA,
    ),
    "phantom": _Command("generate a CT cohort"),
    "ingest": _Command(
        "read a cohort into canonical volumes and a manifest",
        (*_DATA, _Flag("--explain", _EXPLAIN, "")),
        _OR_DATA,
    ),
    "locate": _Command(
        "give each scan a coarse label map, or take another tool's (--from)",
        (_Flag("--from", "folder of label maps that another tool made"),),
    ),
    "extract": _Command("cut query patches and dense slices"),
    "pretrain": _Command("pretrain the encoder on all scans, without annotation"),
    "finetune": _Command("train the segmenter on labeled and unlabeled scans"),
    "predict": _Command(
        "predict label maps for a run's scans, or of any folder (--model)",
        (
            _Flag("--model", _MODEL, "MODEL", many=True, also=("--segmenter",)),
            _Flag("--input", _SCANS, "PATH", also=("--images", "-i")),
            _Flag("--out", "folder for the label maps", also=("-o",)),
            _Flag("--per-organ", "a mask per organ too, in a folder per scan", ""),
            _Flag("--nifti", "NIfTI label maps of scans of other formats too", ""),
            _COARSE,
            *SHARDED,
        ),
    ),
    "evaluate": _Command(
        "score a run, any folder (--predicted), or models on another cohort (--model --data)",
        (
            _Flag("--model", _MODELS, many=True),
            *_DATA,
            _COARSE,
            _Flag("--reference", "folder of reference label maps"),
            _Flag("--predicted", "folder of predicted label maps"),
            _Flag("--out", "folder for the scores"),
            _Flag("--allow-missing", "score the pairs there are, name what has no counterpart", ""),
        ),
    ),
    "report": _Command("write the HTML report of a run"),
    "serve": _Command(
        "receive DICOM studies, segment each once and send the result back",
        (
            _Flag("--model", _MODEL, "MODEL", many=True),
            _Flag("--store", "folder of its own, for what waits and what was done"),
            _Flag("--send-to", "AET@HOST:PORT, an Orthanc's URL or a folder", "WHERE"),
            _Flag("--allow", "AE titles that may send", "AET", many=True),
            _Flag("--aet", "AE title of its own (SACL)", "AET"),
            _Flag("--host", "address to listen on (127.0.0.1)", "HOST"),
            _Flag("--port", "port for DICOM (11112)", "N"),
            _Flag("--health-port", "port for the health page (11180)", "N"),
            _Flag("--folder", "watch a folder instead of receiving"),
            _Flag("--orthanc", "ask an Orthanc for its new studies instead of receiving", "URL"),
            _Flag("--settle", "seconds without an image after which a study is complete (30)", "N"),
            _Flag("--max-disk", "what may wait on the disk (20GB)", "SIZE"),
        ),
        takes="",
    ),
    "export": _Command(
        "write a run's predictions or network, or any label maps (--predicted), for other programs",
        (
            _Flag("--out", "folder for the files"),
            _Flag("--form", _FORM, "FORM"),
            _Flag("--splits", "splits to export (default: all predicted)", "SPLIT", many=True),
            _Flag("--folds", "cross-validation folds, for nnunet (default: 5)", "N"),
            _Flag("--source", "the DICOM that was ingested, for dicom-seg and rtstruct", many=True),
            _Flag("--predicted", "folder of label maps to export, instead of a run's"),
        ),
        "WORK|CONFIG.yaml|MODEL.sacl",
    ),
    "merge": _Command(
        "finish a stage whose shards are done",
        takes="STAGE CONFIG.yaml",
    ),
    "pack": _Command(
        "write the segmenter of a finished run into one file, which predicts anywhere",
        (
            _Flag("--title", "what the model is called (its organs and modality)", "TITLE"),
            _Flag("--license", _LICENSE, "TEXT"),
        ),
        "WORK|CONFIG.yaml MODEL.sacl",
    ),
    "doctor": _Command("say what a bug report needs, and test this installation", takes=""),
    "completion": _Command(
        "print what makes a shell complete commands: bash, zsh, fish, tcsh or powershell",
        takes="SHELL",
    ),
}
"""All commands with their flags; every setting is a dotted flag besides."""


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def parsed(arguments: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """Return the command with its own flags, and settings as text; what is not known is refused."""
    flags, rest = take_dotted_flags(arguments)
    known, unknown = program().parse_known_args(rest)
    if known.command is None and not unknown and not flags:
        return known, flags
    command = COMMANDS.get(known.command, _Command("", takes=""))
    words = [w for w in unknown if not w.startswith("-") and command.takes]
    strange = [word for word in unknown if word not in words]
    if strange or known.command is None:
        word = next(iter(strange), "") or f"--{next(iter(flags))}"
        raise ConfigError(f"unknown argument '{word}'{nearest(word.lstrip('-'), '--')}")
    _take_words(known, command, [*getattr(known, "words", ()), *words], flags)
    for name, setting in _SHORTHANDS.items():
        if getattr(known, name, None) is not None:
            flags[setting] = getattr(known, name)
    return known, flags


def program(with_settings: bool = False) -> argparse.ArgumentParser:
    """Return the parser of the whole command line, with every setting as a flag where asked for.

    Those are for the completion of shells: settings are read by `take_dotted_flags`.
    """
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
            taken = [text for word, text in _WORDS.items() if word in command.takes]
            words = "; ".join(taken).format(shipped=", ".join(shipped()))
            inner.add_argument("words", nargs="*", metavar=command.takes, help=words)
        for flag in (*_COMMON, *command.flags):
            flag.add_to(inner)
        for setting, declared in _settings_of(name).items() if with_settings else ():
            inner.add_argument(f"--{setting}", help=declared.text.replace("%", "%%"))
    return parser


def _settings_of(command: str) -> dict[str, Declared]:
    """Return the settings that a command takes, by dotted name."""
    return {
        name: declared
        for name, declared in dotted_settings().items()
        if "." in name and command in ("run", "plan", name.split(".")[0])
    }


def _settings_help(command: str) -> str:
    lines = []
    for name, declared in _settings_of(command).items():
        lines += [f"  --{name}  {declared.kind} ({declared.usual or 'unset'})"]
        lines += [f"      {declared.text}"]
    return "\n".join(["settings, as dotted flags or YAML keys (default):", *lines] if lines else [])


def take_dotted_flags(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Split `--a.b value` and `--a.b=value` from the rest; dashes may stand for underscores.

    The last flag is refused where it has no value.
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
    else a folder or table of scans. Two configurations are refused.

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


def _take_words(
    known: argparse.Namespace, command: _Command, words: list[str], flags: dict[str, str]
) -> None:
    """Sort configuration and data, wherever they stand."""
    known.config = None
    if command.takes_data:
        known.config, data = config_and_data([*words, *(known.data or ())])
        flags |= {} if data is None else {"ingest.data": data}
        return
    wanted = command.takes.split()
    if len(words) > len(wanted):
        beyond = words[len(wanted)]
        raise ConfigError(f"{known.command}: expected {command.takes}, got {beyond} too")
    known.config, known.target = [*map(Path, words), None, None][:2]
