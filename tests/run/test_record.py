import errno
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from sacl.errors import DataError, WorkspaceError
from sacl.files.atomic import plain, replacing, require_ours, write_text
from sacl.run import pipeline
from sacl.run.machine import peak_memory_mb
from sacl.run.record import (
    PACE,
    aside_of,
    clear,
    fingerprint,
    paces_in,
    read_record,
    recorded,
    restore,
    settle,
    state_of,
)
from sacl.run.workspace import Workspace
from sacl.settings import (
    DenseSettings,
    EvaluateSettings,
    FinetuneSettings,
    IngestSettings,
    RunConfig,
)

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


@pytest.mark.parametrize("names", [("steps",), ("dense", "copy_paste")])
def test_a_setting_that_an_older_version_did_not_know_counts_as_its_default(tmp_path, names):
    workspace, settings = Workspace(tmp_path), FinetuneSettings()
    with recorded(workspace, "finetune", settings, {}):
        pass
    forget(workspace.folder("finetune"), *names)
    assert state_of(workspace, "finetune", settings, {}) == "current"
    for other in (
        FinetuneSettings(dense=DenseSettings(copy_paste=0.5)),
        FinetuneSettings(steps=7),
    ):
        with pytest.raises(WorkspaceError, match="with another configuration"):
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


def test_where_data_lie_matters_only_if_they_are_other_data(tmp_path):
    workspace = Workspace(tmp_path)
    here, there = {"data": "a", "place": "here"}, {"data": "a", "place": "there"}
    with (
        pytest.raises(RuntimeError),
        recorded(workspace, "evaluate", SETTINGS, here) as (folder, _),
    ):
        (folder / "half").write_text("x")
        raise RuntimeError
    with recorded(workspace, "evaluate", SETTINGS, there) as (folder, _):
        assert (folder / "half").exists()
    assert state_of(workspace, "evaluate", SETTINGS, here) == "current"
    assert state_of(workspace, "evaluate", SETTINGS, {"data": "b", "place": "there"}) == "stale"
    with pytest.raises(WorkspaceError, match="holds a run on other data, from another folder"):
        state_of(workspace, "evaluate", SETTINGS, {"data": "b", "place": "here"})


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


def test_a_damaged_note_of_partial_results_drops_them(tmp_path):
    workspace = Workspace(tmp_path)
    with pytest.raises(RuntimeError), recorded(workspace, "evaluate", SETTINGS, {}) as (folder, _):
        (folder / "half").write_text("x")
        (folder / "partial.json").write_bytes(b"\x86\xff")
        raise RuntimeError
    with recorded(workspace, "evaluate", SETTINGS, {}) as (folder, _):
        assert not (folder / "half").exists()


def test_a_finished_stage_starts_from_an_empty_folder(tmp_path):
    workspace = Workspace(tmp_path)
    finish(workspace)
    with recorded(workspace, "evaluate", SETTINGS, {"predict": "a"}) as (folder, _):
        assert not (folder / "scores.csv").exists()


def test_finished_results_outlive_a_redo_that_is_refused_or_killed(tmp_path):
    workspace = Workspace(tmp_path)
    folder = finish(workspace)
    for error in (DataError, KeyboardInterrupt):
        with (
            pytest.raises(error),
            recorded(workspace, "evaluate", SETTINGS, {"predict": "b"}) as (_, _),
        ):
            assert not (folder / "scores.csv").exists()
            raise error
        assert (folder / "scores.csv").exists() == (error is DataError)
        assert (read_record(folder) is None) == (error is KeyboardInterrupt)
    clear(workspace, "evaluate", SETTINGS)
    settle(folder)
    assert read_record(folder).inputs == {"predict": "a"}
    finish(workspace)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [folder.name]


def test_a_stage_that_was_killed_as_it_finished_leaves_no_note(tmp_path, monkeypatch):
    def killed(_folder):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("sacl.run.record.settle", lambda folder: None)
        with recorded(Workspace(tmp_path), "evaluate", SETTINGS, {}) as (folder, _):
            patch.setattr("sacl.run.record.settle", killed)
    assert sorted(path.name for path in folder.iterdir()) == ["partial.json", "run.json"]
    settle(folder)
    assert [path.name for path in folder.iterdir()] == ["run.json"]
    finish(Workspace(tmp_path))
    assert sorted(path.name for path in folder.iterdir()) == ["run.json", "scores.csv"]


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": 1}}', "\xff"])
def test_a_damaged_note_of_the_time_of_trainings_is_dropped(tmp_path, text):
    with recorded(Workspace(tmp_path), "evaluate", SETTINGS, {}) as (folder, _):
        (folder / PACE).write_bytes(text.encode("latin-1"))
        assert paces_in(folder) == {}
    assert "pace" not in read_record(folder).results


OTHER = EvaluateSettings(nsd_tolerance_mm=7.0)


@pytest.mark.parametrize(
    ("asked", "begun", "comes_back"),
    [
        ((SETTINGS, "a"), (OTHER, "a"), True),
        ((SETTINGS, "a"), (SETTINGS, "b"), True),
        ((SETTINGS, "a"), (SETTINGS, "a"), False),  # the redo of the same goes on
        ((OTHER, "a"), (OTHER, "a"), False),
        ((OTHER, "a"), (SETTINGS, "b"), False),
        ((SETTINGS, "b"), (OTHER, "a"), False),
    ],
)
def test_finished_results_come_back_where_they_are_asked_for_again(
    tmp_path, asked, begun, comes_back
):
    workspace = Workspace(tmp_path)
    folder = finish(workspace)
    with (
        pytest.raises(KeyboardInterrupt),
        recorded(workspace, "evaluate", begun[0], {"predict": begun[1]}) as (_, _),
    ):
        (folder / "half.csv").write_text("x")
        raise KeyboardInterrupt
    restore(workspace, "evaluate", asked[0], {"predict": asked[1]})
    assert (folder / "half.csv").exists() != comes_back
    assert (read_record(folder) is not None) == comes_back
    assert aside_of(folder).exists() != comes_back


def test_damaged_results_do_not_come_back(tmp_path):
    workspace = Workspace(tmp_path)
    folder = finish(workspace)
    with (
        pytest.raises(KeyboardInterrupt),
        recorded(workspace, "evaluate", OTHER, {"predict": "a"}) as (_, _),
    ):
        raise KeyboardInterrupt
    (aside_of(folder) / "run.json").write_text("{")
    restore(workspace, "evaluate", SETTINGS, {"predict": "a"})
    assert read_record(folder) is None


def test_going_back_after_a_killed_redo_runs_nothing(tmp_path, monkeypatch, capsys):
    def evaluate(settings, workspace):
        with recorded(workspace, "evaluate", settings, {"predict": "a"}):
            ran.append(settings)
            if settings == OTHER:
                raise KeyboardInterrupt

    ran: list[EvaluateSettings] = []
    module = SimpleNamespace(inputs=lambda *_: {"predict": "a"}, evaluate=evaluate)
    monkeypatch.setattr(pipeline, "stage_module", lambda _: module)
    first, second = (RunConfig(work=tmp_path, evaluate=own) for own in (SETTINGS, OTHER))
    pipeline.run_stage(first, "evaluate")
    with pytest.raises(KeyboardInterrupt):
        pipeline.run_stage(second, "evaluate", force=True)
    pipeline.run_stage(first, "evaluate")
    assert ran == [SETTINGS, OTHER]
    assert "evaluate: up to date" in capsys.readouterr().err


def test_when_a_stage_ran_changes_nothing_for_those_after_it(tmp_path):
    before = fingerprint(finish(Workspace(tmp_path)))
    record = json.loads((tmp_path / "7-scores" / "run.json").read_text())
    (tmp_path / "7-scores" / "run.json").write_text(json.dumps(record | {"started": "later"}))
    assert fingerprint(tmp_path / "7-scores") == before
    assert fingerprint(finish(Workspace(tmp_path), inputs={"predict": "b"})) != before


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


def test_what_a_killed_process_left_of_a_page_is_removed(tmp_path):
    for name in ("check.html", "check.csv"):
        (tmp_path / f".partial-99-{name}").touch()
    require_ours(tmp_path / "check.html", "mark")
    assert [path.name for path in tmp_path.iterdir()] == [".partial-99-check.csv"]


def test_a_full_disk_is_one_clear_line(tmp_path):
    with pytest.raises(DataError, match="cannot be written, No space left"):  # noqa: SIM117
        with replacing(tmp_path / "a.json"):
            raise OSError(errno.ENOSPC, "No space left on device")


def test_a_missing_stage_is_named_with_its_remedy(tmp_path):
    with pytest.raises(WorkspaceError, match="stage 'locate' has no result; run `sacl locate`"):
        Workspace(tmp_path).require("locate")


def test_a_record_of_an_older_version_is_refused_with_the_remedy(tmp_path):
    workspace = Workspace(tmp_path)
    with recorded(workspace, "finetune", FinetuneSettings(), {}) as (folder, _):
        pass
    record = json.loads((folder / "run.json").read_text())
    record["settings"]["finetune"]["head"] = "dense"
    (folder / "run.json").write_text(json.dumps(record))
    with pytest.raises(WorkspaceError) as error:
        state_of(workspace, "finetune", FinetuneSettings(), {})
    assert "finetune.head is a setting of an older version; repeat the same command" in str(
        error.value
    )
    assert "repeat the same command with --force" in str(error.value)


@pytest.mark.parametrize("text", ["", "{}", "[]", "not JSON", '{"stage": 3'])
def test_a_damaged_record_is_one_line_and_can_be_redone(tmp_path, text):
    folder = finish(Workspace(tmp_path))
    (folder / "run.json").write_text(text)
    with pytest.raises(DataError, match=r"run\.json: damaged[,:] .* with --force"):
        read_record(folder)
    clear(Workspace(tmp_path), "evaluate", SETTINGS)
    assert not folder.exists()


def test_a_deletion_that_was_interrupted_leaves_a_folder_that_is_still_known(tmp_path, monkeypatch):
    workspace = Workspace(tmp_path)
    (finish(workspace) / "maps").mkdir()

    def dies(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", dies)
        with pytest.raises(KeyboardInterrupt):
            clear(workspace, "evaluate", SETTINGS)
    assert workspace.folder("evaluate").exists()
    finish(workspace)
    assert read_record(workspace.folder("evaluate")) is not None


def test_a_link_to_a_folder_is_removed_and_not_what_it_leads_to(tmp_path):
    kept = finish(Workspace(tmp_path / "a"))
    (tmp_path / "b").mkdir()
    Workspace(tmp_path / "b").folder("evaluate").symlink_to(kept)
    clear(Workspace(tmp_path / "b"), "evaluate", SETTINGS)
    assert (kept / "run.json").is_file()
    assert not Workspace(tmp_path / "b").folder("evaluate").exists()


def test_the_peak_of_memory_is_unknown_where_the_system_does_not_tell(monkeypatch):
    monkeypatch.setattr("sacl.run.machine.resource", None)
    assert peak_memory_mb() is None
