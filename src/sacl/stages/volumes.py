"""finetune: the segmenter on volumes, from the coarse network's weights where they fit."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from sacl.networks.device import resolve_device
from sacl.networks.volume_segmenter import VolumeSegmenter
from sacl.patches.views import VIEWS
from sacl.run.workspace import Workspace
from sacl.settings import FinetuneSettings
from sacl.stages.arms import Arm
from sacl.stages.volume_scans import VolumeScans, read_scans
from sacl.training.pace import Pace
from sacl.training.volumes import VolumePlan, train_on_volumes

_LEARNING_RATE = 1e-2


@dataclass(frozen=True, eq=False)
class VolumeStart:
    """What is trained, on which volumes; no encoder is pretrained."""

    scans: VolumeScans
    method: str = "none"

    def build(self, seed: int, pretrained: bool = False) -> VolumeSegmenter:
        """Return the segmenter, with the coarse network's weights where they fit."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            segmenter = VolumeSegmenter(self.scans.spec)
        if self.scans.weights is not None:
            segmenter.load_state_dict(self.scans.weights)
        return segmenter

    def train(
        self, arm: Arm, settings: FinetuneSettings, workspace: Workspace, pace: Pace
    ) -> tuple[VolumeSegmenter, list[float]]:
        """Train the segmenter; return it and the loss of every step."""
        device, scans = resolve_device(workspace.device), self.scans
        plan = VolumePlan(
            steps=settings.steps,
            teacher_steps=settings.teacher_steps,
            batch=settings.batch or 1,
            learning_rate=settings.learning_rate or _LEARNING_RATE,
            ranges=replace(VIEWS[settings.augment], blur=0.0),
            seed=workspace.seed,
        )
        return train_on_volumes(
            self.build(workspace.seed).to(device),
            scans.labeled,
            scans.unlabeled,
            plan,
            device,
            what=f"finetune ({arm.name}, {plan.steps + plan.teacher_steps} steps)",
            checkpoint=workspace.folder("finetune") / arm.name / "training.pt",
            pace=pace,
        )


def read_volumes(settings: FinetuneSettings, workspace: Workspace) -> VolumeStart:
    """Return what is trained, from the cohort and its coarse networks and maps.

    Raises:
        DataError: no labeled scan holds an organ.
    """
    return VolumeStart(read_scans(workspace, with_unlabeled=settings.teacher_steps > 0))
