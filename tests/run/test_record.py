import errno
import json
from pathlib import Path

import pytest

from sacl.errors import DataError, WorkspaceError
from sacl.files.atomic import plain, replacing, write_text
from sacl.run.record import read_record, recorded, state_of
from sacl.run.workspace import Workspace
from sacl.settings import DenseSettings, EvaluateSettings, FinetuneSettings, IngestSettings

SETTINGS = EvaluateSettings()


def finish(workspace: Workspace, settings=SETTINGS, inputs=None) -> Path:
    with recorded(workspace, "evaluate", settings, inputs or {"predict": "a"}) as (folder, results):
        (folder / "scores.csv").write_text("x")
        results["scans"] = 3
    return workspace.folder("evaluate")


def test_a_finished_stage_with_the_same_settings_and_inputs_is_current(tmp_path):
    workspace = Workspace(tmp_path)
    assert state_of(workspace, "evaluate", SETTINGS, {"predict": "a"}) == "absent"
    finish(workspace)
    assert state_of(workspace, "evaluate", SETTINGS, {"predict": "a"}) == "current"


def test_a_stage_whose_input_was_made_anew_is_stale(tmp_path):
    finish(Workspace(tmp_path))
    assert state_of(Workspace(tmp_path), "evaluate", SETTINGS, {"predict": "b"}) == "stale"


@pytest.mark.parametrize("seed_changes", [True, False])
def test_another_configuration_is_refused_and_the_setting_named(tmp_path, seed_changes):
    finish(Workspace(tmp_path))
    other = SETTINGS if seed_changes else EvaluateSettings(nsd_tolerance_mm=7.0)
    with pytest.raises(WorkspaceError) as error:
        state_of(Workspace(tmp_path, seed=int(seed_changes)), "evaluate", other, {"predict": "a"})
    assert ("seed was 0 and is 1" if seed_changes else "tolerance_mm was 2.0 and is 7.0") in str(
        error.value
    )
    assert "--force" in str(error.value)


def forget(folder: Path, *names: str) -> None:
    """Take a setting out of fine-tuning's record, as if an older version had written it."""
    record = json.loads((folder / "run.json").read_text())
    settings = record["settings"]["finetune"]
    for name in names[:-1]:
        settings = settings[name]
    del settings[names[-1]]
    (folder / "run.json").write_text(json.dumps(record))


@pytest.mark.parametrize("names", [("twin",), ("dense", "copy_paste")])
def test_a_setting_that_an_older_version_did_not_know_counts_as_its_default(tmp_path, names):
    workspace, settings = Workspace(tmp_path), FinetuneSettings()
    with recorded(workspace, "finetune", settings, {}):
        pass
    forget(workspace.folder("finetune"), *names)
    assert state_of(workspace, "finetune", settings, {}) == "current"
    for other in (
        FinetuneSettings(twin=True, dense=DenseSettings(copy_paste=0.5)),
        FinetuneSettings(steps=7),
    ):
        with pytest.raises(WorkspaceError, match="of another configuration"):
            state_of(workspace, "finetune", other, {})


def test_a_failing_stage_leaves_no_record_and_resumes_its_partial_results(tmp_path):
    workspace = Workspace(tmp_path)
    with (
        pytest.raises(RuntimeError),
        recorded(workspace, "evaluate", SETTINGS, {"predict": "a"}) as (folder, _),
    ):
        (folder / "half").write_text("x")
        raise RuntimeError
    assert read_record(workspace.folder("evaluate")) is None
    with recorded(workspace, "evaluate", SETTINGS, {"predict": "a"}) as (folder, _):
        assert (folder / "half").exists()


def test_the_next_start_removes_what_killed_processes_left_in_any_stage(tmp_path):
    workspace = Workspace(tmp_path)
    left = [workspace.folder(s) / "sub" / ".partial-123-images.npy" for s in ("extract", "predict")]
    for path in left:
        write_text(path, "half")
    (left[0].parent / "images.npy").write_text("whole")

    finish(workspace)

    assert not any(path.exists() for path in left)
    assert (left[0].parent / "images.npy").exists()


def test_partial_results_of_other_settings_are_dropped(tmp_path):
    workspace = Workspace(tmp_path)
    with pytest.raises(RuntimeError), recorded(workspace, "evaluate", SETTINGS, {}) as (folder, _):
        (folder / "half").write_text("x")
        raise RuntimeError
    with recorded(workspace, "evaluate", EvaluateSettings(nsd_tolerance_mm=9.0), {}) as (folder, _):
        assert not (folder / "half").exists()


def test_a_finished_stage_starts_from_an_empty_folder(tmp_path):
    workspace = Workspace(tmp_path)
    finish(workspace)
    with recorded(workspace, "evaluate", SETTINGS, {"predict": "a"}) as (folder, _):
        assert not (folder / "scores.csv").exists()


def test_the_record_tells_settings_versions_and_cost(tmp_path):
    record = json.loads((finish(Workspace(tmp_path)) / "run.json").read_text())
    assert record["results"] == {"scans": 3}
    assert record["settings"]["evaluate"]["nsd_tolerance_mm"] == 2.0
    assert "torch" in record["versions"]
    assert record["peak_memory_mb"] > 0


def test_no_absolute_path_enters_a_record():
    assert plain(IngestSettings(data=Path("/secret/patient/cohort")))["data"] == ["cohort"]


def test_a_failed_write_leaves_the_old_file_and_nothing_half_written(tmp_path):
    path = tmp_path / "a.json"
    write_text(path, "old")
    with pytest.raises(ValueError, match="boom"), replacing(path) as temporary:
        temporary.write_text("half")
        raise ValueError("boom")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_clear_line(tmp_path):
    with pytest.raises(DataError, match="cannot be written, No space left"):  # noqa: SIM117
        with replacing(tmp_path / "a.json"):
            raise OSError(errno.ENOSPC, "No space left on device")


def test_a_missing_stage_is_named_with_its_remedy(tmp_path):
    with pytest.raises(WorkspaceError, match="stage 'locate' has no result; run `sacl locate`"):
        Workspace(tmp_path).require("locate")
