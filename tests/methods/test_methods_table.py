"""The table of methods, and what the settings know of it without importing it."""

import pkgutil
import sys
from pathlib import Path

import pytest

import sacl.methods
from sacl import settings
from sacl.errors import ConfigError
from sacl.methods import METHODS, method_named
from sacl.run.configure import load_config
from sacl.settings import PretrainSettings


def of_the_program():
    method_named("none")
    return {n: m for n, m in METHODS.items() if m.build.__module__.startswith("sacl.methods.")}


def test_the_settings_name_the_programs_methods():
    assert set(settings.METHODS) <= set(of_the_program())


def test_every_method_is_a_file_of_the_package_or_shares_one():
    files = {module.name for module in pkgutil.iter_modules(sacl.methods.__path__)}
    homes = {m.build.__module__.rsplit(".", 1)[1] for m in of_the_program().values()}
    assert homes <= files
    assert len(homes) >= len(of_the_program()) - 1


def test_settings_take_a_registered_method_and_no_other(monkeypatch):
    monkeypatch.setitem(METHODS, "mine", method_named("simclr"))
    assert PretrainSettings(method="mine").method == "mine"
    with pytest.raises(ConfigError, match=r"pretrain\.method: expected one of .*'semantik'"):
        PretrainSettings(method="semantik")


def test_a_file_in_the_folder_of_methods_is_all_that_a_new_one_takes(tmp_path, monkeypatch):
    simclr = Path(sacl.methods.__file__).with_name("simclr.py").read_text()
    (tmp_path / "rotation.py").write_text(simclr.replace('name="simclr"', 'name="rotation"'))
    monkeypatch.setattr(sacl.methods, "__path__", [*sacl.methods.__path__, str(tmp_path)])
    monkeypatch.setattr(sacl.methods, "METHODS", dict(METHODS))
    monkeypatch.delitem(sys.modules, "sacl.methods.rotation", raising=False)
    assert load_config(None, {"pretrain.method": "rotation"}).pretrain.method == "rotation"
    with pytest.raises(ConfigError, match="method rotation uses no scan-wise label"):
        PretrainSettings(method="rotation", scan_label="scanner")
