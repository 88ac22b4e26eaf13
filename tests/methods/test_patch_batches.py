"""Query patches in two views, and the methods that learn from them."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from sacl.errors import ConfigError
from sacl.losses.contrastive import semantic_contrastive_loss
from sacl.methods import Recipe, method_named
from sacl.methods.batches import PatchViews, codes_of, training_patches
from sacl.patches.store import PatchStore, StoreMeta
from sacl.patches.views import ViewRanges
from sacl.training.sampler import BalancedSampler


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return (
        rng.integers(0, 65536, (20, 24, 24), dtype=np.uint16),
        rng.integers(0, 256, (20, 24, 24), dtype=np.uint8),
    )


def patch_store(arrays):
    """Return a store of twenty patches, two organs and two phases, five scans."""
    case = np.arange(20) // 4
    index = pd.DataFrame(
        {
            "organ": np.array(["liver", "spleen"])[np.arange(20) % 2],
            "case_id": [f"case-{n}" for n in case],
            "split": "train",
            "label_phase": np.array(["native", "venous"])[np.arange(20) % 4 // 2],
        }
    )
    nothing = np.zeros((0, 24, 24), np.uint8)
    meta = StoreMeta(16, 24, 16, 24, ("liver", "spleen"), ("phase",))
    return PatchStore(meta, index, pd.DataFrame(), *arrays, *[nothing] * 4)


RECIPE = Recipe(
    width=8,
    batch=8,
    scan_labels=("phase",),
    ranges=ViewRanges(rotation_deg=20, noise=0.05),
    projector=(16, 8),
    seed=3,
)


def views_of(arrays, attention=True):
    store = patch_store(arrays)
    patches = training_patches(store, ("phase",))
    sampler = BalancedSampler(patches.organ, patches.scan_label, patches.scan, 8, 4)
    return PatchViews(store, patches.rows, sampler, RECIPE, attention), patches


def test_gives_the_stored_pixels_as_fractions_of_one(arrays):
    views, _ = views_of(arrays)

    picked = np.array([7, 3, 19, 3])
    pixels = views.pixels(picked)

    torch.testing.assert_close(pixels[:, 0], torch.tensor(arrays[0][picked] / 65535.0).float())
    torch.testing.assert_close(pixels[:, 1], torch.tensor(arrays[1][picked] / 255.0).float())


def test_leaves_the_attention_out_where_it_is_not_read(arrays):
    views, _ = views_of(arrays, attention=False)
    assert views.pixels(np.arange(3)).shape == (3, 1, 24, 24)


class Flattened(nn.Module):
    def forward(self, pixels):
        return nn.functional.normalize(pixels.flatten(1) - 0.5, dim=1)


def test_is_the_semantic_loss_of_the_two_views(arrays):
    views, patches = views_of(arrays)
    pixels, positions, _ = views.draw(0)

    loss = method_named("semantic").build(patch_store(arrays), RECIPE).loss(Flattened(), 0)

    embedding = Flattened()(pixels.flatten(0, 1)).view(8, 2, -1)
    label = torch.from_numpy(patches.organ * 2 + patches.scan_label)[positions]
    torch.testing.assert_close(loss, semantic_contrastive_loss(embedding, label, 0.1))


def test_without_scan_labels_the_organs_alone_make_the_classes(arrays):
    store, recipe = patch_store(arrays), replace(RECIPE, scan_labels=())
    pretraining = method_named("semantic").build(store, recipe)
    assert pretraining.facts["classes"] == 2
    assert method_named("semantic").build(store, RECIPE).facts["classes"] == 4


def test_simclr_attracts_the_views_of_a_patch_alone_and_reads_no_attention(arrays):
    pretraining = method_named("simclr").build(patch_store(arrays), RECIPE)
    seen = []

    class Seen(Flattened):
        def forward(self, pixels):
            seen.append(pixels)
            return super().forward(pixels)

    loss = pretraining.loss(Seen(), 0)

    assert seen[0].shape == (16, 1, 16, 16)
    embedding = Flattened()(seen[0]).view(8, 2, -1)
    torch.testing.assert_close(loss, semantic_contrastive_loss(embedding, torch.arange(8), 0.1))


@pytest.mark.parametrize(("name", "channels"), [("semantic", 2), ("simclr", 1), ("none", 2)])
def test_the_table_says_what_a_method_reads(arrays, name, channels):
    method = method_named(name)
    pretraining = method.build(patch_store(arrays), RECIPE)
    assert pretraining.network.encoder.spec.in_channels == channels
    assert method.reads_attention == (channels == 2)
    assert (pretraining.loss is None) == (name == "none")
    assert pretraining.pixels_per_step == (0 if name == "none" else 2 * 8 * 16 * 16)


def test_an_unknown_method_is_one_line():
    with pytest.raises(ConfigError, match=r"pretrain\.method: expected one of .*'semantics'"):
        method_named("semantics")


def test_draws_the_same_step_again_and_another_for_the_next(arrays):
    views, _ = views_of(arrays)

    first, again, following = (views.draw(step)[0] for step in (5, 5, 6))

    torch.testing.assert_close(first, again, atol=0, rtol=0)
    assert not torch.equal(first, following)


def test_gives_numbers_to_names_and_minus_one_to_the_unknown():
    assert codes_of(["portal", "unknown", "native", "portal"], "unknown").tolist() == [1, -1, 0, 1]
