from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from sacl.losses.contrastive import semantic_contrastive_loss
from sacl.methods import contrastive
from sacl.methods.contrastive import ContrastiveTask, PatchSource, codes_of
from sacl.patches.views import ViewRanges
from sacl.training.sampler import BalancedSampler

CPU = torch.device("cpu")


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return (
        rng.integers(0, 65536, (20, 24, 24), dtype=np.uint16),
        rng.integers(0, 256, (20, 24, 24), dtype=np.uint8),
    )


@pytest.fixture(params=["in memory", "from disk"])
def limit(request, monkeypatch):
    if request.param == "from disk":
        monkeypatch.setattr(contrastive, "_IN_MEMORY_BYTES", 0)


def test_gives_the_stored_pixels_as_fractions_of_one(arrays, limit):
    rows = np.array([7, 3, 19, 3, 0])
    source = PatchSource(*arrays, rows, CPU)

    pixels = source.pixels(np.array([4, 0, 2, 3]))

    assert len(source) == 5
    picked = rows[[4, 0, 2, 3]]
    torch.testing.assert_close(pixels[:, 0], torch.tensor(arrays[0][picked] / 65535.0).float())
    torch.testing.assert_close(pixels[:, 1], torch.tensor(arrays[1][picked] / 255.0).float())


def test_leaves_the_attention_out_where_it_is_not_given(arrays, limit):
    source = PatchSource(arrays[0], None, np.arange(20), CPU)

    assert source.pixels(np.arange(3)).shape == (3, 1, 24, 24)


def task_of(arrays, strategy="semantic", ranges=None):
    organ, label, scan = np.arange(20) % 2, np.arange(20) % 4 // 2, np.arange(20) // 4
    return ContrastiveTask(
        source=PatchSource(*arrays, np.arange(20), CPU),
        organ=organ,
        scan_label=label,
        sampler=BalancedSampler(organ, label, scan, 8, 2),
        ranges=ranges or ViewRanges(rotation_deg=20, noise=0.05),
        strategy=strategy,
        temperature=0.1,
        size=16,
        stored_scale=1.5,
        seed=3,
    )


class Flattened(nn.Module):
    def forward(self, pixels):
        return nn.functional.normalize(pixels.flatten(1) - 0.5, dim=1)


def test_is_the_semantic_loss_of_the_two_views(arrays):
    task = task_of(arrays)
    views, positions = task.views(0)

    loss = task.loss(Flattened(), 0)

    embedding = Flattened()(views.flatten(0, 1)).view(8, 2, -1)
    label = torch.from_numpy(task.organ * 2 + task.scan_label)[positions]
    torch.testing.assert_close(loss, semantic_contrastive_loss(embedding, label, 0.1))


def test_draws_the_same_step_again_and_another_for_the_next(arrays):
    task = task_of(arrays)

    first, again, following = (task.views(step)[0] for step in (5, 5, 6))

    torch.testing.assert_close(first, again, atol=0, rtol=0)
    assert not torch.equal(first, following)


def test_hides_the_attention_of_a_share_of_the_views_and_changes_nothing_else(arrays):
    task = task_of(arrays)
    plain = torch.stack([task.views(step)[0] for step in range(40)])

    hiding = replace(task, attention_dropout=0.3)
    views = torch.stack([hiding.views(step)[0] for step in range(40)])

    hidden = (views[..., 1, :, :] == 0).flatten(-2).all(dim=-1)  # [step, patch, view]
    assert hidden.float().mean().item() == pytest.approx(0.3, abs=0.06)
    assert (hidden[..., 0] != hidden[..., 1]).any(), "the views of a patch are drawn apart"
    torch.testing.assert_close(views[..., 0, :, :], plain[..., 0, :, :], atol=0, rtol=0)
    torch.testing.assert_close(
        views[..., 1, :, :], plain[..., 1, :, :] * ~hidden[..., None, None], atol=0, rtol=0
    )


def test_hides_nothing_where_there_is_no_attention(arrays):
    source = PatchSource(arrays[0], None, np.arange(20), CPU)
    task = replace(task_of(arrays), source=source, attention_dropout=1.0)

    assert task.views(0)[0].shape[2] == 1
    assert task.views(0)[0].abs().sum() > 0


def test_gives_numbers_to_names_and_minus_one_to_the_unknown():
    assert codes_of(["portal", "unknown", "native", "portal"], "unknown").tolist() == [1, -1, 0, 1]
