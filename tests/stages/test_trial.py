"""A trial of segmenters: who learns, who is held out, what is scored, and that nothing is left."""

from dataclasses import replace

import numpy as np
import pytest
from blob_cohort import make_cohort

from sacl.cohort.manifest import read_cohort
from sacl.run.clock import TooShort
from sacl.run.workspace import Workspace
from sacl.settings import (
    DenseSettings,
    ExtractSettings,
    FinetuneSettings,
    LocateSettings,
    PretrainSettings,
    RunConfig,
    VolumeHeadSettings,
    VolumeSettings,
)
from sacl.stages import trial
from sacl.stages.extract import extract
from sacl.stages.finetune import finetune
from sacl.stages.locate import locate
from sacl.stages.pretrain import pretrain
from sacl.types import LabelMap

LOCATE = LocateSettings(
    volume=VolumeSettings(spacing_mm=(3.0, 3.0, 3.0), crop=(16, 16, 8), steps=2), channels=8
)
CANDIDATES = {
    "volumes": RunConfig(
        locate=LOCATE,
        finetune=FinetuneSettings(volume=VolumeHeadSettings(teacher_steps=2), steps=2),
    ),
    "slices": RunConfig(
        locate=LOCATE,
        extract=ExtractSettings(patch_size=16, dense_size=32),
        pretrain=PretrainSettings(method="none", width=8),
        finetune=FinetuneSettings(dense=DenseSettings(teacher_steps=0), steps=3, batch=2),
    ),
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Workspace:
    """Four labeled subjects, one without labels and one that the run holds out."""
    return make_cohort(tmp_path_factory.mktemp("work"), labeled=4)


def train(config, workspace):
    locate(config.locate, workspace)
    if config.finetune.volume is None:
        extract(config.extract, workspace)
        pretrain(config.pretrain, workspace)
    finetune(config.finetune, workspace)


def part_of(workspace):
    home = workspace.folder("ingest")
    return trial.small_cohort(read_cohort(home), home)


def test_half_of_the_labeled_subjects_are_held_out_and_the_runs_own_take_no_part(workspace):
    cohort, small = read_cohort(workspace.folder("ingest")), part_of(workspace)
    learned = {case.subject_id for case in small.labeled}
    held = {case.subject_id for case in small.held_out}
    assert (len(learned), len(held), len(small.unlabeled)) == (2, 2, 1)
    assert learned | held == {case.subject_id for case in cohort.labeled}
    assert not {c.case_id for c in small.cases} & {c.case_id for c in cohort.of_split("validation")}


def test_of_many_subjects_ten_are_held_out_and_a_dozen_unlabeled_scans_take_part(workspace):
    cohort = read_cohort(workspace.folder("ingest"))
    first, unlabeled = cohort.labeled[0], cohort.unlabeled[0]
    many = [replace(first, case_id=f"a{n}", subject_id=f"a{n}") for n in range(30)]
    many += [replace(unlabeled, case_id=f"b{n}", subject_id=f"b{n}") for n in range(100)]
    home = workspace.folder("ingest")
    small = trial.small_cohort(replace(cohort, cases=tuple(many)), home)
    assert (len(small.labeled), len(small.held_out), len(small.unlabeled)) == (20, 10, 12)


@pytest.mark.parametrize("labeled", [1, 2])
def test_of_one_or_two_labeled_subjects_nothing_is_tried(labeled, tmp_path):
    made = make_cohort(tmp_path, labeled)
    assert trial.try_segmenters(CANDIDATES, made, train=None) == ()


def test_both_kinds_are_trained_and_nothing_is_left(workspace):
    before = sorted(workspace.root.rglob("*"))
    volumes, slices = trial.try_segmenters(CANDIDATES, workspace, train)
    assert (volumes.candidate, volumes.steps, slices.candidate, slices.steps) == (
        *("volumes", 4),
        *("slices", 3),
    )
    for tried in (volumes, slices):
        assert tried.organs.keys() == {"spleen", "kidney_right"}
        assert 0 <= tried.dice <= 1
        assert tried.seconds > 0
    assert sorted(workspace.root.rglob("*")) == before


def test_a_candidate_is_scored_on_the_held_out_scans_alone(workspace, monkeypatch):
    small = part_of(workspace)
    scored = []

    def predict_volume(predictor, volume, window, coarse):
        (case,) = (
            case
            for case in small.cases
            if np.array_equal(trial.Scan(case, small, workspace).image.voxels, volume.voxels)
        )
        scored.append(case.case_id)
        reference = trial.Scan(case, small, workspace).reference
        known = reference.voxels * (coarse is None)  # volumes are known, slices see nothing
        return LabelMap(known, reference.grid, reference.scheme)

    monkeypatch.setattr(trial, "predict_volume", predict_volume)
    volumes, slices = trial.try_segmenters(CANDIDATES, workspace, train)
    assert (volumes.dice, slices.dice) == (1.0, 0.0)
    assert scored == [case.case_id for case in small.held_out] * 2


def test_a_time_too_short_leaves_nothing_either(workspace):
    def too_short(config, within):
        assert read_cohort(within.require("ingest")).held_out
        raise TooShort("time: too short")

    before = sorted(workspace.root.rglob("*"))
    with pytest.raises(TooShort):
        trial.try_segmenters(CANDIDATES, workspace, too_short)
    assert sorted(workspace.root.rglob("*")) == before
