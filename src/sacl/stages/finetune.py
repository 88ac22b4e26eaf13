"""finetune: labeled patches + encoder -> the segmenter, and its from-scratch twin if asked for."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sacl.errors import DataError
from sacl.files.weights import read_weights, save_weights
from sacl.networks.device import compile_for, resolve_device
from sacl.networks.encoder import PretrainedEncoder, State
from sacl.networks.segmenter import (
    SEGMENTER,
    Segmenter,
    SegmenterSpec,
    TrainedModel,
    build_segmenter,
)
from sacl.patches.store import PatchStore, read_patches
from sacl.patches.views import VIEWS
from sacl.progress import say
from sacl.run.record import fingerprint, recorded
from sacl.run.workspace import Workspace
from sacl.settings import FinetuneSettings
from sacl.training.finetune import DenseTask, QueryTask
from sacl.training.loop import Average, Plan, RatedParameters, train, write_losses
from sacl.training.sampler import StepRules
from sacl.training.teacher import TeacherTask, with_teacher

BALANCE = 0.5
"""Exponent of the class weights without a teacher, so that short trainings learn rare organs too;
with one the classes weigh alike, since weights make it mark too much of a rare organ."""


@dataclass(frozen=True)
class Arm:
    """One training of the segmenter: its name, its start, and its encoder's relative rate."""

    name: str
    pretrained: bool
    encoder_rate: float


@dataclass(frozen=True, eq=False)
class Start:
    """Where every arm starts from: what is trained, on what, and from which pretrained weights."""

    spec: SegmenterSpec
    store: PatchStore
    made: PretrainedEncoder
    encoder: State
    decoder: State | None


def inputs(settings: FinetuneSettings, workspace: Workspace) -> dict[str, str]:
    """Return the fingerprints of what the stage reads."""
    return {s: fingerprint(workspace.require(s)) for s in ("extract", "pretrain")}


def finetune(settings: FinetuneSettings, workspace: Workspace) -> Path:
    """Train the segmenter on the labeled scans, and its twin if asked for; return their folder.

    The two differ in where they start, in nothing else: decoder and head start from the same
    random weights where none are pretrained, and step n sees the same batch.

    Raises:
        DataError: no labeled scan has a slice or a patch to train on.
    """
    with recorded(workspace, "finetune", settings, inputs(settings, workspace)) as (
        folder,
        results,
    ):
        start = read_start(settings, workspace)
        arms = plan_arms(settings, start.made.method)
        models = {arm.name: _trained(arm, start, settings, workspace) for arm in arms}
        results.update(
            arms=[arm.name for arm in arms],
            steps={name: model.steps for name, model in models.items()},
            seconds={name: model.seconds for name, model in models.items()},
        )
    return folder


def plan_arms(settings: FinetuneSettings, method: str) -> list[Arm]:
    """Return the arms, the one named after the pretraining method first.

    An encoder that was not pretrained learns as fast as the decoder, unless it is to be frozen.
    """
    pretrained, rate = method != "none", settings.encoder_rate
    arms = [Arm(method, pretrained, rate if pretrained or rate == 0 else 1.0)]
    return [*arms, Arm("scratch", False, 1.0)] if settings.twin else arms


def read_start(settings: FinetuneSettings, workspace: Workspace) -> Start:
    """Return what is trained, from the store and the encoder alone.

    Raises:
        DataError: no labeled scan has a slice or a patch to train on.
    """
    store = read_patches(workspace.require("extract"))
    state, text = read_weights(workspace.require("pretrain"), "encoder")
    made = PretrainedEncoder.from_json(text)
    dense = settings.dense is not None
    if not ((store.dense_index if dense else store.index)["reference_row"] >= 0).any():
        raise DataError(
            f"finetune: the labeled scans have no {'slice' if dense else 'query patch'} to train"
            " on; label training scans, or look at 2-coarse/coverage.csv"
        )
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
    return Start(spec, store, made, state, decoder)


def _trained(
    arm: Arm, start: Start, settings: FinetuneSettings, workspace: Workspace
) -> TrainedModel:
    """Train and save an arm, unless an interrupted run has saved it; return what it took."""
    folder = workspace.folder("finetune") / arm.name
    if (folder / f"{SEGMENTER}.json").is_file():
        return TrainedModel.from_json(read_weights(folder, SEGMENTER)[1])
    begun = time.monotonic()
    segmenter, losses = _train(arm, start, settings, workspace)
    write_losses(folder / "losses.csv", losses)
    model = TrainedModel(
        spec=segmenter.spec,
        method=start.made.method if arm.pretrained else "none",
        steps=len(losses),
        seconds=round(time.monotonic() - begun, 1),
    )
    save_weights(folder, SEGMENTER, segmenter, model.to_json())
    say(f"finetune: {arm.name}, {len(losses)} steps, last loss {np.mean(losses[-20:]):.3f}")
    return model


def _train(
    arm: Arm, start: Start, settings: FinetuneSettings, workspace: Workspace
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
        batch=settings.batch,
        ranges=VIEWS[settings.augment],
        seed=workspace.seed,
        device=device,
        frozen=None if arm.encoder_rate > 0 else segmenter.encoder,
    )
    task, average = _task(segmenter, start.store, rules, settings)
    trained = average.network if average else segmenter
    steps = settings.steps + (settings.dense.teacher_steps if settings.dense else 0)
    compile_for(steps, {segmenter, trained}, device)
    losses = train(
        segmenter,
        task.loss,
        _groups(segmenter, settings.learning_rate, arm.encoder_rate),
        Plan(steps=steps),
        device,
        what=f"finetune ({arm.name}, {steps} steps)",
        checkpoint=workspace.folder("finetune") / arm.name / "training.pt",
        average=average,
    )
    assert isinstance(trained, Segmenter), "the average is a copy of the network"
    return trained, losses


def _task(
    segmenter: Segmenter, store: PatchStore, rules: StepRules, settings: FinetuneSettings
) -> tuple[DenseTask | QueryTask | TeacherTask, Average | None]:
    """Return the task, and the teacher where the settings ask for one."""
    if settings.dense is None:
        return QueryTask(store, rules), None
    balance = 0.0 if settings.dense.teacher_steps else BALANCE
    labeled = DenseTask(store, rules, balance, settings.dense.copy_paste)
    if settings.dense.teacher_steps == 0:
        return labeled, None
    if (store.dense_index["reference_row"] >= 0).all():
        say("finetune: every training scan is labeled, so the teacher's steps see labeled slices")
    return with_teacher(labeled, segmenter, settings.steps)


def _groups(segmenter: Segmenter, learning_rate: float, rate: float) -> list[RatedParameters]:
    rest = [*segmenter.decoder.parameters(), *segmenter.head.parameters()]
    groups = [RatedParameters(rest, learning_rate)]
    if rate > 0:
        encoder = list(segmenter.encoder.parameters())
        groups.append(RatedParameters(encoder, learning_rate * rate))
    return groups
