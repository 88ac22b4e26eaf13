"""The cells of a comparison and the store that they share."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from fake_stages import grid_of, results, run, states, write_protocol

from research.grid import OF_CELL, OF_COHORT, read_grid
from research.store import Key, Store, telling
from sacl.run.workspace import FOLDERS
from sacl.settings import IngestSettings, LocateSettings, MapsSettings, PretrainSettings


def entries(path: Path) -> dict[str, dict[str, str]]:
    """Return the name of the store's entry of every stage of every cell."""
    return {cell["name"]: cell["entries"] for cell in results(path)["cells"]}


def test_every_stage_but_the_report_belongs_to_a_cell():
    assert {*OF_COHORT, *OF_CELL, "report"} == set(FOLDERS)


def test_there_is_a_cell_for_every_combination_and_pairs_come_together(tmp_path):
    names = [cell.name for cell in grid_of(tmp_path).cells]
    assert len(set(names)) == len(names) == 2 * 4 * 2
    assert names[:5] == [
        *("n2-pooled-s0", "n2-simclr-s0", "n2-scratch-s0", "n2-other-batch-s0"),
        "n2-pooled-s1",
    ]


def test_stages_of_equal_settings_and_inputs_are_done_once(stages, tmp_path):
    path = write_protocol(tmp_path)
    assert run(path) == 0
    assert {s: stages.of(s) for s in ("ingest", "locate", "extract")} == {
        "ingest": 2,
        "locate": 2,
        "extract": 2,
    }
    assert stages.of("pretrain") == 12  # `other-batch` pretrains as `pooled` does
    assert stages.of("finetune") == stages.of("predict") == stages.of("evaluate") == 16
    assert set(stages.runs.values()) == {1}
    own = entries(path)
    assert own["n2-other-batch-s1"]["pretrain"] == own["n2-pooled-s1"]["pretrain"]
    assert own["n2-other-batch-s1"]["finetune"] != own["n2-pooled-s1"]["finetune"]
    assert own["n2-pooled-s0"]["pretrain"] != own["n2-pooled-s1"]["pretrain"]
    assert own["n2-pooled-s0"]["extract"] == own["n2-scratch-s1"]["extract"]


def test_entries_are_the_same_whichever_cell_came_first(stages, tmp_path):
    paths = []
    for name, first in (("one", "other-batch"), ("other", "pooled")):
        (tmp_path / name).mkdir()
        paths.append(write_protocol(tmp_path / name, labeled_subjects=[2]))
        assert run(paths[-1], "--only", first, "--seeds", "1") == 0
        assert run(paths[-1]) == 0
    assert entries(paths[0]) == entries(paths[1])


def test_the_coarse_networks_may_vary_and_the_subjects_do_not(stages, tmp_path):
    path = write_protocol(tmp_path, vary_coarse=True)
    assert run(path, "--only", "scratch") == 0
    own = entries(path)
    assert own["n2-scratch-s0"]["ingest"] == own["n2-scratch-s1"]["ingest"]
    assert own["n2-scratch-s0"]["locate"] != own["n2-scratch-s1"]["locate"]


def test_other_settings_of_an_early_stage_part_only_what_reads_it(stages, tmp_path):
    ablations = {
        "wide": {"extract.dense_size": 64, "finetune.learning_rate": 2.0},
        "same": {"extract.dense_size": 64, "finetune.learning_rate": 2},
    }
    path = write_protocol(tmp_path, ablations=ablations, labeled_subjects=[2])
    assert run(path, "--seeds", "0") == 0
    own = entries(path)
    usual, wide, same = (own[f"n2-{name}-s0"] for name in ("pooled", "wide", "same"))
    assert wide["locate"] == usual["locate"]
    assert wide["extract"] != usual["extract"]
    assert wide == same


def test_a_strategy_added_later_finds_what_is_there(stages, tmp_path):
    run(write_protocol(tmp_path))
    stages.runs.clear()
    strategies = {"slow": {"finetune.encoder_rate": 0.1}, "pooled": None}
    strategies["scratch"] = {"pretrain.method": "none"}
    assert run(write_protocol(tmp_path, strategies=strategies)) == 0
    assert set(s for s, _ in stages.runs) == {"finetune", "predict", "evaluate"}
    assert stages.of("finetune") == 4


def test_changed_data_are_read_again(stages, tmp_path):
    path = write_protocol(tmp_path)
    run(path, "--only", "scratch")
    stages.runs.clear()
    stages.data = "another"
    assert states(path)["n2-scratch-s0"] == "waiting"
    assert run(path, "--only", "scratch") == 0
    assert stages.of("ingest") == 2
    assert stages.of("evaluate") == 4


def test_what_comes_after_another_cell_runs_that_one_first(stages, tmp_path):
    path = write_protocol(tmp_path, after={"pooled": "scratch"}, labeled_subjects=[2])
    assert run(path, "--only", "pooled", "--seeds", "1") == 0
    assert states(path)["n2-pooled-s1"] == "done"
    assert stages.of("predict") == 2
    assert stages.of("locate") == 2
    maps = next((tmp_path / "work" / "store").glob("maps-*")) / "maps"
    texts = {file.name: file.read_text() for file in maps.iterdir()}
    assert texts["t0-a.nii.gz"] == texts["t1-a.nii.gz"] == "coarse"  # labeled: cross-fitted maps
    assert texts["t2-a.nii.gz"] == texts["s0-a.nii.gz"] == "n2-scratch-s1"
    assert len(texts) == 11


def test_maps_of_another_seed_are_other_maps(stages, tmp_path):
    path = write_protocol(tmp_path, after={"pooled": "scratch"}, labeled_subjects=[2])
    assert run(path, "--only", "pooled") == 0
    own = entries(path)
    assert own["n2-pooled-s0"]["locate"] != own["n2-pooled-s1"]["locate"]
    assert stages.of("locate") == 3


def test_cells_after_the_same_one_share_its_maps(stages, tmp_path):
    path = write_protocol(
        tmp_path,
        labeled_subjects=[2],
        ablations={"slow": {"finetune.encoder_rate": 0.1}},
        after={"pooled": "scratch", "slow": "scratch"},
    )
    assert run(path, "--seeds", "0") == 0
    own = entries(path)
    assert own["n2-slow-s0"]["pretrain"] == own["n2-pooled-s0"]["pretrain"]
    assert own["n2-simclr-s0"]["locate"] != own["n2-pooled-s0"]["locate"]


def test_an_entry_is_there_whole_or_not_at_all(tmp_path):
    store, key = Store(tmp_path), Key("pretrain", {"steps": 3}, 0, {"extract": "abc"})

    def broken(folder):
        (folder / "part.txt").write_text("half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        store.make(key, broken)
    assert store.find(key) is None
    seen = []
    entry = store.make(key, lambda folder: seen.append((folder / "part.txt").read_text()))
    assert seen == ["half"]  # the next process goes on from what was left
    assert store.find(key) == entry
    assert json.loads((entry / "key.json").read_text())["inputs"] == {"extract": "abc"}


def test_one_makes_an_entry_and_the_others_wait_for_it(tmp_path):
    key, made = Key("pretrain", {}, 0, {}), []

    def make(folder):
        made.append(folder)
        (folder / "weights").write_text("whole")

    def want(_number):
        return (Store(tmp_path).make(key, make) / "weights").read_text()

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(want, range(8))) == {"whole"}
    assert len(made) == 1


@pytest.mark.parametrize(
    "other",
    [
        Key("finetune", {"steps": 3}, 0, {"a": "b"}),
        Key("pretrain", {"steps": 4}, 0, {"a": "b"}),
        Key("pretrain", {"steps": 3}, 1, {"a": "b"}),
        Key("pretrain", {"steps": 3}, 0, {"a": "c"}),
    ],
)
def test_stage_settings_seed_and_inputs_make_the_key(other):
    key = Key("pretrain", {"steps": 3}, 0, {"a": "b"})
    assert key.name == Key("pretrain", {"steps": 3}, 0, {"a": "b"}).name != other.name
    assert key.name.startswith("pretrain-")


def test_paths_do_not_enter_the_key_and_every_other_setting_does(tmp_path):
    assert telling(IngestSettings(data=(tmp_path,))) == telling(IngestSettings())
    here, there = (
        telling(LocateSettings(maps=MapsSettings(source=tmp_path / name))) for name in "ab"
    )
    assert here == there != telling(LocateSettings())
    usual = PretrainSettings()
    names = ("method", "steps", "temperature", "width", "augment", "network", "scan_label")
    values = ("simclr", 7, 0.3, 16, "mild", "resnet50", "scanner")
    for name, value in zip(names, values, strict=True):
        if name != "method":
            assert telling(msgspec.structs.replace(usual, **{name: value})) != telling(usual)


def test_cells_run_where_the_ingested_scans_are_not_at_hand(stages, tmp_path, capsys):
    path = write_protocol(tmp_path)
    assert run(path, "--only", "scratch", "--seeds", "0") == 0
    (tmp_path / "data").rmdir()
    assert run(path, "--only", "pooled", "--seeds", "1") == 0
    assert states(path)["n2-pooled-s1"] == "done"
    assert stages.of("ingest") == 2


def test_without_scans_and_without_an_ingested_cohort_it_says_so(stages, tmp_path, capsys):
    path = write_protocol(tmp_path)
    (tmp_path / "data").rmdir()
    assert run(path) == 2
    assert "data, which is not there" in capsys.readouterr().err
    assert not stages.runs


def test_two_grids_on_one_folder_do_every_stage_once(stages, tmp_path):
    path = write_protocol(tmp_path)
    with ThreadPoolExecutor(2) as pool:
        grids = [read_grid(path, {}) for _ in range(2)]
        cells = [(grid, cell) for grid in grids for cell in grid.cells]
        list(pool.map(lambda pair: pair[0].run(pair[1]), cells))
    assert set(stages.runs.values()) == {1}
    assert set(states(path).values()) == {"done"}
