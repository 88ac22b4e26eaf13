"""The work directory: one numbered folder per stage, entered through this record."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from sacl.errors import WorkspaceError
from sacl.progress import say
from sacl.run.clock import Budget, Deadline
from sacl.run.engine import HERE, Engine

FOLDERS = {
    "phantom": "0-phantom",
    "ingest": "1-cohort",
    "locate": "2-coarse",
    "extract": "3-patches",
    "pretrain": "4-encoder",
    "finetune": "5-segmenter",
    "predict": "6-predictions",
    "evaluate": "7-scores",
    "report": "8-report",
}
"""Folder of every stage's results, in the order in which the stages run."""
KEY = "dicom-key.csv"
"""Name of the key to the pseudonyms of a DICOM export, in the work directory."""

_SHARDS_WAIT_S = 20.0
"""How long a shard waits while another one prepares a folder."""


def is_work(folder: Path) -> bool:
    """Tell whether a folder is a work directory, whose files are no data."""
    return any((folder / name).exists() for name in (KEY, FOLDERS["ingest"]))


@dataclass(frozen=True)
class Workspace:
    """A work directory with what all stages of a run share: name, seed and device.

    `elsewhere` names the work directories of stages whose results are those of another run;
    `budget` is the time that the stage at work may take, None where it takes what it needs, and
    `engine` where its cases are worked on.
    """

    root: Path
    name: str = "run"
    seed: int = 0
    device: str = "auto"
    elsewhere: Mapping[str, Path] = field(default_factory=dict, hash=False)
    budget: Budget | None = field(default=None, compare=False)
    engine: Engine = field(default=HERE, compare=False)

    def folder(self, stage: str) -> Path:
        """Return the folder of a stage's results, made or not."""
        return self.elsewhere.get(stage, self.root) / FOLDERS[stage]

    def require(self, stage: str) -> Path:
        """Return the folder of a stage, which has to be finished in this work directory."""
        folder = self.folder(stage)
        if not (folder / "run.json").is_file():
            raise WorkspaceError(
                f"work directory {folder.parent}: stage '{stage}' has no result;"
                f" run `sacl {stage}` or `sacl run` first"
            )
        return folder

    def deadline(
        self, part: int = 0, parts: int = 1, reserve_s: float | None = None
    ) -> Deadline | None:
        """Return when the n-th of a stage's trainings has to end (`Budget.deadline`), if it has."""
        return self.budget.deadline(part, parts, reserve_s) if self.budget else None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out of the work directory; the same process may enter twice.

        Shards keep out all but each other. Refused where another process works in it, or it is no
        folder to write in.
        """
        with contextlib.ExitStack() as held:
            try:
                self.root.mkdir(parents=True, exist_ok=True)
                self._lock_in(held)
            except Timeout:
                raise WorkspaceError(
                    f"work directory {self.root}: in use by another sacl process; wait until it"
                    " ends, or take another --work"
                ) from None
            except OSError as error:
                raise WorkspaceError(
                    f"work directory {self.root}: cannot be written, {error.strerror or error};"
                    " take another --work"
                ) from error
            yield

    def _lock_in(self, held: contextlib.ExitStack) -> None:
        whole, shard = self._lock(), self.engine.shard
        if shard is None:
            held.enter_context(whole.acquire(timeout=0))
            for path in sorted(self.root.glob(".lock-*")):
                held.enter_context(self._lock(path.name[5:]).acquire(timeout=0))
            return
        held.enter_context(self._lock(f"-{shard.number}-of-{shard.count}").acquire(timeout=0))
        with whole.acquire(timeout=_SHARDS_WAIT_S):
            pass

    def prepared(self) -> contextlib.AbstractContextManager[object]:
        """Keep the other shards of a locked directory out, while a stage's folder is prepared."""
        return self._lock().acquire(timeout=_SHARDS_WAIT_S)

    @contextlib.contextmanager
    def in_turn(self, what: str) -> Iterator[None]:
        """Keep the other shards waiting while one does what all need; who waits says for what."""
        lock = self._lock("-in-turn")
        try:
            held = lock.acquire(timeout=0)
        except Timeout:
            say(f"{what} by another shard; waiting for it")
            held = lock.acquire()
        with held:
            yield

    def _lock(self, of: str = "") -> BaseFileLock:
        return FileLock(self.root / f".lock{of}", is_singleton=True)
