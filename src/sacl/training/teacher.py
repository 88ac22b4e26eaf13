"""Fine-tuning with unlabeled scans: copy-paste both ways, with labels by a slowly moving teacher.

Bidirectional copy-paste (Bai et al., CVPR 2023, doi 10.1109/CVPR52729.2023.01108): a labeled and an
unlabeled slice give two mixed ones, each with a square of the other. Labels of the unlabeled part
are those of the teacher, the moving average of the network itself (Tarvainen and Valpola, NeurIPS
2017). The classes weigh alike here: with class weights the teacher marks too much of a rare organ,
and the network learns to mark still more. In the steps before, on labeled slices, they do not.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from sacl import ranks
from sacl.losses.segmentation import dense_loss
from sacl.networks.device import autocast, channels_last
from sacl.patches.views import change_intensity
from sacl.progress import say
from sacl.training.finetune import DenseTask, Slices, paste, random_squares
from sacl.training.loop import Average
from sacl.training.pace import Pace
from sacl.training.sampler import Positions

DECAY = 0.99
"""Share of itself that the teacher keeps in a step."""
TRUST = 0.5
"""How much a pixel with the teacher's label counts; one that was drawn by hand counts 1."""
LEAST_SHARE = 0.3
"""A short training learns from labeled slices alone for at most this share of its steps."""


def is_early(step: int, start: int, pace: Pace | None) -> bool:
    """Tell whether a step is of labeled scans alone, which the first `start` steps are.

    Where a `pace` lets fewer steps fit than planned, these are at most the first `LEAST_SHARE` of
    those, but no less than their share of the plan.
    """
    if pace is None:
        return step < start
    return step < start and pace.position < max(start, LEAST_SHARE * pace.steps)


class TeacherTask:
    """Labeled slices alone for `start` steps (`is_early`), then mixed with unlabeled ones.

    A mixed step makes as many images as a labeled one: half of them labeled slices with a square
    of an unlabeled one, half the other way round. The teacher is the moving average of the network,
    which `training.loop.train` keeps.
    """

    def __init__(
        self,
        labeled: DenseTask,
        teacher: nn.Module,
        start: int,
        pace: Pace | None = None,
    ) -> None:
        self.labeled, self.teacher, self.start, self.pace = labeled, teacher, start, pace
        self.rows = np.flatnonzero(labeled.store.dense_index["reference_row"].to_numpy() < 0)
        self.weights = np.full(len(self.rows), 1 / max(len(self.rows), 1))

    def batch(self, step: int) -> tuple[Slices, Float[Tensor, "n i j"]]:
        """Return this rank's mixed slices of a step, and how much each of their pixels counts."""
        rules = self.labeled.rules
        rng, generator = rules.randomness(step)
        half = max(rules.batch // 2, 1)
        own = ranks.own(half)
        drawn = self.labeled.slices(half, own, rng, generator)
        rows = self.rows[rules.rows(self.weights, half, rng)[own]]
        unlabeled = self._unlabeled(rows, drawn, generator)
        inside = random_squares(len(own), drawn.image.shape[-1], generator, rules.device)
        mixed = (paste(drawn, unlabeled, inside), paste(unlabeled, drawn, inside))
        by_hand = torch.cat([inside, ~inside])
        slices = Slices(*(torch.cat(parts) for parts in zip(*mixed, strict=True)))
        return slices, torch.where(by_hand, 1.0, TRUST)

    def _unlabeled(self, rows: Positions, drawn: Slices, generator: torch.Generator) -> Slices:
        """Return unlabeled slices; the teacher labels them before their intensity changes."""
        store, rules = self.labeled.store, self.labeled.rules
        image = rules.mapped(store.meta, [(store.dense_images, rows)], generator)
        self.teacher.eval()
        with torch.no_grad(), autocast(rules.device):
            labels = self.teacher(channels_last(image)).max(dim=1).indices
        changed = change_intensity(image, rules.ranges, generator)
        return Slices(changed, labels, torch.ones_like(drawn.annotated))

    def loss(self, network: nn.Module, step: int) -> Float[Tensor, ""]:
        """Return the loss of one step."""
        if is_early(step, self.start, self.pace):
            return self.labeled.loss(network, step)
        self.labeled.rules.hold_frozen()
        slices, weight = self.batch(step) if len(self.rows) else (self.labeled.batch(step), None)
        logit = network(channels_last(slices.image))
        return dense_loss(logit, slices.labels, slices.annotated, pixel_weight=weight)


def with_teacher(
    labeled: DenseTask, network: nn.Module, steps: int, teacher_steps: int, pace: Pace | None
) -> tuple[DenseTask | TeacherTask, Average | None]:
    """Return a task that goes on with unlabeled slices after some steps, and their teacher.

    Without steps for a teacher it is the task on labeled slices, and there is none.
    """
    if teacher_steps == 0:
        return labeled, None
    average = Average.of(network, DECAY)
    task = TeacherTask(labeled, average.network, steps, pace)
    if not len(task.rows):
        say("every training scan is labeled, so the teacher's steps see labeled slices")
    return task, average
