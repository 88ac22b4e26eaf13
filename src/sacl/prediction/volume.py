"""Segment a whole scan, slice by slice, in memory that does not grow with organs × voxels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float
from msgspec import Meta
from torch import Tensor

from sacl.files.documents import read_if_there, write_json
from sacl.files.weights import read_weights
from sacl.networks.device import autocast, resolve_device
from sacl.networks.segmenter import (
    SEGMENTER,
    Segmenter,
    SegmenterSpec,
    VolumeSegmenter,
    VolumeSegmenterSpec,
    restored,
)
from sacl.patches.coarse_grid import CoarseGrid, arg_max_on_scan, slices_on_scan
from sacl.patches.query import coverage, cut
from sacl.patches.region import dense_boxes, patch_boxes
from sacl.patches.window import normalize
from sacl.prediction.assemble import (
    clean_components,
    fuse,
    labels_of_slice,
    mean_over_copies,
    to_voxels,
    wider,
)
from sacl.prediction.guard import with_organs_of
from sacl.prediction.windows import probability_by_windows
from sacl.types import Box, LabelMap, Volume

_RECIPE_FILE = "recipe.json"


@dataclass(frozen=True)
class MapRecipe:
    """How final maps are made from a segmenter: what a run was scored with, and so is used with.

    A prediction is the mean of `copies` turned and scaled copies and the plain one. Components
    below `keep_component` of the organ's largest one are removed; the organs `from_coarse` are
    those of the coarse map, since the segmenter loses them (`guard`).
    """

    copies: Annotated[int, Meta(ge=0, le=100)] = 0
    keep_component: Annotated[float, Meta(ge=0, le=1)] = 0.0
    from_coarse: tuple[str, ...] = ()


USUAL_RECIPE = MapRecipe(copies=4, keep_component=0.1)
"""How maps are made where no run has made any: the defaults of the settings."""


def write_recipe(folder: Path, recipe: MapRecipe) -> None:
    """Write how a run's final maps were made into the folder of its predictions."""
    write_json(folder / _RECIPE_FILE, recipe)


def read_recipe(folder: Path) -> MapRecipe | None:
    """Return how a run's final maps were made, None where it has not predicted."""
    return read_if_there(folder / _RECIPE_FILE, MapRecipe, "run `sacl predict CONFIG.yaml --force`")


@dataclass(frozen=True, eq=False)
class Predictor:
    """A segmenter, on slices or on volumes, ready to run: in eval mode, on its device.

    The `network` has a `spec`, and gives the logits of slices, or a list of the logits of volumes,
    the finest level first.
    """

    network: Any
    device: torch.device
    recipe: MapRecipe = MapRecipe()
    batch: int = 32

    @property
    def spec(self) -> SegmenterSpec | VolumeSegmenterSpec:
        """The segmenter's spec."""
        return self.network.spec

    @property
    def needs_coarse(self) -> bool:
        """Tell whether a scan's coarse label map has to be known."""
        return self.spec.needs_coarse or bool(self.recipe.from_coarse)

    @torch.inference_mode()
    def logits(
        self, pixels: Sequence[Float[np.ndarray, "channel wide wide"]], size: int
    ) -> Float[Tensor, "n out side side"]:
        """Return the logits, `size` pixels wide, of images that are cut `wider` for copies."""

        def network(batch: Float[Tensor, "n channel _i _j"]) -> Float[Tensor, "n out _i _j"]:
            with autocast(self.device):
                return self.network(batch.contiguous(memory_format=torch.channels_last))

        batch = torch.from_numpy(np.stack(pixels)).to(self.device)
        if self.recipe.copies == 0:
            return network(batch).float()
        return mean_over_copies(network, batch, size, self.recipe.copies)


def load_predictor(folder: Path, device: str, recipe: MapRecipe) -> Predictor:
    """Return a run's saved segmenter, of either kind, ready to run.

    Raises:
        DataError: there is none, it is damaged, or its weights do not fit its description.
    """
    segmenter = restored(*read_weights(folder, SEGMENTER), folder.name)
    return predictor_of(segmenter, resolve_device(device), recipe)


def predictor_of(
    segmenter: Segmenter | VolumeSegmenter, device: torch.device, recipe: MapRecipe = MapRecipe()
) -> Predictor:
    """Return a segmenter, trained or not, ready to run."""
    segmenter.to(device)
    if isinstance(segmenter, Segmenter):
        segmenter.to(memory_format=torch.channels_last)
    return Predictor(segmenter.eval(), device, recipe)


def predict_volume(
    predictor: Predictor,
    volume: Volume,
    window: tuple[float, float],
    coarse: LabelMap | None = None,
) -> LabelMap:
    """Return the predicted label map on the volume's grid.

    Args:
        predictor: The segmenter.
        volume: A canonical scan, of any size and spacing.
        window: The intensities that become 0 and 1.
        coarse: The scan's coarse label map on the same grid, where `needs_coarse`. The query head
            predicts no organ that it does not hold; the dense head takes its square from it, and
            the whole slices where it holds none.
    """
    scheme, recipe = predictor.spec.label_scheme, predictor.recipe
    assert coarse is not None or not predictor.needs_coarse, "a coarse label map is needed"
    # Slices are read and written one by one: column order keeps each of them in one piece.
    labels = np.zeros(volume.grid.shape, scheme.label_type, order="F")
    if predictor.spec.head == "volume":
        labels = arg_max_on_scan(*_by_windows(predictor, volume, window))
    elif predictor.spec.head == "dense":
        for box, _, logit in _logits(predictor, volume, window, coarse):
            labels[:, :, box.start[2]] = labels_of_slice(logit, box, volume.grid.shape[:2])
    else:
        # Organs are fused slice by slice: the best logits of one slice are held at a time.
        for k, patches in groupby(_logits(predictor, volume, window, coarse), key=_slice_of):
            best = np.zeros(volume.grid.shape[:2], np.float32)
            for box, label, logit in patches:
                fuse(best, labels[:, :, k], logit[0], box, label)
    return finished_map(LabelMap(labels, volume.grid, scheme), recipe, coarse)


def finished_map(label_map: LabelMap, recipe: MapRecipe, coarse: LabelMap | None) -> LabelMap:
    """Return a map without small components, with the organs that are taken from the coarse map."""
    if recipe.keep_component > 0:
        how = len(label_map.scheme.names), recipe.keep_component, 0
        label_map = replace(label_map, voxels=clean_components(label_map.voxels, *how))
    if coarse is None or not recipe.from_coarse:
        return label_map
    return with_organs_of(label_map, coarse, recipe.from_coarse)


def slice_probabilities(
    predictor: Predictor,
    volume: Volume,
    window: tuple[float, float],
    coarse: LabelMap | None = None,
) -> Iterator[Float[Tensor, "class i j"]]:
    """Yield the class probabilities of every axial slice of a scan, by rising k, on the CPU.

    Their largest is the class that `predict_volume` gives a voxel, before its map is cleaned. Query
    patches compete as there: an organ wins where its probability exceeds one half, and those of all
    other organs. The arguments are those of `predict_volume`.
    """
    shape, classes = volume.grid.shape[:2], 1 + len(predictor.spec.organs)
    if predictor.spec.head == "volume":
        on_grid = _by_windows(predictor, volume, window)
        yield from (probability.cpu() for probability in slices_on_scan(*on_grid))
        return
    if predictor.spec.head == "dense":
        for box, _, logit in _logits(predictor, volume, window, coarse):
            probability = torch.zeros(classes, *shape)
            probability[0] = 1
            region, voxels = to_voxels(logit.cpu(), box, shape)
            probability[:, *region] = voxels.softmax(dim=0)
            yield probability
        return
    patches = groupby(_logits(predictor, volume, window, coarse), key=_slice_of)
    of_slice = {k: list(group) for k, group in patches}
    for k in range(volume.grid.shape[2]):
        probability = torch.zeros(classes, *shape)
        for box, label, logit in of_slice.get(k, ()):
            region, voxels = to_voxels(logit, box, shape)
            inside = probability[label][region]
            inside[:] = torch.maximum(inside, voxels[0].sigmoid())
        probability[0] = 1 - probability[1:].amax(dim=0)
        yield probability / probability.sum(dim=0)


def _by_windows(
    predictor: Predictor, volume: Volume, window: tuple[float, float]
) -> tuple[Float[Tensor, "class a b c"], CoarseGrid]:
    assert isinstance(predictor.spec, VolumeSegmenterSpec)
    how = (predictor.spec.network, predictor.device, volume, window, predictor.recipe.copies)
    return probability_by_windows((predictor.network,), *how)


def _logits(
    predictor: Predictor, volume: Volume, window: tuple[float, float], coarse: LabelMap | None
) -> Iterator[tuple[Box, int, Float[Tensor, "class side side"]]]:
    """Yield all that a segmenter on slices reads, by rising slice: box, label value and logits.

    A dense one reads a box of every slice, with label 0; the other one the patches of all organs.
    """
    spec, planned = predictor.spec, list[tuple[Box, int]]()
    assert isinstance(spec, SegmenterSpec)
    if spec.head == "dense":
        planned = [(box, 0) for box in dense_boxes(spec.placement, volume.grid, coarse)]
    elif coarse is not None:
        planned = plan_patches(coarse, spec)
    size, scale = spec.image_size, wider(spec.image_size, predictor.recipe.copies)

    @lru_cache(maxsize=1)
    def plane(k: int) -> Float[np.ndarray, "i j"]:
        return normalize(volume.voxels[:, :, k], window)

    for first in range(0, len(planned), predictor.batch):
        batch, pixels = planned[first : first + predictor.batch], []
        for box, label in batch:
            k = box.start[2]
            channels = [cut(plane(k), box, size, scale)]
            if coarse is not None and label:
                channels.append(coverage(coarse.voxels[:, :, k], label, box, size, scale))
            pixels.append(np.stack(channels))
        logits = predictor.logits(pixels, size)
        logits = logits if spec.head == "dense" else logits.cpu()
        for (box, label), logit in zip(batch, logits, strict=True):
            yield box, label, logit


def _slice_of(patch: tuple[Box, int, Tensor]) -> int:
    return patch[0].start[2]


def plan_patches(coarse: LabelMap, spec: SegmenterSpec) -> list[tuple[Box, int]]:
    """Return box and label value of all query patches of a scan, by rising slice and label."""
    boxes = patch_boxes(spec.placement, coarse)
    planned = [(box, coarse.scheme.label_of(organ)) for organ, box in boxes]
    return sorted(planned, key=lambda patch: (patch[0].start[2], patch[1]))
