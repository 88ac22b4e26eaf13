"""Whole-scan prediction with oracle networks: geometry is exact, memory and order are sound."""

import numpy as np
import pytest
import torch

from sacl.networks.encoder import EncoderSpec
from sacl.networks.segmenter import SegmenterSpec
from sacl.patches.region import Placement
from sacl.patches.window import WindowRule
from sacl.prediction.volume import MapRecipe, Predictor, plan_patches, predict_volume
from sacl.types import Grid, LabelMap, LabelScheme, Volume

ORGANS = ("liver", "spleen")
CPU = torch.device("cpu")


class Threshold:
    """A network that reads the label off the intensity: 0 background, 0.5 liver, 1 spleen."""

    def __init__(self, head, size):
        self.spec = SegmenterSpec(
            encoder=EncoderSpec(),
            decoder="unet",
            head=head,
            scheme="two",
            organs=ORGANS,
            image_size=size,
            window=WindowRule("ct", (0.0, 2.0)),
            placement=Placement(region="slice", min_side_mm=8.0),
        )

    def __call__(self, pixels):
        if self.spec.head == "dense":
            levels = torch.tensor([0.0, 0.5, 1.0])[None, :, None, None]
            return -20 * (pixels[:, :1] - levels).abs()
        # The attention says which of the two intensities is meant.
        image, attention = pixels[:, :1], pixels[:, 1:]
        inside = (attention > 0.5).float()
        shown = inside.sum((2, 3), keepdim=True) > 0
        meant = (image * inside).sum((2, 3)) / inside.sum((2, 3)).clamp(min=1)
        logit = 5 - 20 * (image - meant.round(decimals=1)[:, :, None, None]).abs()
        return torch.where(shown, logit, -5.0)


def scan(shape=(40, 40, 6), spacing=(1.0, 1.0, 3.0)):
    """Return a volume of two blocks and its label map, far from each other and from the edge."""
    labels = np.zeros(shape, np.uint8)
    labels[8:20, 10:22, 1:5] = 1
    labels[25:33, 24:36, 2:6] = 2
    grid = Grid(shape, np.diag([*spacing, 1.0]))
    return Volume(labels.astype(np.int16), grid), LabelMap(labels, grid, LabelScheme("two", ORGANS))


def test_the_dense_head_at_the_scans_own_pixels_is_exact():
    volume, truth = scan()
    predicted = predict_volume(Predictor(Threshold("dense", 40), CPU, batch=4), volume, (0.0, 2.0))
    assert np.array_equal(predicted.voxels, truth.voxels)
    assert predicted.scheme.names == ORGANS


@pytest.mark.parametrize("shape", [(40, 60, 3), (60, 40, 3), (41, 37, 2)])
def test_slices_that_are_not_square_come_back_in_place(shape):
    labels = np.zeros(shape, np.uint8)
    labels[10:30, 12:33] = 1
    volume = Volume((2 * labels).astype(np.int16), Grid(shape, np.diag([1.5, 1.5, 2.0, 1.0])))
    network = Threshold("dense", max(shape))
    predicted = predict_volume(Predictor(network, CPU), volume, (0.0, 4.0))
    assert np.array_equal(predicted.voxels, labels)


def test_the_dense_head_resamples_to_within_a_pixel():
    volume, truth = scan()
    predicted = predict_volume(Predictor(Threshold("dense", 64), CPU), volume, (0.0, 2.0))
    for organ in ORGANS:
        a, b = predicted.mask(organ), truth.mask(organ)
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.9


def test_the_query_head_finds_what_the_coarse_map_points_at():
    volume, truth = scan()
    predicted = predict_volume(
        Predictor(Threshold("query", 32), CPU, batch=3), volume, (0.0, 2.0), truth
    )
    for organ in ORGANS:
        a, b = predicted.mask(organ), truth.mask(organ)
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.9


def test_the_query_head_invents_no_organ():
    volume, truth = scan()
    only = LabelMap(np.where(truth.voxels == 2, 2, 0).astype(np.uint8), truth.grid, truth.scheme)
    predicted = predict_volume(Predictor(Threshold("query", 32), CPU), volume, (0.0, 2.0), only)
    assert not predicted.mask("liver").any()
    assert predicted.mask("spleen").any()
    nothing = LabelMap(np.zeros_like(truth.voxels), truth.grid, truth.scheme)
    empty = predict_volume(Predictor(Threshold("query", 32), CPU), volume, (0.0, 2.0), nothing)
    assert not empty.voxels.any()


@pytest.mark.parametrize("head", ["dense", "query"])
def test_the_batch_does_not_matter(head):
    volume, truth = scan()
    maps = [
        predict_volume(Predictor(Threshold(head, 32), CPU, batch=n), volume, (0.0, 2.0), truth)
        for n in (1, 5, 64)
    ]
    assert np.array_equal(maps[0].voxels, maps[1].voxels)
    assert np.array_equal(maps[0].voxels, maps[2].voxels)


def test_small_islands_are_removed():
    volume, truth = scan()
    volume.voxels[36, 36, 0] = 1
    kept = predict_volume(Predictor(Threshold("dense", 40), CPU), volume, (0.0, 2.0))
    clean = predict_volume(
        Predictor(Threshold("dense", 40), CPU, MapRecipe(keep_component=0.1)), volume, (0.0, 2.0)
    )
    assert kept.voxels[36, 36, 0] == 1
    assert np.array_equal(clean.voxels, truth.voxels)


def test_patches_are_planned_by_rising_slice():
    _, truth = scan()
    planned = plan_patches(truth, Threshold("query", 32).spec)
    assert [box.start[2] for box, _ in planned] == sorted(box.start[2] for box, _ in planned)
    # The coarse mask's slices and one more at either end, inside the scan.
    assert [box.start[2] for box, label in planned if label == 1] == [0, 1, 2, 3, 4, 5]
    assert [box.start[2] for box, label in planned if label == 2] == [1, 2, 3, 4, 5]
