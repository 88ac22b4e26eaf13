"""Locate organs: run the coarse networks over a scan and return its cleaned coarse label map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from sacl.errors import DataError
from sacl.files.weights import read_weights, save_weights
from sacl.networks.coarse import CoarseNetwork, CoarseSpec
from sacl.networks.device import autocast
from sacl.prediction.coarse_grid import arg_max_on_scan, coarse_grid, image_to_coarse
from sacl.prediction.components import clean_components
from sacl.prediction.slice_location import SliceEnsemble, load_slice_network
from sacl.types import LabelMap, LabelScheme, Volume

_NETWORKS = "networks"
ALL_LABELED = "all"
"""Name of the network that was trained on all labeled scans."""


@dataclass(frozen=True, eq=False)
class CoarseEnsemble:
    """Coarse networks of one spec, whose probabilities are averaged; in eval mode on `device`."""

    spec: CoarseSpec
    networks: Sequence[nn.Module]
    device: torch.device

    @torch.inference_mode()
    def probability(self, image: Tensor) -> Tensor:
        """Return class probabilities `[class, i, j, k]` of a windowed image on the coarse grid."""

        def mean_of_networks(crops: Tensor) -> Tensor:
            with autocast(self.device):
                logits = [network(crops)[0] for network in self.networks]
            return torch.stack([logit.float().softmax(dim=1) for logit in logits]).mean(dim=0)

        # A scan smaller than the crop is padded with 0, as in training, and the pad cut off again.
        crops = sliding_window_inference(
            image[None, None].to(self.device),
            roi_size=self.spec.crop,
            sw_batch_size=2,
            predictor=mean_of_networks,
            overlap=0.5,
            mode="gaussian",
        )
        return crops[0]

    def locate(self, volume: Volume, window: tuple[float, float]) -> LabelMap:
        """Return the cleaned coarse label map on the volume's grid.

        An organ below the spec's smallest volume is absent from the map: not found.

        Args:
            volume: A canonical scan, of any size and spacing.
            window: The two intensities that become 0 and 1.
        """
        spec = self.spec
        grid = coarse_grid(volume.grid, spec.spacing_mm, spec.in_plane_size)
        image = image_to_coarse(volume.voxels, window, grid, self.device)
        voxels = clean_components(
            arg_max_on_scan(self.probability(image), grid),
            len(spec.organs),
            spec.keep_component,
            spec.min_volume_ml / volume.grid.voxel_ml,
        )
        return LabelMap(voxels, volume.grid, LabelScheme(spec.scheme, spec.organs))


def save_network(folder: Path, name: str, network: nn.Module, spec: CoarseSpec) -> None:
    """Write a network, weights and description, under the stage's folder."""
    save_weights(folder / _NETWORKS, name, network, asdict(spec))


Ensemble = CoarseEnsemble | SliceEnsemble


def network_folder(folder: Path, name: str) -> Path:
    """Return the folder of its own that a network on slices has under the stage's folder."""
    return folder / _NETWORKS / name


def load_network(folder: Path, name: str, device: torch.device) -> Ensemble | None:
    """Return a network, on volumes or slices, as an ensemble of one; None where none was saved."""
    if not (folder / _NETWORKS / f"{name}.json").is_file():
        return load_slice_network(network_folder(folder, name), device)
    weights, description = read_weights(folder / _NETWORKS, name)
    spec = CoarseSpec.from_json(description)
    network = CoarseNetwork(spec)
    network.load_state_dict(weights)
    return CoarseEnsemble(spec, (network.to(device).eval(),), device)


def load_coarse(folder: Path, device: torch.device) -> Ensemble:
    """Return all networks of a finished `locate` stage as one ensemble.

    Raises:
        DataError: the folder has no coarse network.
    """
    described = [*(folder / _NETWORKS).glob("*.json"), *(folder / _NETWORKS).glob("*/")]
    names = sorted({path.stem for path in described})
    networks = [load_network(folder, name, device) for name in names]
    found = [network for network in networks if network]
    if not found:
        raise DataError(
            f"{folder.name}: no coarse network, its label maps came from elsewhere (--from);"
            " give coarse label maps of these scans with --coarse"
        )
    return together(found)


def together(ensembles: Sequence[Ensemble]) -> Ensemble:
    """Return the networks of several ensembles of one kind and spec as one."""
    networks: Any = tuple(network for ensemble in ensembles for network in ensemble.networks)
    return replace(ensembles[0], networks=networks)
