import json

import pytest
from fake_stages import write_protocol
from hypothesis import given
from hypothesis import strategies as st

from sacl.comparison.cells import OWN, SHARED, Cell, changed, plan_cells, shard_of
from sacl.comparison.reading import load_protocol
from sacl.errors import ConfigError
from sacl.files.atomic import plain, write_text
from sacl.run.workspace import FOLDERS
from sacl.settings import AugmentSettings, ExtractSettings, LocateSettings


def cells(folder, **changed: str) -> dict[str, Cell]:
    found = plan_cells(*load_protocol(write_protocol(folder, **changed)))
    assert len({cell.name for cell in found}) == len(found)
    return {cell.name: cell for cell in found}


def roots(cell: Cell) -> dict[str, str]:
    return {stage: place.root.name for stage, place in cell.places.items()}


def test_every_stage_but_the_report_belongs_to_a_cell():
    assert {*SHARED, *OWN, "report"} == set(FOLDERS)


def test_there_is_a_cell_for_every_combination_and_pairs_come_together(tmp_path):
    names = list(cells(tmp_path))
    assert len(names) == 2 * 4 * 2
    assert names[:5] == [
        *("n2-semantic-s0", "n2-simclr-s0", "n2-scratch-s0", "n2-other-batch-s0"),
        "n2-semantic-s1",
    ]


def test_the_stages_before_pretraining_are_shared_by_all_strategies_and_seeds(tmp_path):
    for name, cell in cells(tmp_path).items():
        folder = f"shared-{name.split('-')[0]}"
        assert roots(cell)["ingest"] == roots(cell)["locate"] == roots(cell)["extract"] == folder
        assert {cell.places[stage].seed for stage in ("ingest", "locate", "extract")} == {0}
        assert {cell.places[stage].seed for stage in OWN} == {cell.seed}


def test_the_coarse_networks_may_vary_and_the_subjects_do_not(tmp_path):
    cell = cells(tmp_path, vary_coarse="true")["n4-simclr-s1"]
    assert roots(cell)["ingest"] == "shared-n4"
    assert roots(cell)["locate"] == roots(cell)["extract"] == "shared-n4-s1"
    assert (cell.places["ingest"].seed, cell.places["locate"].seed) == (0, 1)


def test_other_settings_of_a_shared_stage_have_a_folder_of_their_own(tmp_path):
    ablations = "{wide: {extract.context: 2.0}, same: {extract.context: 2}, far: {locate.steps: 9}}"
    found = cells(tmp_path, ablations=ablations)
    usual, wide, same, far = (
        roots(found[f"n2-{name}-s0"]) for name in ("semantic", "wide", "same", "far")
    )
    assert wide["locate"] == usual["locate"] == "shared-n2"
    assert wide["extract"] == same["extract"] != usual["extract"]
    assert wide["extract"].startswith("shared-n2-")
    assert far["locate"] == far["extract"] not in (usual["locate"], wide["extract"])
    assert wide == {**roots(cells(tmp_path, ablations=ablations)["n2-wide-s0"])}
    assert wide["pretrain"] == "n2-wide-s0"
    assert same["pretrain"] == "n2-wide-s0"


def test_a_folder_is_named_after_what_was_changed_and_not_after_every_setting_there_is():
    assert changed(ExtractSettings()) == {}
    assert changed(ExtractSettings(context=2.0)) == {"context": 2.0}
    augment = AugmentSettings(noise=0.2)
    assert changed(LocateSettings(steps=9, augment=augment)) == {
        "steps": 9,
        "augment": {"noise": 0.2},
    }


def test_an_encoder_is_pretrained_once_for_all_cells_that_share_it(tmp_path):
    found = cells(tmp_path)
    assert roots(found["n2-other-batch-s1"])["pretrain"] == "n2-semantic-s1"
    assert roots(found["n2-other-batch-s1"])["finetune"] == "n2-other-batch-s1"
    assert roots(found["n4-semantic-s1"])["pretrain"] == "n4-semantic-s1"
    assert roots(found["n2-simclr-s1"])["pretrain"] == "n2-simclr-s1"


def test_a_finished_encoder_is_found_where_it_is(tmp_path):
    """As after a strategy that needs the same encoder was added further up in the protocol."""
    usual = cells(tmp_path)
    for name, steps in (("n2-other-batch-s1", 0), ("n2-other-batch-s0", 1)):
        cell = usual[name]
        settings = plain(cell.config.pretrain)
        settings["steps"] += steps  # of the second one, an encoder of earlier settings
        record = {"settings": {"seed": cell.seed, "pretrain": settings}}
        write_text(cell.root / FOLDERS["pretrain"] / "run.json", json.dumps(record))

    found = cells(tmp_path)

    for name in ("n2-semantic-s1", "n2-other-batch-s1"):
        assert roots(found[name])["pretrain"] == "n2-other-batch-s1"
    for name in ("n2-semantic-s0", "n2-other-batch-s0"):
        assert roots(found[name])["pretrain"] == "n2-semantic-s0"


def test_a_stage_sees_the_others_where_they_are(tmp_path):
    cell = cells(tmp_path)["n2-other-batch-s0"]
    workspace = cell.workspace("finetune")
    assert workspace.folder("extract") == tmp_path / "work" / "shared-n2" / "3-patches"
    assert workspace.folder("pretrain").parent.name == "n2-semantic-s0"
    assert workspace.folder("finetune").parent == cell.root
    assert cell.workspace("extract").folder("finetune").parent == cell.root


@given(st.integers(0, 60), st.integers(1, 12))
def test_shards_are_disjoint_and_cover_all(count, total):
    shards = [shard_of(range(count), f"{i}/{total}") for i in range(1, total + 1)]
    assert sorted(item for shard in shards for item in shard) == list(range(count))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2", "1/2/3"])
def test_a_shard_that_is_none_is_refused(shard):
    with pytest.raises(ConfigError, match="expected i/n"):
        shard_of((), shard)


def test_a_strategy_after_another_takes_its_predictions_for_coarse_maps(tmp_path):
    path = write_protocol(tmp_path, after="{semantic: scratch}")
    protocol, base, config_of = load_protocol(path)
    cells = {cell.name: cell for cell in plan_cells(protocol, base, config_of)}
    first, then = cells["n2-scratch-s1"], cells["n2-semantic-s1"]
    assert then.after == first
    assert first.config.predict.splits == ("train", "test")
    assert then.config.predict.splits == ("test",)
    source = then.config.locate.source
    assert source == first.root / "6-predictions" / "none"
    maps = first.places["locate"].root / "2-coarse" / "maps"
    assert then.config.locate.labeled_source == maps
    assert then.places["locate"].root == then.places["extract"].root
    assert then.places["locate"].root.name == "after-n2-scratch-s1"
    assert cells["n2-simclr-s1"].after is None


def test_strategies_after_the_same_cell_share_its_maps_and_encoders_alike(tmp_path):
    found = cells(
        tmp_path,
        ablations="{slow: {finetune.encoder_rate: 0.1}, wide: {extract.margin: 2.0}}",
        after="{semantic: scratch, slow: scratch, wide: scratch}",
    )
    first, slow, wide = (found[f"n2-{name}-s1"] for name in ("semantic", "slow", "wide"))
    assert slow.places["extract"] == first.places["extract"]
    assert slow.places["pretrain"].root == first.root
    assert wide.places["locate"] == first.places["locate"]
    assert wide.places["extract"] != first.places["extract"]
    other_seed = found["n2-semantic-s0"].places["locate"]
    assert other_seed.root.name == "after-n2-scratch-s0"
    assert other_seed.seed == 0


def test_a_run_that_comes_after_one_that_comes_after_another_is_refused(tmp_path):
    path = write_protocol(tmp_path, after="{semantic: scratch, scratch: simclr}")
    with pytest.raises(ConfigError, match="'semantic' comes after 'scratch', which itself"):
        load_protocol(path)
