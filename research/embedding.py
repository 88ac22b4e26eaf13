"""What an encoder has learned: a map of query patches as it sees them, and how far apart they lie.

It says how well features tell organs and phases apart, not how well a segmenter will do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import recall_score, silhouette_score
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits

from sacl.files.weights import read_weights
from sacl.networks.device import autocast, channels_last
from sacl.networks.encoder import Encoder, PretrainedEncoder, pooled
from sacl.patches.store import COVERAGE_SCALE, IMAGE_SCALE, PatchStore, read_patches
from sacl.progress import track
from sacl.report.figures import PAPER, drawn, palette
from sacl.run.record import read_record
from sacl.run.workspace import Workspace
from sacl.types import PHASE, UNKNOWN

_BATCH = 256
_EMBEDDED = 2000
"""Patches of training and of held-out subjects, each, that are embedded."""
_MAPPED_PATCHES = 1500
_NEIGHBORS = 15
_ITERATIONS = 500
_UNKNOWN_COLOR = "#9aa0a6"


@dataclass(frozen=True, eq=False)
class Embedding:
    """Query patches as the encoder sees them: unit features and what the patches show."""

    feature: Float[np.ndarray, "n d"]
    organ: Shaped[np.ndarray, " n"]
    phase: Shaped[np.ndarray, " n"]
    split: Shaped[np.ndarray, " n"]

    def take(self, rows: Shaped[np.ndarray, " m"]) -> Embedding:
        """Return some of the patches, by index or by mask."""
        return Embedding(*(values[rows] for values in vars(self).values()))

    def sample(self, count: int, seed: int) -> Embedding:
        """Return at most `count` patches, drawn without replacement, in their own order."""
        drawn_rows = np.random.default_rng(seed).permutation(len(self.feature))[:count]
        return self.take(np.sort(drawn_rows))


@dataclass(frozen=True)
class Separability:
    """How far apart some classes lie; NaN where it cannot be said.

    `silhouette` (cosine, −1 to 1) is over held-out subjects. `accuracy` is the mean over classes
    of the share of held-out subjects' patches that the nearest training patches name rightly;
    `chance` is what guessing gives.
    """

    what: str
    classes: int
    silhouette: float
    accuracy: float
    chance: float


def embedding_of_work(work: Path) -> Embedding:
    """Return some patches of a work directory as its pretrained encoder sees them.

    They are of training and of held-out subjects, as many of each organ where possible.

    Raises:
        WorkspaceError: the run has not pretrained.
        DataError: its files are damaged.
    """
    workspace = Workspace(work)
    store = read_patches(workspace.require("extract"))
    folder = workspace.require("pretrain")
    state, text = read_weights(folder, "encoder")
    encoder = Encoder(PretrainedEncoder.from_json(text).spec)
    encoder.load_state_dict(state)
    record = read_record(folder)
    rng = np.random.default_rng([record.settings["seed"] if record else 0, 1])
    is_train = (store.index["split"] == "train").to_numpy()
    rows = np.concatenate(
        [
            balanced_rows(np.flatnonzero(part), store.organ_code, _EMBEDDED, rng)
            for part in (is_train, ~is_train)
        ]
    )
    index = store.index.iloc[rows]
    return Embedding(
        embed(encoder, store, rows),
        index["organ"].to_numpy(dtype=str),
        store.joined_label((PHASE,))[rows].astype(str),
        index["split"].to_numpy(dtype=str),
    )


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
    arrays = [(store.images, IMAGE_SCALE), (store.attention, COVERAGE_SCALE)]
    arrays = arrays[: encoder.spec.in_channels]
    edge = (store.meta.stored_size - store.meta.patch_size) // 2
    inner = slice(edge, edge + store.meta.patch_size)
    encoder.eval()
    features = [np.zeros((0, encoder.channels[-1]), np.float32)]
    for first in track(range(0, len(rows), _BATCH), "embed patches"):
        some = rows[first : first + _BATCH]
        channels = [array[some][:, inner, inner] / np.float32(scale) for array, scale in arrays]
        pixels = channels_last(torch.from_numpy(np.stack(channels, axis=1)).to(device))
        with autocast(device):
            feature = pooled(encoder(pixels))
        features.append(torch.nn.functional.normalize(feature, dim=1).cpu().numpy())
    return np.concatenate(features)


def separabilities(embedding: Embedding) -> list[Separability]:
    """Return the separability of organs, of phases, and of their combinations.

    Training subjects are those of the split `train`, held-out ones all others. Patches whose phase
    is unknown do not enter where it matters. Phases that are unknown for all, or the same for all,
    give no line.
    """
    rows = [_separability("organ", embedding, embedding.organ)]
    known = embedding.take(embedding.phase != UNKNOWN)
    if len(np.unique(known.phase)) > 1:
        both = np.array([f"{a} / {b}" for a, b in zip(known.organ, known.phase, strict=True)])
        rows.append(_separability("phase", known, known.phase))
        rows.append(_separability("organ and phase", known, both))
    return rows


def _separability(
    what: str, embedding: Embedding, classes: Shaped[np.ndarray, " n"]
) -> Separability:
    train, held_out = embedding.split == "train", embedding.split != "train"
    known = np.unique(classes[train])
    accuracy = math.nan
    if train.any() and held_out.any():
        neighbors = KNeighborsClassifier(min(_NEIGHBORS, int(train.sum())))
        neighbors.fit(embedding.feature[train], classes[train])
        named, true = neighbors.predict(embedding.feature[held_out]), classes[held_out]
        accuracy = float(recall_score(true, named, labels=np.unique(true), average="macro"))
    return Separability(
        what=what,
        classes=len(known),
        silhouette=_silhouette(embedding.feature[held_out], classes[held_out]),
        accuracy=accuracy,
        chance=1 / len(known) if len(known) else math.nan,
    )


def _silhouette(feature: Float[np.ndarray, "n d"], classes: Shaped[np.ndarray, " n"]) -> float:
    """Return the mean silhouette with cosine distances; NaN for one class, or one patch each."""
    if not 1 < len(np.unique(classes)) < len(classes):
        return math.nan
    return float(silhouette_score(feature, classes, metric="cosine"))


def map_of(embedding: Embedding, seed: int) -> Markup:
    """Draw patches of all splits, colored by organ, and by phase where there are several."""
    shown = embedding.sample(_MAPPED_PATCHES, seed)
    groups = {"by organ": shown.organ.tolist()}
    colors = {"by organ": palette(sorted(set(groups["by organ"])))}
    phases = sorted(set(shown.phase.tolist()) - {UNKNOWN})
    if len(phases) > 1:
        groups["by phase"] = shown.phase.tolist()
        colors["by phase"] = {**palette(phases), UNKNOWN: _UNKNOWN_COLOR}
    return scatter_maps(flat_map(shown.feature, seed), groups, colors)


def flat_map(feature: Float[np.ndarray, "n d"], seed: int) -> Float[np.ndarray, "n 2"]:
    """Return points whose neighborhoods resemble those of the features.

    t-SNE (van der Maaten and Hinton, JMLR 9:2579, 2008) of the first 50 principal components.
    Distances between far groups and sizes of groups mean nothing. Fewer than five patches give
    their first two coordinates.
    """
    count, width = feature.shape
    if count < 5:
        return np.pad(feature, ((0, 0), (0, 2)))[:, :2]
    reduced = PCA(min(50, count, width), random_state=seed).fit_transform(feature)
    perplexity = min(30.0, (count - 1) / 3)
    # Its OpenMP threads wait for each other actively: on a busy machine one is faster than two.
    with threadpool_limits(1):
        method = TSNE(perplexity=perplexity, max_iter=_ITERATIONS, random_state=seed)
        return np.asarray(method.fit_transform(reduced))


def scatter_maps(
    points: Float[np.ndarray, "n 2"],
    groups: Mapping[str, Sequence[str]],
    colors: Mapping[str, Mapping[str, str]],
) -> Markup:
    """Return the points side by side, colored once by every grouping.

    Every class carries its name at one of its points, so that nothing hangs on color alone.
    `colors` maps the classes of every grouping.
    """

    def draw(figure: Figure) -> None:
        charts = figure.subplots(1, len(groups), squeeze=False)[0]
        for axes, (title, of_point) in zip(charts, groups.items(), strict=True):
            member = np.asarray(of_point)
            parts = {name: points[member == name] for name in sorted(set(of_point))}
            for name, part in parts.items():
                axes.scatter(*part.T, s=9, color=colors[title][name], lw=0, rasterized=True)
            for name, (x, y) in _label_places(parts, np.ptp(points, axis=0)).items():
                text = axes.text(x, y, name.replace("_", " "), fontsize=7.5, weight="bold")
                text.set_path_effects([withStroke(linewidth=2.5, foreground=PAPER)])
            axes.set_title(title, loc="left", fontsize=10)
            axes.set_axis_off()

    return drawn((8.6, 4.3), "Map of the query patches' embeddings", draw)


def _label_places(
    parts: Mapping[str, Float[np.ndarray, "_ xy"]], extent: Float[np.ndarray, " xy"]
) -> dict[str, Float[np.ndarray, " xy"]]:
    """Return a point of each class for its name: among its own kind, and clear of other names."""
    text_size = np.maximum(extent, 1e-6) * (0.4, 0.05)
    places: dict[str, np.ndarray] = {}
    for name, part in parts.items():
        apart = np.sort(np.linalg.norm(part[:, None] - part[None], axis=2), axis=1)
        crowding = apart[:, min(5, len(part) - 1)]
        dense = part[crowding <= np.median(crowding)]
        taken = np.array(list(places.values())).reshape(-1, 1, 2)
        clear = (np.abs(taken - dense) / text_size).max(axis=2).min(axis=0, initial=1.5)
        places[name] = dense[np.argmax(clear)]
    return places
