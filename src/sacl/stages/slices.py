"""finetune: the segmenter on dense slices or query patches, from the pretrained encoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sacl.files.weights import read_weights
from sacl.networks.device import compile_for, resolve_device
from sacl.networks.encoder import PretrainedEncoder, State
from sacl.networks.segmenter import Segmenter, SegmenterSpec, build_segmenter
from sacl.patches.store import PatchStore, read_patches
from sacl.patches.views import VIEWS
from sacl.run.workspace import Workspace
from sacl.settings import FinetuneSettings
from sacl.stages.arms import Arm
from sacl.training.finetune import BALANCE, DenseTask, QueryTask
from sacl.training.loop import Average, Plan, RatedParameters, train
from sacl.training.pace import Pace
from sacl.training.sampler import StepRules
from sacl.training.teacher import TeacherTask, with_teacher

_SLICES_PER_STEP = 16
"""Slices or patches of a step, where the settings say nothing."""
_LEARNING_RATE = 3e-3
"""Peak rate of what starts from random weights, likewise."""
_WORTH_COMPILING_S = 600.0
"""A training that has less time does not compile its networks, which takes a minute or two."""


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

    def build(self, seed: int, pretrained: bool) -> Segmenter:
        """Return the segmenter, its encoder and decoder pretrained or not."""
        weights = (self.encoder, self.decoder) if pretrained else (None, None)
        return build_segmenter(self.spec, seed, *weights)

    def train(
        self, arm: Arm, settings: FinetuneSettings, workspace: Workspace, pace: Pace
    ) -> tuple[Segmenter, list[float]]:
        """Train an arm; return its segmenter and the loss of every step."""
        return _train(arm, self, settings, workspace, pace)


def read_start(settings: FinetuneSettings, workspace: Workspace) -> SliceStart:
    """Return what is trained, from the store and the encoder alone."""
    store = read_patches(workspace.require("extract"))
    state, text = read_weights(workspace.require("pretrain"), "encoder")
    made = PretrainedEncoder.from_json(text)
    dense = settings.dense is not None
    spec = SegmenterSpec(
        encoder=made.spec,
        decoder=settings.decoder,
        head="dense" if dense else "query",
        scheme=store.meta.scheme,
        organs=store.meta.organs,
        image_size=store.meta.dense_size if dense else store.meta.patch_size,
        window=store.meta.window,
        placement=store.meta.placement,
        scans=store.meta.scans,
    )
    decoder = None
    if dense and made.decoder == settings.decoder:
        decoder = read_weights(workspace.require("pretrain"), "decoder")[0]
    return SliceStart(spec, store, made, state, decoder)


def _train(
    arm: Arm, start: SliceStart, settings: FinetuneSettings, workspace: Workspace, pace: Pace
) -> tuple[Segmenter, list[float]]:
    device = resolve_device(workspace.device)
    segmenter = start.build(workspace.seed, arm.pretrained)
    segmenter = segmenter.to(device, memory_format=torch.channels_last)
    segmenter.encoder.requires_grad_(arm.encoder_rate > 0)
    rules = StepRules(
        batch=settings.batch or _SLICES_PER_STEP,
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
        _groups(segmenter, settings.learning_rate or _LEARNING_RATE, arm.encoder_rate),
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
    return with_teacher(labeled, segmenter, settings.steps, pace=pace)


def _groups(segmenter: Segmenter, learning_rate: float, rate: float) -> list[RatedParameters]:
    rest = [*segmenter.decoder.parameters(), *segmenter.head.parameters()]
    groups = [RatedParameters(rest, learning_rate)]
    if rate > 0:
        encoder = list(segmenter.encoder.parameters())
        groups.append(RatedParameters(encoder, learning_rate * rate))
    return groups
