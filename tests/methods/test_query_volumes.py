"""Query volumes: as slices where they are one slice thick, and against loops where they are not."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.training.test_coarse_training import case_of, spec_of

from sacl.methods import Recipe, method_named
from sacl.methods.batches import (
    CropViews,
    DenseCropViews,
    QueryVolumes,
    SlicePairs,
    embedder_of,
    training_patches,
)
from sacl.methods.pooled import large_enough, pool_under, region_masks
from sacl.networks.coarse import CoarseNetwork
from sacl.networks.encoder import with_inputs
from sacl.networks.projector import DenseFeatures
from sacl.patches.views import VIEWS, ViewRanges, random_affine, resample
from sacl.training import coarse
from sacl.training.sampler import UniformSampler

STILL = ViewRanges()


def volumes(phases=("native", "venous", "unknown", "native"), spec=None) -> QueryVolumes:
    """Return scans of two organs, of which the last one shows the first organ alone."""
    cases = [case_of((20 + n, 18, 10)) for n in range(len(phases))]
    cases[-1].labels[cases[-1].labels == 2] = 0
    return QueryVolumes(spec or spec_of(), cases, [{"phase": phase} for phase in phases])


def recipe_of(**changes) -> Recipe:
    changes = {"ranges": VIEWS["strong"], "scan_labels": ("phase",), **changes}
    return Recipe(batch=4, projector=(16, 8), **changes)


def crop_views(store, *, attention=True, **changes) -> CropViews:
    sampler = UniformSampler(store.queries.shape[1], 4)
    return CropViews(store, sampler, recipe_of(**changes), attention)


@pytest.fixture
def still(monkeypatch):
    """Let crops lie where they were cut, centered where the scan allows it."""
    for name in ("_ROTATION_DEG", "_TILT_DEG", "_SCALE", "_STRETCH", "_SHIFT"):
        monkeypatch.setattr(coarse, name, 0.0)


def test_queries_are_the_organs_of_the_coarse_maps_with_their_scan_wise_labels():
    patches = training_patches(volumes(), ("phase",))
    assert patches.scan.tolist() == [0, 0, 1, 1, 2, 2, 3]
    assert patches.organ.tolist() == [0, 1, 0, 1, 0, 1, 0]
    native, venous, unknown = patches.scan_label[[0, 2, 4]]
    assert unknown == -1
    assert patches.scan_label.tolist() == [*[native] * 2, *[venous] * 2, -1, -1, native]
    assert set(training_patches(volumes(), ()).scan_label) == {0}


def test_a_crop_shows_its_organ_in_both_views_and_the_attention_is_that_organ(still):
    views, drawn, _ = crop_views(volumes(), ranges=STILL).draw(1)
    assert views.shape == (4, 2, 2, 16, 16, 8)
    for (image, attention), query in zip(views[:, 0], drawn, strict=True):
        intensity = (0.5, 0.9)[volumes().queries[1, query]]
        assert torch.equal(attention > 0.99, (image - intensity).abs() < 1e-3)
        assert attention.any()
    assert torch.equal(views[:, 0], views[:, 1])


def test_image_attention_and_labels_are_turned_together():
    views, _, _ = crop_views(volumes(), ranges=STILL).draw(2)
    assert not torch.equal(views[:, 0], views[:, 1])
    dense, _ = DenseCropViews(volumes(), recipe_of(ranges=STILL)).draw(2)
    for image, labels in zip(dense.image[:, 0], dense.labels, strict=True):
        inside = image[labels == 2]
        assert inside.numel() == 0 or inside.median() == pytest.approx(0.9, abs=0.05)
    for (image, attention), other in zip(views[:, 0], views[:, 1], strict=True):
        sure = attention > 0.99
        assert image[sure].std() < 0.1
        assert other[1].max() <= 1 + 1e-6


@pytest.mark.parametrize("shape", [(20, 18, 1), (5, 6, 3), (16, 16, 8)])
def test_scans_of_one_slice_or_smaller_than_a_crop_are_queried_whole(shape, still):
    labels = torch.zeros(shape, dtype=torch.int16)
    labels[0, 0, 0], labels[-1, -1, -1] = 1, 2
    case = replace(case_of(), image=torch.full(shape, 0.5), labels=labels)
    store = QueryVolumes(spec_of(), [case], [{}])
    dense, _ = DenseCropViews(store, recipe_of(ranges=STILL, scan_labels=())).draw(0)
    expected = math.prod(min(sides) for sides in zip(shape, (16, 16, 8), strict=True))
    assert (dense.image > 0.25).flatten(1).sum(dim=1).tolist() == [expected] * len(dense.image)
    organ = store.queries[1][dense.slice] + 1
    assert all((of == label).sum() == 1 for of, label in zip(dense.labels, organ, strict=True))


def test_a_volume_of_one_slice_is_resampled_as_the_slice():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(3, 2, 12, 12, generator=generator)
    pixels[:, 1] = (pixels[:, 1] * 3).floor()
    theta = random_affine(3, VIEWS["strong"], generator, torch.device("cpu"))
    # A slice becomes one along the first axis, which affine_grid names last.
    flat = torch.zeros(3, 3, 4)
    flat[:, :2, :2], flat[:, :2, 3], flat[:, 2, 2] = theta[:, :, :2], theta[:, :, 2], 1.0
    volume = resample(pixels[:, :, None], flat, (1, 8, 8), 1.5, nearest_channels=(1,))
    expected = resample(pixels, theta, 8, 1.5, nearest_channels=(1,))
    torch.testing.assert_close(volume[:, :, 0], expected)


def test_masks_and_pooling_of_one_slice_are_those_of_the_slice():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (2, 12, 8), generator=generator) * (
        torch.rand(2, 12, 8, generator=generator) > 0.8
    )
    features = torch.rand(2, 5, 6, 4, generator=generator)
    masks = region_masks(labels, 2, (2, 2))
    as_volume = region_masks(labels[..., None], 2, (2, 2, 3))
    assert torch.equal(as_volume[..., 0], masks)
    expected = pool_under(features, masks)
    torch.testing.assert_close(pool_under(features[..., None], as_volume), expected)
    assert torch.equal(large_enough(as_volume), large_enough(masks))


def test_pooled_queries_are_what_loops_give():
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 3, (2, 4, 6, 4), generator=generator)
    features = torch.rand(2, 3, 2, 3, 2, generator=generator)
    pooled = pool_under(features, region_masks(labels, 2, (1, 1, 1)))
    for n, organ in np.ndindex(2, 2):
        total, weight = torch.zeros(3), 0
        for i, j, k in zip(*np.nonzero(labels[n].numpy() == organ + 1), strict=True):
            total += features[n, :, i // 2, j // 2, k // 2]
            weight += 1
        torch.testing.assert_close(pooled[n, organ + 1], total / weight)


def test_the_surroundings_reach_as_far_along_every_axis_as_its_spacing_asks():
    labels = torch.zeros(1, 9, 9, 5, dtype=torch.long)
    labels[0, 4, 4, 2] = 1
    near = region_masks(labels, 1, (2, 2, 1))[0, 0]
    assert near.nonzero().amin(dim=0).tolist() == [2, 2, 1]
    assert near.nonzero().amax(dim=0).tolist() == [6, 6, 3]
    assert near.sum() == 5 * 5 * 3 - 1
    thick = replace(spec_of(), spacing_mm=(2.0, 2.0, 8.0), crop=(32, 32, 8))
    assert DenseCropViews(volumes(spec=thick), recipe_of()).reach == (2, 2, 0)


@pytest.mark.parametrize("move", ["flip", "turn"])
def test_queries_move_with_the_volume(move):
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(0, 3, (2, 6, 6, 4), generator=generator)
    features = torch.rand(2, 3, 6, 6, 4, generator=generator)

    def moved(x):
        return x.flip(-3) if move == "flip" else torch.rot90(x, 1, (-3, -2))

    first = pool_under(features, region_masks(labels, 2, (1, 1, 1)))
    second = pool_under(moved(features), region_masks(moved(labels), 2, (1, 1, 1)))
    torch.testing.assert_close(first, second)


class Spells(torch.nn.Module):
    """Features that spell out organ and phase of a step's voxels, or the organ alone."""

    def __init__(self, views, with_phase):
        super().__init__()
        self.views, self.with_phase = views, with_phase
        self.project_coarsest = self.project_finest = torch.nn.functional.normalize

    def forward(self, image):
        drawn: SlicePairs = self.views.draw(0)[0]
        phase = self.views.scan_label[drawn.slice] * int(self.with_phase)
        code = drawn.labels + 3 * phase[:, None, None, None] * (drawn.labels > 0)
        maps = torch.nn.functional.one_hot(code, 9).movedim(-1, 1).float()
        return DenseFeatures(maps, maps)


def test_pooled_queries_of_one_organ_and_phase_attract_each_other():
    store = volumes(("native", "venous", "native", "venous"))
    views = DenseCropViews(store, recipe_of())
    loss = method_named("pooled").build(store, recipe_of()).loss
    assert loss(Spells(views, True), 0) < loss(Spells(views, False), 0) - 0.3


@pytest.mark.parametrize("name", ["pooled", "semantic", "simclr"])
def test_a_step_reaches_every_layer_and_is_the_same_however_the_run_got_there(name):
    made = method_named(name).build(volumes(), recipe_of())
    first = made.loss(made.network, 3)
    first.backward()
    weights = dict(made.network.named_parameters())
    assert {k for k, w in weights.items() if w.grad is None or not w.grad.any()} <= {
        # What instance norm takes away again.
        k
        for k in weights
        if k.endswith("conv.bias")
    }
    made.loss(made.network, 4)
    again = method_named(name).build(volumes(), recipe_of())
    assert torch.equal(again.loss(again.network, 3), first)
    assert made.pixels_per_step == 2 * 4 * 16 * 16 * 8


def test_a_pretraining_starts_from_the_weights_of_the_coarse_network():
    weights = CoarseNetwork(spec_of()).state_dict()
    store = replace(volumes(), weights=weights)
    network = method_named("pooled").build(store, recipe_of()).network
    for part, kept in ((network.encoder, "down."), (network.decoder, "up.")):
        for name, value in part.state_dict().items():
            assert torch.equal(value, weights[kept + name])


def test_attention_starts_without_an_effect_and_is_dropped_for_the_segmenter():
    store = replace(volumes(), weights=CoarseNetwork(spec_of()).state_dict())
    plain, attentive = (
        embedder_of(store, recipe_of(), attention=attention).encoder for attention in (False, True)
    )
    pixels = torch.rand(1, 2, 16, 16, 8)
    for one, other in zip(plain(pixels[:, :1]), attentive(pixels), strict=True):
        torch.testing.assert_close(one, other)
    kept = with_inputs(attentive.state_dict(), 1)
    assert all(torch.equal(value, kept[name]) for name, value in plain.state_dict().items())
