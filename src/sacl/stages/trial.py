"""trial: a short cross-fitted comparison that chooses the kind of coarse network."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from sacl.cohort.manifest import read_cohort
from sacl.plan.facts import Tried
from sacl.progress import duration, say
from sacl.run import clock
from sacl.run.clock import Deadline
from sacl.run.workspace import Workspace
from sacl.settings import LocateSettings
from sacl.stages.locate import Coverage, coverage_of, dice_by_organ
from sacl.stages.locate_networks import SEEN, deal_folds, trainer_of
from sacl.stages.scan import Scan
from sacl.training.pace import Pace

_FOLDS = 2
"""Each labeled scan is scored once, by the network of the other half of the subjects."""


def try_candidates(
    candidates: Mapping[str, LocateSettings], workspace: Workspace, seconds: float
) -> tuple[Tried, ...]:
    """Train each candidate for an equal time, and return how well it locates scans not seen.

    Nothing is written. The subjects are halved as for cross-fitting: candidates see the same scans.
    Where no subject can be held out, nothing is tried.

    Raises:
        ConfigError: the time is too short for any training.
    """
    cohort = read_cohort(workspace.require("ingest"))
    fold_of = deal_folds(cohort, _FOLDS)
    halves = sorted(set(fold_of.values()) - {SEEN})
    if not halves:
        return ()
    each_s = seconds / (len(candidates) * len(halves))
    tried = []
    for number, (name, settings) in enumerate(candidates.items(), start=1):
        begun, steps = clock.now(), 0
        rows: list[Coverage] = []
        train_one = trainer_of(settings, workspace, cohort)
        for half in halves:
            pace = Pace(Deadline(clock.now() + each_s, each_s))
            what = f"trial {number}/{len(candidates)} ({name}, half {half + 1})"
            seen = [case for case in cohort.labeled if fold_of[case.subject_id] != half]
            network, losses = train_one(seen, workspace.seed, what=what, pace=pace)
            steps += len(losses)
            for case in (c for c in cohort.labeled if fold_of[c.subject_id] == half):
                scan = Scan(case, cohort, workspace)
                located = network.locate(scan.image, case.window)
                rows += coverage_of(case, located, scan.reference)
        scores = dice_by_organ(pd.DataFrame(rows))
        organs = {str(organ): round(float(value), 3) for organ, value in scores.items()}
        mean = round(float(scores.mean()), 3) if organs else 0.0
        tried.append(Tried(name, mean, organs, steps, round(clock.now() - begun, 1)))
        say(f"trial: {name}: Dice {mean:.3f} in {steps} steps, {duration(tried[-1].seconds)}")
    return tuple(tried)
