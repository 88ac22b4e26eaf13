"""Several ranks compute what one process does, and end together."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.fabric import Fabric
from tests.methods.test_patch_batches import patch_store
from tests.methods.test_query_volumes import volumes as a_store_of_volumes
from tests.methods.test_slice_batches import store_with_phases
from tests.rank_processes import on_ranks, share, start
from tests.stages.toy_cohort import locate_toy_cohort
from tests.training.test_coarse_training import case_of
from tests.training.test_coarse_training import spec_of as volume_spec
from tests.training.test_segmentation_training import CPU, make_store, rules, spec_of
from torch import nn

from sacl import ranks
from sacl.cli import main
from sacl.errors import ConfigError, DeviceError, SaclError
from sacl.losses.contrastive import contrastive_loss
from sacl.methods import Recipe, method_named, pooled
from sacl.networks.coarse import CoarseNetwork
from sacl.networks.device import resolve_device, seeded
from sacl.networks.projector import Projector
from sacl.networks.segmenter import build_segmenter
from sacl.patches.views import VIEWS
from sacl.settings import ExtractSettings
from sacl.stages.extract import extract
from sacl.training import loop
from sacl.training.coarse import CropTask
from sacl.training.finetune import DenseTask, QueryTask
from sacl.training.loop import train
from sacl.training.pace import Plan
from sacl.training.teacher import TeacherTask, with_teacher

RANGES = VIEWS["strong"]
STEPS = 20


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """Let networks and losses compute in float64, so that equal means equal but for the order."""
    with pytest.MonkeyPatch.context() as patch:
        to_float32, masks = torch.Tensor.float, pooled.region_masks
        kept = lambda x: x if x.dtype == torch.float64 else to_float32(x)  # noqa: E731
        patch.setattr(torch.Tensor, "float", kept)
        patch.setattr(pooled, "region_masks", lambda *given: masks(*given).double())
        patch.setattr(Fabric, "setup", lambda fabric, network, optimizer: (network, optimizer))
        patch.setattr(Fabric, "backward", lambda fabric, loss: loss.backward())
        yield


def pretraining(name):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 65536, (20, 24, 24), dtype=np.uint16)
    attention = rng.integers(0, 256, (20, 24, 24), dtype=np.uint8)
    store = store_with_phases() if name == "pooled" else patch_store((images, attention))
    recipe = Recipe(width=8, batch=7, scan_labels=("phase",), ranges=RANGES, projector=(16, 8))
    made = method_named(name).build(store, recipe)
    return made.network, made.loss, None


def query_volumes(name):
    with seeded(1):
        made = method_named(name).build(
            a_store_of_volumes(), Recipe(batch=7, ranges=RANGES, projector=(16, 8))
        )
    return made.network, made.loss, None


def slices(copy_paste=0.0, teacher_steps=0, frozen=False):
    store = make_store()
    if teacher_steps:
        store.dense_index["reference_row"] = [*range(7), *[-1] * 5]
    network = build_segmenter(spec_of("dense"), 1)
    network.encoder.requires_grad_(not frozen)
    labeled = DenseTask(store, rules(ranges=RANGES, batch=7), 0.5, copy_paste)
    return network, *with_teacher(labeled, network, 2, teacher_steps, None)


def query():
    return build_segmenter(spec_of("query"), 1), QueryTask(make_store(), rules(batch=7)).loss, None


def volumes(mixed=False):
    with seeded(1):
        network, teacher = CoarseNetwork(volume_spec()), CoarseNetwork(volume_spec())
    cases = [case_of(), case_of((18, 24, 12), annotated=(True, False))]
    plan = Plan(steps=9, learning_rate=1e-3, seed=0, batch=3)
    task = CropTask(cases, volume_spec(), plan, CPU, [case_of()])
    if mixed:
        return network, TeacherTask(task, teacher.eval(), 0).loss, None
    return network, task.loss, None


TRAININGS = {
    "semantic": lambda: pretraining("semantic"),
    "simclr": lambda: pretraining("simclr"),
    "pooled": lambda: pretraining("pooled"),
    "slices": slices,
    "copy-paste": lambda: slices(copy_paste=0.5),
    "teacher": lambda: slices(teacher_steps=1),
    "frozen": lambda: slices(frozen=True),
    "query": query,
    "volumes": volumes,
    "mixed volumes": lambda: volumes(mixed=True),
    "semantic volumes": lambda: query_volumes("semantic"),
    "pooled volumes": lambda: query_volumes("pooled"),
}
WHOLE = ("semantic", "teacher", "mixed volumes")
"""Trainings that are done for all their steps; two ranks go on with the teacher's halfway."""


def double(network):
    """Let a network compute in float64 whatever comes in."""
    network.double().register_forward_pre_hook(lambda _, pixels: pixels[0].double())
    return network


def gradient_of(name):
    """Return the loss and the gradient of a training's fourth step, in one vector."""
    network, loss_of_step, _ = TRAININGS[name]()
    for part in double(network).children():
        part.train(next(part.parameters()).requires_grad)
    with ranks.same_statistics(network):
        loss = loss_of_step(network, 3)
        loss.backward()
    ranks.sum_gradients(network)
    parts = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
    return float(loss.detach()), torch.cat(parts)


def trained(name, watch=lambda step: None, **how):
    """Return the losses of a training, and the weights that it ends with."""
    network, loss_of_step, average = TRAININGS[name]()
    if average:
        double(average.network)

    def watched(network, step):
        watch(step)
        return loss_of_step(network, step)

    rates = {part: 1e-3 for part in network.children() if next(part.parameters()).requires_grad}
    losses = train(double(network), watched, rates, STEPS, CPU, what=name, average=average, **how)
    return losses, torch.cat([v.flatten().double() for v in network.state_dict().values()])


def anchors(mine):
    """Return loss and gradients of eight rows, of which the first rank has `mine`.

    The last three rows have no positive, and are no anchors.
    """
    z = torch.randn(8, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    if ranks.count() > 1:
        z = z[:mine] if os.environ["RANK"] == "0" else z[mine:]
    with seeded(2):
        projector = Projector(4, 8, 3).double()
    positive = torch.zeros(8, 8, dtype=torch.bool)
    positive[:5, :5] = True
    with ranks.same_statistics(projector), in_float64():
        loss = contrastive_loss(projector(z), positive, torch.ones_like(positive), 0.5)
    loss.backward()
    ranks.sum_gradients(projector)
    return loss.item(), torch.cat([p.grad.flatten() for p in projector.parameters()])


def not_finite_on_one():
    """Return what is said where the second rank's loss is not finite at step 2."""
    network = nn.Linear(2, 1)

    def loss_of_step(network, step):
        bad = step == 2 and os.environ.get("RANK") == "1"
        return ranks.total(network(torch.ones(1, 2)).sum() * (torch.nan if bad else 1.0))

    with pytest.raises(SaclError) as said:
        train(network, loss_of_step, {network: 1e-3}, 5, CPU, what="test")
    return str(said.value)


def everything(halfway=None):
    """Return gradients, whole trainings, and what there is besides."""
    with in_float64():
        gradients = {name: gradient_of(name) for name in TRAININGS}
        given = {"teacher": {"checkpoint": halfway}}
        whole = {name: trained(name, **given.get(name, {})) for name in WHOLE}
    return gradients, whole, [anchors(5), anchors(8)]


def everything_of_two(halfway):
    of_first = halfway if os.environ["RANK"] == "0" else None
    return *everything(of_first), not_finite_on_one()


@pytest.fixture(scope="module")
def one():
    return everything()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    halfway = tmp_path_factory.mktemp("halfway") / "training.pt"

    def ends_halfway(step):
        if step == STEPS // 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, in_float64(), pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "_SAVE_EVERY_S", 0.0)
        trained("teacher", ends_halfway, checkpoint=halfway)
    return on_ranks(2, everything_of_two, halfway)


@pytest.mark.parametrize("name", TRAININGS)
def test_two_ranks_have_the_loss_and_the_gradient_of_one_process(one, two, name):
    (loss, gradient), (loss_of_two, gradient_of_two) = one[0][name], two[0][name]
    assert loss_of_two == pytest.approx(loss, rel=1e-6)
    assert (gradient_of_two - gradient).norm() < 1e-6 * gradient.norm()


@pytest.mark.parametrize("name", WHOLE)
def test_twenty_steps_on_two_ranks_are_those_of_one_process(one, two, name):
    (losses, weights), (losses_of_two, weights_of_two) = one[1][name], two[1][name]
    assert losses_of_two == pytest.approx(losses, abs=1e-4)
    torch.testing.assert_close(weights_of_two, weights, rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", [0, 1], ids=["no anchor", "no row"])
def test_a_rank_without_an_anchor_or_a_row_takes_part(one, two, case):
    (loss, gradient), (loss_of_two, gradient_of_two) = one[2][case], two[2][case]
    assert loss_of_two == pytest.approx(loss, rel=1e-9)
    torch.testing.assert_close(gradient_of_two, gradient, rtol=1e-9, atol=1e-12)


def test_a_loss_that_is_not_finite_on_one_rank_ends_all_at_that_step(two):
    assert "not finite at step 2" in two[3]


def stopped_on_the_second(checkpoint):
    def watch(step):
        if step == 5 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)

    with in_float64():
        of_first = checkpoint if os.environ["RANK"] == "0" else None
        trained("mixed volumes", watch, checkpoint=of_first)


def test_a_signal_to_one_rank_stops_all_and_one_process_goes_on(one, tmp_path):
    checkpoint = tmp_path / "training.pt"
    ended = start(2, share, tmp_path / "answer", stopped_on_the_second, checkpoint)
    assert all("KeyboardInterrupt" in rank.said for rank in ended)
    assert len(torch.load(checkpoint, weights_only=True)["losses"]) == 6
    with in_float64():
        losses, weights = trained("mixed volumes", checkpoint=checkpoint)
    assert losses == pytest.approx(one[1]["mixed volumes"][0], abs=1e-4)
    torch.testing.assert_close(weights, one[1]["mixed volumes"][1], rtol=0, atol=1e-4)


def killed_at_step_5(arguments):
    """Run a command of which the second rank is killed in its sixth step."""
    steps, sum_gradients = itertools.count(), ranks.sum_gradients

    def watched(network):
        if next(steps) == 5 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        sum_gradients(network)

    ranks.sum_gradients, loop._SAVE_EVERY_S = watched, 0.0
    return main(arguments)


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    workspace = locate_toy_cohort(tmp_path_factory.mktemp("ranks"))
    extract(ExtractSettings(patch_size=16, dense_size=16, region="slice"), workspace)
    return workspace.root


def command_in(root, name, **settings):
    flags = [word for key, value in settings.items() for word in (f"--{name}.{key}", str(value))]
    return [name, "--work", str(root), "--device", "cpu", *flags]


PRETRAIN = {"method": "semantic", "steps": 8, "batch": 8, "width": 8}


def test_a_killed_rank_ends_the_other_and_one_process_goes_on(extracted, tmp_path):
    shutil.copytree(extracted, tmp_path / "work")
    command = command_in(tmp_path / "work", "pretrain", **PRETRAIN)
    begun = time.monotonic()
    first, second = start(2, killed_at_step_5, command)
    assert time.monotonic() - begun < 120
    assert (first.code, second.code) == (1, -signal.SIGKILL)
    assert re.search(r"^sacl: another rank has ended or does not answer \(.+", first.said, re.M)
    assert main(command) == 0
    record = json.loads((tmp_path / "work/4-encoder/run.json").read_text())
    assert record["results"]["steps"] == 8
    assert len(pd.read_csv(tmp_path / "work/4-encoder/losses.csv")) == 8


def test_the_first_rank_writes_and_speaks_alone(extracted, tmp_path):
    root = tmp_path / "work"
    shutil.copytree(extracted, root)
    assert main(command_in(root, "pretrain", **PRETRAIN | {"steps": 1})) == 0
    slices = {"steps": 1, "dense.teacher_steps": 1, "batch": 4}
    first, second = start(2, main, command_in(root, "finetune", **slices))
    assert (first.code, second.code, second.said) == (0, 0, "")
    assert first.said.count("2 ranks share") == 1
    assert "finetune: semantic, 2 steps" in first.said
    assert {path.name for path in (root / "5-segmenter/semantic").iterdir()} == {
        "losses.csv",
        "segmenter.json",
        "segmenter.safetensors",
    }


def gloo_threads_left() -> int:
    ranks.join_and_run(lambda: 0)
    names = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
    return sum("gloo" in name for name in names)


@pytest.mark.skipif(not Path("/proc").exists(), reason="threads are counted in /proc")
def test_no_thread_of_a_rank_outlives_its_command():
    assert [ended.code for ended in start(2, gloo_threads_left)] == [0, 0]


def test_what_the_first_rank_cannot_do_ends_all_with_its_line():
    first, second = start(2, main, ["pretrain", "nothing.yaml"])
    assert first.code == 2
    assert first.said.splitlines()[1].startswith("sacl: nothing.yaml: ")
    assert second.code == 1
    assert second.said.startswith("sacl: rank 1: another rank has ended")


@pytest.fixture
def four_ranks(monkeypatch):
    monkeypatch.setattr(ranks._joined, "count", 4)


def test_more_ranks_than_samples_are_refused(four_ranks, monkeypatch):
    ranks.require_samples(4, "finetune.batch")
    for samples, each in ((3, 1), (7, 2)):
        line = f"4 ranks cannot share a step of {samples}; give --finetune.batch {4 * each} at"
        with pytest.raises(ConfigError, match=line):
            ranks.require_samples(samples, "finetune.batch", each)
    monkeypatch.setattr(ranks._joined, "shared", True)
    with pytest.raises(ConfigError, match="4 ranks cannot share a step of 3"):
        ranks.own(3)


def test_samples_are_shared_out_evenly_each_once(four_ranks, monkeypatch):
    monkeypatch.setattr(ranks._joined, "shared", True)
    shares = []
    for rank in range(4):
        monkeypatch.setattr(ranks._joined, "rank", rank)
        shares.append(ranks.own(10).tolist())
    assert sorted(len(part) for part in shares) == [2, 2, 3, 3]
    assert list(itertools.chain(*shares)) == list(range(10))


def test_a_gpu_is_not_chosen_for_all_ranks(four_ranks):
    with pytest.raises(DeviceError, match="each rank has its own GPU; give --device cuda or auto"):
        resolve_device("cuda:1")
