"""Patches back into slices: the inverse of cutting, and the competition between organs."""

import numpy as np
import pytest
import torch

from sacl.patches.query import cut
from sacl.prediction.assemble import fuse, labels_of_slice, to_voxels
from sacl.types import Box


@pytest.mark.parametrize(
    ("start", "side"), [((3, 5), 16), ((3, 5), 40), ((-6, -2), 24), ((20, 30), 24), ((0, 0), 64)]
)
def test_brings_a_smooth_patch_back_to_where_it_was_cut(start, side):
    i, j = np.meshgrid(np.arange(40), np.arange(48), indexing="ij")
    plane = (0.05 * i - 0.03 * j + 1.0).astype(np.float32)
    box = Box((*start, 0), (start[0] + side, start[1] + side, 1))
    patch = torch.from_numpy(cut(plane, box, 32))[None]
    region, voxels = to_voxels(patch, box, plane.shape)
    expected = plane[region]
    assert voxels.shape[1:] == expected.shape
    # Away from the slice's edge, beyond which everything is 0, a ramp comes back as it was.
    inner = (slice(4, -4), slice(4, -4))
    assert np.abs(voxels[0].numpy() - expected)[inner].max() < 0.02


def test_identity_size_is_exact():
    plane = np.random.default_rng(0).random((20, 20), dtype=np.float32)
    box = Box((2, 3, 0), (18, 19, 1))
    region, voxels = to_voxels(torch.from_numpy(cut(plane, box, 16))[None], box, (20, 20))
    assert np.allclose(voxels[0].numpy(), plane[region], atol=1e-6)


def test_a_box_outside_the_slice_gives_nothing():
    region, voxels = to_voxels(torch.ones(1, 8, 8), Box((30, 0, 0), (38, 8, 1)), (20, 20))
    assert voxels.numel() == 0
    assert np.zeros((20, 20))[region].size == 0


def test_the_most_probable_class_is_that_of_argmax():
    logit = torch.randn(5, 24, 24, generator=torch.Generator().manual_seed(0))
    labels = labels_of_slice(logit, Box((0, 0, 0), (24, 24, 1)), (24, 24))
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, logit.argmax(dim=0).numpy())


@pytest.mark.parametrize("side", [16, 24, 50])
def test_leaving_out_classes_that_cannot_win_changes_nothing(side):
    generator = torch.Generator().manual_seed(1)
    # Smooth logits of 9 classes, of which a few rise above the background here and there.
    logit = torch.nn.functional.interpolate(
        torch.randn(1, 9, 6, 6, generator=generator), size=(24, 24), mode="bicubic"
    )[0]
    logit[0] += 2.5
    box = Box((0, 0, 0), (side, side, 1))
    _, voxels = to_voxels(logit, box, (side, side))
    expected = voxels.argmax(dim=0).numpy()
    assert 2 < len(np.unique(expected)) < 9
    assert np.array_equal(labels_of_slice(logit, box, (side, side)), expected)


def test_what_lies_outside_the_box_is_background():
    labels = labels_of_slice(
        torch.stack([torch.zeros(8, 8), torch.ones(8, 8)]), Box((4, 4, 0), (12, 12, 1)), (20, 20)
    )
    assert labels.sum() == 64
    assert labels[4:12, 4:12].all()


def test_the_more_probable_organ_wins_whatever_the_order():
    box = Box((0, 0, 0), (8, 8, 1))
    weak, strong = torch.full((8, 8), 0.5), torch.full((8, 8), -3.0)
    strong[:4] = 2.0
    results = []
    for order in ([(weak, 1), (strong, 2)], [(strong, 2), (weak, 1)]):
        best, labels = np.zeros((8, 8), np.float32), np.zeros((8, 8), np.uint8)
        for logit, label in order:
            fuse(best, labels, logit, box, label)
        results.append(labels)
    assert np.array_equal(*results)
    assert (results[0][:4] == 2).all()
    assert (results[0][4:] == 1).all()


def test_below_one_half_a_voxel_stays_background():
    best, labels = np.zeros((8, 8), np.float32), np.zeros((8, 8), np.uint8)
    fuse(best, labels, torch.full((8, 8), -0.01), Box((0, 0, 0), (8, 8, 1)), 1)
    assert not labels.any()
