"""finetune: the training of one arm, from its start to its saved segmenter."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sacl.files.weights import read_weights, save_weights
from sacl.networks.segmenter import SEGMENTER, Segmenter
from sacl.networks.volume_segmenter import TrainedModel, VolumeSegmenter
from sacl.progress import say
from sacl.run.workspace import Workspace
from sacl.settings import FinetuneSettings
from sacl.training.loop import write_losses
from sacl.training.pace import Pace, keep_pace


@dataclass(frozen=True)
class Arm:
    """One training of the segmenter: its name, its start, and its encoder's relative rate."""

    name: str
    pretrained: bool
    encoder_rate: float


class Start(Protocol):
    """Where every arm starts from."""

    @property
    def method(self) -> str:
        """What pretrained the weights that there are."""
        ...

    def train(
        self, arm: Arm, settings: FinetuneSettings, workspace: Workspace, pace: Pace
    ) -> tuple[Segmenter | VolumeSegmenter, list[float]]:
        """Train an arm; return its segmenter and the loss of every step."""
        ...


def train_arm(
    arm: Arm, start: Start, settings: FinetuneSettings, workspace: Workspace, pace: Pace
) -> TrainedModel:
    """Train and save an arm, unless an interrupted run has saved it; return what it took."""
    folder = workspace.folder("finetune") / arm.name
    if (folder / f"{SEGMENTER}.json").is_file():
        return TrainedModel.from_json(read_weights(folder, SEGMENTER)[1])
    begun = time.monotonic()
    segmenter, losses = start.train(arm, settings, workspace, pace)
    write_losses(folder / "losses.csv", losses)
    keep_pace(folder.parent, arm.name, pace)
    model = TrainedModel(
        spec=segmenter.spec,
        method=start.method if arm.pretrained else "none",
        steps=len(losses),
        seconds=round(time.monotonic() - begun, 1),
    )
    save_weights(folder, SEGMENTER, segmenter, model.to_json())
    say(f"finetune: {arm.name}, {len(losses)} steps, last loss {np.mean(losses[-20:]):.3f}")
    return model
