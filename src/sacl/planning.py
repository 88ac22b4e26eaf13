"""A run without a settings file: ingest the cohort, measure it and the machine, and choose."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from sacl.errors import SaclError
from sacl.files.atomic import plain, real
from sacl.plan.document import USUAL_TIME, RunPlan, as_yaml, make_plan, read_plan, write_plan
from sacl.plan.facts import Tried, measure_cohort, measure_machine, trial_s
from sacl.plan.rules import TRAINED, Situation, choose, hold_out_of, kinds_of
from sacl.progress import duration, say
from sacl.run.clock import TooShort, seconds_of
from sacl.run.configure import load_config
from sacl.run.pipeline import budgets_of, run_stage, stages_of, workspace_of
from sacl.run.record import fingerprint
from sacl.run.workspace import Workspace
from sacl.settings import RunConfig
from sacl.stages.ingest import IngestListed, list_cohort
from sacl.stages.trial import try_segmenters

_OF_THE_RUN = ("name", "work", "seed", "device", "time", "ingest.data")
"""Settings that are no choice: what is run on, where and for how long."""


def plan_run(flags: Mapping[str, str], force: bool = False) -> tuple[RunConfig, RunPlan]:
    """Return the settings of a run on `ingest.data` and their plan, and leave the cohort ingested.

    The flags win over the plan. A plan that lies in the work directory is read, not made again, so
    that the same command goes on; only other flags are planned for again, on the facts as they
    were measured. `force` measures and plans again.

    Raises:
        DataError: the data have no labeled scan, or cannot be read.
        WorkspaceError: the work directory was planned for another time.
    """
    flags = with_places(flags)
    asked = load_config(None, flags)
    given = given_of(asked, flags)
    workspace = workspace_of(asked)
    before, listed = None if force else read_plan(asked.work), None
    if before is None:
        listed = IngestListed(*list_cohort(asked.ingest, workspace))
        held = hold_out_of(listed.dataset, asked.ingest, asked.seed)
        time = asked.time or USUAL_TIME
    else:
        held, time = before.held, before.time_for(asked.time, asked.work)
    with workspace.locked():
        first = {} if held.setting in given else {held.setting: held.value}
        config = load_config(None, flags, base=first)
        folder = run_stage(config, "ingest", force=force, by=listed)
        plan = before
        if plan is None:
            facts = measure_cohort(folder)
            machine = measure_machine(asked.device)
            situation = Situation(facts, machine, seconds_of(time), given)
            situation = replace(situation, tried=_tried_for(flags, situation))
            plan = make_plan(time, fingerprint(folder), held, situation)
        elif plan.given != given:
            situation = Situation(plan.facts, plan.machine, seconds_of(time), given, plan.tried)
            plan = make_plan(time, plan.cohort, held, situation)
        if before and before.cohort != fingerprint(folder):
            say("plan: the cohort has changed; its plan is kept, --force plans again")
        write_plan(asked.work, plan)
    return load_config(None, {**flags, "time": time}, base=plan.settings), plan


def _tried_for(flags: Mapping[str, str], situation: Situation) -> tuple[Tried, ...]:
    """Try which kind of segmenter is the better one here, where the rules leave it open."""
    kinds = kinds_of(situation)
    if len(kinds) == 1:
        return ()
    each_s = trial_s(situation.seconds, len(kinds))
    short = replace(situation, seconds=each_s)
    candidates = {}
    for kind in kinds:
        chosen = {c.setting: c.value for c in choose(replace(short, kind=kind)) if c.setting}
        timed = {**flags, "time": f"{each_s:.0f}s"}
        candidates[kind] = load_config(None, timed, base=chosen)
    say(f"plan: a trial of {' and '.join(kinds)}, {duration(each_s)} each")
    try:
        return try_segmenters(candidates, workspace_of(candidates[kinds[0]]), _train)
    except TooShort:
        say("plan: nothing was tried, since this machine is too slow, or too busy, for that now")
    except SaclError as error:  # half of the labels may be too few where all are enough
        say(f"plan: the trial failed, so the rule decides: {error}")
    return ()


def _train(config: RunConfig, workspace: Workspace) -> None:
    """Train a candidate, from its coarse maps on, within its time."""
    stages = [stage for stage in TRAINED if stage in stages_of(config)]
    for stage, budget in budgets_of(config, stages).items():
        run_stage(config, stage, workspace=replace(workspace, budget=budget), label="trial: ")


def with_places(flags: Mapping[str, str]) -> dict[str, str]:
    """Return the flags with a work directory and a name after the data, where they give none."""
    data = load_config(None, {"ingest.data": flags["ingest.data"]}).ingest.data
    folders = [real(path) if path.is_dir() else real(path).parent for path in data]
    name = re.sub(r"[^\w.-]+", "-", "+".join(folder.name for folder in folders)).strip("-.")[:100]
    return {"name": name or "run", "work": str(Path("work", name)), **flags}


def given_of(config: RunConfig, flags: Mapping[str, str]) -> dict[str, Any]:
    """Return the user's choices by dotted name, of paths the names alone."""
    return {name: plain(_setting(config, name)) for name in flags if name not in _OF_THE_RUN}


def as_file(flags: Mapping[str, str], config: RunConfig, plan: RunPlan) -> str:
    """Return a planned run as the text of a settings file."""
    names = dict.fromkeys(("name", "work", "time", *flags, "ingest.data"))
    told = {n: msgspec.to_builtins(_setting(config, n), enc_hook=str) for n in names}
    return as_yaml(plan, told)


def _setting(config: RunConfig, name: str) -> Any:
    return functools.reduce(getattr, name.split("."), config)
