import numpy as np
import pytest
from blob_cohort import make_cohort

from sacl.errors import ConfigError
from sacl.run.workspace import Workspace
from sacl.settings import LocateSettings, SlicesSettings, VolumeSettings
from sacl.stages import trial
from sacl.types import LabelMap

CANDIDATES = {
    "slices": LocateSettings(slices=SlicesSettings()),
    "volume": LocateSettings(volume=VolumeSettings()),
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Workspace:
    return make_cohort(tmp_path_factory.mktemp("work"))


class Known:
    """A network that knows the references of the scans that it was trained on, and no others."""

    def __init__(self, seen, cohort, knows_others):
        self.seen, self.cohort, self.knows_others = seen, cohort, knows_others

    def locate(self, volume, window):
        scans = {
            case.case_id: trial.Scan(case, self.cohort, self.workspace)
            for case in self.cohort.labeled
        }
        case_id = next(n for n, s in scans.items() if np.array_equal(s.image.voxels, volume.voxels))
        assert case_id not in self.seen, "a scan is scored by a network that saw it"
        reference = scans[case_id].reference
        voxels = reference.voxels if self.knows_others else np.zeros_like(reference.voxels)
        return LabelMap(voxels, reference.grid, reference.scheme)


@pytest.fixture
def faked(monkeypatch):
    """Networks on slices know nothing of other scans, those on volumes everything."""

    def trainer_of(settings, workspace, cohort):
        def train_one(cases, seed, what, pace):
            network = Known([case.case_id for case in cases], cohort, settings.volume is not None)
            network.workspace = workspace
            assert pace.deadline.left_s <= 2.5
            return network, [0.5] * 7

        return train_one

    monkeypatch.setattr(trial, "trainer_of", trainer_of)


def test_each_labeled_scan_is_scored_by_networks_that_did_not_see_it(workspace, faked):
    slices, volume = trial.try_candidates(CANDIDATES, workspace, seconds=10.0)
    assert (slices.candidate, slices.dice, volume.candidate, volume.dice) == (
        *("slices", 0.0),
        *("volume", 1.0),
    )
    assert set(volume.organs.values()) == {1.0}
    assert volume.steps == 14


def test_nothing_is_written(workspace, faked):
    before = sorted(workspace.root.rglob("*"))
    trial.try_candidates(CANDIDATES, workspace, seconds=10.0)
    assert sorted(workspace.root.rglob("*")) == before


def test_a_time_too_short_for_any_training_is_refused(workspace):
    with pytest.raises(ConfigError, match="too short"):
        trial.try_candidates(CANDIDATES, workspace, seconds=1e-3)
