"""The work directory: one numbered folder per stage, entered through this record."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from sacl.errors import WorkspaceError
from sacl.run.clock import Budget, Deadline

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


@dataclass(frozen=True)
class Workspace:
    """A work directory with what all stages of a run share: name, seed and device.

    `elsewhere` names the work directories of stages whose results are those of another run;
    `budget` is the time that the stage at work may take, None where it takes what it needs.
    """

    root: Path
    name: str = "run"
    seed: int = 0
    device: str = "auto"
    elsewhere: Mapping[str, Path] = field(default_factory=dict, hash=False)
    budget: Budget | None = field(default=None, compare=False)

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

        Refused where another process works in it, or it is no folder to write in.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.root / ".lock", timeout=0, is_singleton=True)
            lock.acquire()
        except Timeout:
            raise WorkspaceError(
                f"work directory {self.root}: another sacl is at work in it; wait until it has"
                " finished, or take another --work"
            ) from None
        except OSError as error:
            raise WorkspaceError(
                f"work directory {self.root}: cannot be written, {error.strerror or error};"
                " take another --work"
            ) from error
        try:
            yield
        finally:
            lock.release()
