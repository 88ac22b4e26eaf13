"""Time a few training steps of a configuration on random pixels.

`python -m sacl.training.probe` reads settings as JSON on stdin and writes `StepCosts` as JSON on
stdout: `step_costs.measure_steps` asks it so, in a process of its own.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from sacl.config import from_mapping
from sacl.losses.contrastive import Relation
from sacl.methods.contrastive import ContrastiveTask, PatchSource
from sacl.methods.dense_pretraining import DensePretraining, loss_of
from sacl.networks.coarse import CoarseNetwork
from sacl.networks.dense_pretrainer import DensePretrainer
from sacl.networks.device import resolve_device
from sacl.networks.encoder import EncoderSpec, build_encoder
from sacl.networks.projector import Embedder
from sacl.networks.segmenter import SegmenterSpec, build_segmenter
from sacl.patches.query import round_to_even
from sacl.patches.store import PatchStore, StoreArrays, StoreMeta
from sacl.patches.views import ViewRanges
from sacl.run.record import peak_memory_mb
from sacl.settings import RunConfig
from sacl.training.coarse import CoarseCase, draw_crops, loss_of_levels, plan_network
from sacl.training.finetune import DenseTask, QueryTask, StepRules
from sacl.training.loop import Plan, RatedParameters, train
from sacl.training.sampler import UniformSampler
from sacl.training.slice_location import MARGIN
from sacl.training.step_costs import StepCosts

_STEPS = 4


def probe(config: RunConfig, organs: int, spacing_mm: tuple[float, float, float]) -> StepCosts:
    """Take a few steps of every training, and return what they took."""
    device = resolve_device(config.device)
    names = tuple(f"organ {n + 1}" for n in range(organs))
    locate_s, coarse = _locate(config, names, spacing_mm, device)
    pretrain_s, embedder = _pretrain(config, device)
    finetune_s, segmenter = _finetune(config, names, device)
    on_gpu = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated(device) / 1e9 if on_gpu else peak_memory_mb() / 1e3
    return StepCosts(
        device=device.type,
        threads=torch.get_num_threads(),
        cores=os.cpu_count() or 1,
        load=round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else 0.0,
        locate_s=locate_s,
        pretrain_s=pretrain_s,
        finetune_s=finetune_s,
        parameters={"locate": coarse, "pretrain": embedder, "finetune": segmenter},
        peak_gb=round(peak, 2),
    )


def _timed(
    network: nn.Module, loss_of_step: Callable[[nn.Module, int], Tensor], device: torch.device
) -> tuple[float, int]:
    """Return the seconds of the fastest step but the first, and the network's parameters."""
    begun: list[float] = []

    def loss(trained: nn.Module, step: int) -> Tensor:
        begun.append(time.perf_counter())
        return loss_of_step(trained, step)

    network.to(device)
    groups = [RatedParameters(list(network.parameters()), 1e-4)]
    train(network, loss, groups, Plan(steps=_STEPS), device, what="probe")
    begun.append(time.perf_counter())
    seconds = float(np.diff(begun)[1:].min())
    return seconds, sum(parameter.numel() for parameter in network.parameters())


def _locate(
    config: RunConfig,
    organs: Sequence[str],
    spacing_mm: tuple[float, float, float],
    device: torch.device,
) -> tuple[float, int]:
    settings = config.locate
    if settings.network == "slices":
        return _finetune(_as_dense(config), organs, device)
    spec = plan_network(settings, "probe", organs, spacing_mm)
    labels = torch.randint(0, len(organs) + 1, spec.crop, dtype=torch.int16)
    known = torch.ones(len(organs), dtype=torch.bool)
    case = CoarseCase(torch.rand(spec.crop), labels, known, spacing_mm)
    weights = torch.ones(len(organs) + 1, device=device)

    def loss(network: nn.Module, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        crops = draw_crops([case], spec.crop, settings.batch, generator, device)
        return loss_of_levels(network(crops.image), crops, weights)

    return _timed(CoarseNetwork(spec), loss, device)


def _as_dense(config: RunConfig) -> RunConfig:
    """Return settings whose fine-tuning takes the steps of a coarse network on slices."""
    settings = config.locate
    return replace(
        config,
        extract=replace(config.extract, dense_size=settings.slice_size, dense_margin=MARGIN),
        pretrain=replace(config.pretrain, network="resnet18", width=settings.channels),
        finetune=replace(
            config.finetune,
            head="dense",
            decoder="unet",
            teacher_steps=0,
            batch=settings.slice_batch,
            copy_paste=settings.copy_paste,
            augment=settings.augment,
        ),
    )


def _pretrain(config: RunConfig, device: torch.device) -> tuple[float, int]:
    settings = config.pretrain
    if settings.strategy == "none":
        return 0.0, 0
    if not settings.on_patches:
        return _pretrain_dense(config, device)
    count, side = settings.batch, config.extract.patch_size
    stored = round_to_even(side * config.extract.margin)
    rng = np.random.default_rng(0)
    images = _noise(rng, (count, stored, stored), np.uint16)
    masks = _noise(rng, (count, stored, stored), np.uint8) if settings.reads_attention else None
    task = ContrastiveTask(
        source=PatchSource(images, masks, np.arange(count), device),
        organ=rng.integers(0, 4, count),
        scan_label=rng.integers(0, 3, count),
        sampler=UniformSampler(count, count),
        ranges=ViewRanges(**asdict(settings.augment)),
        strategy=cast(Relation, settings.strategy),
        temperature=settings.temperature,
        size=side,
        stored_scale=stored / side,
        seed=0,
    )
    spec = EncoderSpec(settings.network, settings.width, 2 if settings.reads_attention else 1)
    embedder = Embedder(build_encoder(spec), *settings.projector)
    return _timed(embedder.to(memory_format=torch.channels_last), task.loss, device)


def _pretrain_dense(config: RunConfig, device: torch.device) -> tuple[float, int]:
    settings, organs = config.pretrain, ("a", "b", "c", "d")
    ranges = ViewRanges(**asdict(settings.augment))
    store = _store(config, organs, settings.slices)
    rules = StepRules(batch=settings.slices, ranges=ranges, seed=0, device=device)
    labels = np.zeros(settings.slices, np.int64)
    task = DensePretraining(store, rules, labels, settings.temperature)
    spec = EncoderSpec(settings.network, settings.width, 1)
    network = DensePretrainer(
        spec, settings.decoder, config.extract.dense_size, settings.projector, len(organs) + 1
    )
    network = network.to(memory_format=torch.channels_last)
    return _timed(network, loss_of(task, settings.strategy, settings.query == "parts"), device)


def _finetune(config: RunConfig, organs: Sequence[str], device: torch.device) -> tuple[float, int]:
    settings, extract = config.finetune, config.extract
    dense = settings.head == "dense"
    spec = SegmenterSpec(
        encoder=EncoderSpec(config.pretrain.network, config.pretrain.width),
        decoder=settings.decoder,
        head=settings.head,
        scheme="probe",
        organs=tuple(organs),
        image_size=extract.dense_size if dense else extract.patch_size,
        modality="ct",
        window_hu=config.ingest.window_hu,
        percentiles=config.ingest.percentiles,
        context=extract.context,
        min_side_mm=extract.min_side_mm,
        slice_margin=extract.slice_margin,
    )
    ranges = ViewRanges(**asdict(settings.augment))
    rules = StepRules(batch=settings.batch, ranges=ranges, seed=0, device=device)
    store = _store(config, organs, config.finetune.batch)
    task = (
        DenseTask(store, rules, settings.class_balance, settings.copy_paste)
        if dense
        else QueryTask(store, rules, settings.corruption)
    )
    network = build_segmenter(spec, 0).to(memory_format=torch.channels_last)
    return _timed(network, task.loss, device)


def _store(config: RunConfig, organs: Sequence[str], least: int) -> PatchStore:
    """Return a store of noise: one batch of patches and one of slices, all of them labeled."""
    extract, count = config.extract, max(least, len(organs))
    patch = (count, *(round_to_even(extract.patch_size * extract.margin),) * 2)
    slices = (count, *(round_to_even(extract.dense_size * extract.dense_margin),) * 2)
    meta = StoreMeta(extract.patch_size, patch[1], extract.dense_size, slices[1], tuple(organs))
    rng = np.random.default_rng(0)
    names = [organs[n % len(organs)] for n in range(count)]
    disc = np.hypot(*(np.indices(patch[1:]) - patch[1] / 2)) < extract.patch_size / 4
    masks = np.repeat(disc[None].astype(np.uint8) * np.uint8(255), count, axis=0)
    labels = rng.integers(0, len(organs) + 1, slices).astype(np.uint8)
    return PatchStore(
        meta,
        pd.DataFrame({"organ": names, "reference_row": range(count)}),
        pd.DataFrame(
            {
                "annotated": [";".join(organs)] * count,
                "reference_row": range(count),
                "holds_organ": True,
            }
        ),
        StoreArrays(
            images=_noise(rng, patch, np.uint16),
            attention=masks,
            references=masks,
            dense_images=_noise(rng, slices, np.uint16),
            dense_references=labels,
            dense_coarse=labels,
        ),
    )


def _noise(rng: np.random.Generator, shape: tuple[int, ...], kind: type) -> np.ndarray:
    return rng.integers(0, np.iinfo(kind).max, shape).astype(kind)


def main() -> None:
    """Read a request from stdin, measure, and write the result to stdout."""
    request: dict[str, Any] = json.loads(sys.stdin.read())
    config = from_mapping(RunConfig, request["config"])
    i, j, k = request["spacing_mm"]
    costs = probe(config, int(request["organs"]), (float(i), float(j), float(k)))
    sys.stdout.write(json.dumps(asdict(costs)) + "\n")


if __name__ == "__main__":
    main()
