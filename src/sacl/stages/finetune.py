"""finetune: labeled patches + encoder -> the segmenter and its from-scratch twins."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
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
from sacl.patches.views import ViewRanges, require_flip_is_sound
from sacl.progress import say
from sacl.run.record import fingerprint, read_record, recorded
from sacl.run.workspace import Workspace
from sacl.settings import FinetuneSettings
from sacl.training.finetune import DenseTask, QueryTask, StepRules
from sacl.training.loop import Average, Plan, RatedParameters, train
from sacl.training.teacher import TeacherTask


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
    stored_unlabeled: bool


def inputs(settings: FinetuneSettings, workspace: Workspace) -> dict[str, str]:
    """Return the fingerprints of what the stage reads."""
    return {s: fingerprint(workspace.require(s)) for s in ("ingest", "extract", "pretrain")}


def finetune(settings: FinetuneSettings, workspace: Workspace) -> Path:
    """Train the pretrained segmenter and its twins on the labeled scans; return their folder.

    The arms differ in the encoder's start and in the number of steps, in nothing else: decoder and
    head start from the same weights, and step n sees the same batch in all of them.

    Raises:
        DataError: no labeled scan has a slice or a patch to train on.
        ConfigError: flips were asked for and the cohort has paired organs.
    """
    with recorded(workspace, "finetune", settings, inputs(settings, workspace)) as (folder, found):
        start = _start(settings, workspace)
        pretrained = read_record(workspace.require("pretrain")) or {}
        arms = plan_arms(settings, pretrained["results"], start.spec.image_size)
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


def plan_arms(
    settings: FinetuneSettings, pretrained: Mapping[str, Any], image_size: int
) -> list[Arm]:
    """Return the arms, the pretrained one first, named after its strategy.

    An arm's steps are `steps` on labeled scans and `teacher_steps` with the unlabeled ones.
    `scratch-long` is trained for as many more steps as bring the pixels that pretraining put
    through the encoder. Nothing is trained twice: an encoder that was not pretrained has no twins.

    Args:
        settings: Of the stage.
        pretrained: `strategy` and `encoder_pixels` of pretraining's record.
        image_size: Side of what the segmenter reads, in pixels.
    """
    own = settings.steps + settings.teacher_steps
    arms = [Arm(pretrained["strategy"], pretrained["strategy"] != "none", own)]
    if not arms[0].pretrained:
        return arms
    added = math.ceil(pretrained["encoder_pixels"] / (settings.batch * image_size**2))
    steps = {"scratch": own, "scratch-long": own + added}
    return arms + [Arm(name, False, steps[name]) for name in dict.fromkeys(settings.twins)]


def _start(settings: FinetuneSettings, workspace: Workspace) -> _Start:
    store = read_patches(workspace.require("extract"))
    state, text = read_weights(workspace.require("pretrain"), "encoder")
    extracted = (read_record(workspace.require("extract")) or {})["settings"]["extract"]
    dense = settings.head == "dense"
    rows = ((store.dense_index if dense else store.index)["reference_row"] >= 0).sum()
    if not rows:
        raise DataError(
            f"finetune: the labeled scans have no {'slice' if dense else 'query patch'} to train"
            " on; label training scans, or look at 2-coarse/coverage.csv"
        )
    spec = SegmenterSpec(
        encoder=EncoderSpec(**text),
        decoder=settings.decoder,
        head=settings.head,
        scheme=store.meta.scheme,
        organs=store.meta.organs,
        image_size=store.meta.dense_size if dense else store.meta.patch_size,
        window=store.meta.window,
        placement=store.meta.placement,
        scans=store.meta.scans,
    )
    decoder = _pretrained_decoder(settings, workspace)
    return _Start(spec, state, decoder, store, extracted["dense_unlabeled"])


def _pretrained_decoder(
    settings: FinetuneSettings, workspace: Workspace
) -> Mapping[str, Tensor] | None:
    """Return the decoder's weights where one of the same kind was pretrained for the same head."""
    folder = workspace.require("pretrain")
    if settings.head != "dense" or not (folder / "decoder.json").is_file():
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
    ranges = ViewRanges(**asdict(settings.augment))
    require_flip_is_sound(ranges, start.spec.organs)
    rules = StepRules(
        batch=settings.batch,
        ranges=ranges,
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
        Plan(steps=arm.steps, weight_decay=settings.weight_decay, warmup=settings.warmup),
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
    """Return the teacher where the settings ask for one.

    Raises:
        DataError: the slices that it could label were not stored.
    """
    if settings.teacher_steps == 0:
        return None
    if (start.store.dense_index["reference_row"] >= 0).all():
        if not start.stored_unlabeled:
            raise DataError(
                "finetune.teacher_steps: no dense slice of an unlabeled training scan is stored;"
                " set it to 0, or set extract.dense_unlabeled"
            )
        say("finetune: every training scan is labeled, so the teacher's steps see labeled slices")
    return Average(copy.deepcopy(segmenter).requires_grad_(False), settings.teacher_decay)


def _task(
    store: PatchStore, rules: StepRules, settings: FinetuneSettings, average: Average | None
) -> DenseTask | QueryTask | TeacherTask:
    if settings.head == "query":
        return QueryTask(store, rules, settings.corruption)
    labeled = DenseTask(store, rules, settings.class_balance, settings.copy_paste)
    if average is None:
        return labeled
    return TeacherTask(labeled, average.network, settings.steps, settings.teacher_weight)


def _groups(segmenter: Segmenter, learning_rate: float, rate: float) -> list[RatedParameters]:
    rest = [*segmenter.decoder.parameters(), *segmenter.head.parameters()]
    groups = [RatedParameters(rest, learning_rate)]
    if rate > 0:
        encoder = list(segmenter.encoder.parameters())
        groups.append(RatedParameters(encoder, learning_rate * rate))
    return groups
