"""Locate organs by 2-D networks on whole slices, and return the cleaned coarse label map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sacl.networks.segmenter import Segmenter, load_segmenter, save_segmenter, training_note
from sacl.prediction.components import clean_components
from sacl.prediction.volume import Network, Predictor, predict_volume
from sacl.types import LabelMap, Volume

_LEAST_PROBABILITY = 1e-6


class MeanOfNetworks:
    """Several segmenters of one spec as one, whose logits are those of their mean probability."""

    def __init__(self, networks: Sequence[Network]) -> None:
        self.networks, self.spec = tuple(networks), networks[0].spec

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return logits `[n, class, i, j]` of pixels `[n, 1, i, j]`."""
        probability = [network(pixels).float().softmax(dim=1) for network in self.networks]
        return torch.stack(probability).mean(dim=0).clamp_min(_LEAST_PROBABILITY).log()


@dataclass(frozen=True, eq=False)
class SliceEnsemble:
    """Coarse 2-D networks of one spec, in eval mode on `device`, and how their map is cleaned."""

    networks: Sequence[Segmenter]
    device: torch.device
    min_volume_ml: float
    keep_component: float

    def locate(self, volume: Volume, window: tuple[float, float]) -> LabelMap:
        """Return the cleaned coarse label map on the volume's grid.

        An organ below the smallest volume is absent from the map: not found.

        Args:
            volume: A canonical scan, of any size and spacing.
            window: The two intensities that become 0 and 1.
        """
        predictor = Predictor(MeanOfNetworks(self.networks), self.device)
        found = predict_volume(predictor, volume, window)
        voxels = clean_components(
            found.voxels,
            len(found.scheme.names),
            self.keep_component,
            self.min_volume_ml / volume.grid.voxel_ml,
        )
        return LabelMap(voxels, found.grid, found.scheme)


def save_slice_network(
    folder: Path, network: Segmenter, min_volume_ml: float, keep_component: float
) -> None:
    """Write a network into a folder of its own, with how its map is cleaned."""
    cleaning = {"min_volume_ml": min_volume_ml, "keep_component": keep_component}
    save_segmenter(folder, network, cleaning)


def load_slice_network(folder: Path, device: torch.device) -> SliceEnsemble | None:
    """Return a network as an ensemble of one, None where it was not saved."""
    cleaning = training_note(folder)
    if cleaning is None:
        return None
    return SliceEnsemble((load_segmenter(folder, device),), device, **cleaning)
