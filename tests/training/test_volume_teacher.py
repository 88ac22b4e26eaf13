"""Fine-tuning on volumes with unlabeled scans: what is pasted where, and who labels it."""

import pytest
import torch
from test_coarse_training import CPU, case_of, spec_of
from torch import nn

from sacl.training.coarse import CropTask
from sacl.training.teacher import TRUST
from sacl.training.volumes import MixedCropTask, random_boxes


class SaysTwo(nn.Module):
    """A teacher to whom everything is organ 2."""

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return [torch.tensor([0.0, 0.0, 9.0]).view(1, 3, 1, 1, 1).expand(-1, -1, *image.shape[2:])]


def task_of(start=0, unlabeled=True):
    labeled, other = case_of(), case_of()
    other.image.mul_(0).add_(0.3)
    task = CropTask([labeled], spec_of(), 1, 0, CPU)
    return MixedCropTask(task, [other] if unlabeled else [], SaysTwo(), start)


@pytest.mark.parametrize(("crop", "share"), [((12, 12, 12), 8 / 27), ((12, 12, 1), 4 / 9)])
def test_a_box_is_two_thirds_of_the_crop_and_all_of_a_thin_one(crop, share):
    boxes = random_boxes(20, crop, torch.Generator().manual_seed(0), CPU)
    inside = boxes.flatten(1).float().mean(dim=1)
    assert torch.allclose(inside, torch.full((20,), share), atol=1e-6)
    assert len({tuple(box.nonzero()[0].tolist()) for box in boxes}) > 3


@pytest.mark.parametrize("step", [0, 1])
def test_the_teacher_labels_what_is_not_drawn_by_hand_and_counts_half(step):
    crops, counts = task_of().batch(step)
    drawn = counts == 1
    share = drawn.float().mean().item()
    assert share == pytest.approx(8 / 27 if step % 2 == 0 else 19 / 27, abs=0.1)
    assert set(counts.unique().tolist()) == {TRUST, 1.0}
    assert (crops.labels[~drawn] == 2).all()
    assert (crops.labels[drawn] != 2).any()


def test_the_first_steps_and_those_without_unlabeled_scans_are_of_labeled_crops():
    class Counted(nn.Module):
        def forward(self, image):
            return [torch.zeros(len(image), 3, *image.shape[2:])]

    for task, step in ((task_of(start=2), 1), (task_of(unlabeled=False), 5)):
        alone = task.labeled.loss(Counted(), step)
        assert task.loss(Counted(), step) == alone
    assert task_of(start=2).loss(Counted(), 2) != task_of(start=2).labeled.loss(Counted(), 2)
