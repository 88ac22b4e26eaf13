"""Contrast on query volumes: is a 3-D segmenter that starts from it better at equal computing?

`python -m research benchmark volume_contrast --data DIR --cohort hippocampus --labeled 3 --work W`
lays a cohort of real scans out as `planned_runs` does, ingests and locates it once per seed (with
`--same-maps` once), and trains segmenters from the same coarse network and coarse maps:

- `longer`: fine-tuning alone, for F + X seconds of the processor.
- `shorter` (where it is among `--methods`): fine-tuning alone, for F seconds.
- `pooled`, `semantic`, `simclr`: X seconds of pretraining by that method on all training scans,
  then fine-tuning for F seconds.

Seconds become steps by timing some of each kind of step in this process at the first seed
(`time.process_time`: other jobs on the machine do not count), so that seeds have equal steps. What
each training really took is recorded. Fine-tuning has 30 % of its steps on labeled scans alone and
the others with unlabeled ones and a teacher, as the shortest runs have. All else is what a run
without a settings file takes. Held-out scans choose nothing and no training saw them. One result
per cohort goes into `results/volume_contrast.json`, with tests paired over subjects, means over
seeds; a call that was interrupted goes on in its `--work`.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
import torch
from msgspec.structs import replace as changed

from research.benchmarks.circumstances import circumstances
from research.benchmarks.planned_runs import SPLITS, add_record, lay_out
from research.paired_tests import compare
from research.statistics import subject_by_seed
from sacl.cohort.manifest import read_cohort
from sacl.files.atomic import write_text
from sacl.planning import plan_run
from sacl.prediction.volume import MapRecipe, load_predictor, predict_volume
from sacl.run.pipeline import run_stage, workspace_of
from sacl.run.record import RECORD, segmenter_of
from sacl.run.workspace import Workspace
from sacl.scores.organs_of_case import score_case
from sacl.scores.summary import holm
from sacl.settings import FinetuneSettings, PretrainSettings, RunConfig, VolumeHeadSettings
from sacl.stages.finetune import finetune
from sacl.stages.pretrain import pretrain
from sacl.stages.scan import Scan
from sacl.stages.volumes import read_volumes
from sacl.training.pace import Pace

RESULT = Path(__file__).parents[1] / "results" / "volume_contrast.json"
LONGER, SHORTER = "longer", "shorter"
EARLY_SHARE = 0.3
"""Share of the fine-tuning's steps on labeled scans alone."""
_TIMED = (3, 9)
"""Steps of the two trainings whose difference times a step."""
_RESAMPLES = 2000
_GIVEN = ("seeds", "same_maps", "methods", "locate_steps")
Steps = Mapping[str, int]


def main() -> None:
    """Measure a cohort and add the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SACL_DATA", ".")))
    parser.add_argument("--cohort", choices=list(SPLITS), required=True)
    parser.add_argument("--labeled", type=int, required=True, help="labeled subjects")
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made; kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--same-maps", action="store_true", help="those of the first seed for all")
    parser.add_argument("--methods", nargs="+", default=["pooled", "semantic"])
    parser.add_argument("--locate-steps", type=int, default=150, help="of each coarse network")
    parser.add_argument("--pretrain-seconds", type=float, default=60)
    parser.add_argument("--finetune-seconds", type=float, default=150)
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    add_record(given.out, measured(given))


def measured(given: argparse.Namespace) -> dict[str, Any]:
    """Train all segmenters of all seeds and return what came of it."""
    split = SPLITS[given.cohort](given.data, given.labeled)
    folder = given.work / given.cohort
    if not folder.is_dir():
        lay_out(given.data / split.dataset, split, folder)
    rows: list[dict[str, Any]] = []
    seconds: dict[str, dict[str, Any]] = {}
    steps: Steps = {}
    for seed in given.seeds:
        of_maps = given.seeds[0] if given.same_maps else seed
        base, config = located(folder, given, of_maps)
        base = replace(base, seed=seed)
        steps = steps or _steps(base, given)
        recipe = MapRecipe(copies=0, keep_component=config.predict.keep_component)
        for arm in (LONGER, *given.methods):
            name = arm if seed == of_maps else f"{arm}-{seed}"
            workspace = _beside(base, name)
            seconds[f"{arm}, seed {seed}"] = _trained(workspace, arm, steps)
            kept = workspace.root / "scores.json"
            if not kept.is_file():
                write_text(kept, json.dumps(list(_scored(workspace, recipe))))
            scores = json.loads(kept.read_text("utf-8"))
            rows += [{**score, "row": arm, "seed": seed} for score in scores]
    return {
        "cohort": given.cohort,
        "labeled_subjects": given.labeled,
        **{name: getattr(given, name) for name in _GIVEN},
        "asked_seconds": {"pretrain": given.pretrain_seconds, "finetune": given.finetune_seconds},
        "steps": dict(steps),
        "processor_seconds": seconds,
        "grid": asdict(read_volumes(_finetuning(2), base).spec.network),
        **summary_of(pd.DataFrame(rows), given.methods),
        "threads": 1,
        **circumstances(),
    }


def located(folder: Path, given: argparse.Namespace, seed: int) -> tuple[Workspace, RunConfig]:
    """Ingest and locate as a run without a settings file does, for a number of steps."""
    flags = {
        "ingest.data": str(folder),
        "work": str(given.work / f"seed-{seed}"),
        "seed": str(seed),
        "device": "cpu",
        "time": "15m",
        "locate.volume.steps": str(given.locate_steps),
    }
    config = changed(plan_run(flags)[0], time=None)
    run_stage(config, "locate")
    return workspace_of(config), config


def _finetuning(steps: int, pretrained: bool = False) -> FinetuneSettings:
    early = round(EARLY_SHARE * steps)
    volume = VolumeHeadSettings(teacher_steps=steps - early, pretrained=pretrained)
    return FinetuneSettings(volume=volume, steps=early)


def _pretraining(method: str, steps: int) -> PretrainSettings:
    return PretrainSettings(method=method, network="unet3d", steps=steps)


def _steps(base: Workspace, given: argparse.Namespace) -> Steps:
    """Return the steps of each training, by timing some; those timed before are kept in a file."""
    kept = given.work / "steps.json"
    if kept.is_file():
        return dict(json.loads(kept.read_text("utf-8")))
    each = {m: _seconds_per_step(base, m) for m in given.methods if m != SHORTER}
    of_finetuning = _seconds_per_step(base, LONGER)
    steps = {m: max(20, round(given.pretrain_seconds / each[m])) for m in each}
    steps[SHORTER] = round(given.finetune_seconds / of_finetuning)
    steps[LONGER] = round((given.finetune_seconds + given.pretrain_seconds) / of_finetuning)
    write_text(kept, json.dumps(steps))
    return steps


def _seconds_per_step(base: Workspace, arm: str) -> float:
    """Return the processor's seconds for one more step of a training."""
    taken = []
    for steps in _TIMED:
        workspace = _beside(base, f"timed-{arm}-{steps}")
        begun = time.process_time()
        if arm == LONGER:
            start = read_volumes(_finetuning(steps), workspace)
            begun = time.process_time()
            start.train(workspace, None, Pace())
        else:
            pretrain(_pretraining(arm, steps), workspace)
        taken.append(time.process_time() - begun)
    return (taken[1] - taken[0]) / (_TIMED[1] - _TIMED[0])


def _beside(base: Workspace, name: str) -> Workspace:
    elsewhere = {stage: base.root for stage in ("ingest", "locate")}
    return replace(base, root=base.root / name, elsewhere=elsewhere)


def _trained(workspace: Workspace, arm: str, steps: Steps) -> dict[str, Any]:
    """Train an arm in its work directory, unless it is trained, and return what it took."""
    pretrained = arm not in (LONGER, SHORTER)
    kept = workspace.root / "seconds.json"
    seconds = json.loads(kept.read_text("utf-8")) if kept.is_file() else {}
    work: list[tuple[str, Any, Any]] = []
    if pretrained:
        work.append(("pretrain", pretrain, _pretraining(arm, steps[arm])))
    settings = _finetuning(steps[SHORTER if pretrained else arm], pretrained)
    work.append(("finetune", finetune, settings))
    for stage, run, of_stage in work:
        if not (workspace.folder(stage) / RECORD).is_file():
            begun = time.process_time()
            run(of_stage, workspace)
            seconds[stage] = round(time.process_time() - begun, 1)
            write_text(kept, json.dumps(seconds))
    return dict(seconds)


def _scored(workspace: Workspace, recipe: MapRecipe) -> Iterator[dict[str, Any]]:
    """Yield the scores of the held-out scans, organ by organ."""
    cohort = read_cohort(workspace.require("ingest"))
    folder = workspace.require("finetune") / segmenter_of(workspace)
    predictor = load_predictor(folder, torch.device("cpu"), recipe)
    for case in cohort.held_out:
        scan = Scan(case, cohort, workspace)
        found = predict_volume(predictor, scan.image, case.window)
        for score in score_case(case.case_id, scan.reference, found, case.annotated, 2.0):
            yield {**msgspec.to_builtins(score), "subject_id": case.subject_id}


def summary_of(scores: pd.DataFrame, methods: Sequence[str]) -> dict[str, Any]:
    """Return means by arm, seed and organ, and each method compared with longer fine-tuning.

    A family of tests each for Dice and NSD, corrected by Holm over the methods.
    """
    finite = scores[scores["dice"].notna()]
    comparisons = []
    for metric in ("dice", "nsd"):
        by_seed = {arm: subject_by_seed(part, metric) for arm, part in finite.groupby("row")}
        other, family = by_seed[LONGER].mean(axis=1), []
        for method in methods:
            ours, aligned = by_seed[method].mean(axis=1).align(other, join="inner")
            paired = compare(ours, aligned, _RESAMPLES, seed=0)
            of_seeds = (by_seed[method] - by_seed[LONGER]).mean(axis=0).round(4)
            entry = {"metric": metric, "method": method, "subjects": paired.difference.subjects}
            entry |= {name: round(getattr(paired.difference, name), 4) for name in _ESTIMATE}
            entry |= {"won": int((ours > aligned).sum()), "lost": int((ours < aligned).sum())}
            entry["difference_by_seed"] = {str(seed): of for seed, of in of_seeds.items()}
            family.append(entry | {"p": paired.p})
        for entry, p in zip(family, holm([entry["p"] for entry in family]), strict=True):
            digits = {"p": float(f"{entry['p']:.2g}"), "p_holm": float(f"{p:.2g}")}
            comparisons.append(entry | digits)
    means = finite.groupby(["row", "organ"])["dice"].mean().unstack().round(4)
    return {
        "dice": finite.groupby("row")["dice"].mean().round(4).to_dict(),
        "dice_by_organ": {str(arm): part.to_dict() for arm, part in means.iterrows()},
        "against_longer": comparisons,
    }


_ESTIMATE = ("mean", "low", "high")


if __name__ == "__main__":
    main()
