"""trial: a short cross-fitted comparison that chooses the kind of segmenter.

A candidate is trained as in a run, coarse maps first, in a small cohort: labeled subjects to learn
from, others held out, and a few unlabeled scans. What the run itself holds out takes no part.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd

from sacl.cohort.manifest import read_cohort, write_cohort
from sacl.plan.facts import Tried
from sacl.prediction.volume import MapRecipe, load_predictor, predict_volume
from sacl.progress import duration, say
from sacl.run import clock
from sacl.run.record import RECORD, read_record, segmenter_of
from sacl.run.workspace import Workspace
from sacl.settings import RunConfig
from sacl.stages.locate import Coverage, coverage_of, dice_by_organ
from sacl.stages.locate_networks import SEEN, deal_folds
from sacl.stages.scan import Scan
from sacl.types import Cohort, Split

_FOLDER = ".trial"
_LEAST_SUBJECTS = 3
_MOST_HELD_OUT, _MOST_UNLABELED = 10, 12


def try_segmenters(
    candidates: Mapping[str, RunConfig],
    workspace: Workspace,
    train: Callable[[RunConfig, Workspace], object],
) -> tuple[Tried, ...]:
    """Train each candidate, and return how well it segments labeled scans that it has not seen.

    Candidates are settings, with the time that each may take, by the name of what they try; `train`
    does all that comes after ingest, up to the segmenter, or raises `TooShort`. Nothing of it is
    kept. Where too few labeled subjects can be held out, nothing is tried.
    """
    home = workspace.require("ingest").resolve()
    cohort = small_cohort(read_cohort(home), home)
    if cohort is None:
        return ()
    root = workspace.root / _FOLDER
    shutil.rmtree(root, ignore_errors=True)
    try:
        shared = Workspace(root).folder("ingest")
        write_cohort(shared, cohort)
        shutil.copyfile(home / RECORD, shared / RECORD)
        tried = []
        for kind, config in candidates.items():
            begun = clock.now()
            of_kind = replace(workspace, root=root / kind, elsewhere={"ingest": root})
            train(config, of_kind)
            rows = pd.DataFrame([*_judged(cohort, of_kind, config.predict.keep_component)])
            scores = dice_by_organ(rows)
            organs = {str(organ): round(float(value), 3) for organ, value in scores.items()}
            mean = round(float(scores.mean()), 3) if organs else 0.0
            taken_s, record = round(clock.now() - begun, 1), read_record(of_kind.folder("finetune"))
            steps = sum(record.results["steps"].values()) if record else 0
            tried.append(Tried(kind, mean, organs, steps, taken_s))
            say(f"trial: {kind}: Dice {mean:.3f} after {duration(taken_s)}")
        return tuple(tried)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def small_cohort(cohort: Cohort, home: Path) -> Cohort | None:
    """Return a part of a cohort that lies in `home`, up to half of the labeled subjects held out.

    None where fewer than three subjects are labeled, or each alone shows an organ.
    """
    fold_of = deal_folds(cohort, 2)
    halves = [[s for s, fold in fold_of.items() if fold == n] for n in {*fold_of.values()} - {SEEN}]
    if len(fold_of) < _LEAST_SUBJECTS or not halves:
        return None
    held = min(halves, key=len)[:_MOST_HELD_OUT]
    others = cohort.unlabeled[:: max(1, -(-len(cohort.unlabeled) // _MOST_UNLABELED))]
    cases = []
    for case in (*cohort.labeled, *others):
        reference = None if case.reference is None else str(home / case.reference)
        split: Split = "validation" if case.subject_id in held else "train"
        image = str(home / case.image)
        cases.append(replace(case, image=image, reference=reference, split=split))
    return replace(cohort, cases=tuple(cases))


def _judged(cohort: Cohort, workspace: Workspace, keep_component: float) -> Iterator[Coverage]:
    """Yield how well the held-out scans are segmented, without copies."""
    folder = workspace.folder("finetune") / segmenter_of(workspace)
    predictor = load_predictor(folder, workspace.device, MapRecipe(0, keep_component))
    for case in cohort.held_out:
        scan = Scan(case, cohort, workspace)
        coarse = scan.coarse if predictor.needs_coarse else None
        final = predict_volume(predictor, scan.image, case.window, coarse)
        yield from coverage_of(case, final, scan.reference)
