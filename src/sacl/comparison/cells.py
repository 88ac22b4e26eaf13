"""The cells of a comparison, and where each of their stages is done.

`work/shared-n3/` holds what all strategies read at three labeled subjects, `work/cells/` a folder
per cell. A stage whose own settings, or an earlier one's, differ from the base run's is done in a
folder of its own, named after a hash of these settings. An encoder that several cells would
pretrain alike is pretrained in the folder of the first one, unless another one has it already.
What comes after another cell, whose predictions are its coarse maps, locates and extracts in
`work/after-n3-semantic-s0/`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sacl.errors import ConfigError
from sacl.files.atomic import plain
from sacl.run.record import changed_setting, read_record
from sacl.run.workspace import FOLDERS, Workspace
from sacl.settings import ExtractSettings, LocateSettings, PretrainSettings, RunConfig
from sacl.settings.protocol import Protocol

SHARED = ("phantom", "ingest", "locate", "extract")
OWN = ("pretrain", "finetune", "predict", "evaluate")


@dataclass(frozen=True)
class Place:
    """Where a stage is done, and with which seed."""

    root: Path
    seed: int


@dataclass(frozen=True)
class Cell:
    """One run of the comparison; `places` says where each of its stages is done."""

    labeled_subjects: int | None
    strategy: str
    seed: int
    config: RunConfig
    places: Mapping[str, Place]
    after: Cell | None = None
    """The cell whose predictions are this one's coarse maps, None where it has its own."""

    @property
    def name(self) -> str:
        """Name of the cell and of its folder, such as `n3-semantic-s0`."""
        return cell_name(self.labeled_subjects, self.strategy, self.seed)

    @property
    def root(self) -> Path:
        """The cell's own work directory."""
        return self.places["evaluate"].root

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that the cell rests on, in the order in which they run."""
        return tuple(self.places)

    def workspace(self, stage: str) -> Workspace:
        """Return the work directory in which a stage is done, as this cell sees it."""
        place = self.places[stage]
        elsewhere = {s: p.root for s, p in self.places.items() if p.root != place.root}
        name = place.root.name
        return Workspace(place.root, name, place.seed, self.config.device, elsewhere)


def cell_name(labeled_subjects: int | None, strategy: str, seed: int) -> str:
    """Return the name of a cell."""
    return f"{_labels(labeled_subjects)}-{strategy}-s{seed}"


def plan_cells(
    protocol: Protocol, base: RunConfig, config_of: Mapping[str, RunConfig]
) -> tuple[Cell, ...]:
    """Return all cells: by labels, then seed, then strategy, so that pairs are complete early."""
    cells: list[Cell] = []
    alike: dict[str, tuple[PretrainSettings, list[dict[str, Place]]]] = {}
    firsts_first = sorted(config_of, key=lambda name: name in protocol.after)
    for count in protocol.labeled_subjects:
        for seed in protocol.seeds:
            planned: dict[str, Cell] = {}
            for strategy in firsts_first:
                ingest = replace(config_of[strategy].ingest, labeled_subjects=count)
                own = replace(config_of[strategy], seed=seed, ingest=ingest)
                after = planned.get(protocol.after.get(strategy, ""))
                root = protocol.work / "cells" / cell_name(count, strategy, seed)
                places = _shared_places(protocol, base, own, seed, after)
                if after is not None:
                    own = replace(own, locate=_located_after(own.locate, after))
                key = _hash([str(places["extract"]), plain(own.pretrain), seed])
                places.update(dict.fromkeys(OWN, Place(root, seed)))
                alike.setdefault(key, (own.pretrain, []))[1].append(places)
                planned[strategy] = Cell(count, strategy, seed, own, places, after)
            cells += planned.values()
    for settings, places_of_cells in alike.values():
        encoder = _encoder_place(settings, [places["pretrain"] for places in places_of_cells])
        for places in places_of_cells:
            places["pretrain"] = encoder
    return tuple(cells)


def _encoder_place(settings: PretrainSettings, places: Sequence[Place]) -> Place:
    """Return the first place in which this encoder is finished, else the first one.

    So an encoder that is there is found also after its protocol got a strategy before it.
    """
    for place in places:
        record = read_record(place.root / FOLDERS["pretrain"])
        if record and not changed_setting(record, "pretrain", settings, place.seed):
            return place
    return places[0]


def _located_after(settings: LocateSettings, first: Cell) -> LocateSettings:
    """Return settings that take another cell's predictions for coarse maps."""
    predicted = first.workspace("predict").folder("predict")
    return replace(
        settings,
        source=predicted / first.config.pretrain.strategy,
        labeled_source=first.workspace("locate").folder("locate") / "maps",
    )


def shard_of(cells: Sequence[Cell], shard: str) -> tuple[Cell, ...]:
    """Return the cells of shard `i/n`, `i` from 1: every n-th one.

    Raises:
        ConfigError: it is not `i/n` with 1 <= i <= n.
    """
    number, _, total = shard.partition("/")
    if not (number.isdigit() and total.isdigit() and 1 <= int(number) <= int(total)):
        raise ConfigError(f"--shard: expected i/n with i from 1 to n, got '{shard}'")
    return tuple(cells[int(number) - 1 :: int(total)])


def _shared_places(
    protocol: Protocol, base: RunConfig, config: RunConfig, seed: int, after: Cell | None
) -> dict[str, Place]:
    """Return where the stages before pretraining are done.

    The phantom and the choice of the labeled and held-out subjects are the first seed's always.
    """
    places: dict[str, Place] = {}
    differing: dict[str, object] = {}
    first = protocol.seeds[0]
    for stage in SHARED if config.phantom.scans else SHARED[1:]:
        of_maps = stage in ("locate", "extract")
        varies = of_maps and (protocol.vary_coarse or after is not None)
        folder = "shared" if stage == "phantom" else f"shared-{_labels(_count(config))}"
        if of_maps and after is not None:
            folder = f"after-{after.name}"
        elif varies:
            folder += f"-s{seed}"
        if of_maps and getattr(config, stage) != getattr(base, stage):
            differing[stage] = changed(getattr(config, stage))
        if differing:
            folder += f"-{_hash(differing)}"
        places[stage] = Place(protocol.work / folder, seed if varies else first)
    return places


def changed(settings: LocateSettings | ExtractSettings) -> dict[str, object]:
    """Return the settings that are not the default: a version that has more of them agrees."""
    return _differences(asdict(settings), asdict(type(settings)()))


def _differences(values: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, object]:
    return {
        name: _differences(value, default[name]) if isinstance(value, dict) else value
        for name, value in values.items()
        if value != default[name]
    }


def _count(config: RunConfig) -> int | None:
    return config.ingest.labeled_subjects


def _labels(count: int | None) -> str:
    return "nall" if count is None else f"n{count}"


def _hash(value: object) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
