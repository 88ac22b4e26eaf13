"""A protocol: which strategies are compared at how many labels and seeds, read from YAML."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, field

import research.methods  # noqa: F401 - enters the laboratory's methods into the program's table
from sacl.checked import Checked, converted_value
from sacl.errors import ConfigError
from sacl.run.configure import (
    EXCLUSIVE_BLOCKS,
    dotted_settings,
    drop_rivals,
    from_mapping,
    load_config,
    nearest,
    plant,
    read_yaml,
)
from sacl.settings import RunConfig

PROTOCOLS = Path(__file__).parent / "protocols"
VERSION = 2
"""Of the protocol's format. Version 1 had the settings of an earlier program."""

Overrides = dict[str, dict[str, Any]]
"""Settings that differ from the base run's, by strategy and dotted name."""

DECODERS = ("linear",)
"""Decoders of the laboratory, which `research.methods` enters into the program's table."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VARIED = ("locate", "extract", "pretrain", "finetune", "predict")
"""Blocks of settings that a strategy may change; the others are the same for all."""


class Protocol(Checked, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Compare strategies at several numbers of labeled subjects, each with several seeds."""

    version: int
    """Version of the protocol's format."""
    name: Annotated[str, Meta(min_length=1)]
    """Name of the comparison."""
    base: str
    """Run configuration that every strategy starts from: a path relative to the protocol, or the
    name of one that comes with the program."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of all cells that differ from the base's, by dotted name or block."""
    work: Path = Path("work/comparison")
    """Folder of the store, of the cells and of the results."""
    labeled_subjects: tuple[Annotated[int, Meta(ge=1)] | None, ...] = (None,)
    """Numbers of labeled training subjects; null is all of them."""
    seeds: tuple[Annotated[int, Meta(ge=0)], ...] = (0, 1, 2)
    """Seeds of pretraining and fine-tuning; the first is that of the cohort and the coarse maps."""
    splits: tuple[Literal["validation", "test"], ...] = ("test",)
    """Splits whose scores are compared."""
    scored_values: tuple[str, ...] = ()
    """Values of the scan-wise label `ingest.stratify` whose scans are scored, all where empty:
    with `ingest.labeled_values`, to learn from labels in one phase and score another."""
    strategies: Overrides
    """Settings by strategy."""
    ablations: Overrides = field(default_factory=dict)
    """Settings by ablation, on top of those of `ours`."""
    after: dict[str, str] = field(default_factory=dict)
    """Iterated attention: strategies whose coarse maps are the predictions of another one, of the
    same labels and seed; labeled scans keep their cross-fitted maps."""
    families: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Further families of tests: a strategy or ablation, and the others it is compared with."""
    ours: str
    """Strategy that every other one is compared with."""
    baseline: str
    """Strategy that the headline compares with."""
    vary_coarse: bool = False
    """Train the coarse networks anew for every seed; else the first seed's serve all."""
    bootstrap: Annotated[int, Meta(ge=100)] = 5000
    """Resamples of every bootstrap."""

    @property
    def names(self) -> tuple[str, ...]:
        """All strategies and ablations."""
        return (*self.strategies, *self.ablations)

    def __post_init__(self) -> None:
        """Check the fields, and that every name is one of the strategies."""
        super().__post_init__()
        if self.version != VERSION:
            raise ConfigError(f"version: this program reads {VERSION}, got {self.version}")
        for name in ("labeled_subjects", "seeds", "splits", "strategies"):
            _require_some(name, list(getattr(self, name)))
        for name in (self.name, *self.names):
            if not _NAME.fullmatch(name):
                raise ConfigError(f"name: letters, digits, . _ - only, got {name!r}")
        if both := sorted(set(self.strategies) & set(self.ablations)):
            raise ConfigError(f"ablations: '{both[0]}' is a strategy too; name it otherwise")
        require_known("ours", [self.ours], self.strategies)
        require_known("baseline", [self.baseline], self.strategies)
        compared = [name for others in self.families.values() for name in others]
        require_known("families", [*self.families, *compared], self.names)
        require_known("after", [*self.after, *self.after.values()], self.names)
        twice = next((name for name, first in self.after.items() if first in self.after), None)
        if twice is not None:
            raise ConfigError(
                f"after: '{twice}' comes after '{self.after[twice]}', which itself comes after"
                " another; name one that does not"
            )


def _require_some(what: str, values: list[Any]) -> None:
    """Refuse an empty list, and a value that stands twice."""
    twice = next((v for v in values if values.count(v) > 1), values)
    if not values:
        raise ConfigError(f"{what}: empty; name one at least")
    if twice is not values:
        shown = "null" if twice is None else twice
        raise ConfigError(f"{what}: {shown} stands twice; name each once")


def require_known(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse the first name that is no strategy.

    Raises:
        ConfigError: naming the nearest one, or all there are.
    """
    known = list(known)
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            few = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
            hint = f"did you mean '{close[0]}'?" if close else f"there are {few}"
            raise ConfigError(f"{what}: no strategy '{name}'; {hint}")


def load_protocol(
    path: Path, flags: Mapping[str, str] | None = None, work: Path | None = None
) -> tuple[Protocol, dict[str, RunConfig]]:
    """Return a protocol and the settings of every strategy and ablation by its name.

    `labeled_subjects` and the seed are still the base configuration's.

    Args:
        path: YAML file, or the name of a protocol of the laboratory.
        flags: Settings that all strategies share, as text by dotted name.
        work: Another folder for the cells.

    Raises:
        ConfigError: the protocol or its base cannot be read, a name is unknown, or a strategy
            changes what has to be the same for all.
    """
    path = protocol_file(path)
    tree = read_yaml(path)
    if isinstance(tree.get("strategies"), Mapping):
        tree["strategies"] = {name: own or {} for name, own in tree["strategies"].items()}
    if work is not None:
        tree["work"] = str(work)
    protocol = converted_value(tree, Protocol, "")
    base = _base(path, protocol, flags or {})
    configs = {
        name: _varied(base, own, f"strategy '{name}'") for name, own in protocol.strategies.items()
    }
    ours = configs[protocol.ours]
    for name, own in protocol.ablations.items():
        configs[name] = _varied(ours, own, f"ablation '{name}'")
    return protocol, configs


def protocol_file(path: Path) -> Path:
    """Return a protocol's path; a name without an ending is one of the laboratory's.

    Raises:
        ConfigError: there is none of that name.
    """
    if path.suffix in (".yaml", ".yml") or path.exists():
        return path
    known = {file.stem: file for file in PROTOCOLS.glob("*.yaml")}
    if path.name not in known:
        raise ConfigError(f"no protocol '{path}'; give a YAML file, or one of {', '.join(known)}")
    return known[path.name]


def _base(path: Path, protocol: Protocol, flags: Mapping[str, str]) -> RunConfig:
    """Return the base run's settings, changed by the protocol's, changed by the flags."""
    given = {name.replace("-", "_"): text for name, text in flags.items()}
    beside = path.parent / protocol.base
    own = flat_settings(protocol.settings)
    _require_free([*own, *given], "settings", "ingest.labeled_subjects")
    base = load_config(beside if beside.is_file() else protocol.base, given)
    try:
        return overridden(base, {name: own[name] for name in own if name not in given})
    except ConfigError as error:
        raise ConfigError(f"settings: {error}") from error


def _varied(base: RunConfig, overrides: Mapping[str, Any], what: str) -> RunConfig:
    own = flat_settings(overrides)
    _require_free(own, what)
    for name in own:
        if "." in name and name.split(".")[0] not in _VARIED:
            raise ConfigError(
                f"{what}: '{name}' has to be the same for all; a strategy varies settings of"
                f" {', '.join(_VARIED)}"
            )
    decoder = own.pop("finetune.decoder") if own.get("finetune.decoder") in DECODERS else None
    try:
        config = overridden(base, own)
    except ConfigError as error:
        raise ConfigError(f"{what}: {error}") from error
    return config if decoder is None else _with_decoder(config, decoder)


def overridden(config: RunConfig, overrides: Mapping[str, Any]) -> RunConfig:
    """Return settings with some changed, by dotted name (`{"pretrain.steps": 200}`) or by block.

    Raises:
        ConfigError: a name is unknown or a value is not allowed.
    """
    tree = msgspec.to_builtins(config, enc_hook=str)
    for name, value in flat_settings(overrides).items():
        if name not in (*dotted_settings(), *EXCLUSIVE_BLOCKS):
            raise ConfigError(f"unknown setting '{name}'{nearest(name)}")
        drop_rivals(tree, name)
        plant(tree, name, value)
    return from_mapping(RunConfig, tree)


def flat_settings(overrides: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Return settings in nested blocks by their dotted names."""
    flat: dict[str, Any] = {}
    for key, value in overrides.items():
        if isinstance(value, Mapping) and value:
            flat |= flat_settings(value, f"{where}{key}.")
        else:
            flat[f"{where}{key}"] = value
    return flat


def _with_decoder(config: RunConfig, decoder: str) -> RunConfig:
    """Return settings with a decoder that the program's own settings do not offer."""
    finetune = msgspec.structs.replace(config.finetune)
    msgspec.structs.force_setattr(finetune, "decoder", decoder)
    return msgspec.structs.replace(config, finetune=finetune)


def _require_free(names: Iterable[str], what: str, *fixed: str) -> None:
    for name in names:
        if name in ("name", "work", "seed", *fixed) or (name == "device" and what != "settings"):
            raise ConfigError(f"{what}: '{name}' is set by the protocol; leave it out")


def with_labels(config: RunConfig, labeled_subjects: int | None, seed: int) -> RunConfig:
    """Return a cell's settings: a strategy's, at a number of labels, with a seed."""
    ingest = msgspec.structs.replace(config.ingest, labeled_subjects=labeled_subjects)
    return msgspec.structs.replace(config, ingest=ingest, seed=seed)
