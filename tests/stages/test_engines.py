"""Results do not depend on where the cases were worked on."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from block_cohort import copy_of, locate_blocks
from fake_work import fake_work
from test_sharded_stages import contents, work_of
from tests.run.test_engine import CASES, journal_of, open_work

from sacl.errors import DataError, SetAsideError
from sacl.run import workers
from sacl.run.engine import Engine, Shard
from sacl.run.workspace import Workspace
from sacl.settings import ExtractSettings, PredictSettings
from sacl.stages.export import export
from sacl.stages.extract import extract
from sacl.stages.predict import predict

with_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install 'sacl[ray]'"
)
of_one_run = pytest.mark.parametrize("finished", ["dense"], indirect=True)


def files_of(workspace: Workspace) -> dict[str, bytes]:
    folder = workspace.folder("predict")
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "run.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def unpredicted(finished: Workspace, folder: Path, engine: Engine) -> Workspace:
    workspace = dataclasses.replace(copy_of(finished, folder), engine=engine)
    shutil.rmtree(workspace.folder("predict"))
    return workspace


@of_one_run
@pytest.mark.parametrize(
    "engine", [Engine(workers=2), pytest.param(Engine("ray", 2), marks=with_ray)]
)
def test_maps_are_the_same_whoever_makes_them(
    finished: Workspace, tmp_path: Path, engine: Engine
) -> None:
    workspace = unpredicted(finished, tmp_path / "work", engine)
    predict(PredictSettings(copies=0), workspace)
    assert files_of(workspace) == files_of(finished)


@of_one_run
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_maps_are_the_same_in_how_many_shards_they_were_made(
    finished: Workspace, tmp_path: Path, count: int
) -> None:
    workspace = unpredicted(finished, tmp_path / "work", Engine())
    for number in range(count, 0, -1):
        with pytest.raises(DataError, match="run their shards again"):
            predict(
                PredictSettings(copies=0),
                dataclasses.replace(workspace, engine=Engine(merges=True)),
            )
        shard = Engine(shard=Shard(number, count))
        predict(PredictSettings(copies=0), dataclasses.replace(workspace, engine=shard))
    predict(PredictSettings(copies=0), dataclasses.replace(workspace, engine=Engine(merges=True)))
    assert files_of(workspace) == files_of(finished)


@with_ray
def test_actors_die_of_their_cases_as_processes_do(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A case kills its actor each time, another one once, and one is bad."""
    work = functools.partial(open_work, tmp_path, deadly="case-5", once="case-7", bad="case-3")
    with pytest.raises(SetAsideError, match=r"1 of 12 cases were set aside.*\(case-5\)"):
        Engine("ray", 2).each(work, CASES, journal_of(tmp_path), "try")
    done = {path.stem: path.read_text() for path in tmp_path.glob("case-*.txt")}
    assert done == dict.fromkeys(set(CASES) - {"case-3", "case-5"}, "x")
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "  left out: case case-3: cannot be read",
        "  left out: case case-5: its worker died, again (The actor died unexpectedly before"
        " finishing this task)",
    ]
    assert "RAY_AUTH_TOKEN" not in os.environ


@pytest.fixture
def cluster(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Return the address of a cluster that was started with a token, here on one machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in (("MODE", "token"), ("TOKEN", workers._TOKEN)):
        monkeypatch.setenv(f"RAY_AUTH_{name}", value)
    words = ["--head", "--block", f"--port={port}", "--num-cpus=2", "--include-dashboard=false"]
    words += ["--node-ip-address=127.0.0.1", "--disable-usage-stats"]
    words += [f"--temp-dir={tmp_path_factory.mktemp('r')}", "--object-store-memory=83886080"]
    program = Path(sys.executable).with_name("ray")
    head = subprocess.Popen([program, "start", *words], stdout=subprocess.PIPE, text=True)
    assert head.stdout is not None
    assert any("Ray runtime started" in line for line in head.stdout)
    yield f"127.0.0.1:{port}"
    head.terminate()
    head.communicate(timeout=60)


@with_ray
@of_one_run
def test_actors_of_a_cluster_make_the_same_folders(
    cluster: str, finished: Workspace, tmp_path: Path
) -> None:
    ray = Engine("ray", 2, cluster)
    workspace = unpredicted(finished, tmp_path / "work", ray)
    predict(PredictSettings(copies=0), workspace)
    assert files_of(workspace) == files_of(finished)

    def done(stage: str, name: str, engine: Engine) -> dict[str, object]:
        root = tmp_path / stage / name
        if stage == "extract":
            workspace = dataclasses.replace(locate_blocks(root), engine=engine)
            extract(ExtractSettings(patch_size=16, dense_size=32), workspace)
            return contents(workspace.folder("extract"))
        if stage == "export":
            work = dataclasses.replace(fake_work(root), engine=engine)
            export(work, tmp_path / stage / f"out-{name}", "nnunet")
            return contents(tmp_path / stage / f"out-{name}")
        workspace, settings, module = work_of(stage, root)
        run = dataclasses.replace(workspace, name="run", engine=engine)
        getattr(module, stage)(settings, run)
        return contents(workspace.folder(stage))

    for stage in ("ingest", "locate", "extract", "evaluate", "export"):
        assert done(stage, "a", ray) == done(stage, "b", Engine(workers=1)), stage
