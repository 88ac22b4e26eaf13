import numpy as np

from sacl.patches.window import normalize


def test_maps_the_ends_of_the_window_to_zero_and_one_and_clips_beyond():
    voxels = np.array([-1000, -175, 50, 275, 3000], np.int16)

    scaled = normalize(voxels, (-175.0, 275.0))

    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, [0, 0, 0.5, 1, 1], atol=1e-7)


def test_keeps_steps_of_one_hu_apart():
    scaled = normalize(np.arange(-175, 276, dtype=np.int16), (-175.0, 275.0))

    assert (np.diff(scaled) > 0).all()


def test_takes_a_voxel_without_a_measurement_for_the_lowest_intensity():
    scaled = normalize(np.array([np.nan, 1.0, np.inf, -np.inf], np.float32), (0.0, 2.0))

    np.testing.assert_allclose(scaled, [0, 0.5, 1, 0])


def test_does_not_overflow_on_unsigned_integers():
    scaled = normalize(np.array([0, 65535], np.uint16), (10.0, 20.0))

    np.testing.assert_allclose(scaled, [0, 1])


def test_leaves_the_voxels_it_was_given_alone():
    voxels = np.array([0.25, 7.0], np.float32)

    normalize(voxels, (0.0, 1.0))

    np.testing.assert_array_equal(voxels, [0.25, 7.0])
