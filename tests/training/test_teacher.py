"""The teacher: how it follows, what it labels, and how labeled and unlabeled slices are mixed."""

import copy

import numpy as np
import pytest
import torch
from tests.training.test_segmentation_training import CPU, SIZE, make_store, rules, spec_of
from torch import nn

from sacl.networks.segmenter import build_segmenter
from sacl.training.finetune import TRUST, DenseTask, Labeled, paste
from sacl.training.loop import Average, train
from sacl.training.pace import Pace
from sacl.training.teacher import TeacherTask


class Says(nn.Module):
    """A teacher that finds one label everywhere."""

    def __init__(self, label):
        super().__init__()
        self.label = label

    def forward(self, pixels):
        logit = torch.zeros(len(pixels), 3, *pixels.shape[2:])
        logit[:, self.label] = 1.0
        return logit


def half_labeled():
    """Return a store whose last six slices have no reference."""
    store = make_store()
    store.dense_index["reference_row"] = [*range(6), *[-1] * 6]
    return store


def task_with(teacher, start=0):
    return TeacherTask(DenseTask(half_labeled(), rules(), balance=0.0), teacher, start)


def mixed(task):
    return task.labeled.mixed(0, task.labels_of)


def test_only_labeled_slices_are_drawn_as_labeled():
    task = DenseTask(half_labeled(), rules(batch=6), balance=0.0)
    assert task.rows.tolist() == list(range(6))
    assert len(task.weights) == 6


def test_a_mixed_step_has_the_teachers_labels_where_nobody_drew_any():
    slices, weight = mixed(task_with(Says(2)))
    assert slices.image.shape == (6, 1, SIZE, SIZE)
    assert (slices.labels[weight == 0.5] == 2).all()
    assert set(weight.unique().tolist()) == {0.5, 1.0}
    # The two halves are each other's negative: together every pixel is once drawn by hand.
    assert torch.equal(weight[:3] == 1.0, weight[3:] == 0.5)


def test_pixels_and_labels_move_together():
    store = half_labeled()
    store.dense_images[6:] = 65535  # unlabeled slices are white
    task = TeacherTask(DenseTask(store, rules(), balance=0.0), Says(1), 0)
    slices, weight = mixed(task)
    assert torch.equal(slices.image[:, 0] > 0.99, weight == TRUST)


def test_the_first_steps_are_those_without_a_teacher():
    network = build_segmenter(spec_of("dense"), seed=0)
    task = task_with(Says(1), start=5)
    assert torch.equal(task.loss(network, 4), task.labeled.loss(network, 4))
    assert not torch.equal(task.loss(network, 5), task.labeled.loss(network, 5))


@pytest.mark.parametrize(
    ("step", "position", "early"),
    [(4, 4, True), (5, 5, False), (2, 29, True), (2, 30, False), (5, 20, False)],
)
def test_a_short_training_learns_from_labels_for_a_third_of_its_steps_at_most(
    step, position, early
):
    network, pace = build_segmenter(spec_of("dense"), seed=0), Pace()
    pace.steps, pace.position = 100, position
    task = TeacherTask(DenseTask(half_labeled(), rules(), balance=0.0), Says(1), 5, pace=pace)
    assert torch.equal(task.loss(network, step), task.labeled.loss(network, step)) is early


def test_where_every_slice_is_labeled_all_steps_are_labeled_ones():
    network = build_segmenter(spec_of("dense"), seed=0)
    task = TeacherTask(DenseTask(make_store(), rules(), balance=0.0), Says(1), 0)
    assert torch.equal(task.loss(network, 3), task.labeled.loss(network, 3))


def test_classes_weigh_alike_after_the_first_steps_alone():
    network, store = build_segmenter(spec_of("dense"), seed=0), make_store()
    weighed, alike = (DenseTask(store, rules(), balance=balance) for balance in (0.5, 0.0))
    assert not torch.equal(weighed.loss(network, 3), alike.loss(network, 3))
    task = TeacherTask(weighed, Says(1), 3)
    assert torch.equal(task.loss(network, 2), weighed.loss(network, 2))
    assert torch.allclose(task.loss(network, 3), alike.loss(network, 3))


def test_the_teacher_gets_no_gradient():
    network = build_segmenter(spec_of("dense"), seed=0)
    teacher = copy.deepcopy(network)
    task_with(teacher).loss(network, 0).backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert any(p.grad is not None for p in network.parameters())


def test_the_average_follows_as_the_equation_says():
    network, follower = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    average = Average(follower, decay=0.9)
    expected = float(follower.weight.detach())
    for step, value in enumerate([1.0, 3.0, -2.0, 5.0, 4.0]):
        network.weight.data.fill_(value)
        average.follow(network, step)
        decay = min(0.9, 1 - 1 / (step + 2))
        expected = decay * expected + (1 - decay) * value
        assert float(follower.weight.detach()) == pytest.approx(expected, rel=1e-6)


def test_a_resumed_training_has_the_same_teacher(tmp_path, monkeypatch):
    monkeypatch.setattr("sacl.training.loop._SAVE_EVERY_S", 0.0)

    def fit(stop=None, checkpoint=None):
        network = build_segmenter(spec_of("dense"), seed=0)
        average = Average(copy.deepcopy(network).requires_grad_(False), 0.9)
        task = task_with(average.network, start=2)

        def loss(network, step):
            if step == stop:
                raise KeyboardInterrupt
            return task.loss(network, step)

        groups = {network: 1e-3}
        train(
            network,
            loss,
            groups,
            6,
            CPU,
            what="test",
            checkpoint=checkpoint,
            average=average,
        )
        return average.network

    whole = fit()
    with pytest.raises(KeyboardInterrupt):
        fit(stop=4, checkpoint=tmp_path / "training.pt")
    resumed = fit(checkpoint=tmp_path / "training.pt")
    for one, other in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_pasting_leaves_an_organ_annotated_only_where_both_know_it():
    def slices(value, annotated):
        return Labeled(
            torch.full((2, 1, 4, 4), value),
            torch.full((2, 4, 4), int(value)),
            torch.tensor([annotated] * 2),
        )

    inside = torch.zeros(2, 4, 4, dtype=torch.bool)
    inside[0, :2] = True
    pasted = paste(slices(1.0, [True, False]), slices(0.0, [True, True]), inside)
    assert torch.equal(pasted.image[:, 0], inside.float())
    assert torch.equal(pasted.labels, inside.long())
    assert pasted.annotated.tolist() == [[True, False], [True, True]]


def test_copy_paste_between_labeled_slices_changes_the_share_that_was_asked():
    plain = DenseTask(make_store(), rules(batch=12), balance=0.0).batch(1)
    changing = DenseTask(make_store(), rules(batch=12), balance=0.0, copy_paste=1.0).batch(1)
    none = DenseTask(make_store(), rules(batch=12), balance=0.0, copy_paste=1e-9).batch(1)
    changed = (plain.image != changing.image).flatten(1).any(dim=1)
    assert changed.all()
    assert torch.equal(none.image, plain.image)
    # A pixel is its own slice's or the slice's before it, with that slice's label.
    for n in range(12):
        own = changing.image[n, 0] == plain.image[n, 0]
        assert torch.equal(changing.image[n, 0][~own], plain.image[n - 1, 0][~own])
        assert np.isin(changing.labels[n][~own], plain.labels[n - 1].unique()).all()
