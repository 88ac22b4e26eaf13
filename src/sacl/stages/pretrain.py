"""pretrain: query patches -> an encoder that tells semantic classes apart."""

from __future__ import annotations

import time
import typing
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from sacl.errors import DataError
from sacl.files.atomic import replacing
from sacl.files.weights import save_weights
from sacl.losses.contrastive import Relation
from sacl.methods.contrastive import ContrastiveTask, PatchSource, codes_of
from sacl.methods.dense_pretraining import DensePretraining, loss_of, rules_of
from sacl.methods.embedding import balanced_rows, embed
from sacl.networks.dense_pretrainer import DensePretrainer
from sacl.networks.device import resolve_device
from sacl.networks.encoder import Encoder, EncoderSpec, build_encoder
from sacl.networks.projector import Embedder
from sacl.patches.store import PatchStore, read_patches
from sacl.patches.views import ViewRanges, require_flip_is_sound
from sacl.progress import say
from sacl.run.record import fingerprint, recorded
from sacl.run.workspace import Workspace
from sacl.settings import PretrainSettings, Strategy
from sacl.training.loop import Plan, RatedParameters, train
from sacl.training.sampler import BalancedSampler, UniformSampler
from sacl.types import UNKNOWN

_BY_SCAN_LABEL: tuple[Strategy, ...] = ("semantic", "supcon")
_BY_CLASS: tuple[Strategy, ...] = ("semantic", "supcon", "organ", "correlation")
_EMBEDDED = 2000


def inputs(settings: PretrainSettings, workspace: Workspace) -> dict[str, str]:
    """Return the fingerprints of what the stage reads."""
    return {"extract": fingerprint(workspace.require("extract"))}


def pretrain(settings: PretrainSettings, workspace: Workspace) -> Path:
    """Pretrain the encoder on the training scans' patches, and return its folder.

    With the strategy `none` the encoder keeps its random weights.

    Raises:
        DataError: there is no training patch, or no training scan has the scan-wise label that
            the strategy needs.
        ConfigError: flips were asked for and the cohort has paired organs.
    """
    with recorded(workspace, "pretrain", settings, inputs(settings, workspace)) as (folder, found):
        store = read_patches(workspace.require("extract"))
        device = resolve_device(workspace.device)
        spec = EncoderSpec(
            network=settings.network,
            width=settings.width,
            in_channels=2 if settings.reads_attention else 1,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(workspace.seed)
            network = (
                Embedder(build_encoder(spec), *settings.projector)
                if settings.on_patches
                else _dense_network(spec, store, settings)
            ).to(device)
        losses: list[float] = []
        if isinstance(network, DensePretrainer):
            losses = _train_dense(network, store, settings, workspace, found)
        elif settings.strategy != "none":
            losses = _train_on_patches(network, store, settings, workspace, found)
        network.to(memory_format=torch.contiguous_format)
        _write_losses(folder, losses)
        _write_embedding(folder, network.encoder, store, settings, workspace.seed)
        if isinstance(network, DensePretrainer) and settings.trains_decoder:
            save_weights(folder, "decoder", network.decoder, {"decoder": settings.decoder})
        save_weights(folder, "encoder", network.encoder, asdict(spec))
        found.update(strategy=settings.strategy, encoder_pixels=found.get("encoder_pixels", 0))
    return folder


@dataclass(frozen=True, eq=False)
class _TrainingRows:
    """The training patches: their rows in the store and what class they are of."""

    rows: np.ndarray
    organ: np.ndarray
    scan_label: np.ndarray
    scan: np.ndarray


def _training_rows(store: PatchStore, settings: PretrainSettings) -> _TrainingRows:
    rows = np.flatnonzero((store.index["split"] == "train").to_numpy())
    if not len(rows):
        raise DataError("pretrain: no patch of a training scan; give the cohort a train split")
    labels = store.joined_label(settings.scan_label_names)[rows]
    scan_label = codes_of(labels.tolist(), UNKNOWN)
    if settings.strategy in _BY_SCAN_LABEL and (scan_label < 0).all():
        raise _no_scan_label(settings)
    scan = codes_of(store.index["case_id"].iloc[rows].tolist(), "")
    return _TrainingRows(rows, store.organ_code[rows], scan_label, scan)


def _task(
    store: PatchStore, mine: _TrainingRows, settings: PretrainSettings, workspace: Workspace
) -> ContrastiveTask:
    ranges = ViewRanges(**asdict(settings.augment))
    require_flip_is_sound(ranges, store.meta.organs)
    attention = store.attention if settings.reads_attention else None
    sampler: BalancedSampler | UniformSampler = UniformSampler(len(mine.rows), settings.batch)
    if settings.strategy in _BY_CLASS:
        scan_label = mine.scan_label * (settings.strategy in _BY_SCAN_LABEL)
        sampler = BalancedSampler(
            mine.organ, scan_label, mine.scan, settings.batch, settings.scans_per_class
        )
    device = resolve_device(workspace.device)
    assert settings.strategy in typing.get_args(Relation), "others need no task on patches"
    return ContrastiveTask(
        source=PatchSource(store.images, attention, mine.rows, device),
        organ=mine.organ,
        scan_label=mine.scan_label,
        sampler=sampler,
        ranges=ranges,
        strategy=cast(Relation, settings.strategy),
        temperature=settings.temperature,
        size=store.meta.patch_size,
        stored_scale=store.margin,
        seed=workspace.seed,
        attention_dropout=settings.attention_dropout,
    )


def _train_on_patches(
    embedder: Embedder,
    store: PatchStore,
    settings: PretrainSettings,
    workspace: Workspace,
    found: dict[str, Any],
) -> list[float]:
    """Train the embedder in place, return its losses and note in `found` what it took."""
    mine = _training_rows(store, settings)
    task = _task(store, mine, settings, workspace)
    _warn_of_empty_corners(task.ranges, store.margin, "extract.margin")
    found.update(
        patches=len(mine.rows),
        scans=len(np.unique(mine.scan)),
        classes=getattr(task.sampler, "classes", None),
        patches_with_unknown_label=int((mine.scan_label < 0).sum()),
        encoder_pixels=2
        * settings.steps
        * min(settings.batch, len(mine.rows))
        * store.meta.patch_size**2,
        view_reach=round(task.ranges.reach, 3),
        stored_margin=store.margin,
    )
    return _fit(embedder, task.loss, settings, workspace, found)


def _dense_network(
    spec: EncoderSpec, store: PatchStore, settings: PretrainSettings
) -> DensePretrainer:
    """Return encoder, decoder and heads for pretraining on dense slices.

    Raises:
        DataError: the store has no dense slice.
    """
    if not len(store.dense_index):
        raise DataError("pretrain: no dense slice of a training scan; set extract.dense_unlabeled")
    return DensePretrainer(
        spec,
        settings.decoder,
        store.meta.dense_size,
        settings.projector,
        len(store.meta.organs) + 1,
    )


def _train_dense(
    network: DensePretrainer,
    store: PatchStore,
    settings: PretrainSettings,
    workspace: Workspace,
    found: dict[str, Any],
) -> list[float]:
    """Train encoder and decoder in place, return the losses and note in `found` what it took."""
    ranges = ViewRanges(**asdict(settings.augment))
    require_flip_is_sound(ranges, store.meta.organs)
    size, stored = store.meta.dense_size, store.meta.dense_stored_size
    _warn_of_empty_corners(ranges, stored / size, "extract.dense_margin")
    labels = store.joined_dense_label(settings.scan_label_names)
    device = resolve_device(workspace.device)
    task = DensePretraining(
        store,
        rules_of(settings.slices, ranges, workspace.seed, device),
        codes_of(labels.tolist(), UNKNOWN),
        settings.temperature,
    )
    if settings.strategy == "semantic" and (task.scan_label < 0).all():
        raise _no_scan_label(settings)
    slices = min(settings.slices, len(store.dense_index))
    found.update(
        slices=len(store.dense_index),
        encoder_pixels=2 * settings.steps * slices * size**2,
        view_reach=round(ranges.reach, 3),
        stored_margin=stored / size,
    )
    loss = loss_of(task, settings.strategy, settings.query == "parts")
    return _fit(network, loss, settings, workspace, found)


def _fit(
    network: Embedder | DensePretrainer,
    loss: Callable[[nn.Module, int], Tensor],
    settings: PretrainSettings,
    workspace: Workspace,
    found: dict[str, Any],
) -> list[float]:
    checkpoint = workspace.folder("pretrain") / "training.pt"
    resumed = checkpoint.is_file()
    start = time.monotonic()
    losses = train(
        network.to(memory_format=torch.channels_last),
        loss,
        [RatedParameters(list(network.parameters()), settings.learning_rate)],
        Plan(
            steps=settings.steps,
            weight_decay=settings.weight_decay,
            warmup=settings.warmup,
        ),
        resolve_device(workspace.device),
        what=f"pretrain ({settings.strategy})",
        checkpoint=checkpoint,
    )
    seconds = time.monotonic() - start
    found["seconds_per_step"] = None if resumed else round(seconds / settings.steps, 4)
    return losses


def _warn_of_empty_corners(ranges: ViewRanges, margin: float, setting: str) -> None:
    if ranges.reach > margin:
        say(
            f"pretrain: the strongest views reach {ranges.reach:.2f} sides and the store keeps"
            f" {margin:g}: their corners are empty; raise {setting} to avoid it"
        )


def _no_scan_label(settings: PretrainSettings) -> DataError:
    return DataError(
        f"pretrain: strategy '{settings.strategy}' needs the scan-wise label"
        f" '{' x '.join(settings.scan_label_names)}' and no training scan has it; give it with"
        " --ingest.scan-labels CSV, or take --pretrain.strategy organ"
    )


def _write_losses(folder: Path, losses: list[float]) -> None:
    table = pd.DataFrame({"step": np.arange(len(losses)), "loss": losses})
    with replacing(folder / "losses.csv") as temporary:
        table.to_csv(temporary, index=False)


def _write_embedding(
    folder: Path, encoder: Encoder, store: PatchStore, settings: PretrainSettings, seed: int
) -> None:
    """Embed patches of training and of held-out subjects, as many of each organ where possible."""
    rng = np.random.default_rng([seed, 1])
    train_split = (store.index["split"] == "train").to_numpy()
    rows = np.concatenate(
        [
            balanced_rows(np.flatnonzero(part), store.organ_code, _EMBEDDED, rng)
            for part in (train_split, ~train_split)
        ]
    )
    index = store.index.iloc[rows]
    with replacing(folder / "embedding.npz") as temporary:
        np.savez_compressed(
            temporary,
            feature=embed(encoder, store, rows),
            organ=index["organ"].to_numpy(dtype=str),
            scan_label=store.joined_label(settings.scan_label_names)[rows].astype(str),
            subject_id=index["subject_id"].to_numpy(dtype=str),
            split=index["split"].to_numpy(dtype=str),
        )
