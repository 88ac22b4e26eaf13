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
from sacl.run.record import are_other, fingerprint, paces_in, read_record
from sacl.run.workspace import Workspace
from sacl.settings import RunConfig
from sacl.stages.ingest import IngestListed, inputs, list_cohort
from sacl.stages.trial import try_segmenters

_OF_THE_RUN = ("name", "work", "seed", "device", "time", "ingest.data")
"""Settings that are no choice: what is run on, where and for how long."""


def plan_run(flags: Mapping[str, str], force: bool = False) -> tuple[RunConfig, RunPlan]:
    """Return the settings of a run on `ingest.data` and their plan, and leave the cohort ingested.

    The flags win over the plan. A plan that lies in the work directory is read, not made again, so
    that the same command goes on; only other flags are planned for again, on the facts as they
    were measured. Changed data are measured and planned for again, and so is another time as long
    as nothing was trained. `force` does so in any case.

    Raises:
        DataError: the data have no labeled scan, or cannot be read.
        WorkspaceError: the work directory holds a run on data from elsewhere, or was planned for
            another time.
    """
    flags = with_places(flags)
    asked = load_config(None, flags)
    given = given_of(asked, flags)
    workspace = workspace_of(asked)
    before, listed = None if force else read_plan(asked.work), None
    time = asked.time or (before.time if before else USUAL_TIME)
    if before and _is_outdated(before, time, asked, workspace):
        before = None
    if before is None:
        listed = IngestListed(*list_cohort(asked.ingest, workspace))
        held = hold_out_of(listed.dataset, asked.ingest, asked.seed)
    else:
        before.require_time(time, asked.work)
        held = before.held
    with workspace.locked():
        first = {} if held.setting in given else {held.setting: held.value}
        config = load_config(None, flags, base=first)
        folder = run_stage(config, "ingest", force=force, by=listed)
        plan = before if before and before.cohort == fingerprint(folder) else None
        if plan is None:
            facts = measure_cohort(folder)
            machine = measure_machine(asked.device)
            situation = Situation(facts, machine, seconds_of(time), given)
            situation = replace(situation, tried=_tried_for(flags, situation))
            plan = make_plan(time, fingerprint(folder), held, situation)
        elif plan.given != given:
            situation = Situation(plan.facts, plan.machine, seconds_of(time), given, plan.tried)
            plan = make_plan(time, plan.cohort, held, situation)
        write_plan(asked.work, plan)
    return load_config(None, {**flags, "time": time}, base=plan.settings), plan


def _is_outdated(before: RunPlan, time: str, asked: RunConfig, workspace: Workspace) -> bool:
    """Tell whether to plan again: for changed data, or another time where nothing was trained."""
    ingested, located = (read_record(workspace.folder(stage)) for stage in ("ingest", "locate"))
    if ingested and are_other(ingested.inputs, inputs(asked.ingest, workspace)):
        say("plan: the data have changed, so they are planned for again")
        return True
    return before.time != time and not located and not paces_in(workspace.folder("locate"))


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
