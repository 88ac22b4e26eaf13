"""Segmentation tasks: what a batch holds, how it is drawn, and that training learns."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from sacl.networks.encoder import EncoderSpec
from sacl.networks.segmenter import SegmenterSpec, build_segmenter
from sacl.patches.region import Placement
from sacl.patches.store import PatchStore, StoreMeta
from sacl.patches.views import ViewRanges
from sacl.patches.window import WindowRule
from sacl.training.finetune import DenseTask, QueryTask
from sacl.training.loop import train
from sacl.training.sampler import StepRules, slice_weights

ORGANS = ("liver", "spleen")
SIZE, STORED = 32, 48
CPU = torch.device("cpu")


def ellipse(center, radius):
    i, j = np.mgrid[:STORED, :STORED]
    return ((i - center[0]) ** 2 + (j - center[1]) ** 2 < radius**2).astype(np.uint8)


def make_store(slices=12):
    """Return a store of bright disks: two organs side by side, their patches found a bit off."""
    rng = np.random.default_rng(0)
    images, labels, patches = [], [], []
    for n in range(slices):
        liver, spleen = ellipse((20, 17 + n % 3), 6), ellipse((26, 32), 4)
        label = liver + 2 * spleen * (n % 2)
        image = 0.3 * (label == 1) + 0.6 * (label == 2) + 0.1 * rng.random((STORED, STORED))
        images.append(image * 65535)
        labels.append(label)
        for organ in (1, 2) if n % 2 else (1,):
            mask = label == organ
            patches.append((n, organ, image, np.roll(mask, 1, axis=0), mask))
    index = pd.DataFrame(
        {
            "organ": [ORGANS[organ - 1] for _, organ, *_ in patches],
            "reference_row": range(len(patches)),
            "split": "train",
        }
    )
    annotated = ["liver;spleen"] * (slices - 1) + ["liver"]
    dense_index = pd.DataFrame(
        {"annotated": annotated, "reference_row": range(slices), "holds_organ": True}
    )
    return PatchStore(
        StoreMeta(SIZE, STORED, SIZE, STORED, ORGANS),
        index,
        dense_index,
        images=np.stack([65535 * p[2] for p in patches]).astype(np.uint16),
        attention=np.stack([255 * p[3] for p in patches]).astype(np.uint8),
        references=np.stack([255 * p[4] for p in patches]).astype(np.uint8),
        dense_images=np.stack(images).astype(np.uint16),
        dense_references=np.stack(labels).astype(np.uint8),
        dense_coarse=np.stack(labels).astype(np.uint8),
    )


def rules(**changes):
    return replace(StepRules(batch=6, ranges=ViewRanges(), seed=0, device=CPU), **changes)


def spec_of(head):
    return SegmenterSpec(
        encoder=EncoderSpec(width=8),
        decoder="unet",
        head=head,
        scheme="two",
        organs=ORGANS,
        image_size=SIZE,
        window=WindowRule("ct", (0.0, 1.0)),
        placement=Placement(region="slice", min_side_mm=24.0),
    )


def task_of(head, store=None, **changes):
    store = store or make_store()
    if head == "dense":
        return DenseTask(store, rules(**changes), balance=0.5)
    return QueryTask(store, rules(**changes))


def test_without_augmentation_a_dense_batch_is_the_stores_center():
    store = make_store()
    task = DenseTask(store, rules(), balance=0.5)
    image, labels, annotated = task.batch(3)
    rng, _ = task.rules.randomness(3)
    rows = task.rules.rows(task.weights, task.rules.batch, rng)
    edge = (STORED - SIZE) // 2
    inner = slice(edge, edge + SIZE)
    assert image.shape == (6, 1, SIZE, SIZE)
    assert np.array_equal(labels.numpy(), store.dense_references[rows][:, inner, inner])
    expected = store.dense_images[rows][:, inner, inner] / 65535
    assert np.allclose(image[:, 0].numpy(), expected, atol=1e-5)
    assert np.array_equal(annotated[:, 1].numpy(), rows != 11)


def test_labels_stay_labels_under_augmentation():
    ranges = ViewRanges(rotation_deg=30, scale=(0.7, 1.3), shift=0.1)
    _, labels, _ = task_of("dense", ranges=ranges).batch(0)
    assert set(labels.unique().tolist()) == {0, 1, 2}


@pytest.mark.parametrize("head", ["dense", "query"])
def test_a_step_draws_the_same_batch_however_the_run_got_there(head):
    ranges = ViewRanges(rotation_deg=30, noise=0.1, contrast=0.2)
    task = task_of(head, ranges=ranges)
    first = task.batch(7)
    task.batch(8)
    again = task_of(head, ranges=ranges).batch(7)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], task.batch(8)[0])


def test_query_patches_are_drawn_evenly_over_the_organs():
    task = task_of("query")
    assert task.weights[task.organ == 0].sum() == pytest.approx(0.5)
    assert task.weights[task.organ == 1].sum() == pytest.approx(0.5)


def test_a_rare_organs_slices_are_drawn_more_often():
    held = np.zeros((10, 3), np.bool_)
    held[:5, 0] = held[0, 1] = True
    weights = slice_weights(held)
    assert weights.sum() == pytest.approx(1.0)
    # Half evenly: 0.05 each. A quarter to each organ: 0.05 for the first's five, 0.25 for the one.
    assert weights[0] == pytest.approx(0.05 + 0.05 + 0.25)
    assert weights[1] == pytest.approx(0.05 + 0.05)
    assert weights[9] == pytest.approx(0.05)


def test_slices_of_background_alone_are_drawn_evenly():
    assert slice_weights(np.zeros((4, 2), np.bool_)).tolist() == [0.25] * 4


def test_the_attention_is_the_cross_fitted_one():
    store = make_store()
    pixels, reference = QueryTask(store, rules()).batch(0)
    # Found one pixel off, as in the store.
    assert torch.allclose(pixels[:, 1].roll(-1, dims=1)[:, :-1], reference[:, 0, :-1], atol=1e-4)


@pytest.mark.parametrize("head", ["dense", "query"])
def test_training_learns(head):
    segmenter = build_segmenter(spec_of(head), seed=0)
    losses = train(
        segmenter,
        task_of(head).loss,
        {segmenter: 1e-2},
        25,
        CPU,
        what="test",
    )
    assert np.mean(losses[-3:]) < 0.6 * np.mean(losses[:3])


def test_a_frozen_encoder_does_not_change_at_all():
    segmenter = build_segmenter(spec_of("dense"), seed=0)
    segmenter.encoder.requires_grad_(False)
    before = {k: v.clone() for k, v in segmenter.encoder.state_dict().items()}
    train(
        segmenter,
        task_of("dense").loss,
        {segmenter.decoder: 1e-2, segmenter.head: 1e-2},
        2,
        CPU,
        what="test",
    )
    after = segmenter.encoder.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
