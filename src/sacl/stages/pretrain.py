"""pretrain: query patches -> an encoder that tells semantic classes apart."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

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
from sacl.networks.decoder import DecoderName
from sacl.networks.dense_pretrainer import DensePretrainer
from sacl.networks.device import resolve_device
from sacl.networks.encoder import Encoder, EncoderSpec, build_encoder
from sacl.networks.projector import Embedder
from sacl.patches.store import PatchStore, read_patches
from sacl.patches.views import VIEWS, ViewRanges
from sacl.progress import say
from sacl.run.record import fingerprint, recorded
from sacl.run.workspace import Workspace
from sacl.settings import PretrainSettings
from sacl.training.loop import Plan, RatedParameters, train
from sacl.training.sampler import BalancedSampler, UniformSampler
from sacl.types import UNKNOWN

Strategy = Literal["semantic", "organ", "simclr", "none"]
LEARNING_RATE = 1e-3
"""Peak learning rate (AdamW, warm-up and cosine)."""
WEIGHT_DECAY = 1e-4
WARMUP = 0.05
"""Share of the steps in which the learning rate rises."""
PROJECTOR = (512, 128)
"""Hidden and output width of the projector."""
SCANS_PER_CLASS = 4
"""Different scans that a class brings into a batch, where it has them."""
_DECODER: DecoderName = "unet"
"""Decoder that is pretrained too, on dense slices; fine-tuning with another one starts anew."""
_PATCHES, _SLICES = 128, 16
"""Query patches and dense slices per step, where the settings leave it open."""
_EMBEDDED = 2000


@dataclass(frozen=True)
class _Recipe:
    """What a method means: how alike patches are, and whether queries are pooled from slices."""

    settings: PretrainSettings
    strategy: Strategy

    @property
    def on_patches(self) -> bool:
        """Tell whether query patches are embedded; dense slices are otherwise."""
        return self.settings.method != "pooled"

    @property
    def reads_attention(self) -> bool:
        """Tell whether the encoder gets the attention as a second channel."""
        return self.settings.method in ("semantic", "none")

    @property
    def batch(self) -> int:
        """Patches or slices per step."""
        return self.settings.batch or (_PATCHES if self.on_patches else _SLICES)


def _recipe(settings: PretrainSettings, store: PatchStore) -> _Recipe:
    """Return what the method means for a store; without a scan-wise label, organs alone."""
    if settings.method in ("simclr", "none"):
        return _Recipe(settings, cast(Strategy, settings.method))
    names = settings.scan_label_names
    train = (store.index["split"] == "train").to_numpy()
    if not names:
        return _Recipe(settings, "organ")
    if (codes_of(store.joined_label(names)[train].tolist(), UNKNOWN) < 0).all():
        say(
            f"pretrain: no training scan has the scan-wise label '{' x '.join(names)}', so the"
            " classes are organs alone; give it with --ingest.scan-labels CSV"
        )
        return _Recipe(settings, "organ")
    return _Recipe(settings, "semantic")


def inputs(settings: PretrainSettings, workspace: Workspace) -> dict[str, str]:
    """Return the fingerprints of what the stage reads."""
    return {"extract": fingerprint(workspace.require("extract"))}


def pretrain(settings: PretrainSettings, workspace: Workspace) -> Path:
    """Pretrain the encoder on the training scans' patches, and return its folder.

    With the method `none` the encoder keeps its random weights.

    Raises:
        DataError: there is no training patch.
    """
    with recorded(workspace, "pretrain", settings, inputs(settings, workspace)) as (folder, found):
        store = read_patches(workspace.require("extract"))
        device, recipe = resolve_device(workspace.device), _recipe(settings, store)
        spec = EncoderSpec(
            network=settings.network,
            width=settings.width,
            in_channels=2 if recipe.reads_attention else 1,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(workspace.seed)
            network = (
                Embedder(build_encoder(spec), *PROJECTOR)
                if recipe.on_patches
                else _dense_network(spec, store)
            ).to(device)
        losses: list[float] = []
        if isinstance(network, DensePretrainer):
            losses = _train_dense(network, store, recipe, workspace, found)
        elif settings.method != "none":
            losses = _train_on_patches(network, store, recipe, workspace, found)
        network.to(memory_format=torch.contiguous_format)
        _write_losses(folder, losses)
        _write_embedding(folder, network.encoder, store, settings, workspace.seed)
        if isinstance(network, DensePretrainer):
            save_weights(folder, "decoder", network.decoder, {"decoder": _DECODER})
        save_weights(folder, "encoder", network.encoder, asdict(spec))
        found.update(strategy=settings.method, encoder_pixels=found.get("encoder_pixels", 0))
    return folder


@dataclass(frozen=True, eq=False)
class _TrainingRows:
    """The training patches: their rows in the store and what class they are of."""

    rows: np.ndarray
    organ: np.ndarray
    scan_label: np.ndarray
    scan: np.ndarray


def _training_rows(store: PatchStore, names: tuple[str, ...]) -> _TrainingRows:
    rows = np.flatnonzero((store.index["split"] == "train").to_numpy())
    if not len(rows):
        raise DataError("pretrain: no patch of a training scan; give the cohort a train split")
    scan_label = codes_of(store.joined_label(names)[rows].tolist(), UNKNOWN)
    scan = codes_of(store.index["case_id"].iloc[rows].tolist(), "")
    return _TrainingRows(rows, store.organ_code[rows], scan_label, scan)


def _task(
    store: PatchStore, mine: _TrainingRows, recipe: _Recipe, workspace: Workspace
) -> ContrastiveTask:
    attention = store.attention if recipe.reads_attention else None
    sampler: BalancedSampler | UniformSampler = UniformSampler(len(mine.rows), recipe.batch)
    if recipe.strategy != "simclr":
        scan_label = mine.scan_label * (recipe.strategy == "semantic")
        sampler = BalancedSampler(mine.organ, scan_label, mine.scan, recipe.batch, SCANS_PER_CLASS)
    device = resolve_device(workspace.device)
    return ContrastiveTask(
        source=PatchSource(store.images, attention, mine.rows, device),
        organ=mine.organ,
        scan_label=mine.scan_label,
        sampler=sampler,
        ranges=VIEWS[recipe.settings.augment],
        strategy=cast(Relation, recipe.strategy),
        temperature=recipe.settings.temperature,
        size=store.meta.patch_size,
        stored_scale=store.margin,
        seed=workspace.seed,
    )


def _train_on_patches(
    embedder: Embedder,
    store: PatchStore,
    recipe: _Recipe,
    workspace: Workspace,
    found: dict[str, Any],
) -> list[float]:
    """Train the embedder in place, return its losses and note in `found` what it took."""
    mine = _training_rows(store, recipe.settings.scan_label_names)
    task = _task(store, mine, recipe, workspace)
    _warn_of_empty_corners(task.ranges, store.margin)
    found.update(
        patches=len(mine.rows),
        scans=len(np.unique(mine.scan)),
        classes=getattr(task.sampler, "classes", None),
        patches_with_unknown_label=int((mine.scan_label < 0).sum()),
        encoder_pixels=2
        * recipe.settings.steps
        * min(recipe.batch, len(mine.rows))
        * store.meta.patch_size**2,
        view_reach=round(task.ranges.reach, 3),
        stored_margin=store.margin,
    )
    return _fit(embedder, task.loss, recipe.settings, workspace, found)


def _dense_network(spec: EncoderSpec, store: PatchStore) -> DensePretrainer:
    """Return encoder, decoder and heads for pretraining on dense slices.

    Raises:
        DataError: the store has no dense slice.
    """
    if not len(store.dense_index):
        raise DataError("pretrain: no dense slice; give the cohort a train split")
    return DensePretrainer(
        spec,
        _DECODER,
        store.meta.dense_size,
        PROJECTOR,
        len(store.meta.organs) + 1,
    )


def _train_dense(
    network: DensePretrainer,
    store: PatchStore,
    recipe: _Recipe,
    workspace: Workspace,
    found: dict[str, Any],
) -> list[float]:
    """Train encoder and decoder in place, return the losses and note in `found` what it took."""
    settings, ranges = recipe.settings, VIEWS[recipe.settings.augment]
    size, stored = store.meta.dense_size, store.meta.dense_stored_size
    _warn_of_empty_corners(ranges, stored / size)
    labels = store.joined_dense_label(settings.scan_label_names)
    device = resolve_device(workspace.device)
    task = DensePretraining(
        store,
        rules_of(recipe.batch, ranges, workspace.seed, device),
        codes_of(labels.tolist(), UNKNOWN),
        settings.temperature,
    )
    slices = min(recipe.batch, len(store.dense_index))
    found.update(
        slices=len(store.dense_index),
        encoder_pixels=2 * settings.steps * slices * size**2,
        view_reach=round(ranges.reach, 3),
        stored_margin=stored / size,
    )
    loss = loss_of(task, recipe.strategy, False)
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
        [RatedParameters(list(network.parameters()), LEARNING_RATE)],
        Plan(
            steps=settings.steps,
            weight_decay=WEIGHT_DECAY,
            warmup=WARMUP,
        ),
        resolve_device(workspace.device),
        what=f"pretrain ({settings.method})",
        checkpoint=checkpoint,
    )
    seconds = time.monotonic() - start
    found["seconds_per_step"] = None if resumed else round(seconds / settings.steps, 4)
    return losses


def _warn_of_empty_corners(ranges: ViewRanges, margin: float) -> None:
    if ranges.reach > margin:
        say(
            f"pretrain: the strongest views reach {ranges.reach:.2f} sides and the store keeps"
            f" {margin:g}: their corners are empty"
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
