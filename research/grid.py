"""The cells of a comparison: every one an ordinary run, whose stages come from the store."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
from filelock import FileLock, Timeout

from research.protocol import Protocol, load_protocol, with_labels
from research.store import Key, Store, telling
from sacl.cohort.manifest import read_cohort
from sacl.errors import ConfigError, SaclError, WorkspaceError
from sacl.files.atomic import remove_partials, write_text
from sacl.run.pipeline import stage_module
from sacl.run.record import fingerprint
from sacl.run.workspace import Workspace
from sacl.settings import LocateSettings, MapsSettings, RunConfig
from sacl.types import Cohort

OF_COHORT = ("phantom", "ingest", "locate", "extract")
"""Stages with the first seed, so that all seeds have the same subjects and the same maps."""
OF_CELL = ("pretrain", "finetune", "predict", "evaluate")
MAPS = "maps"
"""Stands for a stage in the store: predictions of one cell as the coarse maps of another."""
FAILED, PLACES = "failed.json", "stages.json"
State = Literal["done", "failed", "begun", "waiting"]


@dataclass(frozen=True)
class Cell:
    """One run of the comparison."""

    labeled_subjects: int | None
    strategy: str
    config: RunConfig
    cohort_seed: int
    vary_coarse: bool = False
    after: Cell | None = None
    """The cell whose predictions are this one's coarse maps, None where it has its own."""

    @property
    def seed(self) -> int:
        """Seed of what the cell trains."""
        return self.config.seed

    @property
    def name(self) -> str:
        """Name of the cell and of its folder, such as `n3-semantic-s0`."""
        count = "all" if self.labeled_subjects is None else self.labeled_subjects
        return f"n{count}-{self.strategy}-s{self.seed}"

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that the cell rests on, in the order in which they run."""
        return (*OF_COHORT[self.config.phantom.scans == 0 :], *OF_CELL)

    def seed_of(self, stage: str) -> int:
        """Return the seed of a stage: the comparison's first one before anything is compared."""
        own = stage in OF_CELL or (self.vary_coarse and stage in ("locate", "extract"))
        return self.seed if own else self.cohort_seed


@dataclass(frozen=True)
class Grid:
    """A protocol with its cells, and the store of what they have done."""

    protocol: Protocol
    cells: tuple[Cell, ...]
    store: Store

    def folder(self, cell: Cell) -> Path:
        """Return a cell's folder: where its stages are, its log, and why it failed."""
        return self.protocol.work / "cells" / cell.name

    def finished(self, cell: Cell) -> dict[str, Path]:
        """Return the store's entry of every finished stage of a cell, in order, and run none."""
        return self._walk(cell, run=False)

    def run(self, cell: Cell, upto: str = "evaluate") -> dict[str, Path]:
        """Run what is not in the store of a cell, up to a stage, and return the entries.

        Raises:
            SaclError: a stage failed.
        """
        return self._walk(cell, run=True, upto=upto)

    def cohort(self, cell: Cell) -> Cohort:
        """Return a cell's cohort, ingested where it is not in the store."""
        return read_cohort(workspace_of(cell, "ingest", self.run(cell, "ingest")).folder("ingest"))

    def state(self, cell: Cell) -> State:
        """Tell how far a cell is."""
        entries = self.finished(cell)
        if len(entries) == len(cell.stages):
            return "done"
        if (self.folder(cell) / FAILED).is_file():
            return "failed"
        return "begun" if set(entries) & set(OF_CELL) else "waiting"

    def failure(self, cell: Cell) -> str:
        """Return why a cell failed when it last ran, empty where it did not."""
        try:
            return str(json.loads((self.folder(cell) / FAILED).read_text("utf-8"))["cause"])
        except (OSError, ValueError, KeyError):
            return ""

    def _walk(self, cell: Cell, *, run: bool, upto: str = "evaluate") -> dict[str, Path]:
        entries: dict[str, Path] = {}
        config = cell.config
        if cell.after is not None:
            before = self._walk(cell.after, run=run, upto="predict")
            maps = self._maps(cell.after, before, run) if "predict" in before else None
            if maps is None:
                return entries
            config = msgspec.structs.replace(
                config, locate=LocateSettings(maps=MapsSettings(source=maps))
            )
        for stage in cell.stages[: cell.stages.index(upto) + 1]:
            entry = self._stage(cell, config, stage, entries, run)
            if entry is None:
                break
            entries[stage] = entry
        return entries

    def _stage(
        self, cell: Cell, config: RunConfig, stage: str, entries: Mapping[str, Path], run: bool
    ) -> Path | None:
        """Return the store's entry of a stage, made where `run` is set and it is not there."""
        settings, seed = getattr(config, stage), cell.seed_of(stage)
        if stage == "ingest" and not has_data(config):
            return self.store.without_inputs(stage, telling(settings), seed)
        module, before = stage_module(stage), workspace_of(cell, stage, entries)
        asked = (stage, settings, seed, sorted(entries.items()))  # with the paths in them
        inputs = self.store.once(asked, lambda: module.inputs(settings, before))
        key = Key(stage, telling(settings), seed, inputs)
        if not run:
            return self.store.find(key)

        def make(folder: Path) -> None:
            getattr(module, stage)(settings, workspace_of(cell, stage, {**entries, stage: folder}))

        return self.store.make(key, make)

    def _maps(self, first: Cell, entries: Mapping[str, Path], run: bool) -> Path | None:
        """Return a folder of coarse maps from a cell's predictions.

        Labeled scans keep the maps of networks that never saw their subjects: the segmenter saw
        their references, and its predictions there would be better than anywhere else.
        """
        workspace = workspace_of(first, "evaluate", entries)
        predicted, located = workspace.folder("predict"), workspace.folder("locate") / "maps"
        inputs = {"predict": fingerprint(predicted), "locate": fingerprint(located.parent)}
        key = Key(MAPS, {}, first.seed, inputs)
        if not run:
            entry = self.store.find(key)
            return None if entry is None else entry / MAPS

        def make(folder: Path) -> None:
            cohort = read_cohort(workspace.folder("ingest"))
            labeled = {case.case_id for case in cohort.labeled}
            (folder / MAPS).mkdir(exist_ok=True)
            for case in cohort.cases:
                name = f"{case.case_id}.nii.gz"
                source = located if case.case_id in labeled else map_folder(predicted)
                shutil.copyfile(source / name, folder / MAPS / name)

        return self.store.make(key, make) / MAPS


def workspace_of(cell: Cell, stage: str, entries: Mapping[str, Path]) -> Workspace:
    """Return the work directory in which a stage of a cell sees the stages before it.

    It has no name of its own: an entry that several cells share, and all that rest on it, are the
    same whichever of them came first.
    """
    root = entries.get(stage, next(iter(entries.values()), Path()))
    elsewhere = {name: entry for name, entry in entries.items() if entry != root}
    return Workspace(root, seed=cell.seed_of(stage), device=cell.config.device, elsewhere=elsewhere)


def map_folder(predicted: Path) -> Path:
    """Return the folder of the label maps of a cell's one segmenter.

    Raises:
        WorkspaceError: there is none, or more than one.
    """
    folders = [path for path in predicted.iterdir() if path.is_dir()]
    if len(folders) != 1:
        raise WorkspaceError(f"predictions of {len(folders)} segmenters, expected those of one")
    return folders[0]


def has_data(config: RunConfig) -> bool:
    """Tell whether the cohort's scans can be read, or are generated."""
    sources = config.ingest.data
    return all(path.exists() for path in sources) if sources else config.phantom.scans > 0


def read_grid(path: Path, flags: Mapping[str, str], work: Path | None = None) -> Grid:
    """Read a protocol and plan its cells: by labels, then seed, so that pairs are complete early.

    Raises:
        ConfigError: a mistake in the protocol.
    """
    protocol, configs = load_protocol(path, flags, work)
    cells: list[Cell] = []
    for count in protocol.labeled_subjects:
        for seed in protocol.seeds:
            planned: dict[str, Cell] = {}
            for name in sorted(configs, key=lambda name: name in protocol.after):
                planned[name] = Cell(
                    count,
                    name,
                    with_labels(configs[name], count, seed),
                    protocol.seeds[0],
                    protocol.vary_coarse,
                    planned.get(protocol.after.get(name, "")),
                )
            cells += planned.values()
    return Grid(protocol, tuple(cells), Store(protocol.work / "store"))


def run_cell(grid: Grid, cell: Cell) -> bool:
    """Run what a cell lacks; return False where another process is at it.

    Raises:
        SaclError: the cell failed; the cause is kept in its folder too.
    """
    folder = grid.folder(cell)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            (folder / FAILED).unlink(missing_ok=True)
            remove_partials(folder, [PLACES, FAILED])
            entries = grid.run(cell)
            names = {stage: entry.name for stage, entry in entries.items()}
            write_text(folder / PLACES, json.dumps(names, indent=1) + "\n")
    except Timeout:
        return False
    except Exception as error:
        cause = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, SaclError):
            cause = f"{type(error).__name__}: {cause}"
        write_failure(folder, cause)
        raise SaclError(cause) from error
    return True


def write_failure(folder: Path, cause: str) -> None:
    """Keep why a cell failed."""
    write_text(folder / FAILED, json.dumps({"cause": cause}) + "\n")


def prepare(grid: Grid, cells: Sequence[Cell]) -> None:
    """Read the cohort at every number of labels, and check that it has what is compared.

    Raises:
        SaclError: there is no data, it cannot be read, or lacks subjects or scans to score.
    """
    counts: dict[int, int | None] = {}
    for cell in {cell.labeled_subjects: cell for cell in reversed(cells)}.values():
        if not has_data(cell.config) and "ingest" not in grid.finished(cell):
            absent = next((p for p in cell.config.ingest.data if not p.exists()), None)
            got = f"{absent}, which is not there" if absent else "nothing"
            raise ConfigError(f"ingest.data: got {got}; give --data FOLDER or phantom.scans")
        cohort = grid.cohort(cell)
        require_scored(cohort, grid.protocol, cell.config.ingest.stratify)
        count = labeled_count(cohort)
        if count in counts:
            raise ConfigError(
                f"labeled_subjects: null is all {count} subjects, and {count} stands there too;"
                " leave one of them out"
            )
        counts[count] = cell.labeled_subjects


def labeled_count(cohort: Cohort) -> int:
    """Return how many training subjects keep their reference."""
    return len({case.subject_id for case in cohort.labeled})


def scored_cases(cohort: Cohort, protocol: Protocol, label: str) -> set[str]:
    """Return the cases whose scores count: of the scored splits, with the scored values."""
    values = protocol.scored_values
    return {
        case.case_id
        for case in cohort.cases
        if case.split in protocol.splits
        and case.reference is not None
        and (not values or case.scan_label(label) in values)
    }


def require_scored(cohort: Cohort, protocol: Protocol, label: str) -> None:
    """Refuse a comparison without a scan to score in one of its splits.

    Raises:
        ConfigError: naming the split, and the values that there are.
    """
    counted = scored_cases(cohort, protocol, label)
    for split in protocol.splits:
        if not counted & {case.case_id for case in cohort.of_split(split)}:
            values = sorted({case.scan_label(label) for case in cohort.of_split(split)})
            of = f" with the {label} {' or '.join(protocol.scored_values)}"
            raise ConfigError(
                f"splits: no {split} scan of {cohort.name} has a reference to score against"
                + (
                    f"{of}; there are {', '.join(values) or 'none'}"
                    if protocol.scored_values
                    else ""
                )
                + f"; score another split, or set ingest.{split}_subjects"
            )
