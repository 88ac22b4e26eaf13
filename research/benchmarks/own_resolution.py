"""Small organs at the scan's own resolution: the query head on what a segmenter on volumes found.

`python -m research benchmark own_resolution RUN --work DIR --cohort NAME` takes a run on volumes
(`sacl run DIR`; where it was stopped after its coarse maps, its segmenter is trained here, for
`--seconds`) and asks three questions of its held-out scans, which no training saw:

- What does the grid lose? References brought onto the network's grid and back, once as the largest
  label of each coarse voxel (what it is trained on), once as the share of each voxel that every
  organ covers (the best that its probabilities could say).
- What does refinement give? The paper's query head (a patch around an organ in every slice of the
  scan, image and attention, 64 pixels, so that no organ of interest loses resolution) is trained on
  the labeled scans and refines the segmenter's maps. In training its attention are maps by
  segmenters of which none saw the scan's subject (cross-fitted, of the run's own folds, from its
  coarse networks and with its teacher), so that it errs as it will in prediction; with
  `--attention damaged` references whose organs are shifted, grown or shrunken instead. With
  `bound` the attention of all scans, those held out too, are references brought through the grid:
  what refinement would give to a segmenter without any error but that.
- What would the time have given the segmenter itself? With `--longer` seconds a twin of it is
  trained from the same coarse network.

Nothing is chosen on held-out scans: steps, sizes and rates are the product's defaults or fixed
here, and maps are made without copies. Rows are `dense` (the segmenter's maps), `small` (these with
the organs of interest by the query head), `all` (every organ by it). One result per cohort and
attention goes into `results/own_resolution.json`, with paired tests over subjects, means over
seeds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import torch

from research.benchmarks.circumstances import circumstances
from research.benchmarks.damaged_maps import Damage, displaced
from research.paired_tests import compare
from research.statistics import subject_by_seed
from sacl.cohort.manifest import read_cohort, write_cohort
from sacl.errors import DataError
from sacl.files.documents import write_json
from sacl.files.nifti import read_label_map, write_label_map
from sacl.networks.coarse import CoarseSpec
from sacl.patches.coarse_grid import (
    CoarseGrid,
    arg_max_on_scan,
    coarse_grid,
    image_to_coarse,
    labels_to_coarse,
)
from sacl.prediction.coarse import load_network
from sacl.prediction.volume import (
    MapRecipe,
    Predictor,
    load_predictor,
    predict_volume,
    predictor_of,
)
from sacl.run import clock
from sacl.run.clock import Budget, Deadline
from sacl.run.record import RECORD, read_record, segmenter_of
from sacl.run.workspace import Workspace
from sacl.scores.organs_of_case import score_case
from sacl.scores.summary import holm
from sacl.settings import (
    ExtractSettings,
    FinetuneSettings,
    LocateSettings,
    MapsSettings,
    PredictSettings,
    PretrainSettings,
    QuerySettings,
    VolumeHeadSettings,
)
from sacl.stages import extract, finetune, locate, predict, pretrain
from sacl.stages.locate_networks import FOLDS, SEEN, deal_folds
from sacl.stages.scan import Scan
from sacl.stages.volumes import read_volumes
from sacl.training.pace import Pace
from sacl.types import Case, Cohort, LabelMap

RESULT = Path(__file__).parents[1] / "results" / "own_resolution.json"
SMALL = (
    *("adrenal_gland_right", "adrenal_gland_left", "gallbladder", "esophagus"),
    *("portal_vein_and_splenic_vein", "larynx", "spinal_cord"),
)
"""The organs of interest, of which a cohort has some."""
ATTENTIONS = ("crossfit", "damaged", "bound")
STEPS = 600
DAMAGE = Damage(shift_mm=2.0, growth_mm=1.0)
"""Standard deviations of the damage to references, about half a voxel of the segmenters' grids."""
TOLERANCE_MM = 2.0
CPU = torch.device("cpu")
VOLUME_SETTINGS = FinetuneSettings(volume=VolumeHeadSettings(teacher_steps=8000))
"""Of the segmenter and of its cross-fitted twins: what a planned run takes."""
RECIPE = MapRecipe(copies=0, keep_component=1.0)
"""How all maps are made, as in a planned run on volumes of organs in one piece."""
_RESAMPLES = 2000


def main() -> None:
    """Measure a run and add the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="work directory of a run on volumes")
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made; kept")
    parser.add_argument("--cohort", required=True, help="its name in the results")
    parser.add_argument("--attention", choices=ATTENTIONS, default="crossfit")
    parser.add_argument("--seconds", type=float, default=600, help="of a segmenter not trained yet")
    parser.add_argument("--fold-seconds", type=float, default=180, help="of a cross-fitted one")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the query head")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--longer", type=float, help="seconds of a twin of the segmenter")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    result = measured(given)
    records = json.loads(given.out.read_text("utf-8")) if given.out.is_file() else []
    write_json(given.out, [*records, result])
    print(json.dumps({key: result[key] for key in ("organs", "comparisons")}, indent=1))


def measured(given: argparse.Namespace) -> dict[str, Any]:
    """Train what is not trained yet, and return the result of a run."""
    base = Workspace(given.run, device="cpu")
    cohort, attention = read_cohort(base.require("ingest")), given.work / given.attention
    _train_segmenter(base, given.seconds)
    seconds = {"attention": _attention_maps(base, cohort, attention, given)}
    maps = {
        "bound of labels": _bounds(base, cohort, cohort.held_out, soft=False),
        "bound of shares": _bounds(base, cohort, cohort.held_out, soft=True),
        "dense": ((case, _read(attention, case, cohort)) for case in cohort.held_out),
    }
    if given.longer:
        elsewhere = {"ingest": base.root, "locate": base.root}
        twin = Workspace(given.work / "longer", device="cpu", elsewhere=elsewhere)
        _train_segmenter(twin, given.longer)
        maps["longer"] = _predicted(_dense(twin), cohort.held_out, cohort, base)
    rows: list[Row] = []
    for name, of_row in maps.items():
        for each in of_row:
            rows += _scored(cohort, base, *each, {"row": name, "seed": 0})
    for seed in given.seeds:
        begun = time.monotonic()
        refined = Workspace(given.work / f"{given.attention}-{seed}", seed=seed, device="cpu")
        refine(base, refined, attention, given.steps)
        seconds[f"seed {seed}"] = round(time.monotonic() - begun, 1)
        rows += _refined_rows(base, refined, attention, cohort, seed)
    trained = read_record(base.require("finetune"))
    small = [organ for organ in SMALL if organ in cohort.scheme.names]
    return {
        **{name: getattr(given, name) for name in ("cohort", "attention", "steps", "seeds")},
        "fold_seconds": given.fold_seconds,
        "segmenter_steps": trained.results["steps"] if trained else None,
        "seconds_taken": seconds,
        "attention_dice": _attention_dice(base, cohort, attention),
        "spacing_mm": np.round(cohort.held_out[0].native.grid.spacing_mm, 2).tolist(),
        "grid_mm": list(_dense(base).spec.network.spacing_mm),
        **summary_of(pd.DataFrame(rows), small),
        **circumstances(),
    }


def refine(base: Workspace, refined: Workspace, attention: Path, steps: int) -> None:
    """Train a query head on a run's labeled scans, and predict its held-out ones with it."""
    _link_cohort(base, refined)
    plan: list[tuple[Any, Any]] = [
        (locate, LocateSettings(maps=MapsSettings(source=attention))),
        (extract, ExtractSettings()),
        (pretrain, PretrainSettings(method="none")),
        (finetune, FinetuneSettings(query=QuerySettings(), steps=steps)),
        (predict, PredictSettings(copies=RECIPE.copies, keep_component=RECIPE.keep_component)),
    ]
    for module, settings in plan:
        stage = module.__name__.rpartition(".")[2]
        if not (refined.folder(stage) / RECORD).is_file():
            getattr(module, stage)(settings, refined)


def _link_cohort(base: Workspace, refined: Workspace) -> None:
    """Make a cohort of a run's labeled and held-out scans, as links to its files."""
    source, folder = base.require("ingest").resolve(), refined.folder("ingest")
    if (folder / RECORD).is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    whole = read_cohort(source)
    cohort = replace(whole, cases=(*whole.labeled, *whole.held_out))
    for case in cohort.cases:
        for name in filter(None, (case.image, case.reference)):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to(source / name)
    write_cohort(folder, cohort)
    shutil.copy(source / RECORD, folder / RECORD)


def _attention_maps(
    base: Workspace, cohort: Cohort, folder: Path, given: argparse.Namespace
) -> float:
    """Write the attention of the labeled and held-out scans; return the seconds it took.

    That of a held-out scan is the segmenter's own map.
    """
    begun = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    missing = [c for c in cohort.labeled if not (folder / f"{c.case_id}.nii.gz").is_file()]
    dense = _predicted(_dense(base), cohort.held_out, cohort, base)
    if given.attention == "bound":
        maps, dense = (_bounds(base, cohort, cases, False) for cases in (missing, cohort.held_out))
    elif given.attention == "damaged":
        rng = np.random.default_rng(0)
        maps = ((c, displaced(Scan(c, cohort, base).reference, DAMAGE, rng)) for c in missing)
    else:
        maps = cross_fitted(base, cohort, missing, given.fold_seconds)
    for case, label_map in itertools.chain(maps, dense):
        write_label_map(folder / f"{case.case_id}.nii.gz", label_map, case.native)
    return round(time.monotonic() - begun, 1)


def _predicted(
    predictor: Predictor, cases: Sequence[Case], cohort: Cohort, base: Workspace
) -> Iterator[tuple[Case, LabelMap]]:
    for case in cases:
        yield case, predict_volume(predictor, Scan(case, cohort, base).image, case.window)


def _train_segmenter(base: Workspace, seconds: float) -> None:
    """Train a run's segmenter as `sacl finetune` does, for so many seconds, where it has none."""
    if not (base.folder("finetune") / RECORD).is_file():
        ends = clock.now() + seconds
        budget = Budget(asked_s=seconds, ends=ends, weight=1.0, whole=1.0)
        finetune.finetune(VOLUME_SETTINGS, replace(base, budget=budget))


def cross_fitted(
    base: Workspace, cohort: Cohort, cases: Sequence[Case], seconds: float
) -> Iterator[tuple[Case, LabelMap]]:
    """Yield maps of labeled scans by segmenters that saw no reference of their subjects.

    Each goes on from its fold's coarse network of the run, for so many seconds.
    """
    fold_of = deal_folds(cohort, FOLDS)
    start = read_volumes(VOLUME_SETTINGS, base) if cases else None
    for fold in sorted({fold_of[case.subject_id] for case in cases}):
        if fold == SEEN or start is None:
            raise DataError(f"{base.root}: a labeled subject was seen by every coarse network")
        network = load_network(base.folder("locate"), f"fold-{fold}", CPU)
        pairs = zip(cohort.labeled, start.labeled, strict=True)
        others = [on_grid for case, on_grid in pairs if fold_of[case.subject_id] != fold]
        of_fold = replace(
            start,
            labeled=others,
            coarse=network.networks[0].state_dict()
            if network and isinstance(network.spec, CoarseSpec)
            else None,
            name=f"fold-{fold}",
        )
        pace = Pace(Deadline(clock.now() + seconds, seconds))
        checkpoint = base.folder("finetune") / f"fold-{fold}.checkpoint"
        segmenter, _ = of_fold.train(base, checkpoint, pace)
        of_fold_cases = [case for case in cases if fold_of[case.subject_id] == fold]
        yield from _predicted(predictor_of(segmenter, CPU, RECIPE), of_fold_cases, cohort, base)


def through_grid(reference: LabelMap, grid: CoarseGrid, soft: bool) -> LabelMap:
    """Return a reference brought onto a coarse grid and back.

    `soft` keeps the share of every coarse voxel that each label covers, else its largest label.
    """
    labels = range(1, len(reference.scheme.names) + 1)
    if soft:  # a mask is an image between 0 and 1
        masks = ((reference.voxels == label).astype(np.float32) for label in labels)
        organs = torch.stack([image_to_coarse(mask, (0.0, 1.0), grid, CPU) for mask in masks])
    else:
        coarse = labels_to_coarse(reference.voxels, len(labels), grid, CPU)
        organs = torch.stack([(coarse == label).float() for label in labels])
    probability = torch.cat([1 - organs.sum(dim=0, keepdim=True), organs])
    voxels = arg_max_on_scan(probability, grid)
    return LabelMap(voxels, reference.grid, reference.scheme)


def put_in(dense: LabelMap, refined: LabelMap, organs: Sequence[str]) -> LabelMap:
    """Return a map in which some organs are those of another one, wherever that has them."""
    labels = [dense.scheme.label_of(organ) for organ in organs]
    voxels = np.where(np.isin(dense.voxels, labels), 0, dense.voxels)
    voxels = np.where(np.isin(refined.voxels, labels), refined.voxels, voxels)
    return LabelMap(voxels.astype(dense.voxels.dtype), dense.grid, dense.scheme)


Row = dict[str, object]


def _scored(
    cohort: Cohort, base: Workspace, case: Case, found: LabelMap, who: Row
) -> Iterator[Row]:
    reference = Scan(case, cohort, base).reference
    organs = [organ for organ in cohort.scheme.names if organ in case.annotated]
    for score in score_case(case.case_id, reference, found, organs, TOLERANCE_MM):
        yield {**msgspec.to_builtins(score), "subject_id": case.subject_id, **who}


def _bounds(
    base: Workspace, cohort: Cohort, cases: Sequence[Case], soft: bool
) -> Iterator[tuple[Case, LabelMap]]:
    network = _dense(base).spec.network
    for case in cases:
        reference = Scan(case, cohort, base).reference
        grid = coarse_grid(reference.grid, network.spacing_mm, network.in_plane_size)
        yield case, through_grid(reference, grid, soft)


def _read(folder: Path, case: Case, cohort: Cohort) -> LabelMap:
    return read_label_map(folder / f"{case.case_id}.nii.gz", cohort.scheme)[0]


def _refined_rows(
    base: Workspace, refined: Workspace, before: Path, cohort: Cohort, seed: int
) -> Iterator[Row]:
    small = [organ for organ in SMALL if organ in cohort.scheme.names]
    after = refined.require("predict") / segmenter_of(refined)
    for case in cohort.held_out:
        dense, found = (_read(folder, case, cohort) for folder in (before, after))
        for row, label_map in (("small", put_in(dense, found, small)), ("all", found)):
            yield from _scored(cohort, base, case, label_map, {"row": row, "seed": seed})


def _attention_dice(base: Workspace, cohort: Cohort, folder: Path) -> dict[str, float]:
    """Return how well the attention of the labeled scans agrees with their references."""
    rows: list[Row] = []
    for case in cohort.labeled:
        rows += _scored(cohort, base, case, _read(folder, case, cohort), {})
    return dict(pd.DataFrame(rows).groupby("organ")["dice"].mean().round(3))


def _dense(base: Workspace) -> Predictor:
    predictor = load_predictor(base.require("finetune") / segmenter_of(base), CPU, RECIPE)
    if predictor.spec.head != "volume":
        raise DataError(f"{base.root}: its segmenter is not on volumes")
    return predictor


def summary_of(scores: pd.DataFrame, small: Sequence[str]) -> Mapping[str, Any]:
    """Return the rows' means by organ, and each row compared with `dense` on the same subjects.

    Two families of tests, Dice and NSD, each corrected by Holm over its comparisons.
    """
    finite = scores.replace([np.inf, -np.inf], np.nan)
    metrics = ["dice", "nsd", "hd95_mm"]
    organs: dict[str, dict[str, dict[Any, float]]] = {}
    for (organ, row), part in finite.groupby(["organ", "row"], sort=False):
        organs.setdefault(organ, {})[row] = part[metrics].mean().round(4).to_dict()
    rows = [row for row in ("small", "all", "longer") if row in set(scores["row"])]
    of_small = scores[scores["organ"].isin(small)]
    comparisons = []
    for metric in metrics[:2]:
        family = [_compared(scores, "all organs", row, metric) for row in rows]
        # What the query head says of the organs of interest is the same in both of its rows.
        family += [_compared(of_small, "small organs", row, metric) for row in rows if row != "all"]
        adjusted = holm([entry["p"] for entry in family])
        comparisons += [
            entry | {"p_holm": round(p, 4)} for entry, p in zip(family, adjusted, strict=True)
        ]
    return {"organs": organs, "comparisons": comparisons}


def _compared(scores: pd.DataFrame, part: str, row: str, metric: str) -> dict[str, Any]:
    """Return a row less `dense`, paired over subjects; seeds of a subject are averaged."""
    values = {}
    for name in (row, "dense"):
        by_seed = subject_by_seed(scores[scores["row"] == name], metric)
        values[name] = by_seed.mean(axis=1)
        if name == row:
            seeds = by_seed.mean(axis=0).round(4).to_dict()
    ours, other = values[row].align(values["dense"], join="inner")
    paired = compare(ours, other, _RESAMPLES, seed=0)
    return {
        "metric": metric,
        "part": part,
        "row": row,
        "mean": round(float(ours.mean()), 4),
        "dense": round(float(other.mean()), 4),
        "difference": round(paired.difference.mean, 4),
        "low": round(paired.difference.low, 4),
        "high": round(paired.difference.high, 4),
        "p": round(paired.p, 4),
        "won": int((ours > other).sum()),
        "lost": int((ours < other).sum()),
        "subjects": paired.difference.subjects,
        "seed_means": {str(seed): value for seed, value in seeds.items()},
    }


if __name__ == "__main__":
    main()
