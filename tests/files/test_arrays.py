"""Arrays that take disk instead of memory, and where label values lie in one."""

import errno

import numpy as np
import pytest

from sacl.files import arrays
from sacl.files.arrays import label_boxes, set_aside


def test_arrays_are_joined_in_a_file_without_a_name(tmp_path):
    parts = [np.arange(6, dtype=np.uint16).reshape(1, 2, 3), np.full((2, 2, 3), 7, np.uint16)]
    joined = set_aside(parts, tmp_path)
    assert isinstance(joined, np.memmap)
    assert joined.dtype == np.uint16
    assert np.array_equal(joined, np.concatenate(parts))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_an_error_and_no_crash(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(arrays.os, "posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match="No space left"):
        set_aside([np.zeros(3)], tmp_path)


@pytest.mark.parametrize("order", ["C", "F"])
def test_boxes_of_labels_are_the_same_however_the_voxels_lie(order):
    voxels = np.zeros((5, 6, 7), np.uint8, order=order)
    voxels[1:3, 2:6, 4] = 1
    voxels[4, 0, 6] = 3
    first, second, third = label_boxes(voxels, 3)
    assert first == (slice(1, 3), slice(2, 6), slice(4, 5))
    assert second is None
    assert third == (slice(4, 5), slice(0, 1), slice(6, 7))
    assert label_boxes(voxels) == [first, second, third]
