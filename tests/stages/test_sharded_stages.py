"""Stages of many scans: whoever does the scans, in whatever order, the results are the same."""

import json
import shutil
import threading
from dataclasses import replace

import pytest
from blob_cohort import SCHEME, from_folder, give_maps, make_cohort
from fake_work import fake_work
from filelock import FileLock
from test_stage_ingest import dataset

from sacl.errors import DataError
from sacl.files.journal import Journal
from sacl.run.engine import Engine, Shard
from sacl.run.record import PACE, RECORD
from sacl.run.workspace import Workspace
from sacl.settings import EvaluateSettings, IngestSettings, LocateSettings, VolumeSettings
from sacl.stages import evaluate, ingest, locate, locate_networks
from sacl.stages.evaluate_folders import evaluate_folders
from sacl.stages.export import export, export_folder

OF_ONE_TIME = ("started", "duration_s", "peak_memory_mb")


def contents(folder):
    """Return what lies in a folder by name, of a record all but times."""
    paths = (path for path in folder.glob("**/*") if path.is_file())
    by_name = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    if RECORD in by_name:
        record = json.loads(by_name[RECORD])
        record["results"].pop("pace", None)
        by_name[RECORD] = {k: v for k, v in record.items() if k not in OF_ONE_TIME}
        by_name.pop(PACE, None)
    return by_name


def work_of(stage, root):
    """Return a new work directory in which a stage can be run, its settings and its module."""
    if stage == "ingest":
        data = root.parent / "data"
        if not data.exists():
            dataset(data)
        return Workspace(root), IngestSettings(data=data), ingest
    if stage == "locate":
        workspace, maps = make_cohort(root), root.parent / "theirs"
        if not maps.exists():
            give_maps(maps, SCHEME.names)
        return workspace, from_folder(maps), locate
    runs = root.parent / "fake"
    if not runs.exists():
        fake_work(runs, arms=("semantic", "scratch"))
    return Workspace(shutil.copytree(runs, root)), EvaluateSettings(), evaluate


@pytest.mark.parametrize("stage", ["ingest", "locate", "evaluate"])
def test_all_workers_and_shards_make_the_same_folder(stage, tmp_path):
    def done_by(name, *engines):
        workspace, settings, module = work_of(stage, tmp_path / name)
        for engine in engines:
            run = replace(workspace, name="run", engine=engine)
            getattr(module, stage)(settings, run)
        return contents(workspace.folder(stage))

    expected = done_by("one", Engine(workers=1))
    assert done_by("two", Engine(workers=2)) == expected
    for count in 1, 2, 3, 7:
        shards = [Engine(shard=Shard(number, count)) for number in range(count, 0, -1)]
        assert done_by(f"of-{count}", *shards, Engine(merges=True)) == expected
    with pytest.raises(DataError, match=f"{stage}: .* of .* cases are not done"):
        done_by("torn", Engine(shard=Shard(1, 2)), Engine(merges=True))


def test_one_shard_trains_the_coarse_networks_for_all(tmp_path, monkeypatch):
    settings = LocateSettings(
        volume=VolumeSettings(spacing_mm=(3.0, 3.0, 3.0), crop=(16, 16, 16), steps=2), channels=8
    )
    whole = make_cohort(tmp_path / "whole")
    locate.locate(settings, whole)
    real, trained = locate_networks.train_coarse, []

    def counting(*args, **kwargs):
        trained.append(kwargs["what"])
        return real(*args, **kwargs)

    monkeypatch.setattr(locate_networks, "train_coarse", counting)
    parts = make_cohort(tmp_path / "parts")
    engines = [Engine(shard=Shard(number, 3)) for number in (2, 1, 3)]
    for engine in (*engines, Engine(merges=True)):
        locate.locate(settings, replace(parts, engine=engine))
    assert trained == [f"coarse network {number}/3" for number in (1, 2, 3)]
    assert contents(parts.folder("locate")) == contents(whole.folder("locate"))


def test_a_shard_that_waits_for_another_one_says_so(tmp_path, capsys):
    workspace, order = Workspace(tmp_path), []

    def second():
        lock = FileLock(tmp_path / ".lock-in-turn")
        with lock:
            held.set()
            release.wait(20)
            order.append("first")

    held, release = threading.Event(), threading.Event()
    other = threading.Thread(target=second)
    other.start()
    held.wait(20)
    threading.Timer(0.3, release.set).start()
    with workspace.in_turn("locate: the coarse networks are trained"):
        order.append("second")
    other.join()
    assert order == ["first", "second"]
    assert "trained by another shard; waiting" in capsys.readouterr().err


def test_folders_are_scored_in_shards_and_the_call_without_one_writes_the_scores(tmp_path):
    work = fake_work(tmp_path / "work")
    reference, predicted = work.folder("locate") / "maps", work.folder("predict") / "semantic"
    both = reference, predicted
    whole = evaluate_folders(*both, tmp_path / "whole", EvaluateSettings())
    two = evaluate_folders(*both, tmp_path / "two", EvaluateSettings(), engine=Engine(workers=2))
    assert contents(two) == contents(whole)
    out = tmp_path / "parts"
    for number in 2, 1, 3:
        engine = Engine(shard=Shard(number, 3))
        evaluate_folders(*both, out, EvaluateSettings(), engine=engine)
    assert not (out / "scores.csv").exists()
    kind = evaluate.Scored
    assert len(Journal(out, kind).results()) == len([*predicted.iterdir()])
    evaluate_folders(*both, out, EvaluateSettings())
    assert contents(out) == contents(whole)


def test_an_export_is_written_in_shards_and_ended_by_the_call_without_one(tmp_path):
    work = fake_work(tmp_path / "work")
    whole = export(work, tmp_path / "whole", "nnunet")
    export(replace(work, engine=Engine(workers=2)), tmp_path / "two", "nnunet")
    assert contents(tmp_path / "two") == contents(tmp_path / "whole")
    out = tmp_path / "parts"
    for number in 1, 2, 3:
        export(replace(work, engine=Engine(shard=Shard(number, 3))), out, "nnunet")
    assert not (out / "dataset.json").exists()
    ended = export(work, out, "nnunet")
    assert (ended.scans, ended.written) == (whole.scans, 0)
    assert contents(out) == contents(tmp_path / "whole")


def test_label_maps_of_a_folder_are_exported_by_several_workers(tmp_path):
    maps = fake_work(tmp_path / "work").folder("predict") / "semantic"
    export_folder(maps, tmp_path / "one", engine=Engine(workers=1))
    export_folder(maps, tmp_path / "two", engine=Engine(workers=2))
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
