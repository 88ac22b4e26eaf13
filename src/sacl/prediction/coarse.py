"""Locate organs: run coarse networks over a scan and return its cleaned coarse label map.

A network works on volumes or on whole slices; several of one kind locate together, by the mean of
their probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from sacl.files.weights import read_weights, save_weights
from sacl.networks.coarse import CoarseNetwork, CoarseSpec
from sacl.networks.segmenter import Segmenter, SegmenterSpec
from sacl.patches.coarse_grid import arg_max_on_scan
from sacl.prediction.assemble import clean_components
from sacl.prediction.volume import Network, Predictor, load_segmenter, predict_volume
from sacl.prediction.windows import probability_by_windows
from sacl.types import Grid, LabelMap, LabelScheme, Volume

MIN_VOLUME_ML = 0.05
"""An organ smaller than this is absent from a coarse map."""
KEEP_COMPONENT = 0.2
"""Components below this share of the organ's largest one are removed."""
ALL_LABELED = "all"
"""Name of the network that was trained on all labeled scans."""

_NETWORKS = "networks"
_SLICES, _VOLUMES = "slices", "volumes"
_LEAST_PROBABILITY = 1e-6
_BATCH = 16


@dataclass(frozen=True, eq=False)
class VolumeEnsemble:
    """Coarse 3-D networks of one spec, in eval mode on `device`."""

    spec: CoarseSpec
    networks: Sequence[nn.Module]
    device: torch.device

    def locate(self, volume: Volume, window: tuple[float, float]) -> LabelMap:
        """Return the cleaned coarse label map of a canonical scan, of any size and spacing."""
        how = (self.networks, self.spec, self.device, volume, window)
        voxels = arg_max_on_scan(*probability_by_windows(*how))
        return cleaned(voxels, volume.grid, LabelScheme(self.spec.scheme, self.spec.organs))


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


def load_network(folder: Path, name: str, device: torch.device) -> Ensemble | None:
    """Return a network as an ensemble of one; None where it was not saved."""
    place = folder / _NETWORKS / name
    if (place / f"{_SLICES}.json").is_file():
        return SliceEnsemble((load_segmenter(place, device, _SLICES),), device)
    if (place / f"{_VOLUMES}.json").is_file():
        weights, text = read_weights(place, _VOLUMES)
        spec = CoarseSpec.from_json(text)
        network = CoarseNetwork(spec)
        network.load_state_dict(weights)
        return VolumeEnsemble(spec, (network.to(device).eval(),), device)
    return None


def load_coarse(folder: Path, device: torch.device) -> Ensemble | None:
    """Return all networks of a finished `locate` stage as one ensemble.

    None where its coarse maps came from elsewhere.
    """
    names = sorted(path.name for path in (folder / _NETWORKS).glob("*/"))
    networks = [network for name in names if (network := load_network(folder, name, device))]
    return together(networks) if networks else None


def together(ensembles: Sequence[Ensemble]) -> Ensemble:
    """Return the networks of several ensembles of one kind and spec as one."""
    networks: Any = tuple(network for ensemble in ensembles for network in ensemble.networks)
    return replace(ensembles[0], networks=networks)
