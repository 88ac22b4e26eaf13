"""A DICOM SEG is a coarse map like any other."""

from __future__ import annotations

import numpy as np
import pytest
from plain_series import Layout, make_series

from sacl.dicom.segmentation import write_segmentation
from sacl.errors import DataError
from sacl.prediction.given import read_given_map, survey_maps
from sacl.types import Grid, LabelScheme

SCHEME = LabelScheme("ours", ("spleen", "kidneys"))


@pytest.mark.parametrize("name", ["a.dcm", "a/1.2.3.dcm"])
def test_its_segments_are_matched_by_name_and_laid_on_the_scan(tmp_path, name):
    layout = Layout(6, 5, 4)
    labels = np.random.default_rng(0).integers(0, 4, (6, 5, 4)).astype(np.uint8)
    theirs = layout.label_map(labels, ("Left Kidney", "skull", "spleen"))
    (tmp_path / "a").mkdir()
    write_segmentation(tmp_path / name, theirs, make_series(layout), "run")
    survey = survey_maps(tmp_path, ["a"], SCHEME)
    assert survey.unmatched == {"skull": 1}
    found = read_given_map(survey.maps["a"], SCHEME, theirs.grid).label_map
    assert np.array_equal(found.voxels, np.array([0, 2, 0, 1])[theirs.voxels])


def test_frames_that_are_not_the_scans_slices_are_refused(tmp_path):
    layout = Layout(6, 5, 4)
    theirs = layout.label_map(np.ones((6, 5, 4), np.uint8), ("spleen",))
    write_segmentation(tmp_path / "a.dcm", theirs, make_series(layout), "run")
    survey = survey_maps(tmp_path, ["a"], SCHEME)
    moved = theirs.grid.affine.copy()
    moved[0, 3] += 0.4
    with pytest.raises(DataError, match=r"a\.dcm"):
        read_given_map(survey.maps["a"], SCHEME, Grid(theirs.grid.shape, moved))
