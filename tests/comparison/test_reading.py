import pytest
from fake_stages import write_protocol

from sacl.comparison.cells import plan_cells
from sacl.comparison.reading import BUILT_IN, load_protocol
from sacl.errors import ConfigError


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"version": "2"}, "version: this program reads 1, got 2"),
        ({"seeds": "[0, 1, 0]"}, "seeds: 0 stands twice"),
        ({"seeds": "[]"}, "seeds: empty"),
        ({"labeled_subjects": "[3, null, null]"}, "labeled_subjects: null stands twice"),
        ({"labeled_subjects": "[0]"}, "labeled_subjects must be >= 1, got 0"),
        ({"strategies": "[]"}, "strategies: empty"),
        ({"strategies": "[semantic, semantic, scratch]"}, "strategies: semantic stands twice"),
        ({"strategies": "[semantik, scratch]"}, "no strategy 'semantik'; did you mean 'semantic'?"),
        ({"strategies": "[semantic]"}, "baseline: no strategy 'scratch'"),
        ({"ours": "organ"}, "ours: no strategy 'organ'; the strategies are semantic, simclr"),
        ({"splits": "[tset]"}, "splits[0]: expected one of validation, test, got 'tset'"),
        ({"splits": "[train]"}, "expected one of validation, test, got 'train'"),
        ({"base": "absent.yaml"}, "absent.yaml: cannot be read"),
        ({"base": "-"}, "no 'base'"),
        ({"sedes": "[1]"}, "unknown setting 'sedes'; did you mean 'seeds'?"),
        ({"name": "../elsewhere"}, "name: letters"),
        (
            {"ablations": "{x: {finetune.stesp: 3}}"},
            "ablation 'x': unknown setting 'finetune.stesp'; did you mean 'finetune.steps'?",
        ),
        (
            {"strategies": "{semantic: null, scratch: {pretrain: {steps: many}}}"},
            "strategy 'scratch': pretrain.steps: expected integer, got 'many'",
        ),
        ({"ablations": "{simclr: {}}"}, "'simclr' is a strategy too"),
        ({"ablations": "{x: {ingest.organs: [liver]}}"}, "'ingest.organs' has to be the same"),
        ({"ablations": "{x: {seed: 3}}"}, "'seed' has to be the same for all"),
        ({"ablations": "{x: {finetune.twins: [scratch]}}"}, "'finetune.twins' has to be the same"),
        (
            {"families": "{simclr: [scrach]}"},
            "families: no strategy 'scrach'; there are semantic, simclr, scratch",
        ),
        ({"after": "{semantic: scrach}"}, "after: no strategy 'scrach'"),
        ({"settings": "{seed: 3}"}, "settings: 'seed' is set by the protocol; leave it out"),
        ({"settings": "{locate.stesp: 3}"}, "settings: unknown setting 'locate.stesp'"),
        ({"ablations": "{x: 3}"}, "ablations.x: expected settings by name, got 3"),
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
        strategies="{semantic: {pretrain: {temperature: 0.2}}, scratch: null}",
        ablations="{x: {finetune.decoder: aspp}}",
    )
    protocol, base, config_of = load_protocol(path, {"pretrain.steps": "7"})
    assert list(config_of) == ["semantic", "scratch", "x"]
    assert config_of["scratch"].pretrain.strategy == "none"
    assert config_of["x"].pretrain.temperature == 0.2
    assert config_of["x"].finetune.decoder == "aspp"
    assert config_of["semantic"].finetune.decoder == base.finetune.decoder == "unet"
    assert all(config.pretrain.steps == 7 for config in config_of.values())
    assert list(protocol.strategies) == ["semantic", "scratch"]


def test_every_strategy_of_pretraining_is_built_in_and_no_cell_trains_twins(tmp_path):
    names = ", ".join(BUILT_IN)
    path = write_protocol(tmp_path, strategies=f"[{names}]", ablations="{}", splits="[validation]")
    protocol, base, config_of = load_protocol(path)
    assert {"semantic", "organ", "supcon", "simclr", "scratch"} <= set(config_of)
    for cell in plan_cells(protocol, base, config_of):
        assert cell.config.finetune.twins == ()
        assert cell.config.predict.splits == cell.config.evaluate.splits == ("validation",)
        assert cell.config.seed == cell.seed
        assert cell.config.ingest.labeled_subjects == cell.labeled_subjects


def test_the_work_folder_may_be_another(tmp_path):
    protocol, _, _ = load_protocol(write_protocol(tmp_path), work=str(tmp_path / "other"))
    assert protocol.work == tmp_path / "other"


def test_settings_of_all_cells_change_the_base_and_flags_change_them(tmp_path):
    path = write_protocol(tmp_path, settings="{pretrain: {steps: 9, width: 8}, locate.steps: 11}")
    _, base, config_of = load_protocol(path, {"locate.steps": "12"})
    for config in (base, *config_of.values()):
        assert (config.pretrain.steps, config.pretrain.width, config.locate.steps) == (9, 8, 12)
