"""`run.json`: what a stage did, with what, from what; and whether it is still up to date."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import platform
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from sacl.errors import WorkspaceError
from sacl.files.atomic import plain, write_text
from sacl.run.workspace import FOLDERS, Workspace

RECORD = "run.json"
_PARTIAL = "partial.json"
_PACKAGES = ("sacl", "torch", "monai", "lightning", "numpy", "scipy", "nibabel", "pydicom")


def fingerprint(folder: Path) -> str:
    """Return a hash that changes whenever the folder's stage was done anew."""
    return hashlib.sha256((folder / RECORD).read_bytes()).hexdigest()[:16]


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return a stage's record, or None where the stage has not finished."""
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WorkspaceError(f"{folder.name}/{RECORD}: not JSON ({error}); use --force") from error
    return record


def workspace_at(root: Path) -> Workspace:
    """Return the work directory of an ingested run with the name and the seed that it was run with.

    Raises:
        WorkspaceError: nothing was ingested there.
    """
    record = read_record(Workspace(root).require("ingest")) or {}
    seed = record.get("settings", {}).get("seed", 0)
    return Workspace(root, str(record.get("run", "run")), int(seed))


def _first_difference(old: Any, new: Any, default: Any, where: str) -> str | None:
    """Return the first setting that differs; one that a record lacks counts as its default."""
    if isinstance(old, dict) and isinstance(new, dict):
        defaults = default if isinstance(default, dict) else {}
        for key in {**old, **new}:
            usual = defaults.get(key)
            was = old.get(key, usual)
            found = _first_difference(was, new.get(key), usual, f"{where}.{key}")
            if found:
                return found
        return None
    return None if old == new else f"{where} was {old!r} and is {new!r}"


def changed_setting(record: Mapping[str, Any], stage: str, settings: Any, seed: int) -> str | None:
    """Return the first setting in which a stage's record differs, None where there is none.

    A setting that an older version did not know is not in its record. It counts as the default, so
    that work done before an upgrade stays valid; a new default must mean what was done before.
    """
    now = {"seed": seed, stage: plain(settings)}
    defaults = {stage: plain(type(settings)())}
    return _first_difference({k: record["settings"].get(k) for k in now}, now, defaults, "")


def state_of(
    workspace: Workspace, stage: str, settings: Any, inputs: Mapping[str, str]
) -> Literal["absent", "current", "stale"]:
    """Tell whether a stage has to run: `current` if settings and inputs are those of its record.

    Raises:
        WorkspaceError: the stage was done with other settings, which would be lost.
    """
    record = read_record(workspace.folder(stage))
    if record is None:
        return "absent"
    changed = changed_setting(record, stage, settings, workspace.seed)
    if changed:
        raise WorkspaceError(
            f"work directory {workspace.root.name}: {FOLDERS[stage]} is of another configuration,"
            f" {changed[1:]}; take another --work, or redo it with --force"
        )
    return "current" if record["inputs"] == dict(inputs) else "stale"


@contextlib.contextmanager
def recorded(
    workspace: Workspace, stage: str, settings: Any, inputs: Mapping[str, str]
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Run a stage's body in its folder and write its `run.json` when it succeeds.

    A finished folder is emptied first; one that the same settings and inputs left unfinished is
    kept, so that the stage can go on from its partial results.

    Yields the folder and a dict for results worth recording (`record["counts"] = ...`).
    """
    folder = workspace.folder(stage)
    _clear_unless_resumable(folder, {"seed": workspace.seed, stage: plain(settings)}, inputs)
    results: dict[str, Any] = {}
    start = time.time()
    yield folder, results
    record = {
        "stage": stage,
        "run": workspace.name,
        "settings": {"seed": workspace.seed, stage: plain(settings)},
        "inputs": dict(inputs),
        "results": results,
        "device": workspace.device,
        "versions": versions(),
        "git_revision": git_revision(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(start)),
        "duration_s": round(time.time() - start, 2),
        "peak_memory_mb": peak_memory_mb(),
    }
    write_text(folder / RECORD, json.dumps(record, indent=1, allow_nan=False) + "\n")
    (folder / _PARTIAL).unlink(missing_ok=True)


def _clear_unless_resumable(
    folder: Path, settings: Mapping[str, Any], inputs: Mapping[str, str]
) -> None:
    mark = json.dumps({"settings": settings, "inputs": dict(inputs)}, sort_keys=True)
    partial = folder / _PARTIAL
    resumable = partial.is_file() and partial.read_text(encoding="utf-8") == mark
    if folder.exists() and ((folder / RECORD).exists() or not resumable):
        shutil.rmtree(folder)
    write_text(partial, mark)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide a result."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def git_revision() -> str | None:
    """Return the commit of the source tree that is running, None where it is not a checkout."""
    head = Path(__file__).parents[3] / ".git" / "HEAD"
    try:
        text = head.read_text().strip()
        if text.startswith("ref: "):
            text = (head.parent / text[5:]).read_text().strip()
    except OSError:
        return None
    return text[:12]


def peak_memory_mb() -> float:
    """Return the largest resident memory that this process has had, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 if sys.platform != "darwin" else 1024**2), 1)
