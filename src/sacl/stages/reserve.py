"""Time reserved for prediction and scoring, measured on one scan."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from sacl.files.nifti import write_label_map
from sacl.patches.region import dense_boxes
from sacl.prediction.assemble import clean_components
from sacl.prediction.guard import changes_of
from sacl.prediction.volume import (
    MapRecipe,
    Predictor,
    load_predictor,
    predict_volume,
    read_recipe,
    write_recipe,
)
from sacl.progress import duration, say
from sacl.report.pictures import ShownScan, reels, strip, telling_slices
from sacl.run import clock
from sacl.run.workspace import Workspace
from sacl.scores.organs_of_case import score_case
from sacl.settings import PredictSettings
from sacl.stages.scan import Scan
from sacl.types import Box, Case, Cohort

_REPORT_S = 10.0
"""What the report takes beside the scans' pages."""
_MOST = 0.3
"""Copies at prediction may take this share of the time that is left for training and prediction."""
_AGAIN_BELOW_S = 5.0
"""What takes less is timed twice, since the first time is longer."""


def middle_of(cases: Iterable[Case]) -> Case:
    """Return a scan of middle size."""
    by_size = sorted(cases, key=_voxels)
    return by_size[len(by_size) // 2]


def share_of(cases: Iterable[Case], one: Case) -> float:
    """Return how many times as many voxels as one scan some scans have."""
    return sum(map(_voxels, cases)) / _voxels(one)


@dataclass(frozen=True)
class Costs:
    """Seconds that all scans take: without the network, for one pass of it, and to be scored."""

    beside_s: float
    pass_s: float
    scoring_s: float

    def seconds(self, copies: int) -> float:
        """Return what everything takes; each copy is a pass more."""
        return self.beside_s + (copies + 1) * self.pass_s + self.scoring_s

    def copies_that_fit(self, copies: int, seconds: float) -> int:
        """Return as many copies as fit into a time, at most those asked for."""
        fit = (seconds - self.seconds(0)) / max(self.pass_s, 1e-9)
        return max(0, min(copies, int(fit)))

    def reserve(self, copies: int, left_s: float) -> float:
        """Return how much of the time left no training may use; fewer copies rather than none."""
        return max(self.seconds(0), min(self.seconds(copies), _MOST * left_s))


def measure_costs(predictor: Predictor, workspace: Workspace, cohort: Cohort) -> Costs:
    """Return what predicting and scoring all scans will take, by a segmenter trained or not."""
    case = middle_of(cohort.cases)
    scan = Scan(case, cohort, workspace)
    image, coarse, spec = scan.image, scan.coarse, predictor.spec
    nothing: Any = _Nothing(predictor.network)
    quiet = replace(predictor, network=nothing, recipe=MapRecipe())

    def one_pass() -> None:
        predict_volume(quiet, image, case.window, coarse)

    def beside() -> None:
        read = Scan(case, cohort, workspace)
        boxes: Sequence[Box] = ()
        if spec.head == "dense":
            boxes = dense_boxes(spec.placement, read.image.grid, read.coarse)
        clean_components(read.coarse.voxels, len(cohort.scheme.names), 0.1, 0)
        with tempfile.TemporaryDirectory() as folder:
            write_label_map(Path(folder) / "map.nii.gz", read.coarse, case.native)
        changes_of(case, read.coarse, read.coarse, boxes, None)

    scans = share_of(cohort.cases, case)
    return Costs(
        scans * timed(beside),
        scans * timed(one_pass),
        report_seconds(workspace, cohort) + _scoring_seconds(cohort.held_out, workspace, cohort),
    )


def recipe_that_fits(
    settings: PredictSettings, arm: str, workspace: Workspace, cohort: Cohort
) -> MapRecipe:
    """Return how maps are made: with fewer copies than asked for where the time is too short.

    What an interrupted run has chosen is kept, since some of its maps are there.
    """
    folder = workspace.folder("predict")
    recipe = MapRecipe(settings.copies, settings.keep_component)
    if chosen := read_recipe(folder):
        return replace(chosen, from_coarse=())
    if workspace.budget is None or settings.copies == 0:
        return recipe
    segmenter = workspace.require("finetune") / arm
    predictor = load_predictor(segmenter, workspace.device, recipe)
    costs = measure_costs(predictor, workspace, cohort)
    copies = costs.copies_that_fit(settings.copies, workspace.budget.left_s)
    if copies < settings.copies:
        say(
            f"predict: {copies} copies instead of {settings.copies}, which would take"
            f" {duration(costs.seconds(settings.copies))}, with"
            f" {duration(max(0.0, workspace.budget.left_s))} left"
        )
    recipe = replace(recipe, copies=copies)
    write_recipe(folder, recipe)
    return recipe


def report_seconds(workspace: Workspace, cohort: Cohort) -> float:
    """Return how long it takes to draw all scans for the report, by one of them.

    It is drawn with bands in place of organs, since there may be no map of it yet.
    """
    case = middle_of(cohort.cases)

    def draw() -> None:
        image = Scan(case, cohort, workspace).image
        depth = image.grid.shape[-1]
        bands = np.arange(depth) * (len(cohort.scheme.names) + 1) // depth
        labels = np.broadcast_to(bands.astype(np.uint16), image.grid.shape)
        shown = ShownScan(image.voxels, image.grid.spacing_mm, case.window, labels)
        at = telling_slices(labels > 0)
        strip(shown, at)
        reels(shown, at)

    return _REPORT_S + share_of(cohort.cases, case) * timed(draw)


def _scoring_seconds(scored: Sequence[Case], workspace: Workspace, cohort: Cohort) -> float:
    """Return how long it takes to score the final and the coarse maps of some scans."""
    if not scored:
        return 0.0
    case = middle_of(scored)

    def score() -> None:
        scan = Scan(case, cohort, workspace)
        score_case(case.case_id, scan.reference, scan.coarse, case.annotated, 2.0)

    return 2 * share_of(scored, case) * timed(score)


class _Nothing:
    """A segmenter at work that marks nothing, since what it marks untrained is nowhere near."""

    def __init__(self, network: Any) -> None:
        self.network, self.spec = network, network.spec

    def __call__(self, pixels: Float[Tensor, "n channel *axes"]) -> Any:
        logits = self.network(pixels)
        return [level * 0 for level in logits] if isinstance(logits, list) else logits * 0 - 1


def timed(work: Callable[[], Any]) -> float:
    """Return how many seconds something takes, when done again if it is short."""
    begun = clock.now()
    work()
    first = clock.now() - begun
    if first > _AGAIN_BELOW_S:
        return first
    begun = clock.now()
    work()
    return min(first, clock.now() - begun)


def _voxels(case: Case) -> int:
    return math.prod(case.native.grid.shape)
