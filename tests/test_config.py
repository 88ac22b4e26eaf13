import json
from pathlib import Path

import pytest
import yaml

from sacl.cohort.layouts.listing import Sources
from sacl.errors import ConfigError, DataError
from sacl.files.atomic import plain
from sacl.run.configure import descriptions, dotted_settings, from_mapping, load_config
from sacl.settings import (
    METHODS,
    EvaluateSettings,
    PretrainSettings,
    RunConfig,
    VolumeSettings,
)

INF, NAN = float("inf"), float("nan")


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


IMPOSSIBLE = [
    ({"seed": -1}, "seed: expected integer >= 0, got -1"),
    ({"device": "tpu"}, "device: "),
    ({"name": ""}, "name: expected text of length >= 1"),
    ({"work": ""}, "work: expected path, got ''"),
    ({"work": "~no-such-user/x"}, "work: expected path in the home of a known user"),
    ({"phantom": {"shape": [0, 0, 0]}}, "phantom.shape[0]: expected integer >= 8, got 0"),
    ({"phantom": {"scans": -3}}, "phantom.scans: expected integer >= 0"),
    (
        {"phantom": {"scans": 4}, "ingest": {"data": "x"}},
        "phantom.scans: cannot be combined with ingest.data",
    ),
    ({"ingest": {"window_hu": [0, INF]}}, "ingest.window_hu: expected a finite number, got inf"),
    ({"ingest": {"window_hu": [5, 5]}}, "ingest.window_hu: expected lower, upper"),
    ({"ingest": {"modality": "mr", "window_hu": [0, 9]}}, "ingest.window_hu: applies to CT"),
    ({"ingest": {"organs": ["liver", "liver"]}}, "ingest.organs: 'liver' is listed twice"),
    ({"ingest": {"labeled_subjects": 0}}, "ingest.labeled_subjects: expected integer >= 1"),
    ({"locate": {"slices": {}, "volume": {}}}, "locate: slices and volume exclude each other"),
    ({"locate": {"slices": {"crop": [8, 8, 8]}}}, "unknown setting 'locate.slices.crop'"),
    ({"locate": {"volume": {"teacher_steps": 9}}}, "unknown setting 'locate.volume.teacher_steps'"),
    ({"locate": {"maps": {}}}, "locate.maps: source is missing"),
    (
        {"locate": {"maps": {"source": "m"}, "channels": 16}},
        "locate.channels: has no effect with locate.maps",
    ),
    (
        {"locate": {"volume": {"in_plane_size": 64, "spacing_mm": [1, 1, 1]}}},
        "locate.volume.spacing_mm: has no effect beside in_plane_size",
    ),
    ({"extract": {"patch_size": 50}}, "extract.patch_size: expected integer that's a multiple of"),
    ({"pretrain": {"method": "simclr", "scan_label": "site"}}, "uses no scan-wise label"),
    ({"pretrain": {"method": "pooleed"}}, "pretrain.method: expected one of "),
    ({"pretrain": {"width": 7}}, "pretrain.width: expected integer"),
    ({"pretrain": {"temperature": 0}}, "pretrain.temperature: expected number > 0, got 0"),
    ({"finetune": {"dense": {}, "query": {}}}, "finetune: dense and query exclude each other"),
    ({"finetune": {"query": {"teacher_steps": 3}}}, "unknown setting 'finetune.query.teacher_st"),
    ({"finetune": {"learning_rate": -1}}, "finetune.learning_rate: expected number > 0, got -1"),
    ({"finetune": {"dense": {"copy_paste": 1.5}}}, "finetune.dense.copy_paste: expected number <="),
    ({"predict": {"batch": 0}}, "unknown setting 'predict.batch'"),
    ({"predict": {"keep_component": -0.1}}, "predict.keep_component: expected number >= 0"),
    ({"evaluate": {"nsd_tolerance_mm": NAN}}, "evaluate.nsd_tolerance_mm: expected"),
    ({"evaluate": {"nsd_tolerance_mm": -1}}, "evaluate.nsd_tolerance_mm: expected number >= 0"),
    ({"report": {"title": "x"}}, "unknown setting 'report.title'"),
]


@pytest.mark.parametrize(("tree", "message"), IMPOSSIBLE)
def test_an_impossible_setting_or_one_that_nothing_reads_is_refused_in_one_line(tree, message):
    with pytest.raises(ConfigError) as error:
        from_mapping(RunConfig, tree)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 250


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PretrainSettings(temperature=-1), "pretrain.temperature: expected number > 0"),
        (lambda: EvaluateSettings(nsd_tolerance_mm=NAN), "evaluate.nsd_tolerance_mm: expected"),
        (lambda: VolumeSettings(crop=(8, 8)), "locate.volume.crop: expected list of length 3"),
    ],
)
def test_settings_made_in_python_are_checked_alike(make, message):
    with pytest.raises(ConfigError) as error:
        make()
    assert message in str(error.value)


def test_there_are_sixty_settings_at_most():
    assert len(dotted_settings()) <= 60


def test_the_methods_that_settings_name_are_those_of_the_package():
    from sacl.methods import METHODS as registered
    from sacl.methods import method_named

    assert [method_named(name).name for name in METHODS] == list(METHODS)
    assert set(METHODS) <= set(registered)


def test_a_method_that_somebody_registers_can_be_named(monkeypatch):
    from sacl import methods

    monkeypatch.setitem(methods.METHODS, "mine", methods.method_named("none"))
    assert PretrainSettings(method="mine").method == "mine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nname: b\n", "line 2: 'name' appears twice; give it once"),
        ("pretrain: {steps: 3}\npretrain: {batch: 8}\n", "'pretrain' appears twice"),
        ("finetune: {steps: 3}\nfinetune.steps: 4\n", "finetune.steps is given twice"),
        ("[" * 5000, "nested too deeply"),
        ("seed: " + "9" * 5000, "seed: expected integer, got '999"),
        ("ingest: {window_hu: [-.inf, .inf]}", "ingest.window_hu[0]: expected number"),
        ("a: !!python/object/apply:os.system [ls]", "not YAML"),
        ("3: x", "expected settings by name, got 3"),
        ("<<: {seed: 1}", "unknown setting '<<'"),
        ("? " + "x" * 100_000 + "\n: 1", "unknown setting 'xxx"),
        ("name: \x07", "not YAML"),
    ],
)
def test_hostile_yaml_is_one_short_line_that_names_the_file(tmp_path, text, message):
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


@pytest.mark.timeout(20)
@pytest.mark.parametrize("where", ["name", "ingest"])
def test_aliases_that_grow_without_end_are_refused_at_once(tmp_path, where):
    bomb = "[x, x, x, x, x, x, x, x, x]"
    for level in range(9):  # each level holds the one before nine times
        bomb = f"[&a{level} {bomb}, {', '.join([f'*a{level}'] * 8)}]"
    with pytest.raises(ConfigError, match=f"{where}: expected "):
        load_config(written(tmp_path, f"{where}: {bomb}"))


@pytest.mark.parametrize("text", ["2024-13-45", "2024-01-02", "12:30", "no", "0o10"])
def test_text_that_looks_like_a_date_or_a_number_of_old_yaml_stays_text(tmp_path, text):
    assert load_config(written(tmp_path, f"name: {text}")).name == text


def test_a_dotted_key_in_yaml_is_the_setting(tmp_path):
    assert load_config(written(tmp_path, "finetune.steps: 7")).finetune.steps == 7


def test_a_file_that_is_no_file_of_settings_is_named_as_it_was_typed(tmp_path):
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ConfigError, match=r"folder\.yaml: expected a file of settings"):
        load_config(tmp_path / "folder.yaml")
    (tmp_path / "large.yaml").write_bytes(b"#" * 1_100_000)
    with pytest.raises(ConfigError, match=r"large\.yaml: larger than any settings file"):
        load_config(tmp_path / "large.yaml")
    with pytest.raises(ConfigError, match=r"nowhere/x\.yaml: cannot be read"):
        load_config(Path("nowhere/x.yaml"))
    with pytest.raises(
        ConfigError, match="no-such: no such file; shipped configurations are acdc, btcv"
    ):
        load_config("no-such")


def test_maps_of_another_tool_take_the_place_of_networks(tmp_path):
    path = written(tmp_path, "locate: {slices: {steps: 3}}")
    config = load_config(path, maps=tmp_path / "maps")
    assert config.locate.maps.source == tmp_path / "maps"
    assert config.locate.slices is None
    assert load_config(path, {"finetune.query": "{}"}).finetune.dense is None
    with pytest.raises(ConfigError, match="locate: slices and volume exclude each other"):
        load_config(path, {"locate.volume.steps": "3"})


def test_an_unknown_flag_names_the_nearest():
    with pytest.raises(ConfigError, match=r"did you mean '--extract\.patch_size'"):
        load_config(None, {"extract.patchsize": "64"})


def test_every_setting_is_described():
    for name, declared in dotted_settings().items():
        assert len(declared.text) > 10, name


def test_descriptions_come_from_the_class():
    assert descriptions(PretrainSettings)["temperature"].startswith("Temperature of")


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
    with pytest.raises(ConfigError, match=r"pretrain\.scan_label: a name (is empty|twice)"):
        load_config(None, {"pretrain.scan_label": text})


def test_a_table_that_a_file_names_lies_beside_it_first(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, tmp_path / "runs"):
        (folder / "labels.csv").write_text("case_id,phase\n")
    (tmp_path / "runs" / "a.yaml").write_text("ingest: {scan_labels: labels.csv}")
    config = load_config("runs/a.yaml")
    assert config.ingest.scan_labels == Path("runs/labels.csv")
    given = load_config("runs/a.yaml", {"ingest.scan_labels": "labels.csv"})
    assert given.ingest.scan_labels == Path("labels.csv")
    with pytest.raises(DataError, match=r"no other\.csv beside the YAML file, in the working"):
        Sources((tmp_path / "hippo",), scan_labels=Path("other.csv"))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("extract.patch_size", "integer >= 16, multiple of 16"),
        ("predict.keep_component", "number from 0 to 1"),
        ("phantom.shape", "3 integers from 8 to 2048"),
        ("ingest.fold", "integer >= 0 or null"),
        ("locate.volume.spacing_mm", "3 numbers > 0"),
    ],
)
def test_a_type_is_said_with_its_range(name, kind):
    assert dotted_settings()[name].kind == kind
