import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from sacl.errors import DataError
from sacl.inference.coarse import CoarseEnsemble, load_coarse
from sacl.io.manifest import write_cohort
from sacl.io.nifti import read_label_map, write_label_map, write_volume
from sacl.io.run_record import read_record, write_text
from sacl.io.workspace import Workspace
from sacl.settings import LocateSettings
from sacl.stages import locate as stage
from sacl.types import Case, Cohort, Grid, LabelMap, LabelScheme, NativeFrame, Volume

SCHEME = LabelScheme("two", ("spleen", "kidney_right"))
SHAPE = (20, 18, 12)
GRID = Grid(SHAPE, np.diag([3.0, 3.0, 3.0, 1.0]))
SETTINGS = LocateSettings(
    spacing_mm=(3.0, 3.0, 3.0),
    crop=(16, 16, 8),
    channels=4,
    folds=2,
    steps=25,
    batch=2,
    learning_rate=3e-2,
)


def blobs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an image with a dim and a bright organ at places of its own, and its labels."""
    rng = np.random.default_rng(seed)
    i, j, k = rng.integers(0, 3, size=3)
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[2 + i : 8 + i, 3 + j : 11 + j, 1 + k : 8 + k] = 1
    labels[11 + i : 16 + i, 4 + j : 12 + j, 2 + k : 9 + k] = 2
    image = np.array([0, 80, 160])[labels] + rng.normal(0, 8, SHAPE)
    return image.astype(np.int16), labels


def make_cohort(root: Path, labeled: int = 2) -> Workspace:
    """Write an ingested cohort: labeled and unlabeled training subjects, one for validation."""
    workspace = Workspace(root, device="cpu")
    folder = workspace.folder("ingest")
    cases = []
    for number in range(labeled + 2):
        case_id, image, labels = f"case{number}", *blobs(number)
        write_volume(folder / "images" / f"{case_id}.nii", Volume(image, GRID))
        has_reference = number < labeled
        if has_reference:
            reference = LabelMap(labels, GRID, SCHEME)
            write_label_map(folder / "references" / f"{case_id}.nii.gz", reference)
        cases.append(
            Case(
                case_id=case_id,
                subject_id=f"subject{number}",
                image=f"images/{case_id}.nii",
                reference=f"references/{case_id}.nii.gz" if has_reference else None,
                split="validation" if number == labeled + 1 else "train",
                native=NativeFrame(GRID),
                window=(-50.0, 200.0),
                annotated=SCHEME.names if has_reference else (),
            )
        )
    write_cohort(folder, Cohort("blobs", SCHEME, tuple(cases)))
    write_text(folder / "run.json", "{}")
    return workspace


def from_folder(source: Path) -> LocateSettings:
    return LocateSettings(source=source, min_volume_ml=0.2, keep_component=0.2)


def give_maps(
    folder: Path, names: tuple[str, ...] | None, values: tuple[int, int] = (1, 2)
) -> None:
    """Write the four cases' true labels, under other names and values."""
    for number in range(4):
        labels = np.select([blobs(number)[1] == 1, blobs(number)[1] == 2], values, 0)
        path = folder / f"case{number}.nii.gz"
        if names is None:
            write_volume(path, Volume(labels.astype(np.int16), GRID))
        else:
            scheme = LabelScheme("theirs", names)
            write_label_map(path, LabelMap(labels.astype(np.uint8), GRID, scheme))


@pytest.fixture(scope="module")
def located(tmp_path_factory) -> Workspace:
    workspace = make_cohort(tmp_path_factory.mktemp("work"))
    stage.locate(SETTINGS, workspace)
    return workspace


def test_every_case_gets_a_map_on_its_own_grid(located):
    for number in range(4):
        path = located.folder("locate") / "maps" / f"case{number}.nii.gz"
        label_map, _ = read_label_map(path, SCHEME)
        assert label_map.grid.shape == SHAPE
        labels = blobs(number)[1]
        assert ((label_map.voxels > 0) == (labels > 0)).mean() > 0.85


def test_dice_is_told_for_cross_fitted_labeled_scans_only(located):
    coverage = pd.read_csv(located.folder("locate") / "coverage.csv")
    assert list(coverage.columns) == ["case_id", "organ", "found", "volume_ml", "dice"]
    assert len(coverage) == 8
    assert set(coverage.loc[coverage["dice"].notna(), "case_id"]) == {"case0", "case1"}


def test_the_record_holds_the_dice_and_what_was_not_found(located):
    results = read_record(located.folder("locate"))["results"]
    assert results["cross_fitted"]["scans"] == 2
    assert set(results["cross_fitted"]["dice"]) == set(SCHEME.names)
    assert results["organs"]["located"] == 8


def test_the_losses_of_every_network_are_kept(located):
    losses = pd.read_csv(located.folder("locate") / "losses.csv")
    assert losses.groupby("network")["step"].max().tolist() == [24, 24]


def test_the_networks_of_all_folds_can_be_loaded_and_locate_a_new_scan(located):
    ensemble = load_coarse(located.folder("locate"), torch.device("cpu"))
    assert len(ensemble.networks) == 2
    image, labels = blobs(77)
    found = ensemble.locate(Volume(image, GRID), (-50.0, 200.0))
    assert ((found.voxels > 0) == (labels > 0)).mean() > 0.85


def test_no_case_is_located_by_a_network_that_saw_its_subject(tmp_path, monkeypatch):
    workspace = make_cohort(tmp_path, labeled=3)
    seen_by, locators = {}, []

    def remember(spec, cases, plan, device, *, what, checkpoint):
        network = torch.nn.Identity()
        # 3 mm scans on a 3 mm grid keep every voxel, which tells whose they are.
        seen_by[network] = {
            number
            for number in range(3)
            for case in cases
            if np.array_equal(case.labels.numpy(), blobs(number)[1])
        }
        return network, [1.0]

    def locate(self, volume, window):
        locators.append(self.networks)
        return LabelMap(np.zeros(SHAPE, dtype=np.uint8), volume.grid, SCHEME)

    monkeypatch.setattr(stage, "train_coarse", remember)
    monkeypatch.setattr(stage, "save_network", lambda *_: None)
    monkeypatch.setattr(CoarseEnsemble, "locate", locate)
    stage.locate(SETTINGS, workspace)

    assert list(seen_by.values()) == [{1}, {0, 2}]
    for number, networks in enumerate(locators):
        assert len(networks) == (1 if number < 3 else 2)
        assert all(number not in seen_by[network] for network in networks)


def test_an_interrupted_stage_goes_on_with_its_networks_and_maps(tmp_path, monkeypatch):
    workspace = make_cohort(tmp_path)
    real, trained, stopped = stage.train_coarse, [], []

    def counting(*args, **kwargs):
        trained.append(kwargs["what"])
        return real(*args, **kwargs)

    def stop_once(case, label_map, reference):
        if case.case_id == "case2" and not stopped:
            stopped.append(True)
            raise KeyboardInterrupt
        return real_coverage(case, label_map, reference)

    real_coverage = stage.coverage_of
    monkeypatch.setattr(stage, "train_coarse", counting)
    monkeypatch.setattr(stage, "coverage_of", stop_once)
    settings = LocateSettings(**{**vars(SETTINGS), "steps": 3})
    with pytest.raises(KeyboardInterrupt):
        stage.locate(settings, workspace)
    written = workspace.folder("locate") / "maps" / "case2.nii.gz"
    before = written.stat().st_mtime_ns
    stage.locate(settings, workspace)
    assert trained == ["coarse network 1/2", "coarse network 2/2"]
    assert written.stat().st_mtime_ns == before
    assert len(pd.read_csv(workspace.folder("locate") / "coverage.csv")) == 8
    assert len(pd.read_csv(workspace.folder("locate") / "losses.csv")) == 6


def test_one_labeled_subject_is_not_enough(tmp_path):
    with pytest.raises(DataError, match=r"1 labeled subject, .* at least 2.* --from DIR"):
        stage.locate(SETTINGS, make_cohort(tmp_path, labeled=1))


def test_maps_of_another_tool_are_matched_by_name_and_not_by_value(tmp_path, capsys):
    workspace = make_cohort(tmp_path / "work")
    give_maps(tmp_path / "theirs", ("skin", "RK", "liver", "Spleen"), values=(4, 2))
    stage.locate(from_folder(tmp_path / "theirs"), workspace)
    for number in range(4):
        path = workspace.folder("locate") / "maps" / f"case{number}.nii.gz"
        assert np.array_equal(read_label_map(path, SCHEME)[0].voxels, blobs(number)[1])
    coverage = pd.read_csv(workspace.folder("locate") / "coverage.csv")
    assert coverage["found"].all()
    assert coverage["dice"].isna().all()
    assert not (workspace.folder("locate") / "networks").exists()
    assert "coarse: 0 of 8 organs not found" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "table"),
    [
        ("labels.json", {"1": "spleen", "7": "right kidney"}),
        ("dataset.json", {"labels": {"background": 0, "spleen": 1, "kidney_right": 7}}),
    ],
)
def test_names_may_stand_in_a_json_beside_the_maps(tmp_path, file, table):
    workspace = make_cohort(tmp_path / "work")
    give_maps(tmp_path / "theirs", None, values=(1, 7))
    write_text(tmp_path / "theirs" / file, json.dumps(table))
    stage.locate(from_folder(tmp_path / "theirs"), workspace)
    path = workspace.folder("locate") / "maps" / "case1.nii.gz"
    assert np.array_equal(read_label_map(path, SCHEME)[0].voxels, blobs(1)[1])


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
    other = Grid(SHAPE, np.diag([3.0, 3.0, 4.0, 1.0]))
    wrong = LabelMap(blobs(0)[1], other, SCHEME)
    write_label_map(tmp_path / "theirs" / "case0.nii.gz", wrong)
    with pytest.raises(DataError, match="case case0: image and label map lie on different grids"):
        stage.locate(from_folder(tmp_path / "theirs"), workspace)


def test_label_values_without_names_are_refused_and_the_remedy_is_told(tmp_path):
    workspace = make_cohort(tmp_path / "work")
    give_maps(tmp_path / "theirs", None)
    with pytest.raises(DataError, match=r"have no names; write them into labels\.json"):
        stage.locate(from_folder(tmp_path / "theirs"), workspace)


def test_maps_without_any_organ_of_the_cohort_are_refused(tmp_path):
    workspace = make_cohort(tmp_path / "work")
    give_maps(tmp_path / "theirs", ("heart", "lung"))
    with pytest.raises(DataError, match=r"none of its labels .* is an organ of the cohort"):
        stage.locate(from_folder(tmp_path / "theirs"), workspace)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="no folder nowhere"):
        stage.locate(from_folder(tmp_path / "nowhere"), make_cohort(tmp_path / "work"))
