"""What stored numbers mean, against numpy on the whole array."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sacl.errors import DataError
from sacl.files.arrays import distinct_values, intensities, label_numbers, relabeled

label_maps = st.sampled_from([np.uint8, np.int16, np.int64]).flatmap(
    lambda kind: arrays(
        kind,
        st.tuples(*[st.integers(1, 5)] * 3),
        elements=st.integers(0, 6),
    )
)


@settings(deadline=None)
@given(label_maps, st.permutations(range(3)), st.sets(st.integers(0, 2)))
def test_distinct_values_are_all_values(labels, axes, flipped):
    labels = np.flip(labels.transpose(axes), tuple(flipped))
    assert distinct_values(labels) == set(np.unique(labels).tolist())


def test_negative_and_huge_values_are_found_too():
    assert distinct_values(np.array([[[-(2**40), 0, 2**40]]])) == {-(2**40), 0, 2**40}


@settings(deadline=None)
@given(label_maps, st.permutations(range(3)))
def test_relabeling_is_looking_up(labels, axes):
    table = np.array([0, 3, 1, 0, 2, 250, 7], np.uint8)
    labels = labels.transpose(axes)
    np.testing.assert_array_equal(relabeled(labels, table), table[labels])


def test_a_table_that_changes_nothing_costs_nothing():
    labels = np.array([[[0, 1, 2]]], np.uint8)
    assert relabeled(labels, np.arange(5, dtype=np.uint8)) is labels


@pytest.mark.parametrize("kind", [np.int32, np.uint16, np.int64])
def test_no_third_array_of_a_scans_size_is_held(kind):
    stored = np.ones((64, 64, 128), kind, order="F")
    tracemalloc.start()
    scan = intensities(stored, 2.0, -1024.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert scan.dtype == np.int16
    assert (scan == -1022).all()
    assert peak < 1.2 * scan.nbytes


def test_labels_beyond_32_bits_are_refused_not_wrapped():
    with pytest.raises(Exception, match="label value 1000000000000 is not a whole"):
        label_numbers(np.full((2, 2, 2), 1e12), 1.0, 0.0, "l.nii")


def test_the_noise_of_a_scale_factor_is_rounded_away():
    stored = np.full((2, 2, 2), 255, np.int16)
    slope = float(np.float32(1 / 255))
    assert stored[0, 0, 0] * slope != 1
    np.testing.assert_array_equal(label_numbers(stored, slope, 0.0, "l.nii"), 1)
    np.testing.assert_array_equal(label_numbers(np.full((2, 2, 2), 2.9991), 1.0, 0.0, "l.nii"), 3)


def test_a_fraction_is_refused_with_all_its_digits():
    fractions = np.full((2, 2, 2), 0.9945, np.float32)
    with pytest.raises(DataError, match=r"label value 0\.9945 is not a whole number"):
        label_numbers(fractions, 1.0, 0.0, "l.nii")
    fractions[:] = 1.0020001
    with pytest.raises(DataError, match=r"label value 1\.0020001 is not"):
        label_numbers(fractions, 1.0, 0.0, "l.nii")
