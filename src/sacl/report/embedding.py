"""How well the encoder tells query patches apart, in figures and on a map."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from jaxtyping import Float, Integer, Shaped
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits

from sacl.types import UNKNOWN

_MOST_POINTS = 4000
_NEIGHBORS = 15
_ITERATIONS = 500


@dataclass(frozen=True, eq=False)
class Embedding:
    """Query patches as the encoder sees them: unit features and what the patches show."""

    feature: Float[np.ndarray, "n d"]
    organ: Shaped[np.ndarray, " n"]
    scan_label: Shaped[np.ndarray, " n"]
    subject_id: Shaped[np.ndarray, " n"]
    split: Shaped[np.ndarray, " n"]

    def take(self, rows: Shaped[np.ndarray, " m"]) -> Embedding:
        """Return some of the patches, by index or by mask."""
        return Embedding(*(getattr(self, field.name)[rows] for field in fields(self)))

    def sample(self, count: int, seed: int) -> Embedding:
        """Return at most `count` patches, drawn without replacement, in their own order."""
        return self.take(np.sort(_some(np.arange(len(self.feature)), count, seed)))


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


def read_embedding(path: Path) -> Embedding:
    """Return the embedding that pretraining wrote, `embedding.npz`."""
    with np.load(path, allow_pickle=False) as arrays:
        return Embedding(**{field.name: arrays[field.name] for field in fields(Embedding)})


def separabilities(embedding: Embedding, label_name: str, seed: int) -> list[Separability]:
    """Return the separability of organs, of scan-wise labels, and of their combinations.

    Training subjects are those of the split `train`, held-out ones all others. Patches whose
    scan-wise label is unknown do not enter where the label matters. Labels that are unknown for
    all, or the same for all, give no line.
    """
    rows = [_separability("organ", embedding, embedding.organ, seed)]
    known = embedding.take(embedding.scan_label != UNKNOWN)
    if len(np.unique(known.scan_label)) > 1:
        both = np.array([f"{a} / {b}" for a, b in zip(known.organ, known.scan_label, strict=True)])
        rows.append(_separability(label_name, known, known.scan_label, seed))
        rows.append(_separability(f"organ and {label_name}", known, both, seed))
    return rows


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


def _separability(
    what: str, embedding: Embedding, classes: Shaped[np.ndarray, " n"], seed: int
) -> Separability:
    train = _some(np.flatnonzero(embedding.split == "train"), _MOST_POINTS, seed)
    held_out = _some(np.flatnonzero(embedding.split != "train"), _MOST_POINTS, seed)
    known = np.unique(classes[train])
    accuracy = math.nan
    if len(train) and len(held_out):
        neighbors = KNeighborsClassifier(min(_NEIGHBORS, len(train)))
        neighbors.fit(embedding.feature[train], classes[train])
        right = neighbors.predict(embedding.feature[held_out]) == classes[held_out]
        true = classes[held_out]
        accuracy = float(np.mean([np.mean(right[true == name]) for name in np.unique(true)]))
    return Separability(
        what=what,
        classes=len(known),
        silhouette=_silhouette(embedding.feature[held_out], classes[held_out]),
        accuracy=accuracy,
        chance=1 / len(known) if len(known) else math.nan,
    )


def _some(rows: Integer[np.ndarray, " n"], count: int, seed: int) -> Integer[np.ndarray, " m"]:
    """Return at most `count` rows, drawn without replacement."""
    if len(rows) <= count:
        return rows
    return np.random.default_rng(seed).choice(rows, count, replace=False)


def _silhouette(feature: Float[np.ndarray, "n d"], classes: Shaped[np.ndarray, " n"]) -> float:
    """Return the mean silhouette with cosine distances; NaN for one class, or one patch each."""
    if not 1 < len(np.unique(classes)) < len(classes):
        return math.nan
    return float(silhouette_score(feature, classes, metric="cosine"))
