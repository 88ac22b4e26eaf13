"""pretrain: query patches -> an encoder that tells semantic classes apart."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from sacl.errors import DataError
from sacl.io.checkpoint import save_weights
from sacl.io.patch_store import PatchStore, read_patches
from sacl.io.progress import say, track
from sacl.io.run_record import fingerprint, recorded, replacing
from sacl.io.workspace import Workspace
from sacl.models.device import autocast, resolve_device
from sacl.models.encoder import Encoder, EncoderSpec, build_encoder, pooled
from sacl.models.projector import Embedder
from sacl.patches.views import ViewRanges, require_flip_is_sound
from sacl.settings import PretrainSettings, Strategy
from sacl.training.contrastive import ContrastiveTask, PatchSource, channels_last, codes_of
from sacl.training.sampler import BalancedSampler, UniformSampler
from sacl.training.trainer import Plan, RatedParameters, train
from sacl.types import UNKNOWN

_WITHOUT_ATTENTION: tuple[Strategy, ...] = ("supcon", "simclr")
_BY_SCAN_LABEL: tuple[Strategy, ...] = ("semantic", "supcon")
_BY_CLASS: tuple[Strategy, ...] = ("semantic", "supcon", "organ")
_EMBEDDED = 2000
_EMBEDDED_BATCH = 256


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
            in_channels=1 if settings.strategy in _WITHOUT_ATTENTION else 2,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(workspace.seed)
            embedder = Embedder(build_encoder(spec), *settings.projector).to(device)
        losses: list[float] = []
        if settings.strategy != "none":
            losses = _train(embedder, store, settings, workspace, found)
        embedder.encoder.to(memory_format=torch.contiguous_format)
        _write_losses(folder, losses)
        _write_embedding(folder, embedder.encoder, store, settings, workspace.seed)
        save_weights(folder, "encoder", embedder.encoder, asdict(spec))
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
        raise DataError(
            f"pretrain: strategy '{settings.strategy}' needs the scan-wise label"
            f" '{' x '.join(settings.scan_label_names)}' and no training scan has it; give it with"
            " --ingest.scan-labels CSV, or take --pretrain.strategy organ"
        )
    scan = codes_of(store.index["case_id"].iloc[rows].tolist(), "")
    return _TrainingRows(rows, store.organ_code[rows], scan_label, scan)


def _task(
    store: PatchStore, mine: _TrainingRows, settings: PretrainSettings, workspace: Workspace
) -> ContrastiveTask:
    ranges = ViewRanges(**asdict(settings.augment))
    require_flip_is_sound(ranges, store.meta.organs)
    attention = None if settings.strategy in _WITHOUT_ATTENTION else store.attention
    sampler: BalancedSampler | UniformSampler = UniformSampler(len(mine.rows), settings.batch)
    if settings.strategy in _BY_CLASS:
        scan_label = mine.scan_label * (settings.strategy in _BY_SCAN_LABEL)
        sampler = BalancedSampler(
            mine.organ, scan_label, mine.scan, settings.batch, settings.scans_per_class
        )
    if settings.strategy == "none":
        raise AssertionError("an encoder that is not trained needs no task")
    device = resolve_device(workspace.device)
    return ContrastiveTask(
        source=PatchSource(store.images, attention, mine.rows, device),
        organ=mine.organ,
        scan_label=mine.scan_label,
        sampler=sampler,
        ranges=ranges,
        strategy=settings.strategy,
        temperature=settings.temperature,
        size=store.meta.patch_size,
        stored_scale=store.margin,
        seed=workspace.seed,
    )


def _train(
    embedder: Embedder,
    store: PatchStore,
    settings: PretrainSettings,
    workspace: Workspace,
    found: dict[str, Any],
) -> list[float]:
    """Train the embedder in place, return its losses and note in `found` what it took."""
    mine = _training_rows(store, settings)
    task = _task(store, mine, settings, workspace)
    if task.ranges.reach > store.margin:
        say(
            f"pretrain: the strongest views reach {task.ranges.reach:.2f} sides and the store keeps"
            f" {store.margin:g}: their corners are empty; raise extract.margin to avoid it"
        )
    checkpoint = workspace.folder("pretrain") / "training.pt"
    resumed = checkpoint.is_file()
    start = time.monotonic()
    losses = train(
        embedder.to(memory_format=torch.channels_last),
        task.loss,
        [RatedParameters(list(embedder.parameters()), settings.learning_rate)],
        Plan(
            steps=settings.steps,
            weight_decay=settings.weight_decay,
            warmup=settings.warmup,
        ),
        task.source.device,
        what=f"pretrain ({settings.strategy})",
        checkpoint=checkpoint,
    )
    seconds = time.monotonic() - start
    views = 2 * min(settings.batch, len(mine.rows))
    found.update(
        patches=len(mine.rows),
        scans=len(np.unique(mine.scan)),
        classes=getattr(task.sampler, "classes", None),
        patches_with_unknown_label=int((mine.scan_label < 0).sum()),
        seconds_per_step=None if resumed else round(seconds / settings.steps, 4),
        encoder_pixels=settings.steps * views * store.meta.patch_size**2,
        view_reach=round(task.ranges.reach, 3),
        stored_margin=store.margin,
    )
    return losses


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
            _balanced_rows(np.flatnonzero(part), store.organ_code, rng)
            for part in (train_split, ~train_split)
        ]
    )
    index = store.index.iloc[rows]
    with replacing(folder / "embedding.npz") as temporary:
        np.savez_compressed(
            temporary,
            feature=_features(encoder, store, rows),
            organ=index["organ"].to_numpy(dtype=str),
            scan_label=store.joined_label(settings.scan_label_names)[rows].astype(str),
            subject_id=index["subject_id"].to_numpy(dtype=str),
            split=index["split"].to_numpy(dtype=str),
        )


def _balanced_rows(rows: np.ndarray, organ: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw up to `_EMBEDDED` rows, the rarer organs whole and the others in equal numbers."""
    shuffled = rng.permutation(rows)
    order = np.argsort(organ[shuffled], kind="stable")
    by_organ = organ[shuffled][order]
    turn = np.arange(len(rows)) - np.searchsorted(by_organ, by_organ)
    return np.sort(shuffled[order][np.argsort(turn, kind="stable")][:_EMBEDDED])


@torch.no_grad()
def _features(encoder: Encoder, store: PatchStore, rows: np.ndarray) -> np.ndarray:
    """Return the L2-normalized pooled features of un-augmented patches, float32 `[n, d]`."""
    device = next(encoder.parameters()).device
    attention = store.attention if encoder.spec.in_channels == 2 else None
    source = PatchSource(store.images, attention, rows, device)
    edge = (store.meta.stored_size - store.meta.patch_size) // 2
    inner = slice(edge, edge + store.meta.patch_size)
    encoder.eval()
    features = [np.zeros((0, encoder.channels[-1]), np.float32)]
    for first in track(range(0, len(rows), _EMBEDDED_BATCH), "embed patches"):
        positions = np.arange(first, min(first + _EMBEDDED_BATCH, len(rows)))
        pixels = channels_last(source.pixels(positions)[:, :, inner, inner])
        with autocast(device):
            feature = pooled(encoder(pixels))
        features.append(torch.nn.functional.normalize(feature, dim=1).cpu().numpy())
    return np.concatenate(features)
