"""What is tried on the labeled scans before a run, where neither rules nor the user decide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sacl.plan.rules import Situation, choose, kinds_of
from sacl.plan.trials import LEAST_S, SHARE, Tried
from sacl.progress import duration, say
from sacl.run.configure import load_config
from sacl.run.pipeline import workspace_of
from sacl.stages.trial import try_candidates


def tried_for(flags: Mapping[str, str], situation: Situation) -> tuple[Tried, ...]:
    """Try which coarse network is the better one here, where the rules and the user leave it open.

    Nothing is tried where the time is too short for that to say anything.
    """
    kinds = kinds_of(situation.facts)
    seconds = SHARE * situation.seconds
    if situation.gives("locate") or len(kinds) == 1 or seconds < 2 * len(kinds) * LEAST_S:
        return ()
    base = {
        kind: {c.setting: c.value for c in choose(replace(situation, coarse=kind)) if c.setting}
        for kind in kinds
    }
    configs = {kind: load_config(None, flags, base=chosen) for kind, chosen in base.items()}
    say(f"plan: a trial of {' and '.join(kinds)}, at most {duration(seconds)}")
    workspace = workspace_of(next(iter(configs.values())))
    candidates = {kind: config.locate for kind, config in configs.items()}
    return try_candidates(candidates, workspace, seconds)
