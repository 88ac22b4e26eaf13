"""finetune: the training of one arm, from its start to its saved segmenter."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from sacl.files.weights import read_weights, save_weights
from sacl.networks.device import compile_for, resolve_device
from sacl.networks.encoder import PretrainedEncoder, State
from sacl.networks.segmenter import SEGMENTER, Segmenter, SegmenterSpec, build_segmenter
from sacl.networks.trained import TrainedModel
from sacl.networks.volume_segmenter import VolumeSegmenter
from sacl.patches.store import PatchStore
from sacl.patches.views import VIEWS
from sacl.prediction.volume import Predictor
from sacl.progress import say
from sacl.run.workspace import Workspace
from sacl.settings import FinetuneSettings
from sacl.training.finetune import BALANCE, DenseTask, QueryTask
from sacl.training.loop import Average, Plan, RatedParameters, train, write_losses
from sacl.training.pace import Pace, keep_pace
from sacl.training.sampler import StepRules
from sacl.training.teacher import TeacherTask, with_teacher

SLICES_PER_STEP = 16
"""Slices or patches of a step, where the settings say nothing."""
LEARNING_RATE = 3e-3
"""Peak rate of what starts from random weights, likewise."""
_WORTH_COMPILING_S = 600.0
"""A training that has less time does not compile its networks, which takes a minute or two."""


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


@dataclass(frozen=True, eq=False)
class SliceStart:
    """What is trained on slices or patches, on which, and from which pretrained weights."""

    spec: SegmenterSpec
    store: PatchStore
    made: PretrainedEncoder
    encoder: State
    decoder: State | None

    @property
    def method(self) -> str:
        """What pretrained the encoder."""
        return self.made.method

    def untrained(self, workspace: Workspace) -> Predictor:
        """Return what predicts as a trained segmenter will, to measure how long that takes."""
        device = resolve_device(workspace.device)
        return Predictor(build_segmenter(self.spec, workspace.seed).to(device).eval(), device)

    def train(
        self, arm: Arm, settings: FinetuneSettings, workspace: Workspace, pace: Pace
    ) -> tuple[Segmenter, list[float]]:
        """Train an arm; return its segmenter and the loss of every step."""
        return _train(arm, self, settings, workspace, pace)


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


def _train(
    arm: Arm, start: SliceStart, settings: FinetuneSettings, workspace: Workspace, pace: Pace
) -> tuple[Segmenter, list[float]]:
    device = resolve_device(workspace.device)
    segmenter = build_segmenter(
        start.spec,
        workspace.seed,
        start.encoder if arm.pretrained else None,
        start.decoder if arm.pretrained else None,
    ).to(device, memory_format=torch.channels_last)
    segmenter.encoder.requires_grad_(arm.encoder_rate > 0)
    rules = StepRules(
        batch=settings.batch or SLICES_PER_STEP,
        ranges=VIEWS[settings.augment],
        seed=workspace.seed,
        device=device,
        frozen=None if arm.encoder_rate > 0 else segmenter.encoder,
    )
    task, average = _task(segmenter, start.store, rules, settings, pace)
    trained = average.network if average else segmenter
    steps = settings.steps + settings.teacher_steps
    short = pace.deadline is not None and pace.deadline.left_s < _WORTH_COMPILING_S
    compile_for(0 if short else steps, {segmenter, trained}, device)
    losses = train(
        segmenter,
        task.loss,
        _groups(segmenter, settings.learning_rate or LEARNING_RATE, arm.encoder_rate),
        Plan(steps=steps),
        device,
        what=f"finetune ({arm.name}, {steps} steps)",
        checkpoint=workspace.folder("finetune") / arm.name / "training.pt",
        average=average,
        pace=pace,
    )
    assert isinstance(trained, Segmenter), "the average is a copy of the network"
    return trained, losses


def _task(
    segmenter: Segmenter,
    store: PatchStore,
    rules: StepRules,
    settings: FinetuneSettings,
    pace: Pace,
) -> tuple[DenseTask | QueryTask | TeacherTask, Average | None]:
    """Return the task, and the teacher where the settings ask for one."""
    if settings.dense is None:
        return QueryTask(store, rules), None
    labeled = DenseTask(store, rules, BALANCE, settings.dense.copy_paste)
    if settings.dense.teacher_steps == 0:
        return labeled, None
    if (store.dense_index["reference_row"] >= 0).all():
        say("finetune: every training scan is labeled, so the teacher's steps see labeled slices")
    return with_teacher(labeled, segmenter, settings.steps, pace=pace)


def _groups(segmenter: Segmenter, learning_rate: float, rate: float) -> list[RatedParameters]:
    rest = [*segmenter.decoder.parameters(), *segmenter.head.parameters()]
    groups = [RatedParameters(rest, learning_rate)]
    if rate > 0:
        encoder = list(segmenter.encoder.parameters())
        groups.append(RatedParameters(encoder, learning_rate * rate))
    return groups
