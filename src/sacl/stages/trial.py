"""trial: what locates scans that it has not seen best, in a short cross-fitted comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sacl.cohort.manifest import read_cohort
from sacl.progress import duration, say
from sacl.run import clock
from sacl.run.clock import Deadline
from sacl.run.workspace import Workspace
from sacl.scores.overlap import dice
from sacl.settings import LocateSettings
from sacl.stages.locate_networks import deal_folds, trainer_of
from sacl.stages.scan import Scan
from sacl.training.pace import Pace

_FOLDS = 2
"""Each labeled scan is scored once, by the network of the other half of the subjects."""
_MARGIN = 0.02
"""Mean Dice by which another candidate has to be ahead of the first to be taken."""


@dataclass(frozen=True)
class Tried:
    """What one candidate reached on labeled scans that its networks did not see.

    `dice` is the mean over organs of the mean over scans, `organs` the latter; `steps` those of its
    networks together.
    """

    candidate: str
    dice: float
    organs: dict[str, float]
    steps: int
    seconds: float


def try_candidates(
    candidates: Mapping[str, LocateSettings], workspace: Workspace, seconds: float
) -> tuple[Tried, ...]:
    """Train each candidate for an equal time, and return how well it locates scans not seen.

    Nothing is written. The subjects are halved as for cross-fitting: candidates see the same scans.

    Raises:
        DataError: fewer than 2 subjects are labeled, or annotated for an organ.
    """
    cohort = read_cohort(workspace.require("ingest"))
    fold_of = deal_folds(cohort, _FOLDS)
    halves = [
        [case for case in cohort.labeled if fold_of[case.subject_id] == fold]
        for fold in sorted(set(fold_of.values()))
    ]
    each_s = seconds / (len(candidates) * len(halves))
    tried = []
    for number, (name, settings) in enumerate(candidates.items(), start=1):
        begun, steps = clock.now(), 0
        scores: dict[str, list[float]] = {}
        train_one = trainer_of(settings, workspace, cohort)
        for fold, unseen in enumerate(halves):
            pace = Pace(Deadline(clock.now() + each_s, each_s))
            what = f"trial {number}/{len(candidates)} ({name}, half {fold + 1})"
            seen = [case for half in halves if half is not unseen for case in half]
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


def best_of(tried: Sequence[Tried]) -> Tried:
    """Return the best candidate; the first unless another is clearly ahead of it."""
    first, best = tried[0], max(tried, key=lambda one: one.dice)
    return best if best.dice > first.dice + _MARGIN else first
