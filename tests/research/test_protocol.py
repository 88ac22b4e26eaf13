import pytest
from fake_stages import PROTOCOL, grid_of, write_protocol

from research.protocol import PROTOCOLS, load_protocol
from research.store import telling
from sacl.errors import ConfigError

STRATEGIES = PROTOCOL["strategies"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"version": 1}, "version: this program reads 2, got 1"),
        ({"seeds": [0, 1, 0]}, "seeds: 0 stands twice"),
        ({"seeds": []}, "seeds: empty"),
        ({"seeds": [-1]}, "seeds[0]: expected integer >= 0, got -1"),
        ({"labeled_subjects": [3, None, None]}, "labeled_subjects: null stands twice"),
        ({"labeled_subjects": [0]}, "labeled_subjects[0]"),
        ({"strategies": {}}, "strategies: empty"),
        ({"strategies": {"pooled": None}}, "baseline: no strategy 'scratch'; there are pooled"),
        ({"ours": "pooledd"}, "ours: no strategy 'pooledd'; did you mean 'pooled'?"),
        ({"splits": ["tset"]}, "splits[0]: expected one of validation, test, got 'tset'"),
        ({"splits": ["train"]}, "expected one of validation, test, got 'train'"),
        ({"base": "absent.yaml"}, "absent.yaml: cannot be read"),
        ({"base": None}, "base"),
        ({"sedes": [1]}, "sedes"),
        ({"name": "../elsewhere"}, "name: letters"),
        ({"bootstrap": 3}, "bootstrap: expected integer >= 100, got 3"),
        (
            {"ablations": {"x": {"finetune.stesp": 3}}},
            "ablation 'x': unknown setting 'finetune.stesp'; did you mean 'finetune.steps'?",
        ),
        (
            {"strategies": {**STRATEGIES, "scratch": {"pretrain": {"steps": "many"}}}},
            "strategy 'scratch': pretrain.steps: expected integer",
        ),
        ({"ablations": {"simclr": {}}}, "'simclr' is a strategy too"),
        ({"ablations": {"x": {"ingest.organs": ["liver"]}}}, "'ingest.organs' has to be the same"),
        ({"ablations": {"x": {"seed": 3}}}, "ablation 'x': 'seed' is set by the protocol"),
        ({"ablations": {"x": {"device": "cpu"}}}, "'device' is set by the protocol"),
        ({"families": {"simclr": ["scrach"]}}, "families: no strategy 'scrach'; did you mean"),
        ({"after": {"pooled": "scrach"}}, "after: no strategy 'scrach'"),
        (
            {"after": {"pooled": "scratch", "scratch": "simclr"}},
            "'pooled' comes after 'scratch', which itself",
        ),
        ({"settings": {"seed": 3}}, "settings: 'seed' is set by the protocol; leave it out"),
        ({"settings": {"locate.stesp": 3}}, "settings: unknown setting 'locate.stesp'"),
        ({"ablations": {"x": 3}}, "ablations"),
    ],
)
def test_a_mistake_is_told_in_one_line(tmp_path, changed, message):
    with pytest.raises(ConfigError) as error:
        load_protocol(write_protocol(tmp_path, **changed))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_strategies_differ_from_the_base_and_ablations_from_ours(tmp_path):
    path = write_protocol(
        tmp_path,
        strategies={**STRATEGIES, "pooled": {"pretrain": {"temperature": 0.2}}},
        ablations={"x": {"finetune.decoder": "aspp"}, "query": {"finetune.query": {}}},
    )
    protocol, configs = load_protocol(path, {"pretrain.steps": "7"})
    assert list(configs) == ["pooled", "simclr", "scratch", "x", "query"]
    assert configs["scratch"].pretrain.method == "none"
    assert configs["x"].pretrain.temperature == 0.2
    assert (configs["x"].finetune.decoder, configs["pooled"].finetune.decoder) == ("aspp", "unet")
    assert configs["query"].finetune.dense is None
    assert configs["query"].finetune.query is not None
    assert all(config.pretrain.steps == 7 for config in configs.values())
    assert list(protocol.strategies) == ["pooled", "simclr", "scratch"]


def test_settings_of_all_cells_change_the_base_and_flags_change_them(tmp_path):
    settings = {"pretrain": {"steps": 9, "width": 8}, "locate.slices.steps": 11}
    path = write_protocol(tmp_path, settings=settings)
    _, configs = load_protocol(path, {"locate.slices.steps": "12"})
    for config in configs.values():
        assert (config.pretrain.steps, config.pretrain.width) == (9, 8)
        assert config.locate.slices.steps == 12


def test_a_flag_cannot_change_what_the_protocol_sets(tmp_path):
    with pytest.raises(ConfigError, match=r"'ingest.labeled_subjects' is set by the protocol"):
        load_protocol(write_protocol(tmp_path), {"ingest.labeled_subjects": "3"})


def test_the_work_folder_may_be_another(tmp_path):
    protocol, _ = load_protocol(write_protocol(tmp_path), work=tmp_path / "other")
    assert protocol.work == tmp_path / "other"


@pytest.mark.parametrize("path", sorted(PROTOCOLS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_protocol_of_the_laboratory_is_valid_and_is_known_by_its_name(path):
    by_path, configs = load_protocol(path)
    by_name, _ = load_protocol(type(path)(path.stem))
    assert by_name == by_path
    assert set(configs) == set(by_path.names)


def test_a_decoder_of_the_laboratory_is_one_of_its_settings_alone(tmp_path):
    ablations = {"linear": {"finetune.decoder": "linear", "finetune.encoder_rate": 0}}
    grid = grid_of(tmp_path, ablations=ablations)
    decoders = {cell.strategy: telling(cell.config.finetune)["decoder"] for cell in grid.cells}
    assert decoders == {"pooled": "unet", "simclr": "unet", "scratch": "unet", "linear": "linear"}
