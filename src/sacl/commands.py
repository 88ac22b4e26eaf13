"""The commands of the program, their flags, and what a command line says."""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from sacl import __version__
from sacl.checked import converted_value
from sacl.errors import ConfigError
from sacl.files.documents import packaged
from sacl.run.configure import Declared, dotted_settings, is_config, nearest, shipped
from sacl.run.engine import Engine, Shard

_SHORTHANDS = {
    "repair_grid": "ingest.repair_grid",
    **{name: name for name in ("work", "seed", "device", "name", "time")},
}
"""The settings of the flags that have no dot."""


@dataclass(frozen=True)
class _Flag:
    """A flag of a command; without a `shown` value it is a switch."""

    help: str
    shown: str = ""
    many: bool = False
    also: tuple[str, ...] = ()

    def add_to(self, parser: argparse.ArgumentParser, name: str) -> None:
        """Declare the flag; what is shown as a folder or file is a path."""
        if not self.shown:
            parser.add_argument(name, *self.also, action="store_true", help=self.help)
            return
        path = functools.partial(converted_value, hint=Path, name=name)
        kind: Any = {"N": int, **dict.fromkeys(("DIR", "PATH", "HTML", "MODEL"), path)}
        parser.add_argument(
            name,
            *self.also,
            dest="from_" if name == "--from" else None,
            type=kind.get(self.shown, str),
            nargs="+" if self.many else None,
            metavar=self.shown,
            help=self.help,
        )


@dataclass(frozen=True)
class _Command:
    """A subcommand: what it does, what it reads, and its flags beside the common ones.

    `takes` are the words after the command; none where empty, scans too where they end in `DATA`.
    Of two the second is the file to write.
    """

    summary: str
    flags: dict[str, _Flag] = field(default_factory=dict)
    takes: str = ""

    @property
    def takes_data(self) -> bool:
        """Whether scans may be named without a flag."""
        return self.takes.endswith("DATA")


@dataclass(frozen=True)
class _Table:
    """What `commands.yaml` says: `words` are what the words after a command may be."""

    words: dict[str, str]
    common: dict[str, _Flag]
    commands: dict[str, _Command]


_TABLE: _Table = packaged("sacl", "commands.yaml", _Table)
COMMANDS = _TABLE.commands
"""All commands with their flags; every setting is a dotted flag besides."""
SHARDED = ("--workers", "--engine", "--ray-address", "--shard")
"""Flags of a stage that several machines may share."""
SHARDED_STAGES = ("ingest", "locate", "extract", "predict", "evaluate")
"""Stages that may be done in shards."""


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
    command = COMMANDS.get(known.command, _Command(""))
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
            taken = [text for word, text in _TABLE.words.items() if word in command.takes]
            words = "; ".join(taken).format(shipped=", ".join(shipped()))
            inner.add_argument("words", nargs="*", metavar=command.takes, help=words)
        for called, flag in (_TABLE.common | command.flags).items():
            flag.add_to(inner, called)
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


def engine_of(known: argparse.Namespace) -> Engine:
    """Return where a command's scans are worked on."""
    kind: Any = getattr(known, "engine", None) or "local"
    workers = getattr(known, "workers", None)
    address, shard = getattr(known, "ray_address", None), getattr(known, "shard", None)
    if kind not in ("local", "ray"):
        raise ConfigError(f"--engine {kind}: expected local or ray")
    if workers is not None and workers < 1:
        raise ConfigError(f"--workers {workers}: expected 1 or more")
    if address and kind != "ray":
        raise ConfigError("--ray-address: works only with --engine ray; add it, or leave this out")
    for name in ("force", "time") if shard else ():
        if getattr(known, name):
            raise ConfigError(
                f"--{name}: cannot be combined with --shard, whose parts would undo each other's"
                " work; leave one out"
            )
    merges = known.command == "merge"
    return Engine(kind, workers, address, Shard.parse(shard) if shard else None, merges)


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
        raise ConfigError(f"{known.command}: expected only {command.takes}, got also '{beyond}'")
    known.config, known.target = [*map(Path, words), None, None][:2]
