"""What commands do that run the stages of a cohort: plan, check, and how it would be read.

Modules that are slow to import are imported by the command that needs them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sacl.commands import COMMANDS
from sacl.errors import ConfigError, DataError
from sacl.run.configure import load_config
from sacl.settings import RunConfig

if TYPE_CHECKING:
    from sacl.plan.document import RunPlan


def config_of(known: argparse.Namespace, flags: dict[str, str]) -> RunConfig:
    """Return the settings that a command names, by a file, a folder of scans or flags."""
    data = COMMANDS[known.command].takes_data
    starts = data or known.command == "phantom"
    if known.config is None and starts and not flags.keys() & {"ingest.data", "phantom.scans"}:
        scans = " or a folder of scans" if data else ""
        raise ConfigError(f"{known.command}: which configuration? give CONFIG.yaml{scans}")
    return load_config(known.config, flags, getattr(known, "from_", None))


def planned(known: argparse.Namespace, flags: dict[str, str]) -> tuple[RunConfig, RunPlan]:
    """Return the settings and the plan of a run that no settings file describes."""
    config_of(known, flags)  # which refuses a command without data
    from sacl.planning import plan_run

    return plan_run(flags, known.force)


def plan_command(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    """Print a plan as YAML, and nothing else on stdout."""
    if known.config is not None:
        raise ConfigError("plan: settings are given already; give a folder of scans alone")
    config, plan = planned(known, flags)
    from sacl.planning import as_file

    if not known.json:
        print(as_file(flags, config, plan), end="")
    return dataclasses.asdict(plan)


def check_command(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    """Check a cohort; errors in it end the program like any other bad input, after the page."""
    config, out = config_of(known, flags), known.out or Path("check.html")
    from sacl.stages.check import check

    given = None
    if known.config is None:
        from sacl.planning import given_of

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


def explain_command(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    """Say how a cohort would be read, and read none of it."""
    config = config_of(known, flags)
    from sacl.cohort.layouts.explain import as_text
    from sacl.run.pipeline import workspace_of
    from sacl.stages.ingest import explain

    sources = explain(config.ingest, workspace_of(config))
    if not known.json:
        print("\n\n".join(map(as_text, sources)))
    return {"sources": [dataclasses.asdict(source) for source in sources]}
