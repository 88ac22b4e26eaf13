"""trial: what locates scans that it has not seen best, in a short cross-fitted comparison."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sacl.cohort.manifest import read_cohort
from sacl.plan.trials import Tried
from sacl.progress import duration, say
from sacl.run import clock
from sacl.run.clock import Deadline
from sacl.run.workspace import Workspace
from sacl.scores.overlap import dice
from sacl.settings import LocateSettings
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
    always = [case for case in cohort.labeled if fold_of[case.subject_id] == SEEN]
    halves = [
        [case for case in cohort.labeled if fold_of[case.subject_id] == fold]
        for fold in sorted(set(fold_of.values()) - {SEEN})
    ]
    if not halves:
        return ()
    each_s = seconds / (len(candidates) * len(halves))
    tried = []
    for number, (name, settings) in enumerate(candidates.items(), start=1):
        begun, steps = clock.now(), 0
        scores: dict[str, list[float]] = {}
        train_one = trainer_of(settings, workspace, cohort)
        for fold, unseen in enumerate(halves):
            pace = Pace(Deadline(clock.now() + each_s, each_s))
            what = f"trial {number}/{len(candidates)} ({name}, half {fold + 1})"
            seen = [*always, *(c for half in halves if half is not unseen for c in half)]
            network, losses = train_one(seen, workspace.seed, what=what, pace=pace)
            steps += len(losses)
            for case in unseen:
                scan = Scan(case, cohort, workspace)
                located = network.locate(scan.image, case.window)
                for organ in case.annotated:
                    value = dice(scan.reference.mask(organ), located.mask(organ))
                    if not np.isnan(value):  # in neither map
                        scores.setdefault(organ, []).append(value)
        organs = {organ: round(float(np.mean(values)), 3) for organ, values in scores.items()}
        mean = round(float(np.mean(list(organs.values()))), 3) if organs else 0.0
        tried.append(Tried(name, mean, organs, steps, round(clock.now() - begun, 1)))
        say(f"trial: {name}: Dice {mean:.3f} in {steps} steps, {duration(tried[-1].seconds)}")
    return tuple(tried)
