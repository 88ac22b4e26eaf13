"""Query volumes, on which a network may be pretrained, and the training of a coarse network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Shaped

from sacl.networks.coarse import CoarseNetwork, CoarseSpec, Down, Up
from sacl.networks.device import seeded
from sacl.networks.encoder import State, with_inputs
from sacl.training.coarse import CoarseCase, CropTask, Place, place_in, require_organs
from sacl.training.pace import Plan
from sacl.training.teacher import train_by_plan
from sacl.types import UNKNOWN, join_labels


@dataclass(frozen=True, eq=False)
class QueryVolumes:
    """Training scans on a network's grid, with the coarse map in place of labels: what is queried.

    A query is an organ of a scan, as the map has it. `scan_labels` are those of each scan;
    `weights` are what the network starts from, random ones where there are none.
    """

    spec: CoarseSpec
    cases: Sequence[CoarseCase]
    scan_labels: Sequence[Mapping[str, str]]
    weights: State | None = None

    @cached_property
    def queries(self) -> Int[np.ndarray, "2 query"]:
        """The scan and the organ of each query, from 0."""
        pairs = [(n, int(m) - 1) for n, case in enumerate(self.cases) for m in case.present]
        return np.array(pairs, np.int64).reshape(-1, 2).T

    def joined_label(self, names: Sequence[str]) -> Shaped[np.ndarray, " query"]:
        """Return the combination of some scan-wise labels of every query's scan."""
        of_scans = [join_labels([of.get(n, UNKNOWN) for n in names]) for of in self.scan_labels]
        return np.array(of_scans)[self.queries[0]]

    def place(self, query: int, generator: torch.Generator) -> Place:
        """Return the scan of a query and a random voxel of its organ."""
        scan, organ = self.queries[:, query]
        return place_in(self.cases[scan], int(organ) + 1, generator)

    def encoder_and_decoder(self, *, attention: bool = False) -> tuple[Down, Up]:
        """Return the network's two ways; with attention the encoder's weights of it start at 0."""
        network = CoarseNetwork(self.spec)
        if self.weights is not None:
            network.load_state_dict(self.weights)
        if attention:
            state = with_inputs(network.down.state_dict(), 2)
            network.down = Down(self.spec, in_channels=2)
            network.down.load_state_dict(state)
        return network.down, network.up


def train_coarse(
    spec: CoarseSpec,
    labeled: Sequence[CoarseCase],
    plan: Plan,
    device: torch.device,
    **how: Any,
) -> tuple[CoarseNetwork, list[float]]:
    """Return a coarse network, trained as by `training.teacher.train_by_plan`, and its losses.

    Raises:
        DataError: no case has an organ.
    """
    require_organs(labeled, "locate: the labeled scans of a fold")
    with seeded(plan.seed):
        network = CoarseNetwork(spec)
    task = CropTask(labeled, spec, plan, device)
    return network, train_by_plan(network, task, plan, device, **how)
