"""Embed stored patches with a trained encoder: for the map in the report and for its figures."""

from __future__ import annotations

import numpy as np
import torch

from sacl.methods.contrastive import PatchSource
from sacl.networks.device import autocast, channels_last
from sacl.networks.encoder import Encoder, pooled
from sacl.patches.store import PatchStore
from sacl.progress import track

_BATCH = 256


def balanced_rows(
    rows: np.ndarray, organ: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw up to `count` rows, the rarer organs whole and the others in equal numbers."""
    shuffled = rng.permutation(rows)
    order = np.argsort(organ[shuffled], kind="stable")
    by_organ = organ[shuffled][order]
    turn = np.arange(len(rows)) - np.searchsorted(by_organ, by_organ)
    return np.sort(shuffled[order][np.argsort(turn, kind="stable")][:count])


@torch.no_grad()
def embed(encoder: Encoder, store: PatchStore, rows: np.ndarray) -> np.ndarray:
    """Return the L2-normalized pooled features of un-augmented patches, float32 `[n, d]`."""
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
