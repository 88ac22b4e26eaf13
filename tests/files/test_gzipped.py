"""Compressed NIfTI is read straight into an array."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sacl.files.nifti import _inflated

NOISE = np.random.default_rng(0).integers(0, 256, 3_000_000, np.uint8).tobytes()


def inflated(path, start, size):
    return _inflated(path, start, size).tobytes()


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=1, max_size=400), st.integers(1, 5000), st.data())
def test_any_part_of_the_content_is_read(tmp_path_factory, pattern, times, data):
    path = tmp_path_factory.mktemp("g") / "a.gz"
    content = pattern * times
    path.write_bytes(gzip.compress(content))
    start = data.draw(st.integers(0, len(content)))
    size = data.draw(st.integers(0, len(content) - start))
    assert inflated(path, start, size) == content[start : start + size]


@pytest.mark.parametrize("content", [NOISE, bytes(5_000_000)], ids=["noise", "zeros"])
def test_large_content_is_read(tmp_path, content):
    (tmp_path / "a.gz").write_bytes(gzip.compress(content, 1))
    assert inflated(tmp_path / "a.gz", 352, len(content) - 352) == content[352:]


def test_several_members_in_a_row_are_one_content(tmp_path):
    blocks = [NOISE[n : n + 65_000] for n in range(0, len(NOISE), 65_000)]
    (tmp_path / "a.gz").write_bytes(b"".join(gzip.compress(block, 1) for block in blocks))
    assert inflated(tmp_path / "a.gz", 100_000, 1_000_000) == NOISE[100_000:1_100_000]


def test_what_follows_the_last_member_is_not_looked_at(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"voxels") + bytes(512) + b"padding")
    assert inflated(tmp_path / "a.gz", 0, 6) == b"voxels"


@pytest.mark.parametrize("missing", [1, 8, 9, 100])
def test_a_file_that_ends_too_early_is_refused(tmp_path, missing):
    whole = gzip.compress(NOISE[:2000])
    (tmp_path / "a.gz").write_bytes(whole[:-missing])
    with pytest.raises(EOFError):
        inflated(tmp_path / "a.gz", 0, 1000)


def test_a_file_with_too_little_content_is_refused(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"voxels"))
    with pytest.raises(EOFError):
        inflated(tmp_path / "a.gz", 0, 7)


def test_one_wrong_bit_is_found_by_the_checksum(tmp_path):
    # Stored, not compressed: nothing but the checksum tells.
    whole = bytearray(gzip.compress(bytes(1000), 0))
    whole[500] ^= 1
    (tmp_path / "a.gz").write_bytes(whole)
    with pytest.raises(gzip.BadGzipFile, match="CRC check failed"):
        inflated(tmp_path / "a.gz", 0, 10)


def test_no_memory_is_taken_for_what_a_file_cannot_hold(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(bytes(1_000_000)))
    with pytest.raises(EOFError, match="too short"):
        inflated(tmp_path / "a.gz", 0, 10**13)
