import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from blob_cohort import GRID, SCHEME, SHAPE, blobs, from_folder, give_maps, make_cohort
from msgspec.structs import replace

from sacl.cohort.manifest import read_cohort, write_cohort
from sacl.files.nifti import read_label_map
from sacl.networks.segmenter import SegmenterSpec, build_segmenter
from sacl.prediction.coarse import Ensemble, ensemble_of, read_networks
from sacl.run.clock import TooShort
from sacl.run.record import fingerprint, read_record
from sacl.run.workspace import Workspace
from sacl.settings import LocateSettings, SlicesSettings, VolumeSettings
from sacl.stages import locate as stage
from sacl.stages import locate_networks as training
from sacl.types import LabelMap, Volume

VOLUME = VolumeSettings(spacing_mm=(3.0, 3.0, 3.0), crop=(16, 16, 8), steps=50)
SETTINGS = LocateSettings(volume=VOLUME, channels=8)


@pytest.fixture(autouse=True, scope="module")
def fast():
    """Learn faster than in earnest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "VOLUME_LEARNING_RATE", 3e-2)
        patch.setattr(training, "SLICES_LEARNING_RATE", 1e-2)
        patch.setattr(training, "SLICES_PER_STEP", 4)
        yield


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
        assert ((label_map.voxels > 0) == (labels > 0)).mean() > 0.88


def test_dice_is_told_for_cross_fitted_labeled_scans_only(located):
    coverage = pd.read_csv(located.folder("locate") / "coverage.csv")
    assert list(coverage.columns) == ["case_id", "organ", "found", "volume_ml", "dice"]
    assert len(coverage) == 8
    assert set(coverage.loc[coverage["dice"].notna(), "case_id"]) == {"case0", "case1"}


def test_the_record_holds_the_dice_and_what_was_not_found(located):
    results = read_record(located.folder("locate")).results
    assert results["cross_fitted"]["scans"] == 2
    assert set(results["cross_fitted"]["dice"]) == set(SCHEME.names)
    assert results["organs"]["located"] == 8
    assert results["seen_by_every_network"] == []


def test_the_losses_of_every_network_are_kept(located):
    losses = pd.read_csv(located.folder("locate") / "losses.csv")
    assert losses.groupby("network")["step"].max().to_dict() == {
        "all": 49,
        "fold-0": 49,
        "fold-1": 49,
    }


def test_all_networks_can_be_loaded_and_locate_a_new_scan(located):
    ensemble = ensemble_of(read_networks(located.folder("locate")), torch.device("cpu"), "here")
    assert len(ensemble.networks) == 3
    image, labels = blobs(77)
    found = ensemble.locate(Volume(image, GRID), (-50.0, 200.0))
    assert ((found.voxels > 0) == (labels > 0)).mean() > 0.85


def test_no_case_is_located_by_a_network_that_saw_its_subject(tmp_path, monkeypatch):
    workspace = make_cohort(tmp_path, labeled=3)
    seen_by, locators = {}, []

    def remember(spec, cases, plan, device, *, what, checkpoint, pace):
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

    monkeypatch.setattr(training, "train_coarse", remember)
    kept = {}
    monkeypatch.setattr(
        training, "save_network", lambda _, name, network: kept.update({name: network})
    )
    monkeypatch.setattr(training, "load_network", lambda _, name, device: kept.get(name))
    monkeypatch.setattr(Ensemble, "locate", locate)
    stage.locate(SETTINGS, workspace)

    assert list(seen_by.values()) == [{1, 2}, {0, 2}, {0, 1}, {0, 1, 2}]
    for number, networks in enumerate(locators):
        assert len(networks) == (1 if number < 3 else 4)
        assert all(number not in seen_by[network] for network in networks)


def on_slices(steps: int, teacher_steps: int) -> LocateSettings:
    slices = SlicesSettings(size=16, steps=steps, teacher_steps=teacher_steps, augment="mild")
    return LocateSettings(slices=slices, channels=8)


@pytest.fixture(scope="module")
def located_on_slices(tmp_path_factory) -> Workspace:
    workspace = make_cohort(tmp_path_factory.mktemp("slices"))
    stage.locate(on_slices(120, 20), workspace)
    return workspace


def test_networks_on_slices_give_every_case_a_map_on_its_own_grid(located_on_slices):
    for number in range(4):
        path = located_on_slices.folder("locate") / "maps" / f"case{number}.nii.gz"
        label_map, _ = read_label_map(path, SCHEME)
        assert label_map.grid.shape == SHAPE
        labels = blobs(number)[1]
        assert ((label_map.voxels > 0) == (labels > 0)).mean() > 0.88  # an empty map has 0.857
    losses = pd.read_csv(located_on_slices.folder("locate") / "losses.csv")
    assert losses.groupby("network")["step"].max().to_dict() == dict.fromkeys(
        ("all", "fold-0", "fold-1"), 139
    )


def test_networks_on_slices_can_be_loaded_and_locate_a_new_scan(located_on_slices):
    ensemble = ensemble_of(
        read_networks(located_on_slices.folder("locate")), torch.device("cpu"), "here"
    )
    assert isinstance(ensemble.spec, SegmenterSpec)
    assert len(ensemble.networks) == 3
    image, labels = blobs(77)
    found = ensemble.locate(Volume(image, GRID), (-50.0, 200.0))
    assert ((found.voxels > 0) == (labels > 0)).mean() > 0.88  # an empty map has 0.857


def test_a_network_on_slices_learns_from_labels_of_other_folds_and_unlabeled_training_scans(
    tmp_path, monkeypatch
):
    workspace, seen = make_cohort(tmp_path, labeled=3), []

    def remember(spec, scans, plan, device, *, what, checkpoint, pace):
        seen.append([scan.labels is not None for scan in scans])
        return build_segmenter(spec, 0), [1.0]

    monkeypatch.setattr(training, "train_on_slices", remember)
    stage.locate(on_slices(25, 1), workspace)
    # Of five subjects three are labeled, each a fold of its own, and one is held out.
    assert seen == [[True, True, False]] * 3 + [[True, True, True, False]]


def test_where_all_scans_are_labeled_the_teachers_steps_see_labeled_slices(tmp_path):
    workspace = make_cohort(tmp_path)
    cohort = read_cohort(workspace.folder("ingest"))
    held = dataclasses.replace(cohort.cases[2], split="validation")
    cases = (*cohort.cases[:2], held, cohort.cases[3])
    write_cohort(workspace.folder("ingest"), dataclasses.replace(cohort, cases=cases))
    stage.locate(on_slices(2, 3), workspace)
    losses = pd.read_csv(workspace.folder("locate") / "losses.csv")
    assert losses.groupby("network").size().to_dict() == dict.fromkeys(
        ("all", "fold-0", "fold-1"), 5
    )


def test_one_network_locates_where_the_time_is_too_short_for_several(tmp_path, monkeypatch, capsys):
    workspace, real = make_cohort(tmp_path), training.train_coarse

    def in_short_time(*args, what, **how):
        if what != "coarse network 1/1":
            raise TooShort("time: 1 min is too short")
        return real(*args, what=what, **how)

    monkeypatch.setattr(training, "train_coarse", in_short_time)
    stage.locate(LocateSettings(volume=replace(VOLUME, steps=3), channels=8), workspace)
    assert "one learns from all labeled scans" in capsys.readouterr().err
    results = read_record(workspace.folder("locate")).results
    assert (len(results["seen_by_every_network"]), "cross_fitted" in results) == (2, False)
    assert len(read_networks(workspace.folder("locate"))) == 1


def test_an_interrupted_stage_goes_on_with_its_networks_and_maps(tmp_path, monkeypatch):
    workspace = make_cohort(tmp_path)
    real, trained, stopped = training.train_coarse, [], []

    def counting(*args, **kwargs):
        trained.append(kwargs["what"])
        return real(*args, **kwargs)

    def stop_once(case, label_map, reference):
        if case.case_id == "case2" and not stopped:
            stopped.append(True)
            raise KeyboardInterrupt
        return real_coverage(case, label_map, reference)

    real_coverage = stage.coverage_of
    monkeypatch.setattr(training, "train_coarse", counting)
    monkeypatch.setattr(stage, "coverage_of", stop_once)
    settings = LocateSettings(volume=replace(VOLUME, steps=3), channels=8)
    with pytest.raises(KeyboardInterrupt):
        stage.locate(settings, workspace)
    written = workspace.folder("locate") / "maps" / "case2.nii.gz"
    before = written.stat().st_mtime_ns
    stage.locate(settings, workspace)
    assert trained == [f"coarse network {number}/3" for number in (1, 2, 3)]
    assert written.stat().st_mtime_ns == before
    assert len(pd.read_csv(workspace.folder("locate") / "coverage.csv")) == 8
    assert len(pd.read_csv(workspace.folder("locate") / "losses.csv")) == 9


def test_one_labeled_subject_is_located_by_the_network_that_saw_it_and_not_scored(tmp_path, capsys):
    workspace = make_cohort(tmp_path, labeled=1)
    stage.locate(SETTINGS, workspace)
    folder = workspace.folder("locate")
    assert set(pd.read_csv(folder / "losses.csv")["network"]) == {"all"}
    assert pd.read_csv(folder / "coverage.csv")["dice"].isna().all()
    results = read_record(folder).results
    assert results["seen_by_every_network"] == ["subject0"]
    assert "cross_fitted" not in results
    told = capsys.readouterr().err
    assert "WARNING, no other labeled subjects show all organs of subject0" in told
    assert "Dice" not in told


def test_phases_are_estimated_beside_the_maps_and_recorded(tmp_path, capsys):
    workspace = make_cohort(tmp_path / "work")
    give_maps(tmp_path / "theirs", ("spleen", "kidney_right"))
    stage.locate(from_folder(tmp_path / "theirs"), workspace)
    phases = pd.read_csv(workspace.folder("locate") / "phases.csv")
    assert phases["case_id"].tolist() == ["case0", "case1", "case2", "case3"]
    assert phases["hu_spleen"].tolist() == pytest.approx([80] * 4, abs=5)
    assert phases["hu_kidneys"].tolist() == pytest.approx([160] * 4, abs=5)
    assert phases["hu_aorta"].isna().all()
    results = read_record(workspace.folder("locate")).results
    assert sum(results["phases"]["sources"].values()) == 4
    assert "locate: contrast phases: " in capsys.readouterr().err


def test_other_phases_make_the_stages_after_it_stale(tmp_path, monkeypatch):
    workspace = make_cohort(tmp_path / "work")
    give_maps(tmp_path / "theirs", ("spleen", "kidney_right"))
    settings = from_folder(tmp_path / "theirs")
    stage.locate(settings, workspace)
    before = fingerprint(workspace.folder("locate"))
    monkeypatch.setattr(stage, "PHASE_THRESHOLD", 0.0)
    stage.locate(settings, workspace)
    assert fingerprint(workspace.folder("locate")) != before
    phases = pd.read_csv(workspace.folder("locate") / "phases.csv")
    assert (phases["source"] == "estimated").all()
