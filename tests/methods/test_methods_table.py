"""The table of methods, and what the settings know of it without importing it."""

import pkgutil

import pytest

import sacl.methods
from sacl import settings
from sacl.errors import ConfigError
from sacl.methods import METHODS, method_named
from sacl.settings import PretrainSettings


def of_the_program():
    method_named("none")
    return {n: m for n, m in METHODS.items() if m.build.__module__.startswith("sacl.methods.")}


def test_the_settings_name_the_programs_methods():
    assert set(settings.METHODS) == set(of_the_program())
    with_labels = {n for n, m in of_the_program().items() if m.reads_scan_label}
    assert set(settings._BY_SCAN_LABEL) == with_labels


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
