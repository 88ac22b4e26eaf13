import json
from pathlib import Path

import pytest
import yaml

from sacl.errors import ConfigError
from sacl.files.atomic import plain
from sacl.run.configure import descriptions, dotted_settings, load_config
from sacl.settings import PretrainSettings, RunConfig


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def test_flags_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    path = written(tmp_path, "pretrain:\n  steps: 7\n  batch: 8\n")
    config = load_config(path, {"pretrain.steps": "9"})
    assert config.pretrain.steps == 9
    assert config.pretrain.batch == 8
    assert config.pretrain.temperature == PretrainSettings().temperature


def test_yaml_numbers_without_a_dot_are_numbers(tmp_path):
    config = load_config(
        written(tmp_path, "{pretrain: {temperature: 1}, finetune: {learning_rate: 1e-3}}")
    )
    assert config.finetune.learning_rate == 1e-3
    assert config.pretrain.temperature == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pretrain: {stpes: 3}", "unknown setting 'pretrain.stpes'; did you mean 'pretrain.steps'"),
        ("pretrian: {steps: 3}", "did you mean 'pretrain'"),
        ("temperature: 0.2", "did you mean 'pretrain.temperature'"),
        ("pretrain: {steps: many}", "pretrain.steps: expected integer, got 'many'"),
        ("pretrain: {steps: true}", "pretrain.steps: expected integer, got True"),
        ("pretrain: {network: resnet81}", "did you mean 'resnet18'"),
        ("pretrain: 3", "pretrain: expected settings by name"),
        ("locate: {volume: {crop: [1, 2]}}", "locate.volume.crop: expected list of length 3"),
        ("ingest: {organs: liver}", "ingest.organs: expected list, got 'liver'"),
        ("pretrain: {temperature: -1}", "pretrain.temperature: expected number > 0, got -1"),
        ("finetune: {augment: wild}", "finetune.augment: expected one of mild, strong"),
        ("- a list", "expected settings by name"),
        ("a: [", "not YAML"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(tmp_path, text, message):
    with pytest.raises(ConfigError) as error:
        load_config(written(tmp_path, text))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_flag_names_the_nearest():
    with pytest.raises(ConfigError, match=r"did you mean 'extract\.patch_size'"):
        load_config(None, {"extract.patchsize": "64"})


def test_every_setting_is_described():
    for name, declared in dotted_settings().items():
        assert len(declared.text) > 10, name


def test_descriptions_come_from_the_class():
    assert descriptions(PretrainSettings)["temperature"].startswith("Soft-max temperature")


def test_settings_survive_a_round_trip_through_the_record():
    config = RunConfig(pretrain=PretrainSettings(steps=3, scan_label=("phase", "scanner")))
    tree = plain(config)
    assert load_config_of(tree) == config


def load_config_of(tree):
    from sacl.run.configure import from_mapping

    return from_mapping(RunConfig, yaml.safe_load(yaml.safe_dump(tree)))


def test_tables_are_found_beside_the_data(tmp_path):
    (tmp_path / "scan_labels.csv").write_text("case_id\n")
    config = load_config(
        None, {"ingest.data": str(tmp_path), "ingest.scan_labels": "scan_labels.csv"}
    )
    assert config.ingest.scan_labels == tmp_path / "scan_labels.csv"


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("one", (Path("one"),)),
        ("2024", (Path("2024"),)),
        ("a, b", (Path("a, b"),)),
        ("null", ()),
        ('["one", "two, three"]', (Path("one"), Path("two, three"))),
    ],
)
def test_the_data_flag_is_a_folder_or_a_list_of_folders(text, data):
    assert load_config(None, {"ingest.data": text}).ingest.data == data


def test_the_data_in_yaml_is_a_folder_or_a_list_of_folders(tmp_path):
    config = load_config(written(tmp_path, "ingest: {data: [one, two]}"))
    assert config.ingest.data == (Path("one"), Path("two"))
    config = load_config(written(tmp_path, "ingest: {data: one}"))
    assert config.ingest.data == (Path("one"),)
    with pytest.raises(ConfigError, match=r"ingest\.data\[1\]: expected path, got 3"):
        load_config(written(tmp_path, "ingest: {data: [one, 3]}"))


def test_tables_are_found_beside_any_of_several_folders(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "order.txt").write_text("s1\n")
    folders = json.dumps([str(tmp_path / "a"), str(tmp_path / "b")])
    config = load_config(None, {"ingest.data": folders, "ingest.labeled_order": "order.txt"})
    assert config.ingest.labeled_order == tmp_path / "b" / "order.txt"


@pytest.mark.parametrize("name", ["acdc", "demo", "hippocampus", "phantom"])
def test_settings_that_come_with_the_program_are_taken_by_name(name):
    assert load_config(name).name == name


def test_a_folder_of_phases_beside_the_data_is_found_too(tmp_path):
    (tmp_path / "phases").mkdir()
    flags = {"ingest.data": str(tmp_path), "ingest.scan_labels": "phases"}
    assert load_config(None, flags).ingest.scan_labels == tmp_path / "phases"


@pytest.mark.parametrize("value", ["[phase, scanner]", "phase,scanner", "'phase, scanner'"])
def test_several_scan_labels_may_be_named(tmp_path, value):
    config = load_config(written(tmp_path, f"pretrain:\n  scan_label: {value}"))
    assert config.pretrain.scan_label_names == ("phase", "scanner")


def test_scan_labels_are_named_by_flag_as_in_yaml_and_one_alone_is_enough():
    assert load_config(None, {}).pretrain.scan_label_names == ("phase",)
    for text in ("phase,scanner", "[phase, scanner]"):
        config = load_config(None, {"pretrain.scan_label": text})
        assert config.pretrain.scan_label_names == ("phase", "scanner")
    config = load_config(None, {"pretrain.scan_label": "scanner"})
    assert config.pretrain.scan_label_names == ("scanner",)


@pytest.mark.parametrize("text", ["", "[]"])
def test_no_scan_label_means_classes_of_organs_alone(text):
    assert load_config(None, {"pretrain.scan_label": text}).pretrain.scan_label_names == ()


@pytest.mark.parametrize("text", ["phase,", "phase,phase"])
def test_a_scan_label_without_a_name_or_named_twice_is_refused(text):
    with pytest.raises(ConfigError, match=r"pretrain\.scan_label: (a name is empty|one twice)"):
        load_config(None, {"pretrain.scan_label": text})
