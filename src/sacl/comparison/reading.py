"""Read a protocol, and tell mistakes in it before anything runs."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sacl.config import flat_settings, from_mapping, load_config, overridden, read_yaml
from sacl.errors import ConfigError
from sacl.settings import RunConfig, Strategy
from sacl.settings.protocol import Protocol

SCRATCH = "scratch"
BUILT_IN = {
    **{name: {"pretrain.strategy": name} for name in typing.get_args(Strategy) if name != "none"},
    SCRATCH: {"pretrain.strategy": "none"},
}
"""Settings of the strategies that a protocol may name without saying what they are."""

_VARIED = ("locate", "extract", "pretrain", "finetune", "predict")
_FIXED = ("finetune.twins", "predict.splits")


def load_protocol(
    path: Path, flags: Mapping[str, str] | None = None, work: str | None = None
) -> tuple[Protocol, RunConfig, dict[str, RunConfig]]:
    """Return a protocol, its base settings, and those of every strategy and ablation by its name.

    `labeled_subjects` and the seed are still the base configuration's.

    Args:
        path: YAML file.
        flags: Settings that all strategies share, as text by dotted name.
        work: Another folder for the cells.

    Raises:
        ConfigError: the protocol or its base cannot be read, names what is not there, or a
            strategy changes what has to be the same for all.
    """
    tree = read_yaml(path)
    if "base" not in tree:
        raise ConfigError(f"{path.name}: no 'base'; name the run configuration to vary")
    if work is not None:
        tree["work"] = work
    tree["strategies"] = _named(tree.get("strategies"))
    protocol = from_mapping(Protocol, tree)
    base = _base(path, protocol, flags or {})
    base = replace(
        base,
        finetune=replace(base.finetune, twins=()),
        predict=replace(base.predict, splits=protocol.splits),
        evaluate=replace(base.evaluate, splits=protocol.splits),
    )
    config_of = {
        name: _varied(base, overrides, f"strategy '{name}'")
        for name, overrides in protocol.strategies.items()
    }
    ours = config_of[protocol.ours]
    for name, overrides in protocol.ablations.items():
        config_of[name] = _varied(ours, overrides, f"ablation '{name}'")
    for name in protocol.after.values():  # what comes after it locates in all scans
        predict = replace(config_of[name].predict, splits=("train", *protocol.splits))
        config_of[name] = replace(config_of[name], predict=predict)
    return protocol, base, config_of


def _base(path: Path, protocol: Protocol, flags: Mapping[str, str]) -> RunConfig:
    """Return the base run's settings, changed by the protocol's, changed by the flags."""
    base = load_config(path.parent / protocol.base, flags)
    own = flat_settings(protocol.settings)
    for name in ("name", "work", "seed", "ingest.labeled_subjects", *_FIXED):
        if name in own:
            raise ConfigError(f"settings: '{name}' is set by the protocol; leave it out")
    given = {name.replace("-", "_") for name in flags}
    try:
        return overridden(base, {name: own[name] for name in own if name not in given})
    except ConfigError as error:
        raise ConfigError(f"settings: {error}") from error


def _named(strategies: Any) -> Any:
    """Return strategies with their settings: a list of names, or names without settings, too."""
    if isinstance(strategies, list):
        twice = [name for name in strategies if strategies.count(name) > 1]
        if twice:
            raise ConfigError(f"strategies: {twice[0]} stands twice; name each once")
        strategies = dict.fromkeys(map(str, strategies))
    if not isinstance(strategies, Mapping):
        return strategies or {}
    return {
        name: _built_in(str(name)) if settings is None else settings
        for name, settings in strategies.items()
    }


def _built_in(name: str) -> dict[str, str]:
    if name not in BUILT_IN:
        close = difflib.get_close_matches(name, BUILT_IN, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else f"; known are {', '.join(BUILT_IN)}"
        raise ConfigError(f"strategies: no strategy '{name}'{hint}")
    return BUILT_IN[name]


def _varied(base: RunConfig, overrides: Mapping[str, Any], what: str) -> RunConfig:
    for name in flat_settings(overrides):
        block = name.split(".")[0]
        fixed = name in _FIXED or ("." in name and block in ("phantom", "ingest", "evaluate"))
        if fixed or name in ("name", "work", "seed", "device"):
            raise ConfigError(
                f"{what}: '{name}' has to be the same for all; a strategy varies settings of"
                f" {', '.join(_VARIED)}"
            )
    try:
        return overridden(base, overrides)
    except ConfigError as error:
        raise ConfigError(f"{what}: {error}") from error
