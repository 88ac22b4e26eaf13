"""Every training task and prediction run a few steps on a GPU, where there is one."""

import copy

import numpy as np
import pytest
import torch
from tests.methods.test_slice_batches import recipe_of, store_with_phases
from tests.research.test_slice_methods import WHOLE
from tests.training.test_segmentation_training import make_store, rules, spec_of
from tests.training.test_teacher import half_labeled

from research.embedding import embed
from sacl.methods import method_named
from sacl.networks.device import compile_for
from sacl.networks.segmenter import build_segmenter
from sacl.patches.views import VIEWS
from sacl.prediction.volume import MapRecipe, Predictor, predict_volume
from sacl.training.finetune import DenseTask, QueryTask
from sacl.training.loop import Average, train
from sacl.training.teacher import TeacherTask
from sacl.types import Grid, LabelMap, LabelScheme, Volume

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
GPU = torch.device("cuda")
RANGES = VIEWS["mild"]
RULES = rules(ranges=RANGES, device=GPU)


def fit(network, loss, average=None):
    """Return the losses of a few steps."""
    groups = {network: 1e-3}
    return train(network, loss, groups, 4, GPU, what="fit", average=average)


@pytest.mark.parametrize("head", ["dense", "query"])
def test_labeled_steps(head):
    network = build_segmenter(spec_of(head), seed=0).to(GPU)
    task = (
        DenseTask(make_store(), RULES, balance=0.5, copy_paste=0.5)
        if head == "dense"
        else QueryTask(make_store(), RULES)
    )
    assert np.isfinite(fit(network, task.loss)).all()


def test_steps_with_a_teacher():
    network = build_segmenter(spec_of("dense"), seed=0).to(GPU)
    average = Average(copy.deepcopy(network).requires_grad_(False), 0.9)
    task = TeacherTask(DenseTask(half_labeled(), RULES, 0.0, 0.5), average.network, 2)
    before = copy.deepcopy(average.network.state_dict())
    assert np.isfinite(fit(network, task.loss, average)).all()
    after = average.network.state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize(
    "name", ["semantic", "pooled", "simclr", "correlation", "semantic-hidden-half", *WHOLE]
)
def test_pretraining(name):
    store, method = store_with_phases(), method_named(name)
    labels = ("phase",) if method.reads_scan_label else ()
    recipe = recipe_of(RANGES, 8, scan_labels=labels, device=GPU)
    pretraining = method.build(store, recipe)
    network = pretraining.network.to(GPU)
    assert np.isfinite(fit(network, pretraining.loss)).all()
    assert np.isfinite(embed(network.encoder, store, np.arange(len(store)))).all()


def test_compiled_steps_give_the_losses_of_plain_ones(monkeypatch):
    losses = []
    for steps in (0, 10_000):
        network = build_segmenter(spec_of("dense"), seed=0).to(GPU)
        average = Average(copy.deepcopy(network).requires_grad_(False), 0.9)
        task = TeacherTask(DenseTask(half_labeled(), RULES, 0.0, 0.5), average.network, 2)
        compile_for(steps, [network, average.network], GPU)
        # A failure to compile is an error here, where it would be worked around otherwise.
        monkeypatch.setattr(torch._dynamo.config, "suppress_errors", False)
        losses.append(fit(network, task.loss, average))
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.05)


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
        predict_volume(Predictor(network.to(d), d, MapRecipe(copies)), volume, (0.0, 99.0), coarse)
        for d in (torch.device("cpu"), GPU)
    ]
    assert (found[0].voxels == found[1].voxels).mean() > 0.9
