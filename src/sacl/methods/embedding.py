"""Embed stored patches with a trained encoder: for the map in the report and for its figures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped

from sacl.methods.batches import PatchSource
from sacl.networks.device import autocast, channels_last
from sacl.networks.encoder import Encoder, pooled
from sacl.patches.store import PatchStore
from sacl.progress import track

_BATCH = 256
_EMBEDDED = 2000
"""Patches of training and of held-out subjects, each, that are embedded."""


def embedding_of(
    encoder: Encoder, store: PatchStore, scan_labels: Sequence[str], seed: int
) -> dict[str, Shaped[np.ndarray, ...]]:
    """Return `feature`, `organ`, `scan_label`, `subject_id` and `split` of some patches.

    They are of training and of held-out subjects, as many of each organ where possible.
    """
    rng = np.random.default_rng([seed, 1])
    train_split = (store.index["split"] == "train").to_numpy()
    rows = np.concatenate(
        [
            balanced_rows(np.flatnonzero(part), store.organ_code, _EMBEDDED, rng)
            for part in (train_split, ~train_split)
        ]
    )
    index = store.index.iloc[rows]
    return {
        "feature": embed(encoder, store, rows),
        "organ": index["organ"].to_numpy(dtype=str),
        "scan_label": store.joined_label(scan_labels)[rows].astype(str),
        "subject_id": index["subject_id"].to_numpy(dtype=str),
        "split": index["split"].to_numpy(dtype=str),
    }


def balanced_rows(
    rows: Int[np.ndarray, " n"],
    organ: Int[np.ndarray, " patch"],
    count: int,
    rng: np.random.Generator,
) -> Int[np.ndarray, " drawn"]:
    """Draw up to `count` rows, the rarer organs whole and the others in equal numbers."""
    shuffled = rng.permutation(rows)
    order = np.argsort(organ[shuffled], kind="stable")
    by_organ = organ[shuffled][order]
    turn = np.arange(len(rows)) - np.searchsorted(by_organ, by_organ)
    return np.sort(shuffled[order][np.argsort(turn, kind="stable")][:count])


@torch.no_grad()
def embed(
    encoder: Encoder, store: PatchStore, rows: Int[np.ndarray, " n"]
) -> Float[np.ndarray, "n d"]:
    """Return the L2-normalized pooled features of un-augmented patches, float32."""
    device = next(encoder.parameters()).device
    attention = store.attention if encoder.spec.in_channels == 2 else None
    source = PatchSource(store.images, attention, rows, device)
    edge = (store.meta.stored_size - store.meta.patch_size) // 2
    inner = slice(edge, edge + store.meta.patch_size)
    encoder.eval()
    features = [np.zeros((0, encoder.channels[-1]), np.float32)]
    for first in track(range(0, len(rows), _BATCH), "embed patches"):
        positions = np.arange(first, min(first + _BATCH, len(rows)))
        pixels = channels_last(source.pixels(positions)[:, :, inner, inner])
        with autocast(device):
            feature = pooled(encoder(pixels))
        features.append(torch.nn.functional.normalize(feature, dim=1).cpu().numpy())
    return np.concatenate(features)
