import numpy as np
import pytest
from scipy import ndimage

from sacl.prediction.assemble import clean_components


def blob(shape=(20, 20, 20)) -> np.ndarray:
    return np.zeros(shape, dtype=np.uint8)


def test_removes_an_island_below_the_share_and_keeps_one_above():
    voxels = blob()
    voxels[1:6, 1:6, 1:6] = 1  # 125 voxels
    voxels[10:13, 10:13, 10:13] = 1  # 27
    voxels[18, 18, 18] = 1
    cleaned = clean_components(voxels, 1, keep_share=0.2, min_voxels=0)
    assert cleaned[18, 18, 18] == 0
    assert (cleaned == 1).sum() == 125 + 27


def test_connects_through_faces_only():
    voxels = blob((4, 4, 4))
    voxels[0, 0, 0:2] = 1
    voxels[1, 1, 2] = 1  # touches by a corner
    assert (clean_components(voxels, 1, 1.0, 0) == 1).sum() == 2


def test_removes_an_organ_below_the_smallest_volume_entirely():
    voxels = blob()
    voxels[0, 0, :5] = 2
    voxels[5:9, 5:9, 5:9] = 1
    cleaned = clean_components(voxels, 2, 0.2, min_voxels=6)
    assert not (cleaned == 2).any()
    assert (cleaned == 1).sum() == 64


def test_counts_only_what_is_left_of_an_organ_against_the_smallest_volume():
    voxels = blob()
    voxels[0, 0, 0:6] = 1
    voxels[5, 5, 0] = voxels[9, 9, 9] = 1
    assert not clean_components(voxels, 1, 0.5, min_voxels=7).any()


def test_never_touches_another_organ_inside_the_bounding_box():
    voxels = blob()
    voxels[2:18, 2:18, 2:18] = 1
    voxels[8:12, 8:12, 8:12] = 2
    assert np.array_equal(clean_components(voxels, 2, 1.0, 0), voxels)


def test_a_share_of_zero_keeps_every_component():
    voxels = blob()
    voxels[0, 0, 0] = voxels[5, 5, 5] = 1
    assert np.array_equal(clean_components(voxels, 1, 0.0, 0), voxels)


def test_leaves_the_input_alone_and_an_empty_map_empty():
    voxels = blob()
    voxels[0, 0, 0] = 1
    assert not clean_components(voxels, 3, 0.5, min_voxels=2).any()
    assert voxels[0, 0, 0] == 1
    assert not clean_components(blob(), 3, 0.5, 2).any()


@pytest.mark.parametrize("keep_share", [0.1, 0.5, 1.0])
def test_agrees_with_labeling_the_whole_volume(keep_share):
    noise = ndimage.gaussian_filter(np.random.default_rng(3).normal(size=(24, 20, 18)), 1.5)
    voxels = np.digitize(noise, np.quantile(noise, [0.5, 0.7, 0.85])).astype(np.uint8)
    expected = np.zeros_like(voxels)
    for label in (1, 2, 3):
        component, count = ndimage.label(voxels == label)
        sizes = [(component == c).sum() for c in range(1, count + 1)]
        for c, size in enumerate(sizes, start=1):
            if size >= keep_share * max(sizes):
                expected[component == c] = label
    assert np.array_equal(clean_components(voxels, 3, keep_share, 0), expected)
