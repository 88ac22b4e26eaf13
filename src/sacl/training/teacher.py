"""Fine-tuning with unlabeled scans: copy-paste both ways, with labels by a slowly moving teacher.

Bidirectional copy-paste (Bai et al., CVPR 2023, doi 10.1109/CVPR52729.2023.01108): a labeled and an
unlabeled slice give two mixed ones, each with a square of the other. Labels of the unlabeled part
are those of the teacher, the moving average of the network itself (Tarvainen and Valpola, NeurIPS
2017). The classes weigh alike here: with class weights the teacher marks too much of a rare organ,
and the network learns to mark still more.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from sacl.losses.segmentation import dense_loss
from sacl.networks.device import autocast, channels_last
from sacl.patches.copy_paste import random_squares
from sacl.patches.store import IMAGE_SCALE
from sacl.patches.views import change_intensity, random_affine, resample
from sacl.training.finetune import DenseTask, Slices, paste


class TeacherTask:
    """Labeled slices alone for `start` steps, then mixed with unlabeled ones if there are any.

    A mixed step makes as many images as a labeled one: half of them labeled slices with a square
    of an unlabeled one, half the other way round.

    Args:
        labeled: The task of the first steps, and the source of labeled slices.
        teacher: The moving average of the network, which `training.trainer.train` keeps.
        start: First step with unlabeled slices.
        weight: How much a pixel with the teacher's label counts; one drawn by hand counts 1.
    """

    def __init__(self, labeled: DenseTask, teacher: nn.Module, start: int, weight: float) -> None:
        self.labeled, self.teacher, self.start, self.weight = labeled, teacher, start, weight
        reference_row = labeled.store.dense_index["reference_row"].to_numpy()
        self.rows = np.flatnonzero(reference_row < 0)
        self.weights = np.full(len(self.rows), 1 / max(len(self.rows), 1))

    def batch(self, step: int) -> tuple[Slices, Tensor]:
        """Return the mixed slices of a step, and how much each of their pixels counts."""
        rules = self.labeled.rules
        rng, generator = rules.randomness(step)
        half = max(rules.batch // 2, 1)
        drawn = self.labeled.slices(half, rng, generator)
        found = self._unlabeled(half, drawn.annotated, rng, generator)
        inside = random_squares(half, drawn.image.shape[-1], generator, rules.device)
        mixed = (paste(drawn, found, inside), paste(found, drawn, inside))
        by_hand = torch.cat([inside, ~inside])
        return (
            Slices(*(torch.cat(parts) for parts in zip(*mixed, strict=True))),
            torch.where(by_hand, 1.0, self.weight),
        )

    def _unlabeled(
        self,
        count: int,
        annotated: Tensor,
        rng: np.random.Generator,
        generator: torch.Generator,
    ) -> Slices:
        """Draw unlabeled slices with the teacher's labels, found before the intensity changes."""
        store, rules = self.labeled.store, self.labeled.rules
        rows = self.rows[rules.rows(self.weights, count, rng)]
        image = rules.gather(store.dense_images, rows)[:, None] / IMAGE_SCALE
        theta = random_affine(count, rules.ranges, generator, rules.device)
        size, stored = store.meta.dense_size, store.meta.dense_stored_size
        image = resample(image, theta, size, stored / size)
        self.teacher.eval()
        with torch.no_grad(), autocast(rules.device):
            labels = self.teacher(channels_last(image)).argmax(dim=1)
        changed = change_intensity(image, rules.ranges, generator)
        return Slices(changed, labels, torch.ones_like(annotated))

    def loss(self, network: nn.Module, step: int) -> Tensor:
        """Return the loss of one step."""
        if step < self.start or not len(self.rows):
            return self.labeled.loss(network, step)
        self.labeled.rules.hold_frozen()
        slices, weight = self.batch(step)
        logit = network(channels_last(slices.image))
        return dense_loss(logit, slices.labels, slices.annotated, pixel_weight=weight)
