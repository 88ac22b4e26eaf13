"""Whether a new scan is like those of the training: intensities, spacing, field of view."""

import numpy as np
import pytest

from sacl.patches.scan_ranges import doubts_about, measures_of, ranges_of
from sacl.types import Grid, Volume


def scan(low=-1000, high=400, shape=(64, 64, 20), spacing=(1.5, 1.5, 5.0)):
    voxels = np.random.default_rng(0).integers(low, high, shape).astype(np.int16)
    return measures_of(Volume(voxels, Grid(shape, np.diag([*spacing, 1.0]))))


CT = ranges_of([scan(), scan(high=900, spacing=(2.0, 2.0, 3.0))])
MR = ranges_of([scan(low=0, high=255, spacing=(1.5, 1.5, 10.0))])


def test_measures_intensities_and_lengths():
    facts = scan()
    assert facts.low == pytest.approx(-986, abs=10)
    assert facts.high == pytest.approx(386, abs=10)
    assert (facts.pixel_mm, facts.slice_mm, facts.field_of_view_mm) == (1.5, 5.0, 96.0)


def test_nothing_is_doubted_about_a_scan_like_those_of_the_training():
    assert doubts_about(scan(high=700, spacing=(1.8, 1.8, 4.0)), CT, "ct") == []
    assert doubts_about(scan(low=0, high=3000, spacing=(1.4, 1.4, 8.0)), MR, "mr") == []


def test_a_ct_segmenter_doubts_a_cardiac_mr():
    [doubt] = doubts_about(scan(low=0, high=255), CT, "ct")
    assert doubt.startswith("98 % of its intensities lie in 2 to 25")
    assert "is it a CT?" in doubt


def test_an_mr_segmenter_doubts_a_ct():
    [doubt] = doubts_about(scan(spacing=(1.5, 1.5, 10.0)), MR, "mr")
    assert "it looks like a CT" in doubt


def test_voxels_and_field_of_view_far_from_the_training_are_doubted():
    doubts = doubts_about(scan(spacing=(0.3, 0.3, 0.5)), CT, "ct")
    assert doubts == [
        "pixels of 0.3 mm, trained on 1.5 to 2 mm",
        "slices of 0.5 mm, trained on 3 to 5 mm",
        "field of view of 19.2 mm, trained on 96 to 128 mm",
    ]


def test_without_scans_there_are_no_ranges():
    assert ranges_of([]) is None
