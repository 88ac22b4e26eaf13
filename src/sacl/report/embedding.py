"""How well the encoder tells query patches apart, in figures and on a map."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
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
    """Query patches as the encoder sees them: unit features `[n, d]` and what they show."""

    feature: np.ndarray
    organ: np.ndarray
    scan_label: np.ndarray
    subject_id: np.ndarray
    split: np.ndarray

    def take(self, rows: np.ndarray) -> Embedding:
        """Return some of the patches."""
        return Embedding(
            self.feature[rows],
            self.organ[rows],
            self.scan_label[rows],
            self.subject_id[rows],
            self.split[rows],
        )

    def sample(self, count: int, seed: int) -> Embedding:
        """Return at most `count` patches, drawn without replacement, in their own order."""
        if len(self.feature) <= count:
            return self
        generator = np.random.default_rng(seed)
        return self.take(np.sort(generator.choice(len(self.feature), count, replace=False)))


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


def separabilities(embedding: Embedding, label_name: str, seed: int) -> list[Separability]:
    """Return the separability of organs, of scan-wise labels, and of their combinations.

    Training subjects are those of the split `train`, held-out ones all others. Patches whose
    scan-wise label is unknown do not enter where the label matters, and labels that nobody gave,
    or that are the same for all, give no line.
    """
    found = [_separability("organ", embedding, embedding.organ, seed)]
    known = embedding.take(embedding.scan_label != UNKNOWN)
    if len(np.unique(known.scan_label)) > 1:
        both = np.array([f"{a} / {b}" for a, b in zip(known.organ, known.scan_label, strict=True)])
        found.append(_separability(label_name, known, known.scan_label, seed))
        found.append(_separability(f"organ and {label_name}", known, both, seed))
    return found


def flat_map(feature: np.ndarray, seed: int) -> np.ndarray:
    """Return points `[n, 2]` whose neighborhoods resemble those of `feature` `[n, d]`.

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


def _separability(what: str, embedding: Embedding, classes: np.ndarray, seed: int) -> Separability:
    train = _some(np.flatnonzero(embedding.split == "train"), seed)
    held_out = _some(np.flatnonzero(embedding.split != "train"), seed)
    known = np.unique(classes[train])
    accuracy = math.nan
    if len(train) and len(held_out):
        neighbors = KNeighborsClassifier(min(_NEIGHBORS, len(train)))
        neighbors.fit(embedding.feature[train], classes[train])
        accuracy = _balanced(classes[held_out], neighbors.predict(embedding.feature[held_out]))
    return Separability(
        what=what,
        classes=len(known),
        silhouette=_silhouette(embedding.feature[held_out], classes[held_out]),
        accuracy=accuracy,
        chance=1 / len(known) if len(known) else math.nan,
    )


def _some(rows: np.ndarray, seed: int) -> np.ndarray:
    """Return at most as many rows as pairwise distances can be had for at once."""
    if len(rows) <= _MOST_POINTS:
        return rows
    return np.random.default_rng(seed).choice(rows, _MOST_POINTS, replace=False)


def _balanced(true: np.ndarray, named: np.ndarray) -> float:
    """Return the mean over the true classes of the share that is named rightly."""
    return float(np.mean([np.mean(named[true == name] == name) for name in np.unique(true)]))


def _silhouette(feature: np.ndarray, classes: np.ndarray) -> float:
    """Return the mean silhouette with cosine distances; NaN for one class, or one patch each."""
    if not 1 < len(np.unique(classes)) < len(classes):
        return math.nan
    return float(silhouette_score(feature, classes, metric="cosine"))
