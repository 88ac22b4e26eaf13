from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from sacl.commands import config_and_data, take_dotted_flags
from sacl.errors import ConfigError


def test_dotted_flags_are_taken_out_in_both_ways_to_write_them():
    words = ["run", "--a.b-c", "1", "x", "--d.e=2=3", "--plain"]
    assert take_dotted_flags(words) == ({"a.b_c": "1", "d.e": "2=3"}, ["run", "x", "--plain"])


def test_a_dotted_flag_without_a_value_is_refused():
    with pytest.raises(ConfigError, match=r"--a\.b: a value is missing"):
        take_dotted_flags(["--a.b"])


@pytest.mark.parametrize(
    ("words", "config", "data"),
    [
        ([], None, None),
        (["run.yaml"], "run.yaml", None),
        (["folder"], None, "folder"),
        (["folder", "run.yml"], "run.yml", "folder"),
        (["a, b", "c"], None, ["a, b", "c"]),
    ],
)
def test_what_ends_in_yaml_is_the_configuration_and_all_else_data(words, config, data):
    found, text = config_and_data(words)
    assert found == (Path(config) if config else None)
    assert (yaml.safe_load(text) if isinstance(data, list) else text) == data


def test_two_configurations_are_refused():
    with pytest.raises(ConfigError, match=r"two configurations, a\.yaml and b\.yaml; give one"):
        config_and_data(["a.yaml", "b.yaml"])
