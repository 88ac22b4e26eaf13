"""Fine-tuning on volumes with unlabeled scans: copy-paste both ways, labels by a slow teacher.

As `training.teacher` does with slices: a box of a labeled crop in an unlabeled one and the other
way round (Bai et al., CVPR 2023, doi 10.1109/CVPR52729.2023.01108), where the teacher is the moving
average of the network.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sacl.networks.coarse import Triple
from sacl.networks.device import autocast
from sacl.networks.volume_segmenter import VolumeSegmenter
from sacl.patches.views import ViewRanges
from sacl.training.coarse import CoarseCase, Crops, CropTask, loss_of_levels
from sacl.training.finetune import PASTED_SHARE
from sacl.training.loop import Average, Plan, RatedParameters, train
from sacl.training.pace import Pace
from sacl.training.teacher import DECAY, Trust, is_early

_THIN = 4
"""A crop of up to so many voxels along an axis is pasted over all of it."""


def random_boxes(
    count: int, crop: Triple, generator: torch.Generator, device: torch.device
) -> Bool[Tensor, "count i j k"]:
    """Draw a box anywhere inside every crop, `PASTED_SHARE` of its sides: True inside."""
    inside = torch.ones(count, *crop, dtype=torch.bool)
    for axis, size in enumerate(crop):
        side = round(PASTED_SHARE * size) if size > _THIN else size
        start = torch.randint(size - side + 1, (count, 1), generator=generator)
        position = torch.arange(size)
        along = (position >= start) & (position < start + side)
        inside &= along.view(count, *(size if a == axis else 1 for a in range(3)))
    return inside.to(device)


class MixedCropTask:
    """Labeled crops alone for `start` steps, then mixed with unlabeled ones if there are any.

    In every other step the box is the unlabeled crop's. The teacher is what `training.loop.train`
    averages; how it is believed, and when mixing starts, is as in `training.teacher`.
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
        """Return the mixed crops of a step, and how much each of their voxels counts."""
        task = self.labeled
        generator = task.generator(step)
        by_hand, other = task.drawn(task.cases, generator), task.drawn(self.unlabeled, generator)
        self.teacher.eval()
        with torch.no_grad(), autocast(task.device):
            labels = self.teacher(other.image)[0].argmax(dim=1)
        image = task.changed(by_hand.image, generator)
        other_image = task.changed(other.image, generator)
        drawn = random_boxes(task.batch, task.spec.crop, generator, task.device)
        drawn = ~drawn if step % 2 else drawn
        mixed = replace(
            by_hand,
            image=torch.where(drawn[:, None], image, other_image),
            labels=torch.where(drawn, by_hand.labels, labels),
        )
        return mixed, torch.where(drawn, 1.0, Trust().weight)

    def loss(self, network: nn.Module, step: int) -> Float[Tensor, ""]:
        """Return the loss of one step."""
        if not self.unlabeled or is_early(step, self.start, self.pace):
            return self.labeled.loss(network, step)
        crops, counts = self.batch(step)
        return loss_of_levels(network(crops.image), crops, counts=counts)


@dataclass(frozen=True, kw_only=True)
class VolumePlan:
    """How long and how fast a segmenter is trained, on what crops, and from which seed.

    `steps` on labeled crops alone, then `teacher_steps` mixed with unlabeled ones, where there are.
    """

    steps: int
    teacher_steps: int
    batch: int
    learning_rate: float
    ranges: ViewRanges
    seed: int


def train_on_volumes(  # noqa: PLR0913
    segmenter: VolumeSegmenter,
    labeled: Sequence[CoarseCase],
    unlabeled: Sequence[CoarseCase],
    plan: VolumePlan,
    device: torch.device,
    *,
    what: str,
    checkpoint: Path,
    pace: Pace,
) -> tuple[VolumeSegmenter, list[float]]:
    """Train a segmenter; return it, or its teacher where there is one, and the loss of every step.

    Images of the unlabeled scans may be in half precision; their labels say where crops are drawn.
    """
    crops = CropTask(labeled, segmenter.spec.network, plan.batch, plan.seed, device, plan.ranges)
    task: CropTask | MixedCropTask = crops
    average = None
    if plan.teacher_steps:
        average = Average(copy.deepcopy(segmenter).requires_grad_(False), DECAY)
        task = MixedCropTask(crops, unlabeled, average.network, plan.steps, pace)
    losses = train(
        segmenter,
        task.loss,
        [RatedParameters(list(segmenter.parameters()), plan.learning_rate)],
        Plan(steps=plan.steps + plan.teacher_steps),
        device,
        what=what,
        checkpoint=checkpoint,
        average=average,
        pace=pace,
    )
    trained = average.network if average else segmenter
    assert isinstance(trained, VolumeSegmenter), "the average is a copy of the network"
    return trained, losses
