"""Fine-tuning with unlabeled scans: copy-paste both ways, with labels by a slowly moving teacher.

Bidirectional copy-paste (Bai et al., CVPR 2023, doi 10.1109/CVPR52729.2023.01108): a labeled and an
unlabeled slice give two mixed ones, each with a square of the other. Labels of the unlabeled part
are those of the teacher, the moving average of the network itself (Tarvainen and Valpola, NeurIPS
2017). The classes weigh alike here: with class weights the teacher marks too much of a rare organ,
and the network learns to mark still more. In the steps before, on labeled slices, they do not.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sacl.losses.segmentation import dense_loss
from sacl.networks.device import autocast, channels_last
from sacl.patches.views import change_intensity
from sacl.progress import say
from sacl.training.finetune import DenseTask, Slices, paste, random_squares
from sacl.training.loop import Average
from sacl.training.pace import Pace
from sacl.training.sampler import slice_weights

DECAY = 0.99
"""Share of itself that the teacher keeps in a step."""
LEAST_SHARE = 0.3
"""A short training learns from labeled slices alone for at most this share of its steps."""


@dataclass(frozen=True, kw_only=True)
class Trust:
    """How far the teacher is believed; a pixel drawn by hand counts 1.

    One with its label counts `weight`, or not at all below `confidence` in the most likely class;
    with `spare_coarse` also where the coarse map has an organ and the teacher background, so that
    an organ that the teacher loses is not unlearned. `balanced` draws unlabeled slices like labeled
    ones, half of them evenly over the organs of the coarse map; otherwise all evenly.
    """

    weight: float = 0.5
    confidence: float = 0.0
    spare_coarse: bool = False
    balanced: bool = False


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
        trust: Trust = Trust(),
        pace: Pace | None = None,
    ) -> None:
        self.labeled, self.teacher, self.start, self.trust = labeled, teacher, start, trust
        self.pace = pace
        store = labeled.store
        self.rows = np.flatnonzero(store.dense_index["reference_row"].to_numpy() < 0)
        self.weights = np.full(len(self.rows), 1 / max(len(self.rows), 1))
        if trust.balanced and len(self.rows):
            self.weights = slice_weights(store.dense_coarse[self.rows], len(store.meta.organs))

    def batch(self, step: int) -> tuple[Slices, Float[Tensor, "n i j"]]:
        """Return the mixed slices of a step, and how much each of their pixels counts."""
        rules = self.labeled.rules
        rng, generator = rules.randomness(step)
        half = max(rules.batch // 2, 1)
        drawn = self.labeled.slices(half, rng, generator)
        unlabeled, believed = self._unlabeled(drawn.annotated, rng, generator)
        inside = random_squares(half, drawn.image.shape[-1], generator, rules.device)
        mixed = (paste(drawn, unlabeled, inside), paste(unlabeled, drawn, inside))
        by_hand = torch.cat([inside, ~inside])
        weight = torch.where(believed, self.trust.weight, 0.0).repeat(2, 1, 1)
        return (
            Slices(*(torch.cat(parts) for parts in zip(*mixed, strict=True))),
            torch.where(by_hand, 1.0, weight),
        )

    def _unlabeled(
        self,
        annotated: Bool[Tensor, "n organ"],
        rng: np.random.Generator,
        generator: torch.Generator,
    ) -> tuple[Slices, Bool[Tensor, "n i j"]]:
        """Draw unlabeled slices with the teacher's labels, and tell where these are believed.

        The teacher sees the slices before their intensity changes.
        """
        store, rules, trust = self.labeled.store, self.labeled.rules, self.trust
        rows = self.rows[rules.rows(self.weights, len(annotated), rng)]
        channels = [(store.dense_images, rows)]
        if trust.spare_coarse:
            channels.append((store.dense_coarse, rows))
        pixels = rules.mapped(store.meta, channels, generator)
        image = pixels[:, :1].clone()
        self.teacher.eval()
        with torch.no_grad(), autocast(rules.device):
            logit = self.teacher(channels_last(image)).float()
        labels = logit.argmax(dim=1)
        believed = logit.softmax(dim=1).amax(dim=1) >= trust.confidence
        if trust.spare_coarse:
            believed &= (labels > 0) | (pixels[:, 1] == 0)
        changed = change_intensity(image, rules.ranges, generator)
        return Slices(changed, labels, torch.ones_like(annotated)), believed

    def loss(self, network: nn.Module, step: int) -> Float[Tensor, ""]:
        """Return the loss of one step."""
        if is_early(step, self.start, self.pace):
            return self.labeled.loss(network, step)
        self.labeled.rules.hold_frozen()
        slices, weight = self.batch(step) if len(self.rows) else (self.labeled.batch(step), None)
        logit = network(channels_last(slices.image))
        return dense_loss(logit, slices.labels, slices.annotated, pixel_weight=weight)


def with_teacher(
    labeled: DenseTask,
    network: nn.Module,
    start: int,
    trust: Trust = Trust(),
    pace: Pace | None = None,
) -> tuple[TeacherTask, Average]:
    """Return a task with unlabeled slices from a step on, and the teacher that labels them."""
    if not (labeled.store.dense_index["reference_row"] < 0).any():
        say("every training scan is labeled, so the teacher's steps see labeled slices")
    average = Average(copy.deepcopy(network).requires_grad_(False), DECAY)
    return TeacherTask(labeled, average.network, start, trust, pace), average
