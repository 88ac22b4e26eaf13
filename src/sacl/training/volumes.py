"""Train a network on volumes, labeled ones and then with unlabeled ones, labeled by its teacher.

`QueryVolumes` are what it may be pretrained on.

As `training.teacher` does with slices, copy-paste goes both ways: a box of a labeled crop in an
unlabeled one and the other way round (Bai et al., CVPR 2023, doi 10.1109/CVPR52729.2023.01108),
where the teacher is the moving average of the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from sacl.networks.coarse import CoarseNetwork, CoarseSpec, Down, Triple, Up
from sacl.networks.device import autocast, seeded
from sacl.networks.encoder import State, with_inputs
from sacl.patches.views import VIEWS, per_sample
from sacl.training.coarse import (
    INTENSITY,
    CoarseCase,
    Crops,
    CropTask,
    Place,
    change_voxels,
    loss_of_levels,
    place_in,
    require_organs,
)
from sacl.training.finetune import PASTED_SHARE
from sacl.training.loop import Average, train
from sacl.training.pace import Pace, Plan
from sacl.training.teacher import DECAY, TRUST, is_early
from sacl.types import UNKNOWN, join_labels

_THIN = 4
"""A crop of up to so many voxels along an axis is pasted over all of it."""


def random_boxes(
    count: int, crop: Triple, generator: torch.Generator, device: torch.device
) -> Bool[Tensor, "count i j k"]:
    """Draw a box anywhere inside every crop, `PASTED_SHARE` of its sides: True inside."""
    inside = torch.ones(count, *crop, dtype=torch.bool)
    for axis, size in enumerate(crop):
        side = round(PASTED_SHARE * size) if size > _THIN else size
        start = per_sample(partial(torch.randint, size - side + 1), [count, 1], generator)
        position = torch.arange(size)
        along = (position >= start) & (position < start + side)
        inside &= along.view(count, *(size if a == axis else 1 for a in range(3)))
    return inside.to(device)


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


class MixedCropTask:
    """Labeled crops alone for `start` steps, then mixed with unlabeled ones.

    In every other step the box is the unlabeled crop's. The teacher is what `training.loop.train`
    averages; how it is believed, and when mixing starts, is as in `training.teacher`. Where no scan
    is unlabeled, labeled crops are mixed with each other, as they were drawn.
    """

    def __init__(
        self,
        labeled: CropTask,
        unlabeled: Sequence[CoarseCase],
        teacher: nn.Module,
        start: int,
        pace: Pace | None = None,
    ) -> None:
        self.labeled, self.unlabeled, self.teacher = labeled, unlabeled, teacher
        self.start, self.pace = start, pace

    def batch(self, step: int) -> tuple[Crops, Float[Tensor, "n i j k"]]:
        """Return this rank's mixed crops of a step, and how much each of their voxels counts."""
        task = self.labeled
        generator = task.generator(step)
        others = self.unlabeled or task.cases
        by_hand, other = task.drawn(task.cases, generator), task.drawn(others, generator)
        labels, trust, annotated = other.labels, 1.0, by_hand.annotated & other.annotated
        if self.unlabeled:
            labels, trust, annotated = self._by_teacher(other), TRUST, by_hand.annotated
        image = change_voxels(by_hand.image, task.ranges, generator)
        other_image = change_voxels(other.image, task.ranges, generator)
        inside = random_boxes(len(image), task.spec.crop, generator, task.device)
        inside = ~inside if step % 2 else inside
        mixed = replace(
            by_hand,
            image=torch.where(inside[:, None], image, other_image),
            labels=torch.where(inside, by_hand.labels, labels),
            annotated=annotated,
        )
        return mixed, torch.where(inside, 1.0, trust)

    @torch.no_grad()
    def _by_teacher(self, crops: Crops) -> Int[Tensor, "n i j k"]:
        self.teacher.eval()
        with autocast(self.labeled.device):
            return self.teacher(crops.image)[0].max(dim=1).indices

    def loss(self, network: nn.Module, step: int) -> Float[Tensor, ""]:
        """Return the loss of one step."""
        if is_early(step, self.start, self.pace):
            return self.labeled.loss(network, step)
        crops, counts = self.batch(step)
        return loss_of_levels(network(crops.image), crops, counts=counts)


def train_on_volumes(
    network: CoarseNetwork,
    labeled: Sequence[CoarseCase],
    unlabeled: Sequence[CoarseCase],
    plan: Plan,
    device: torch.device,
    *,
    pace: Pace | None = None,
    **how: Any,
) -> list[float]:
    """Train a network in place, so that it ends as its teacher where it has one; return the losses.

    Random crops, most of them around an organ, are turned, scaled, shifted and changed in intensity
    in one batch on the device; nothing is flipped, since left and right organs differ. Images of
    the unlabeled scans may be in half precision; their labels say where crops are drawn. `how` are
    further arguments of `training.loop.train`.
    """
    ranges = VIEWS[plan.augment] if plan.augment else INTENSITY
    crops = CropTask(labeled, network.grid_spec, plan.batch, plan.seed, device, ranges)
    task: CropTask | MixedCropTask = crops
    if plan.teacher_steps:
        how["average"] = average = Average.of(network, DECAY)
        task = MixedCropTask(crops, unlabeled, average.network, plan.steps, pace)
    rates = {network: plan.learning_rate}
    return train(network, task.loss, rates, plan.all_steps, device, pace=pace, **how)


def train_coarse(
    spec: CoarseSpec,
    labeled: Sequence[CoarseCase],
    plan: Plan,
    device: torch.device,
    **how: Any,
) -> tuple[CoarseNetwork, list[float]]:
    """Return a coarse network, trained as by `train_on_volumes`, and the loss of every step.

    Raises:
        DataError: no case has an organ.
    """
    require_organs(labeled, "locate: the labeled scans of a fold")
    with seeded(plan.seed):
        network = CoarseNetwork(spec)
    return network, train_on_volumes(network, labeled, (), plan, device, **how)
