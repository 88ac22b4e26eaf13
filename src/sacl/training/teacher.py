"""Training with unlabeled scans: copy-paste both ways, with labels by a slowly moving teacher.

Bidirectional copy-paste (Bai et al., CVPR 2023, doi 10.1109/CVPR52729.2023.01108): of a labeled and
an unlabeled slice or crop, each may get a part of the other. Labels of the unlabeled part are those
of the teacher, the moving average of the network itself (Tarvainen and Valpola, NeurIPS 2017). The
classes weigh alike here: with class weights the teacher marks too much of a rare organ,
and the network learns to mark still more. In the steps before, on labeled slices, they do not.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sacl.networks.device import autocast, channels_last
from sacl.progress import say
from sacl.training.coarse import CropTask
from sacl.training.finetune import DenseTask, loss_of_levels
from sacl.training.loop import Average, Loss, train
from sacl.training.pace import Pace, Plan

DECAY = 0.99
"""Share of itself that the teacher keeps in a step."""
LEAST_SHARE = 0.3
"""A short training learns from labeled slices alone for at most this share of its steps."""


class TeacherTask:
    """Labeled slices or crops alone for `start` steps, then mixed with unlabeled ones.

    Where a `pace` lets fewer steps fit than planned, labeled ones are at most the first
    `LEAST_SHARE` of those, but no less than their share of the plan. The teacher is the moving
    average of the network, which `training.loop.train` keeps.
    """

    def __init__(
        self,
        labeled: DenseTask | CropTask,
        teacher: nn.Module,
        start: int,
        pace: Pace | None = None,
    ) -> None:
        self.labeled, self.teacher, self.start, self.pace = labeled, teacher, start, pace

    @torch.no_grad()
    def labels_of(self, image: Float[Tensor, "n 1 ..."]) -> Int[Tensor, "n ..."]:
        """Return the labels that the teacher gives to images."""
        self.teacher.eval()
        with autocast(image.device):
            logits = self.teacher(channels_last(image))
        finest = logits if isinstance(logits, Tensor) else logits[0]
        return finest.max(dim=1).indices

    def loss(self, network: nn.Module, step: int) -> Float[Tensor, ""]:
        """Return the loss of one step."""
        early, pace = step < self.start, self.pace
        if early and (pace is None or pace.position < max(self.start, LEAST_SHARE * pace.steps)):
            return self.labeled.loss(network, step)
        images, counts = self.labeled.mixed(step, self.labels_of)
        return loss_of_levels(network(channels_last(images.image)), images, counts=counts)


def with_teacher(
    labeled: DenseTask | CropTask,
    network: nn.Module,
    steps: int,
    teacher_steps: int,
    pace: Pace | None,
) -> tuple[Loss, Average | None]:
    """Return the loss of steps that go on with unlabeled images after some, and their teacher.

    Without steps for a teacher it is that of labeled images, and there is none.
    """
    if teacher_steps == 0:
        return labeled.loss, None
    if isinstance(labeled, DenseTask) and not len(labeled.unlabeled):
        say("every training scan is labeled, so the teacher's steps see labeled slices")
    average = Average(copy.deepcopy(network).requires_grad_(False), DECAY)
    return TeacherTask(labeled, average.network, steps, pace).loss, average


def train_by_plan(
    network: nn.Module,
    labeled: DenseTask | CropTask,
    plan: Plan,
    device: torch.device,
    *,
    pace: Pace | None = None,
    **how: Any,
) -> list[float]:
    """Train a network in place, so that it ends as its teacher where it has one; return the losses.

    `how` are further arguments of `training.loop.train`.
    """
    steps = plan.steps, plan.teacher_steps
    loss, how["average"] = with_teacher(labeled, network, *steps, pace)
    rates = {network: plan.learning_rate}
    return train(network, loss, rates, sum(steps), device, pace=pace, **how)
