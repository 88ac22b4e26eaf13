"""Fine-tuning on volumes with unlabeled scans: what is pasted where, and who labels it."""

from dataclasses import replace

import pytest
import torch
from test_coarse_training import CPU, case_of, spec_of
from torch import nn

from sacl.training.coarse import CropTask, random_boxes
from sacl.training.finetune import TRUST
from sacl.training.pace import Plan
from sacl.training.teacher import TeacherTask


class SaysTwo(nn.Module):
    """A teacher to whom everything is organ 2."""

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        return [torch.tensor([0.0, 0.0, 9.0]).view(1, 3, 1, 1, 1).expand(-1, -1, *image.shape[2:])]


def task_of(start=0, unlabeled=True):
    labeled, other = case_of(), case_of()
    other.image.mul_(0).add_(0.3)
    plan = Plan(steps=9, learning_rate=1e-3, seed=0)
    task = CropTask([labeled], spec_of(), plan, CPU, [other] if unlabeled else [])
    return TeacherTask(task, SaysTwo(), start)


def mixed(task, step):
    return task.labeled.mixed(step, task.labels_of)


@pytest.mark.parametrize(("crop", "share"), [((12, 12, 12), 8 / 27), ((12, 12, 1), 4 / 9)])
def test_a_box_is_two_thirds_of_the_crop_and_all_of_a_thin_one(crop, share):
    boxes = random_boxes(20, crop, torch.Generator().manual_seed(0), CPU)
    inside = boxes.flatten(1).float().mean(dim=1)
    assert torch.allclose(inside, torch.full((20,), share), atol=1e-6)
    assert len({tuple(box.nonzero()[0].tolist()) for box in boxes}) > 3


@pytest.mark.parametrize("step", [0, 1])
def test_the_teacher_labels_what_is_not_drawn_by_hand_and_counts_half(step):
    crops, counts = mixed(task_of(), step)
    drawn = counts == 1
    share = drawn.float().mean().item()
    assert share == pytest.approx(8 / 27 if step % 2 == 0 else 19 / 27, abs=0.1)
    assert set(counts.unique().tolist()) == {TRUST, 1.0}
    assert (crops.labels[~drawn] == 2).all()
    assert (crops.labels[drawn] != 2).any()


def test_the_first_steps_are_of_labeled_crops():
    class Counted(nn.Module):
        def forward(self, image):
            return [torch.zeros(len(image), 3, *image.shape[2:])]

    task = task_of(start=2)
    assert task.loss(Counted(), 1) == task.labeled.loss(Counted(), 1)
    assert task.loss(Counted(), 2) != task.labeled.loss(Counted(), 2)


def test_where_every_scan_is_labeled_crops_are_mixed_with_the_labels_that_were_drawn():
    task = task_of(unlabeled=False)
    crops, counts = mixed(task, 4)  # who says two is not asked
    assert (counts == 1).all()
    generator = task.labeled.generator(4)
    first, second = (task.labeled.drawn(task.labeled.cases, generator).labels for _ in range(2))
    assert ((crops.labels == first) | (crops.labels == second)).all()
    assert not torch.equal(crops.labels, first)
    assert not torch.equal(crops.labels, second)


def test_of_two_mixed_crops_an_organ_counts_that_is_annotated_in_both():
    task = task_of(unlabeled=False)
    one, other = (
        replace(task.labeled.cases[0], annotated=torch.tensor(known))
        for known in ([True, False], [True, True])
    )
    task.labeled.cases = [one, other]
    known = [tuple(mixed(task, step)[0].annotated[0].tolist()) for step in range(12)]
    assert set(known) == {(True, False), (True, True)}
    assert known.count((True, False)) > known.count((True, True))
