"""finetune: the segmenter on volumes, and the training scans on its grid, all of them in memory.

It starts from the coarse network's weights where they fit, or from what was pretrained of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from sacl.cohort.manifest import read_cohort
from sacl.networks.device import resolve_device, seeded
from sacl.networks.encoder import State, with_inputs
from sacl.networks.segmenter import VolumeSegmenter, VolumeSegmenterSpec
from sacl.patches.scan_ranges import measures_of, ranges_of
from sacl.patches.window import WindowRule
from sacl.progress import say, track
from sacl.run.workspace import Workspace
from sacl.settings import FinetuneSettings
from sacl.stages.query_volumes import coarse_start, read_pretrained, taking_part, with_coarse_map
from sacl.stages.scan import Scan
from sacl.training.coarse import CoarseCase, CropTask, coarse_case, require_organs
from sacl.training.pace import Pace, Plan
from sacl.training.teacher import train_by_plan

_LEARNING_RATE = 1e-2


@dataclass(frozen=True, eq=False)
class VolumeStart:
    """What is trained, on which volumes and how, and the coarse network's weights, if they fit.

    Of an unlabeled scan the labels are those of its coarse map. An `encoder` and a `decoder` that a
    `method` pretrained take the place of these weights; heads are always the coarse network's.
    """

    name: ClassVar[str] = "volume"
    settings: FinetuneSettings
    spec: VolumeSegmenterSpec
    labeled: Sequence[CoarseCase]
    unlabeled: Sequence[CoarseCase]
    coarse: State | None
    method: str
    encoder: State | None
    decoder: State | None

    def build(self, seed: int) -> VolumeSegmenter:
        """Return the segmenter with the weights that it starts from."""
        with seeded(seed):
            segmenter = VolumeSegmenter(self.spec)
        if self.coarse is not None:
            segmenter.load_state_dict(self.coarse)
        if self.encoder is not None:
            segmenter.down.load_state_dict(with_inputs(self.encoder, 1))
        if self.decoder is not None:
            segmenter.up.load_state_dict(self.decoder)
        return segmenter

    def train(
        self, workspace: Workspace, checkpoint: Path | None, pace: Pace
    ) -> tuple[VolumeSegmenter, list[float]]:
        """Train the segmenter; return it and the loss of every step."""
        settings, device = self.settings, resolve_device(workspace.device)
        segmenter = self.build(workspace.seed).to(device)
        plan = Plan(
            steps=settings.steps,
            teacher_steps=settings.teacher_steps,
            batch=settings.samples,
            learning_rate=settings.learning_rate or _LEARNING_RATE,
            augment=settings.augment,
            seed=workspace.seed,
        )
        losses = train_by_plan(
            segmenter,
            CropTask(self.labeled, self.spec.network, plan, device, self.unlabeled),
            plan,
            device,
            what=f"finetune ({self.name}, {plan.steps + plan.teacher_steps} steps)",
            checkpoint=checkpoint,
            pace=pace,
        )
        return segmenter, losses


def read_volumes(settings: FinetuneSettings, workspace: Workspace) -> VolumeStart:
    """Return what is trained and on what, from the cohort and its coarse networks and maps.

    Raises:
        DataError: no labeled scan holds an organ.
    """
    assert settings.volume is not None
    learned = read_pretrained(workspace) if settings.volume.pretrained else ("none", None, None)
    cohort = read_cohort(workspace.require("ingest"))
    network, coarse = coarse_start(cohort, workspace)
    grid = (network.spacing_mm, network.in_plane_size)
    labeled = []
    for case in cohort.labeled:
        scan, how = Scan(case, cohort, workspace), (case.window, case.annotated)
        on_grid = coarse_case(scan.image, scan.reference, *how, *grid)
        labeled.append(on_grid.on_disk(workspace.folder("finetune")))
    require_organs((case.labels for case in labeled), "finetune: the labeled scans")
    each = sum(math.prod(case.image.shape) for case in labeled) / len(labeled)
    if settings.teacher_steps and not cohort.unlabeled:
        say("finetune: every training scan is labeled, so labeled scans are mixed with each other")
    others = taking_part(cohort.unlabeled, each) if settings.teacher_steps else ()
    named, measures, unlabeled = {case.case_id for case in others}, [], []
    for case in track(cohort.of_split("train"), "read training scans"):
        scan = Scan(case, cohort, workspace)
        measures.append(measures_of(scan.image))
        if case.case_id in named:
            unlabeled.append(with_coarse_map(scan, network, "finetune"))
    window = WindowRule(cohort.modality, cohort.window_hu)
    spec = VolumeSegmenterSpec(network=network, window=window, scans=ranges_of(measures))
    return VolumeStart(settings, spec, labeled, unlabeled, coarse, *learned)
