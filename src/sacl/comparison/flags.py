"""The command line of `sacl compare`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from sacl.errors import ConfigError

SUMMARY = "compare strategies at few labels, over seeds, by a protocol"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `sacl compare`."""
    command.add_argument("config", nargs="*", metavar="PROTOCOL.yaml|DATA")
    for flag, shown, text in (
        ("--work", "DIR", "folder of the cells and the results, instead of the protocol's"),
        ("--device", "DEVICE", "auto, cpu, cuda, cuda:N or mps"),
        ("--shard", "I/N", "run every N-th cell only, from the I-th on; I from 1"),
        ("--cell", "NAME", "run this one cell only, and write no results"),
    ):
        target = "compared_work" if flag == "--work" else flag[2:]
        command.add_argument(flag, dest=target, metavar=shown, help=text)
    command.add_argument("--data", nargs="+", metavar="DIR", help="folders of scans, or cohort.csv")
    command.add_argument("--only", nargs="+", metavar="STRATEGY", help="run these strategies only")
    command.add_argument("--seeds", nargs="+", metavar="N", help="run these seeds only")
    command.add_argument("--jobs", type=int, default=1, metavar="N", help="cells at once (1)")
    for flag, text in (
        ("--list", "print the cells with their state, and run none"),
        ("--report", "write results and page anew, and run none"),
        ("--force", "redo the cells, and shared stages that have other settings"),
        ("--json", "print the result as JSON on stdout"),
    ):
        command.add_argument(flag, action="store_true", help=text)


def run_command(known: argparse.Namespace, flags: Mapping[str, str]) -> Any:
    """Do what the command line of `sacl compare` says.

    Raises:
        SaclError: any mistake in the arguments, the protocol, the cohort or the work folder.
    """
    if known.config is None:
        raise ConfigError("sacl compare: which protocol? give PROTOCOL.yaml")
    if known.jobs < 1:
        raise ConfigError(f"--jobs: expected 1 or more, got {known.jobs}")
    from sacl.comparison import compare  # noqa: PLC0415 - loads pandas and matplotlib

    comparison = compare.read_comparison(known.config, flags, known.compared_work)
    if known.cell:
        return compare.run_one(comparison, known.cell, known.force)
    wanted = compare.Wanted(
        known.shard,
        _words(known.only),
        tuple(_seed(word) for word in _words(known.seeds)),
        known.jobs,
        known.force,
    )
    if known.list:
        return _listed(compare.list_cells(comparison, wanted), known.json)
    if known.report:
        return compare.render(comparison)
    return compare.run_comparison(comparison, wanted, _again(known, flags))


def _listed(entries: list[dict[str, Any]], as_json: bool) -> list[dict[str, Any]]:
    if not as_json:
        from sacl.comparison.compare import cells_text  # noqa: PLC0415

        print(cells_text(entries))  # noqa: T201 - what was asked for
    return entries


def _words(given: list[str] | None) -> tuple[str, ...]:
    """Return what is listed with blanks or commas."""
    return tuple(word for text in given or () for word in text.split(",") if word)


def _seed(word: str) -> int:
    if not word.isdigit():
        raise ConfigError(f"--seeds: expected integers, got '{word}'")
    return int(word)


def _again(known: argparse.Namespace, flags: Mapping[str, str]) -> list[str]:
    """Return the arguments with which another process reads the same comparison."""
    arguments = ["compare", str(known.config)]
    if known.compared_work:
        arguments += ["--work", known.compared_work]
    if known.force:
        arguments.append("--force")
    for name, value in flags.items():
        arguments.append(f"--{name}={value}")
    return arguments
