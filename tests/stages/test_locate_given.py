"""Coarse maps of other tools: laid on the scans' grids, merged, counted, told."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from blob_cohort import (
    GRID,
    SCHEME,
    blobs,
    contradict,
    from_folder,
    give_maps,
    give_masks,
    located,
    make_cohort,
)

from sacl.errors import DataError
from sacl.files.atomic import write_text
from sacl.files.nifti import read_label_map, write_label_map, write_volume
from sacl.geometry import resample_nearest
from sacl.run.record import read_record
from sacl.stages import locate as stage
from sacl.types import Grid, LabelMap, Volume


def test_a_folder_of_masks_per_case_is_read_and_the_smaller_organ_wins(tmp_path):
    workspace = make_cohort(tmp_path / "work")
    for number in range(4):
        labels = blobs(number)[1]
        masks = tmp_path / "theirs" / f"case{number}" / "segmentations"
        write_volume(masks / "spleen.nii.gz", Volume((labels > 0).astype(np.int16), GRID))
        write_volume(masks / "kidney_right.nii.gz", Volume((labels == 2).astype(np.int16), GRID))
        write_volume(masks / "skull.nii.gz", Volume((labels >= 0).astype(np.int16), GRID))
    stage.locate(from_folder(tmp_path / "theirs"), workspace)
    path = workspace.folder("locate") / "maps" / "case2.nii.gz"
    assert np.array_equal(read_label_map(path, SCHEME)[0].voxels, blobs(2)[1])


def test_an_organ_that_a_map_lacks_is_recorded_as_not_found(tmp_path):
    workspace = make_cohort(tmp_path / "work")
    give_maps(tmp_path / "theirs", ("spleen", "pancreas"))
    stage.locate(from_folder(tmp_path / "theirs"), workspace)
    coverage = pd.read_csv(workspace.folder("locate") / "coverage.csv").set_index("organ")
    assert coverage.loc["spleen", "found"].all()
    assert not coverage.loc["kidney_right", "found"].any()
    assert (coverage.loc["kidney_right", "volume_ml"] == 0).all()


def test_missing_maps_are_counted_and_the_first_is_named(tmp_path):
    workspace = make_cohort(tmp_path / "work")
    give_maps(tmp_path / "theirs", SCHEME.names)
    (tmp_path / "theirs" / "case1.nii.gz").unlink()
    (tmp_path / "theirs" / "case3.nii.gz").unlink()
    with pytest.raises(DataError, match="no label map for 2 of 4 cases, the first is case1"):
        stage.locate(from_folder(tmp_path / "theirs"), workspace)


def test_a_map_on_another_grid_is_refused(tmp_path):
    workspace = make_cohort(tmp_path / "work")
    give_maps(tmp_path / "theirs", SCHEME.names)
    other = Grid(GRID.shape, np.diag([3.0, 3.0, 4.0, 1.0]))
    wrong = LabelMap(blobs(0)[1], other, SCHEME)
    write_label_map(tmp_path / "theirs" / "case0.nii.gz", wrong)
    with pytest.raises(DataError, match="case case0: image and label map lie on different grids"):
        stage.locate(from_folder(tmp_path / "theirs"), workspace)


def test_names_that_are_no_organ_and_organs_without_a_map_are_told_and_recorded(tmp_path, capsys):
    workspace = make_cohort(tmp_path / "work")
    give_maps(tmp_path / "theirs", ("spleen", "skull"))
    stage.locate(from_folder(tmp_path / "theirs"), workspace)
    told = capsys.readouterr().err
    assert told.count("left out, not organs of two: skull") == 1
    assert told.count("no given map has kidney_right; no patch can be cut around it") == 1
    given = read_record(workspace.folder("locate")).results["given"]
    assert given["maps"] == 4
    assert given["unmatched_names"] == {"skull": 4}
    assert given["absent_organs"] == ["kidney_right"]


def test_label_values_without_a_name_are_told_and_become_background(tmp_path, capsys):
    workspace = make_cohort(tmp_path / "work")
    give_maps(tmp_path / "theirs", None, values=(1, 9))
    write_text(tmp_path / "theirs" / "labels.json", json.dumps({"1": "spleen"}))
    stage.locate(from_folder(tmp_path / "theirs"), workspace)
    assert "label values without a name became background: 9" in capsys.readouterr().err
    given = read_record(workspace.folder("locate")).results["given"]
    assert given["unnamed_values"] == {"9": 4}
    assert np.array_equal(located(workspace, 1), (blobs(1)[1] == 1).astype(np.uint8))


def test_the_coverage_of_every_organ_is_recorded_and_told(tmp_path, capsys):
    workspace = make_cohort(tmp_path / "work")
    give_maps(tmp_path / "theirs", SCHEME.names)
    labels = np.where(blobs(0)[1] == 1, 1, 0).astype(np.uint8)
    write_label_map(tmp_path / "theirs" / "case0.nii.gz", LabelMap(labels, GRID, SCHEME))
    stage.locate(from_folder(tmp_path / "theirs"), workspace)
    coverage = read_record(workspace.folder("locate")).results["coverage"]
    volumes = [np.count_nonzero(blobs(number)[1] == 2) * 0.027 for number in (1, 2, 3)]
    assert coverage["spleen"]["found"] == 4
    assert coverage["kidney_right"]["found"] == 3
    assert coverage["kidney_right"]["scans"] == 4
    assert coverage["kidney_right"]["median_ml"] == pytest.approx(np.median(volumes), abs=0.01)
    assert "(kidney_right in 1 of 4 scans; see coverage.csv)" in capsys.readouterr().err


def test_scans_without_a_map_are_accepted_on_request_and_counted(tmp_path, capsys):
    workspace = make_cohort(tmp_path / "work")
    give_maps(tmp_path / "theirs", SCHEME.names)
    (tmp_path / "theirs" / "case1.nii.gz").unlink()
    with pytest.raises(DataError, match=r"by --locate\.maps\.allow_missing true"):
        stage.locate(from_folder(tmp_path / "theirs"), workspace)
    stage.locate(from_folder(tmp_path / "theirs", allow_missing=True), workspace)
    assert "no map for 1 scans, the first case1; without organs they" in capsys.readouterr().err
    assert not located(workspace, 1).any()
    assert np.array_equal(located(workspace, 2), blobs(2)[1])
    given = read_record(workspace.folder("locate")).results["given"]
    assert given["missing"] == {"scans": 1, "first": ["case1"]}


def test_a_folder_without_any_map_is_refused_even_so(tmp_path):
    (tmp_path / "theirs").mkdir()
    settings = from_folder(tmp_path / "theirs", allow_missing=True)
    with pytest.raises(DataError, match="no label map for 4 of 4 cases"):
        stage.locate(settings, make_cohort(tmp_path / "work"))


def other_grid() -> Grid:
    """Return a grid that covers every scan, finer, oblique and stored the other way round."""
    angle = np.radians(5)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0]])
    affine = np.eye(4)
    affine[:3, :3] = np.vstack([turn, [0, 0, 1]]) @ np.diag([-1.3, -1.4, 1.1])
    affine[:3, 3] = (70, 60, -3)
    return Grid((64, 56, 40), affine)


def test_maps_on_another_grid_are_resampled_on_request_and_that_is_told(tmp_path, capsys):
    workspace, other = make_cohort(tmp_path / "work"), other_grid()
    give_maps(tmp_path / "theirs", SCHEME.names)
    finer = resample_nearest(blobs(2)[1], GRID, other)
    path = tmp_path / "theirs" / "case2.nii.gz"
    write_label_map(path, LabelMap(finer, other, SCHEME))
    with pytest.raises(DataError) as error:
        stage.locate(from_folder(tmp_path / "theirs"), workspace)
    message = str(error.value)
    assert "20 x 18 x 12 voxels of 3 x 3 x 3 mm" in message
    assert "64 x 56 x 40 voxels of 1.3 x 1.4 x 1.1 mm" in message
    assert "1 of 4 cases are like this" in message
    assert "`--locate.maps.repair_grid nearest`" in message
    assert not (workspace.folder("locate") / "maps").exists()
    settings = from_folder(tmp_path / "theirs", repair_grid="nearest")
    stage.locate(settings, workspace)
    told = capsys.readouterr().err
    assert "1 of 4 given maps are on a grid other than their scan's, first case2" in told
    back = resample_nearest(finer, other, GRID)
    assert (back == blobs(2)[1]).mean() > 0.97
    assert np.array_equal(located(workspace, 2), back)
    assert np.array_equal(located(workspace, 1), blobs(1)[1])
    given = read_record(workspace.folder("locate")).results["given"]
    assert list(given["repaired_grids"]) == ["case2"]


def test_a_map_that_lies_beside_its_scan_is_never_taken_for_an_empty_one(tmp_path):
    workspace = make_cohort(tmp_path / "work")
    give_maps(tmp_path / "theirs", SCHEME.names)
    far = GRID.affine.copy()
    far[0, 3] = 4000
    beside = LabelMap(blobs(0)[1], Grid(GRID.shape, far), SCHEME)
    write_label_map(tmp_path / "theirs" / "case0.nii.gz", beside)
    settings = from_folder(tmp_path / "theirs", repair_grid="nearest")
    with pytest.raises(DataError, match=r"case0: the label map lies outside of the image"):
        stage.locate(settings, workspace)


def test_the_overlap_of_masks_is_counted_and_who_wins_is_said(tmp_path, capsys):
    workspace = make_cohort(tmp_path / "work")
    contested = 0
    for number in range(4):
        labels = blobs(number)[1]
        give_masks(tmp_path / "theirs", number, spleen=labels > 0, RK=labels == 2)
        contested += np.count_nonzero(labels == 2)
    stage.locate(from_folder(tmp_path / "theirs"), workspace)
    assert np.array_equal(located(workspace, 1), blobs(1)[1])
    overlap = read_record(workspace.folder("locate")).results["given"]["overlap"]
    assert overlap == {
        "wins": "the organ that is smaller in the scan",
        "scans": 4,
        "voxels": contested,
        "pairs": {"spleen and kidney_right": contested},
    }
    assert f"masks overlap in 4 scans by {contested} voxels" in capsys.readouterr().err


def test_one_mask_on_another_grid_is_named(tmp_path):
    workspace = make_cohort(tmp_path / "work")
    for number in range(4):
        labels = blobs(number)[1]
        give_masks(tmp_path / "theirs", number, spleen=labels == 1, kidney_right=labels == 2)
    shifted = GRID.affine.copy()
    shifted[:3, 3] = (0, 3, 4)
    path = tmp_path / "theirs" / "case2" / "kidney_right.nii.gz"
    write_volume(path, Volume((blobs(2)[1] == 2).astype("i2"), Grid(GRID.shape, shifted)))
    where = r"case case2, mask kidney_right\.nii\.gz: .*\(first voxels 5 mm apart"
    with pytest.raises(DataError, match=where):
        stage.locate(from_folder(tmp_path / "theirs"), workspace)


def test_a_map_without_an_organ_of_the_cohort_finds_nothing_in_that_scan(tmp_path):
    workspace = make_cohort(tmp_path / "work")
    for number in range(3):
        give_masks(tmp_path / "theirs", number, spleen=blobs(number)[1] == 1)
    give_masks(tmp_path / "theirs", 3, femur_left=blobs(3)[1] == 1)
    stage.locate(from_folder(tmp_path / "theirs"), workspace)
    assert not located(workspace, 3).any()


def test_given_maps_are_read_anew_so_that_the_record_is_of_all_of_them(tmp_path, monkeypatch):
    workspace = make_cohort(tmp_path / "work")
    for number in range(4):
        labels = blobs(number)[1]
        give_masks(tmp_path / "theirs", number, spleen=labels > 0, RK=labels == 2)
    real, seen = stage.coverage_of, []

    def stop_once(case, label_map, reference):
        seen.append(case.case_id)
        if seen == ["case0", "case1", "case2"]:
            raise KeyboardInterrupt
        return real(case, label_map, reference)

    monkeypatch.setattr(stage, "coverage_of", stop_once)
    with pytest.raises(KeyboardInterrupt):
        stage.locate(from_folder(tmp_path / "theirs"), workspace)
    stage.locate(from_folder(tmp_path / "theirs"), workspace)
    overlap = read_record(workspace.folder("locate")).results["given"]["overlap"]
    assert overlap["scans"] == 4


def test_maps_whose_headers_contradict_themselves_are_said_once_and_recorded(tmp_path, capsys):
    workspace = make_cohort(tmp_path / "work")
    give_maps(tmp_path / "theirs", SCHEME.names)
    for number in (1, 2):
        contradict(tmp_path / "theirs" / f"case{number}.nii.gz")
    stage.locate(from_folder(tmp_path / "theirs"), workspace)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "pixdim" in line]
    assert "itself in the map of case1: the spacing is 3 x 3 x 3 mm by the sform" in line
    assert line.endswith("; 1 more maps likewise")
    record = read_record(workspace.folder("locate"))
    assert set(record.results["given"]["contradictions"]) == {"case1", "case2"}


def test_names_that_a_spreadsheet_would_run_are_text_in_the_coverage(tmp_path):
    row = {"case_id": "=1+1", "organ": "@liver", "found": True, "volume_ml": -1.5, "dice": np.nan}
    stage.write_coverage(tmp_path / "coverage.csv", pd.DataFrame([row]))
    assert (tmp_path / "coverage.csv").read_text().splitlines()[1] == "'=1+1,'@liver,True,-1.5,"
