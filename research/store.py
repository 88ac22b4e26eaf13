"""A store of finished stages by what they were made of: equal work is done once, by anybody.

An entry is a folder `store/<stage>-<hash>` whose hash is of the stage's name, its settings, its
seed and the fingerprints of its inputs. It is a small work directory with one stage in it, which
`Workspace.elsewhere` shows to the stages that read it; so nothing is copied or linked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from filelock import FileLock

from sacl.files.atomic import write_text
from sacl.progress import say

KEY = "key.json"
_UNFINISHED, _LOCKS = ".unfinished", ".locks"


@dataclass(frozen=True)
class Key:
    """What decides the result of a stage."""

    stage: str
    settings: Mapping[str, Any]
    seed: int
    inputs: Mapping[str, str]

    @property
    def name(self) -> str:
        """Name of the entry's folder, such as `pretrain-3f0c9a51b7de`."""
        text = json.dumps([self.stage, self.settings, self.seed, dict(self.inputs)], sort_keys=True)
        return f"{self.stage}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def telling(settings: msgspec.Struct) -> dict[str, Any]:
    """Return the settings that decide a result: all but paths, whose contents are inputs."""
    values: dict[str, Any] = json.loads(msgspec.json.encode(settings, enc_hook=lambda _path: None))
    values.pop("data", None)
    return values


@dataclass(frozen=True)
class Store:
    """Finished stages; an entry is there whole or not at all."""

    root: Path
    _data: dict[str, Mapping[str, str]] = field(default_factory=dict, compare=False)

    def find(self, key: Key) -> Path | None:
        """Return the entry of a key, None where it has not been made."""
        entry = self.root / key.name
        return entry if entry.is_dir() else None

    def make(self, key: Key, make: Callable[[Path], object]) -> Path:
        """Return the entry of a key; where it is not there, `make` fills a folder for it.

        Another process that needs the same entry waits. What an interrupted process left is handed
        to the next one, which may go on from it.
        """
        entry, unfinished = self.root / key.name, self.root / _UNFINISHED / key.name
        locks = self.root / _LOCKS
        if entry.is_dir():
            return entry
        locks.mkdir(parents=True, exist_ok=True)
        with FileLock(locks / f"{key.name}.lock"):
            if not entry.is_dir():
                unfinished.mkdir(parents=True, exist_ok=True)
                say(f"{key.name} ...")
                make(unfinished)
                write_text(unfinished / KEY, json.dumps(vars(key), indent=1, default=dict) + "\n")
                unfinished.rename(entry)
        return entry

    def without_inputs(self, stage: str, settings: Mapping[str, Any], seed: int) -> Path | None:
        """Return an entry of these settings whatever its inputs were, None where there is none.

        For a machine to which an ingested cohort was copied and its scans were not.
        """
        for path in sorted(self.root.glob(f"{stage}-*/{KEY}")):
            key = json.loads(path.read_text(encoding="utf-8"))
            if (key["settings"], key["seed"]) == (settings, seed):
                return path.parent
        return None

    def once(self, what: object, ask: Callable[[], Mapping[str, str]]) -> Mapping[str, str]:
        """Return what `ask` says, asked once per process: a folder of scans takes time to list."""
        name = str(what)
        if name not in self._data:
            self._data[name] = ask()
        return self._data[name]
