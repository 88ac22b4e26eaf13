import numpy as np

from sacl.patches.query import coverage
from sacl.types import Box


def test_is_the_share_of_a_pixel_that_the_organ_covers():
    labels = np.zeros((16, 16), np.uint8)
    labels[:6] = 2
    box = Box((0, 0, 0), (16, 16, 1))

    attention = coverage(labels, 2, box, 4)

    # Four voxels per pixel, the filter twice as wide: full, 3/4 of the second pixel's weight, none.
    assert attention.dtype == np.float32
    assert attention[0, 1] > attention[1, 1] > attention[2, 1] >= 0
    assert attention[3].max() == 0


def test_keeps_the_area_of_the_organ():
    labels = np.zeros((64, 64), np.uint8)
    labels[20:41, 25:38] = 3

    attention = coverage(labels, 3, Box((0, 0, 0), (64, 64, 1)), 16)

    np.testing.assert_allclose(attention.sum() * 16, 21 * 13, rtol=1e-5)


def test_sees_only_its_own_label():
    labels = np.full((8, 8), 5, np.uint8)

    assert coverage(labels, 4, Box((0, 0, 0), (8, 8, 1)), 8).max() == 0
    assert coverage(labels, 5, Box((0, 0, 0), (8, 8, 1)), 8).min() == 1
