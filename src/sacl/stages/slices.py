"""finetune: the segmenter on dense slices or query patches, from the pretrained encoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from sacl import ranks
from sacl.files.weights import read_weights
from sacl.networks.device import compile_for, resolve_device
from sacl.networks.encoder import PretrainedEncoder, State
from sacl.networks.segmenter import Segmenter, SegmenterSpec, build_segmenter
from sacl.patches.store import PatchStore, read_patches
from sacl.patches.views import VIEWS
from sacl.run.workspace import Workspace
from sacl.settings import FinetuneSettings
from sacl.training.finetune import BALANCE, DenseTask, QueryTask
from sacl.training.loop import Loss, train
from sacl.training.pace import Pace
from sacl.training.sampler import StepRules
from sacl.training.teacher import with_teacher

_LEARNING_RATE = 3e-3
"""Peak rate of what starts from random weights, where the settings say nothing."""
_WORTH_COMPILING_S = 600.0
"""A training that has less time does not compile its networks, which takes a minute or two."""


@dataclass(frozen=True, eq=False)
class SliceStart:
    """What is trained on slices or patches, on which, how, and from which pretrained weights."""

    settings: FinetuneSettings
    spec: SegmenterSpec
    store: PatchStore
    method: str
    encoder: State | None
    decoder: State | None

    @property
    def name(self) -> str:
        """Name of the segmenter: that of the method that pretrained its encoder."""
        return self.method

    @property
    def encoder_rate(self) -> float:
        """Learning rate of the encoder relative to the decoder's.

        One that was not pretrained learns as fast as the decoder, unless it is to be frozen.
        """
        asked = self.settings.encoder_rate
        return asked if self.encoder is not None or asked == 0 else 1.0

    def build(self, seed: int) -> Segmenter:
        """Return the segmenter, its encoder and decoder pretrained where they were."""
        return build_segmenter(self.spec, seed, self.encoder, self.decoder)

    def train(
        self, workspace: Workspace, checkpoint: Path | None, pace: Pace
    ) -> tuple[Segmenter, list[float]]:
        """Train the segmenter; return it and the loss of every step."""
        settings, device, rate = self.settings, resolve_device(workspace.device), self.encoder_rate
        segmenter = self.build(workspace.seed).to(device, memory_format=torch.channels_last)
        segmenter.encoder.requires_grad_(rate > 0)
        rules = StepRules(
            batch=settings.samples,
            ranges=VIEWS[settings.augment],
            seed=workspace.seed,
            device=device,
        )
        steps = settings.steps + settings.teacher_steps
        average = None
        if settings.dense is None:
            loss: Loss = QueryTask(self.store, rules).loss
        else:
            labeled = DenseTask(self.store, rules, BALANCE, settings.dense.copy_paste)
            how = (settings.steps, settings.teacher_steps, pace)
            loss, average = with_teacher(labeled, segmenter, *how)
        short = pace.deadline is not None and pace.deadline.left_s < _WORTH_COMPILING_S
        short = short or ranks.count() > 1  # what ranks exchange within a pass is not compiled
        networks = {segmenter} | ({average.network} if average else set())
        compile_for(0 if short else steps, networks, device)
        peak = settings.learning_rate or _LEARNING_RATE
        rates = {segmenter.decoder: peak, segmenter.head: peak}
        rates |= {segmenter.encoder: peak * rate} if rate > 0 else {}
        losses = train(
            segmenter,
            loss,
            rates,
            steps,
            device,
            what=f"finetune ({self.name}, {steps} steps)",
            checkpoint=checkpoint,
            average=average,
            pace=pace,
        )
        return segmenter, losses


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
    if made.method == "none":
        return SliceStart(settings, spec, store, made.method, None, None)
    decoder = None
    if dense and made.decoder == settings.decoder:
        decoder = read_weights(workspace.require("pretrain"), "decoder")[0]
    return SliceStart(settings, spec, store, made.method, state, decoder)
