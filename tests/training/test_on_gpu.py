"""Every training task and prediction run a few steps on a GPU, where there is one."""

import copy

import numpy as np
import pytest
import torch
from tests.methods.test_dense_pretraining import PARTS, WHOLE
from tests.training.test_segmentation_training import SIZE, make_store, rules, spec_of
from tests.training.test_teacher import half_labeled

from sacl.methods.contrastive import ContrastiveTask, PatchSource
from sacl.methods.dense_pretraining import DensePretraining, loss_of
from sacl.methods.embedding import embed
from sacl.networks.dense_pretrainer import DensePretrainer
from sacl.networks.device import compile_for
from sacl.networks.encoder import EncoderSpec, build_encoder
from sacl.networks.projector import Embedder
from sacl.networks.segmenter import build_segmenter
from sacl.patches.views import VIEWS
from sacl.prediction.volume import Predictor, predict_volume
from sacl.training.finetune import DenseTask, QueryTask
from sacl.training.loop import Average, Plan, RatedParameters, train
from sacl.training.sampler import BalancedSampler
from sacl.training.teacher import TeacherTask
from sacl.types import Grid, LabelMap, LabelScheme, Volume

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
GPU = torch.device("cuda")
RANGES = VIEWS["mild"]
RULES = rules(ranges=RANGES, device=GPU)


def fit(network, loss, average=None):
    """Return the losses of a few steps."""
    groups = [RatedParameters(list(network.parameters()), 1e-3)]
    return train(network, loss, groups, Plan(steps=4), GPU, what="fit", average=average)


@pytest.mark.parametrize("head", ["dense", "query"])
def test_labeled_steps(head):
    network = build_segmenter(spec_of(head), seed=0).to(GPU)
    task = (
        DenseTask(make_store(), RULES, balance=0.5, copy_paste=0.5)
        if head == "dense"
        else QueryTask(make_store(), RULES, corruption=0.5)
    )
    assert np.isfinite(fit(network, task.loss)).all()


def test_steps_with_a_teacher():
    network = build_segmenter(spec_of("dense"), seed=0).to(GPU)
    average = Average(copy.deepcopy(network).requires_grad_(False), 0.9)
    task = TeacherTask(DenseTask(half_labeled(), RULES, 0.0, 0.5), average.network, 2, 0.5)
    before = copy.deepcopy(average.network.state_dict())
    assert np.isfinite(fit(network, task.loss, average)).all()
    after = average.network.state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize(("strategy", "parts"), [*WHOLE, *PARTS])
def test_pretraining_on_slices(strategy, parts):
    network = DensePretrainer(EncoderSpec(width=8, in_channels=1), "unet", SIZE, (16, 8), 3)
    task = DensePretraining(make_store(), RULES, np.arange(12) % 2, temperature=0.1)
    assert np.isfinite(fit(network.to(GPU), loss_of(task, strategy, parts))).all()


def test_compiled_steps_give_the_losses_of_plain_ones(monkeypatch):
    losses = []
    for steps in (0, 10_000):
        network = build_segmenter(spec_of("dense"), seed=0).to(GPU)
        average = Average(copy.deepcopy(network).requires_grad_(False), 0.9)
        task = TeacherTask(DenseTask(half_labeled(), RULES, 0.0, 0.5), average.network, 2, 0.5)
        compile_for(steps, [network, average.network], GPU)
        # A failure to compile is an error here, where it would be worked around otherwise.
        monkeypatch.setattr(torch._dynamo.config, "suppress_errors", False)
        losses.append(fit(network, task.loss, average))
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.05)


@pytest.mark.parametrize("strategy", ["semantic", "organ", "correlation", "simclr"])
def test_pretraining_on_patches(strategy):
    store = make_store()
    rows = np.arange(len(store))
    attention = None if strategy == "simclr" else store.attention
    scan_label, scan = rows % 2, rows % 6
    task = ContrastiveTask(
        source=PatchSource(store.images, attention, rows, GPU),
        organ=store.organ_code,
        scan_label=scan_label,
        sampler=BalancedSampler(store.organ_code, scan_label, scan, 8, 2),
        ranges=RANGES,
        strategy=strategy,
        temperature=0.1,
        size=store.meta.patch_size,
        stored_scale=store.margin,
        seed=0,
        attention_dropout=0.5,
    )
    spec = EncoderSpec(width=8, in_channels=1 if attention is None else 2)
    embedder = Embedder(build_encoder(spec), 16, 8).to(GPU)
    assert np.isfinite(fit(embedder, task.loss)).all()
    assert np.isfinite(embed(embedder.encoder, store, rows)).all()


@pytest.mark.parametrize("copies", [0, 2])
@pytest.mark.parametrize("head", ["dense", "query"])
def test_prediction_agrees_with_the_processors(head, copies):
    rng = np.random.default_rng(0)
    grid = Grid((40, 40, 3), np.eye(4))
    volume = Volume(rng.integers(0, 99, grid.shape).astype(np.int16), grid)
    labels = np.zeros(grid.shape, np.uint8)
    labels[10:22, 12:24] = 1
    coarse = LabelMap(labels, grid, LabelScheme("two", spec_of(head).organs))
    network = build_segmenter(spec_of(head), seed=0).eval()
    found = [
        predict_volume(Predictor(network.to(d), d, copies=copies), volume, (0.0, 99.0), coarse)
        for d in (torch.device("cpu"), GPU)
    ]
    assert (found[0].voxels == found[1].voxels).mean() > 0.9
