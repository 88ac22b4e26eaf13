import itertools
import json
import shutil
from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest
from toy_cohort import SCHEME, WINDOW, locate_toy_cohort, toy_grid, toy_scan

from sacl.cohort.manifest import read_cohort
from sacl.errors import DataError, WorkspaceError
from sacl.files.arrays import write_rows
from sacl.files.nifti import write_label_map
from sacl.patches import store as store_module
from sacl.patches.query import coverage, cut, plan_boxes
from sacl.patches.store import read_patches, writing_case
from sacl.patches.window import normalize
from sacl.run.engine import Engine, Shard
from sacl.run.record import state_of
from sacl.run.workspace import Workspace
from sacl.settings import ExtractSettings
from sacl.stages import extract as stage
from sacl.types import Grid, LabelMap

SETTINGS = ExtractSettings(patch_size=16, dense_size=32, region="slice")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    workspace = locate_toy_cohort(tmp_path_factory.mktemp("work"))
    stage.extract(SETTINGS, workspace)
    return workspace


@pytest.fixture(scope="module")
def store(workspace):
    return read_patches(workspace.require("extract"))


def test_cuts_a_patch_of_every_organ_and_slice_of_every_scan(store):
    counts = store.index.groupby(["case_id", "organ"]).size().unstack()

    # Seven slices of liver and ten of aorta, one more at each end.
    assert (counts["liver"] == 9).all()
    assert (counts["aorta"] == 12).all()
    assert len(counts) == 6


def test_stores_what_a_cut_of_the_scan_gives(store):
    image, labels = toy_scan(3)
    window = normalize(image, WINDOW)
    rows = store.index.query("case_id == 'case-3' and organ == 'liver'")
    boxes = plan_boxes(LabelMap(labels, toy_grid(), SCHEME), "liver")

    for (row, line), box in zip(rows.iterrows(), boxes, strict=True):
        k = int(line["slice"])
        place = line[["i0", "j0", "slice", "i1", "j1"]].tolist()
        assert place == [*box.start, *box.stop[:2]]
        image, attention = (array[row, 4:20, 4:20] for array in (store.images, store.attention))
        expected = cut(window[:, :, k], box, 16)
        np.testing.assert_allclose(image / np.float32(65535), expected, atol=1e-5)
        expected = coverage(labels[:, :, k], 1, box, 16)
        np.testing.assert_allclose(attention / 255, expected, atol=0.5 / 255 + 1e-6)


def test_keeps_a_margin_around_every_patch(store):
    assert store.meta.stored_size == 24  # 1.5 times 16
    assert store.images.shape[1:] == (24, 24)
    assert store.dense_images.shape[1:] == (52, 52)


def test_stores_references_of_annotated_organs_of_labeled_training_scans_only(store):
    with_reference = store.index[store.index["reference_row"] >= 0]

    assert set(with_reference["case_id"]) == {"case-0", "case-1"}
    assert set(with_reference.query("case_id == 'case-1'")["organ"]) == {"liver"}
    assert with_reference["reference_row"].tolist() == list(range(len(store.references)))
    middle = with_reference.query("slice == 5 and case_id == 'case-0' and organ == 'aorta'")
    row, reference_row = int(middle.index[0]), int(middle["reference_row"].iloc[0])
    np.testing.assert_array_equal(store.references[reference_row], store.attention[row])


def test_stores_dense_slices_of_training_scans_with_what_is_labeled(store, workspace):
    cohort = read_cohort(workspace.folder("ingest"))
    index = store.dense_index
    labeled = index[index["reference_row"] >= 0]
    assert set(index["case_id"]) == {case.case_id for case in cohort.of_split("train")}
    assert labeled.groupby("case_id").size().to_dict() == {"case-0": 12, "case-1": 12}
    assert labeled["annotated"].unique().tolist() == ["liver;aorta", "liver"]
    assert labeled["reference_row"].tolist() == list(range(len(store.dense_references)))
    row = index.query("case_id == 'case-0' and slice == 5").index[0]
    reference = store.dense_references[index["reference_row"][row]]
    assert set(np.unique(reference)) == {0, 1, 2}
    # 48 x 40 voxels in a square of 48 on 32 pixels: the organ keeps its share of the area.
    assert (reference == 1).sum() == pytest.approx(20 * 22 * (32 / 48) ** 2, rel=0.1)
    assert store.dense_images[row].max() > 0


def test_carries_splits_subjects_and_scan_labels_into_the_index(store, workspace):
    cohort = read_cohort(workspace.folder("ingest"))

    for case in cohort.cases:
        rows = store.index[store.index["case_id"] == case.case_id]
        assert rows["subject_id"].unique().tolist() == [case.subject_id]
        assert rows["split"].unique().tolist() == [case.split]
        assert rows["label_phase"].unique().tolist() == [case.scan_label("phase")]


def test_records_the_size_of_a_pixel_in_mm(store):
    liver = store.index.query("organ == 'liver'")

    # The liver is 44 mm wide: 1.4 times that is 61.6 mm, 31 voxels, on 16 pixels.
    np.testing.assert_allclose(liver["pixel_mm"], 31 * 2.0 / 16)


def test_is_up_to_date_when_done(workspace):
    inputs = stage.inputs(SETTINGS, workspace)

    assert state_of(workspace, "extract", SETTINGS, inputs) == "current"
    record = json.loads((workspace.folder("extract") / "run.json").read_text())
    assert record["results"]["patches_per_organ"] == {"liver": 54, "aorta": 72}


def names_in(folder):
    return {path.name for path in folder.iterdir()}


ARRAYS = ("images", "attention", "references", "dense_images", "dense_references", "dense_coarse")
FILES = {f"{name}-0000.npy" for name in (*ARRAYS, "index", "dense_index")}


def test_leaves_only_finished_files(workspace):
    folder = workspace.folder("extract")
    assert names_in(folder) == FILES | {"run.json", "store.json", "cases.json"}


def content(workspace):
    folder = workspace.folder("extract")
    files = [path for path in folder.iterdir() if path.name != "run.json"]
    return {path.name: path.read_bytes() for path in files}


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_in_any_order_leave_what_one_process_does(tmp_path, workspace, count):
    located = locate_toy_cohort(tmp_path)
    for number in sorted(range(1, count + 1), key=lambda n: n * 5 % 7):
        with pytest.raises(DataError, match="are not done"):
            stage.extract(SETTINGS, replace(located, engine=Engine(merges=True)))
        stage.extract(SETTINGS, replace(located, engine=Engine(shard=Shard(number, count))))
    assert not (located.folder("extract") / "run.json").exists()
    stage.extract(SETTINGS, replace(located, engine=Engine(merges=True)))
    assert content(located) == content(workspace)


def test_two_processes_leave_what_one_does(tmp_path, workspace):
    located = locate_toy_cohort(tmp_path)
    stage.extract(SETTINGS, replace(located, engine=Engine(workers=2)))
    assert content(located) == content(workspace)


def test_goes_on_where_it_was_interrupted_and_cuts_no_scan_twice(tmp_path, workspace, monkeypatch):
    located, begun = locate_toy_cohort(tmp_path), []

    def writing(path, *given):
        begun.append(path.stem)
        if len(begun) == 4:
            raise KeyboardInterrupt
        return writing_case(path, *given)

    monkeypatch.setattr(stage, "writing_case", writing)
    with pytest.raises(KeyboardInterrupt):
        stage.extract(SETTINGS, located)
    monkeypatch.setattr(store_module, "_TWICE_BYTES", 0)  # what is joined is deleted at once
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "write_rows", failing_at(write_rows, 20))
        with pytest.raises(KeyboardInterrupt):
            stage.extract(SETTINGS, located)
    assert len([*(located.folder("extract") / "cases").iterdir()]) < 6
    stage.extract(SETTINGS, located)
    assert begun == ["case-0", "case-1", "case-2", "case-3", "case-3", "case-4", "case-5"]
    assert content(located) == content(workspace)


def failing_at(work, call):
    """Return the same, interrupted at its n-th call."""
    calls = itertools.count(1)

    def act(*given):
        if next(calls) == call:
            raise KeyboardInterrupt
        return work(*given)

    return act


def test_a_bad_scan_is_named_and_the_others_are_cut(tmp_path):
    located = locate_toy_cohort(tmp_path)
    path = located.folder("locate") / "maps" / "case-2.nii.gz"
    whole = path.read_bytes()
    path.unlink()
    with pytest.raises(DataError, match="case-2: no coarse map"):
        stage.extract(SETTINGS, located)
    assert len([*(located.folder("extract") / "cases").iterdir()]) == 5
    path.write_bytes(whole)
    stage.extract(SETTINGS, located)
    assert len(read_patches(located.folder("extract")).index["case_id"].unique()) == 6


def test_where_no_coarse_map_holds_an_organ_there_are_whole_slices_alone(tmp_path, capsys):
    workspace = locate_toy_cohort(tmp_path, empty_maps=True)
    stage.extract(SETTINGS, workspace)
    assert "no coarse map holds any organ" in capsys.readouterr().err
    store = read_patches(workspace.folder("extract"))
    boxes = store.dense_index[["i0", "j0", "i1", "j1"]].to_numpy()
    assert len(store) == 0
    # 48 x 40 pixels in the smallest centered square.
    assert {tuple(box) for box in boxes.tolist()} == {(0, -4, 48, 44)}


def test_refuses_a_coarse_map_on_another_grid(tmp_path):
    workspace = locate_toy_cohort(tmp_path)
    shifted = np.diag([2.0, 2.0, 5.0, 1.0])
    shifted[0, 3] = 7.0
    moved = LabelMap(toy_scan(2)[1], Grid(toy_grid().shape, shifted), SCHEME)
    write_label_map(workspace.folder("locate") / "maps" / "case-2.nii.gz", moved)

    with pytest.raises(DataError, match=r"case-2, coarse map: .*different grids"):
        stage.extract(SETTINGS, workspace)


def test_names_the_case_whose_coarse_map_is_missing(tmp_path):
    workspace = locate_toy_cohort(tmp_path)
    (workspace.folder("locate") / "maps" / "case-2.nii.gz").unlink()

    with pytest.raises(DataError, match="case-2: no coarse map"):
        stage.extract(SETTINGS, workspace)


def test_says_that_the_disk_is_full_before_it_cuts(tmp_path, monkeypatch):
    workspace = locate_toy_cohort(tmp_path)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 0))

    with pytest.raises(DataError, match="the disk has 0 MB left"):
        stage.extract(SETTINGS, workspace)

    assert not list(workspace.folder("extract").glob("*.npy"))


def test_asks_for_the_stages_before_it(tmp_path):
    with pytest.raises(WorkspaceError, match="ingest"):
        stage.extract(SETTINGS, Workspace(tmp_path))
