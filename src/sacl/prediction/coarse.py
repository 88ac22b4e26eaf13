"""Locate organs: run coarse networks over a scan and return its cleaned coarse label map.

Several locate together by the mean of their probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from sacl.errors import DataError
from sacl.files.documents import JsonObject
from sacl.files.weights import read_weights, save_weights
from sacl.networks.coarse import CoarseNetwork, CoarseSpec
from sacl.networks.encoder import State
from sacl.networks.segmenter import Segmenter, SegmenterSpec, filled
from sacl.patches.coarse_grid import arg_max_on_scan, coarse_grid, image_to_coarse
from sacl.prediction.assemble import clean_components
from sacl.prediction.volume import Predictor, predict_volume
from sacl.prediction.windows import probability
from sacl.types import Grid, LabelMap, LabelScheme, Volume

MIN_VOLUME_ML = 0.05
"""An organ smaller than this is absent from a coarse map."""
KEEP_COMPONENT = 0.2
"""Components below this share of the organ's largest one are removed."""
ALL_LABELED = "all"
"""Name of the network that was trained on all labeled scans."""

_NETWORKS = "networks"
_KINDS: tuple[Literal["slices", "volumes"], ...] = ("slices", "volumes")
_LEAST_PROBABILITY = 1e-6
_BATCH = 16


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Coarse networks of one spec, on volumes or on whole slices, in eval mode on `device`.

    On volumes, without `overlapping`, they read every part of a scan once, which is two to eight
    times as fast.
    """

    spec: CoarseSpec | SegmenterSpec
    networks: Sequence[Any]
    device: torch.device
    overlapping: bool = True

    def __call__(self, pixels: Float[Tensor, "n 1 i j"]) -> Float[Tensor, "n class i j"]:
        """Return the logits of slices: those of the networks' mean probability."""
        probability = [network(pixels).float().softmax(dim=1) for network in self.networks]
        return torch.stack(probability).mean(dim=0).clamp_min(_LEAST_PROBABILITY).log()

    def locate(self, volume: Volume, window: tuple[float, float]) -> LabelMap:
        """Return the cleaned coarse label map of a canonical scan, of any size and spacing."""
        spec = self.spec
        if isinstance(spec, SegmenterSpec):
            predictor = Predictor(self, self.device, batch=_BATCH)
            voxels = predict_volume(predictor, volume, window).voxels
        else:
            grid = coarse_grid(volume.grid, spec.spacing_mm, spec.in_plane_size)
            image = image_to_coarse(volume.voxels, window, grid, self.device)
            found = probability(self.networks, spec, image, self.overlapping)
            voxels = arg_max_on_scan(found, grid)
        return cleaned(voxels, volume.grid, spec.label_scheme)


def cleaned(voxels: Integer[np.ndarray, "i j k"], grid: Grid, scheme: LabelScheme) -> LabelMap:
    """Return a coarse label map without islands, and without organs too small to be believed."""
    least = MIN_VOLUME_ML / grid.voxel_ml
    kept = clean_components(voxels, len(scheme.names), KEEP_COMPONENT, least)
    return LabelMap(kept, grid, scheme)


def save_network(folder: Path, name: str, trained: Ensemble) -> None:
    """Write the only network of an ensemble, weights and description, under the stage's folder."""
    [network] = trained.networks
    kind = "slices" if isinstance(trained.spec, SegmenterSpec) else "volumes"
    save_weights(folder / _NETWORKS / name, kind, network, asdict(trained.spec))


@dataclass(frozen=True, eq=False)
class SavedNetwork:
    """A coarse network as it is saved: of slices or of volumes, its weights and its description."""

    kind: Literal["slices", "volumes"]
    state: State
    text: JsonObject

    @property
    def spec(self) -> SegmenterSpec | CoarseSpec:
        """What the description says; a DataError where it is damaged."""
        return (SegmenterSpec if self.kind == "slices" else CoarseSpec).from_json(self.text)

    def ready(self, device: torch.device, where: str) -> Ensemble:
        """Return an ensemble of this network alone; errors start with where it is from.

        Raises:
            DataError: the description is damaged, or the weights do not fit it.
        """
        spec, where = self.spec, f"{where}/{self.kind}"
        if isinstance(spec, SegmenterSpec):
            segmenter = filled(partial(Segmenter, spec), self.state, where)
            segmenter.to(device, memory_format=torch.channels_last)
            return Ensemble(spec, (segmenter,), device)
        network = filled(partial(CoarseNetwork, spec), self.state, where)
        return Ensemble(spec, (network.to(device),), device)


def read_network(folder: Path, name: str) -> SavedNetwork | None:
    """Return a network as it was saved by a `locate` stage; None where it was not."""
    place = folder / _NETWORKS / name
    kind = next((kind for kind in _KINDS if (place / f"{kind}.json").is_file()), None)
    return None if kind is None else SavedNetwork(kind, *read_weights(place, kind))


def read_networks(folder: Path) -> list[SavedNetwork]:
    """Return all networks of a finished `locate` stage; none where its maps are from elsewhere."""
    names = sorted(path.name for path in (folder / _NETWORKS).glob("*/"))
    return [network for name in names if (network := read_network(folder, name))]


def load_network(folder: Path, name: str, device: torch.device) -> Ensemble | None:
    """Return a network as an ensemble of one; None where it was not saved."""
    saved = read_network(folder, name)
    return saved.ready(device, name) if saved else None


def ensemble_of(saved: Sequence[SavedNetwork], device: torch.device, where: str) -> Ensemble | None:
    """Return saved networks as one ensemble, None of no network.

    Raises:
        DataError: one of them is damaged, or they are of several kinds or specs.
    """
    ready = [network.ready(device, where) for network in saved]
    if any(one.spec != ready[0].spec for one in ready):
        raise DataError(f"{where}: coarse networks of several kinds; copy those of one training")
    return together(ready) if ready else None


def in_haste(ensemble: Ensemble) -> Ensemble:
    """Return the ensemble as it locates fast: where it works on volumes, without overlap."""
    on_slices = isinstance(ensemble.spec, SegmenterSpec)
    return ensemble if on_slices else replace(ensemble, overlapping=False)


def together(ensembles: Sequence[Ensemble]) -> Ensemble:
    """Return the networks of several ensembles of one kind and spec as one."""
    networks = tuple(network for ensemble in ensembles for network in ensemble.networks)
    return replace(ensembles[0], networks=networks)
