"""finetune: labeled patches + encoder -> the segmenter, and its from-scratch twin if wanted."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sacl.errors import DataError
from sacl.files.atomic import replacing
from sacl.files.weights import read_weights
from sacl.networks.device import compile_for, resolve_device
from sacl.networks.encoder import EncoderSpec
from sacl.networks.segmenter import (
    Segmenter,
    SegmenterSpec,
    build_segmenter,
    save_segmenter,
    training_note,
)
from sacl.patches.store import PatchStore, read_patches
from sacl.patches.views import VIEWS
from sacl.progress import say
from sacl.run.record import fingerprint, read_record, recorded
from sacl.run.workspace import Workspace
from sacl.settings import FinetuneSettings
from sacl.training.finetune import DenseTask, QueryTask, StepRules
from sacl.training.loop import Average, Plan, RatedParameters, train
from sacl.training.teacher import TeacherTask

WEIGHT_DECAY = 1e-4
WARMUP = 0.05
"""Share of the steps in which the learning rate rises."""
CLASS_BALANCE = 0.0
"""0 weighs every pixel alike in the cross-entropy, 1 every organ."""
TEACHER_WEIGHT = 0.5
"""How much a pixel with the teacher's label counts against one that was drawn by hand."""
TEACHER_DECAY = 0.99
"""Share of itself that the teacher keeps in a step."""
CORRUPTION = 0.5
"""Query head: share of patches whose attention is corrupted as the coarse network errs."""


@dataclass(frozen=True)
class Arm:
    """One training of the segmenter: under which name, from which start, for how long."""

    name: str
    pretrained: bool
    steps: int


@dataclass(frozen=True, eq=False)
class _Start:
    """Where every arm starts from."""

    spec: SegmenterSpec
    encoder: Mapping[str, Tensor]
    decoder: Mapping[str, Tensor] | None
    store: PatchStore


def inputs(settings: FinetuneSettings, workspace: Workspace) -> dict[str, str]:
    """Return the fingerprints of what the stage reads."""
    return {s: fingerprint(workspace.require(s)) for s in ("ingest", "extract", "pretrain")}


def finetune(settings: FinetuneSettings, workspace: Workspace) -> Path:
    """Train the segmenter on the labeled scans, and its twin where asked for; return their folder.

    The arms differ in the encoder's start, in nothing else: decoder and head start from the same
    weights, and step n sees the same batch in both.

    Raises:
        DataError: no labeled scan has a slice or a patch to train on.
    """
    with recorded(workspace, "finetune", settings, inputs(settings, workspace)) as (folder, found):
        start = _start(settings, workspace)
        pretrained = read_record(workspace.require("pretrain")) or {}
        arms = plan_arms(settings, pretrained["results"]["strategy"])
        notes = {}
        for arm in arms:
            note = training_note(folder / arm.name)
            notes[arm.name] = note or _train_arm(arm, start, settings, workspace)
        found.update(
            arms=[arm.name for arm in arms],
            steps={arm.name: arm.steps for arm in arms},
            seconds={name: note["seconds"] for name, note in notes.items()},
        )
    return folder


def plan_arms(settings: FinetuneSettings, method: str) -> list[Arm]:
    """Return the arms, the one named after the pretraining method first.

    An arm's steps are `steps` on labeled scans and `teacher_steps` with the unlabeled ones.
    """
    steps = settings.steps + (settings.dense.teacher_steps if settings.dense else 0)
    arms = [Arm(method, method != "none", steps)]
    return [*arms, Arm("scratch", False, steps)] if settings.twin else arms


def _start(settings: FinetuneSettings, workspace: Workspace) -> _Start:
    store = read_patches(workspace.require("extract"))
    state, text = read_weights(workspace.require("pretrain"), "encoder")
    dense = settings.dense is not None
    rows = ((store.dense_index if dense else store.index)["reference_row"] >= 0).sum()
    if not rows:
        raise DataError(
            f"finetune: the labeled scans have no {'slice' if dense else 'query patch'} to train"
            " on; label training scans, or look at 2-coarse/coverage.csv"
        )
    spec = SegmenterSpec(
        encoder=EncoderSpec(**text),
        decoder=settings.decoder,
        head="dense" if dense else "query",
        scheme=store.meta.scheme,
        organs=store.meta.organs,
        image_size=store.meta.dense_size if dense else store.meta.patch_size,
        window=store.meta.window,
        placement=store.meta.placement,
        scans=store.meta.scans,
    )
    decoder = _pretrained_decoder(settings, workspace)
    return _Start(spec, state, decoder, store)


def _pretrained_decoder(
    settings: FinetuneSettings, workspace: Workspace
) -> Mapping[str, Tensor] | None:
    """Return the decoder's weights where one of the same kind was pretrained for the same head."""
    folder = workspace.require("pretrain")
    if settings.dense is None or not (folder / "decoder.json").is_file():
        return None
    state, text = read_weights(folder, "decoder")
    return state if text["decoder"] == settings.decoder else None


def _train_arm(
    arm: Arm, start: _Start, settings: FinetuneSettings, workspace: Workspace
) -> dict[str, Any]:
    """Train and save one arm; return a note of what it took."""
    folder = workspace.folder("finetune") / arm.name
    device = resolve_device(workspace.device)
    segmenter = build_segmenter(
        start.spec,
        workspace.seed,
        start.encoder if arm.pretrained else None,
        start.decoder if arm.pretrained else None,
    ).to(device, memory_format=torch.channels_last)
    # A random encoder is frozen too where that is asked for: what a frozen one is compared with.
    asked = arm.pretrained or (arm.name == "none" and settings.encoder_rate == 0)
    rate = settings.encoder_rate if asked else 1.0
    segmenter.encoder.requires_grad_(rate > 0)
    rules = StepRules(
        batch=settings.batch,
        ranges=VIEWS[settings.augment],
        seed=workspace.seed,
        device=device,
        frozen=None if rate > 0 else segmenter.encoder,
    )
    average = _average(segmenter, start, settings)
    task = _task(start.store, rules, settings, average)
    begun = time.monotonic()
    compile_for(arm.steps, [segmenter, *([average.network] if average else [])], device)
    losses = train(
        segmenter,
        task.loss,
        _groups(segmenter, settings.learning_rate, rate),
        Plan(steps=arm.steps, weight_decay=WEIGHT_DECAY, warmup=WARMUP),
        device,
        what=f"finetune ({arm.name}, {arm.steps} steps)",
        checkpoint=folder / "training.pt",
        average=average,
    )
    note = {"steps": arm.steps, "seconds": round(time.monotonic() - begun, 1)}
    with replacing(folder / "losses.csv") as temporary:
        table = pd.DataFrame({"step": np.arange(len(losses)), "loss": losses})
        table.to_csv(temporary, index=False, float_format="%.5f")
    trained = segmenter if average is None else average.network
    assert isinstance(trained, Segmenter)
    save_segmenter(folder, trained, note)
    say(f"finetune: {arm.name}, {arm.steps} steps, last loss {np.mean(losses[-20:]):.3f}")
    return note


def _average(segmenter: Segmenter, start: _Start, settings: FinetuneSettings) -> Average | None:
    """Return the teacher where the settings ask for one."""
    if settings.dense is None or settings.dense.teacher_steps == 0:
        return None
    if (start.store.dense_index["reference_row"] >= 0).all():
        say("finetune: every training scan is labeled, so the teacher's steps see labeled slices")
    return Average(copy.deepcopy(segmenter).requires_grad_(False), TEACHER_DECAY)


def _task(
    store: PatchStore, rules: StepRules, settings: FinetuneSettings, average: Average | None
) -> DenseTask | QueryTask | TeacherTask:
    if settings.dense is None:
        return QueryTask(store, rules, CORRUPTION)
    labeled = DenseTask(store, rules, CLASS_BALANCE, settings.dense.copy_paste)
    if average is None:
        return labeled
    return TeacherTask(labeled, average.network, settings.steps, TEACHER_WEIGHT)


def _groups(segmenter: Segmenter, learning_rate: float, rate: float) -> list[RatedParameters]:
    rest = [*segmenter.decoder.parameters(), *segmenter.head.parameters()]
    groups = [RatedParameters(rest, learning_rate)]
    if rate > 0:
        encoder = list(segmenter.encoder.parameters())
        groups.append(RatedParameters(encoder, learning_rate * rate))
    return groups
