"""Locate organs: run coarse networks over a scan and return its cleaned coarse label map.

A network works on volumes or on whole slices; several of one kind locate together, by the mean of
their probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from sacl.errors import DataError
from sacl.files.documents import JsonObject
from sacl.files.weights import read_weights, save_weights
from sacl.networks.coarse import CoarseNetwork, CoarseSpec
from sacl.networks.encoder import State
from sacl.networks.segmenter import Segmenter, SegmenterSpec, filled, restored_segmenter
from sacl.patches.coarse_grid import arg_max_on_scan, coarse_grid, image_to_coarse
from sacl.prediction.assemble import clean_components
from sacl.prediction.volume import Network, Predictor, predict_volume
from sacl.prediction.windows import probability
from sacl.types import Grid, LabelMap, LabelScheme, Volume

MIN_VOLUME_ML = 0.05
"""An organ smaller than this is absent from a coarse map."""
KEEP_COMPONENT = 0.2
"""Components below this share of the organ's largest one are removed."""
ALL_LABELED = "all"
"""Name of the network that was trained on all labeled scans."""

_NETWORKS = "networks"
_SLICES: Literal["slices"] = "slices"
_VOLUMES: Literal["volumes"] = "volumes"
_LEAST_PROBABILITY = 1e-6
_BATCH = 16


@dataclass(frozen=True, eq=False)
class VolumeEnsemble:
    """Coarse 3-D networks of one spec, in eval mode on `device`.

    Without `overlapping` they read every part of a scan once, which is two to eight times as fast.
    """

    spec: CoarseSpec
    networks: Sequence[nn.Module]
    device: torch.device
    overlapping: bool = True

    def locate(self, volume: Volume, window: tuple[float, float]) -> LabelMap:
        """Return the cleaned coarse label map of a canonical scan, of any size and spacing."""
        spec = self.spec
        grid = coarse_grid(volume.grid, spec.spacing_mm, spec.in_plane_size)
        image = image_to_coarse(volume.voxels, window, grid, self.device)
        found = probability(self.networks, spec, image, self.overlapping)
        scheme = LabelScheme(spec.scheme, spec.organs)
        return cleaned(arg_max_on_scan(found, grid), volume.grid, scheme)


class MeanOfNetworks:
    """Several segmenters of one spec as one, whose logits are those of their mean probability."""

    def __init__(self, networks: Sequence[Network]) -> None:
        self.networks, self.spec = tuple(networks), networks[0].spec

    def __call__(self, pixels: Float[Tensor, "n 1 i j"]) -> Float[Tensor, "n class i j"]:
        """Return the logits of slices."""
        probability = [network(pixels).float().softmax(dim=1) for network in self.networks]
        return torch.stack(probability).mean(dim=0).clamp_min(_LEAST_PROBABILITY).log()


@dataclass(frozen=True, eq=False)
class SliceEnsemble:
    """Coarse 2-D networks of one spec, on whole slices, in eval mode on `device`."""

    networks: Sequence[Segmenter]
    device: torch.device

    @property
    def spec(self) -> SegmenterSpec:
        """The spec that all networks share."""
        return self.networks[0].spec

    def locate(self, volume: Volume, window: tuple[float, float]) -> LabelMap:
        """Return the cleaned coarse label map of a canonical scan, of any size and spacing."""
        predictor = Predictor(MeanOfNetworks(self.networks), self.device, batch=_BATCH)
        labels = predict_volume(predictor, volume, window)
        return cleaned(labels.voxels, labels.grid, labels.scheme)


Ensemble = VolumeEnsemble | SliceEnsemble


def cleaned(voxels: Integer[np.ndarray, "i j k"], grid: Grid, scheme: LabelScheme) -> LabelMap:
    """Return a coarse label map without islands, and without organs too small to be believed."""
    least = MIN_VOLUME_ML / grid.voxel_ml
    kept = clean_components(voxels, len(scheme.names), KEEP_COMPONENT, least)
    return LabelMap(kept, grid, scheme)


def save_network(folder: Path, name: str, trained: Ensemble) -> None:
    """Write the only network of an ensemble, weights and description, under the stage's folder."""
    [network] = trained.networks
    kind = _SLICES if isinstance(trained, SliceEnsemble) else _VOLUMES
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
        kind = SegmenterSpec if self.kind == _SLICES else CoarseSpec
        return kind.from_json(self.text)

    def ready(self, device: torch.device, where: str) -> Ensemble:
        """Return an ensemble of this network alone; errors start with where it is from.

        Raises:
            DataError: the description is damaged, or the weights do not fit it.
        """
        if self.kind == _SLICES:
            segmenter = restored_segmenter(self.state, self.text, where, _SLICES)
            return SliceEnsemble((segmenter.to(device, memory_format=torch.channels_last),), device)
        spec = CoarseSpec.from_json(self.text)
        network = filled(lambda: CoarseNetwork(spec), self.state, f"{where}/{_VOLUMES}")
        return VolumeEnsemble(spec, (network.to(device),), device)


def read_network(folder: Path, name: str) -> SavedNetwork | None:
    """Return a network as it was saved by a `locate` stage; None where it was not."""
    place = folder / _NETWORKS / name
    kinds: tuple[Literal["slices", "volumes"], ...] = (_SLICES, _VOLUMES)
    kind = next((kind for kind in kinds if (place / f"{kind}.json").is_file()), None)
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
    if any(type(one) is not type(ready[0]) or one.spec != ready[0].spec for one in ready):
        raise DataError(f"{where}: coarse networks of several kinds; copy those of one training")
    return together(ready) if ready else None


def in_haste(ensemble: Ensemble) -> Ensemble:
    """Return the ensemble as it locates fast: where it works on volumes, without overlap."""
    if isinstance(ensemble, VolumeEnsemble):
        return replace(ensemble, overlapping=False)
    return ensemble


def together(ensembles: Sequence[Ensemble]) -> Ensemble:
    """Return the networks of several ensembles of one kind and spec as one."""
    networks: Any = tuple(network for ensemble in ensembles for network in ensemble.networks)
    return replace(ensembles[0], networks=networks)
