"""`run.json`: what a stage did, with what, from what; and whether it is still up to date."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sacl.checked import Checked, paths_in, shown
from sacl.errors import SaclError, WorkspaceError
from sacl.files.atomic import plain, real, remove_partials, write_text
from sacl.files.documents import read_if_there, write_json
from sacl.files.journal import remove_journal
from sacl.run.engine import ShardDone
from sacl.run.machine import peak_memory_mb
from sacl.run.workspace import FOLDERS, Workspace

RECORD = "run.json"
PACE = "pace.json"
"""What the trainings of a stage note of their time, to be part of its record."""
PLACE = "place"
"""The input that says where the others lie, as a hash."""
_PARTIAL = "partial.json"
_OF_ONE_TIME = ("started", "duration_s", "seconds", "pace", "peak_memory_mb")
_PACKAGES = ("sacl", "torch", "monai", "lightning", "numpy", "scipy", "nibabel", "pydicom")

Tree = Mapping[str, Any]
"""JSON: settings as they were, results worth recording."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a finished stage says of itself; of paths only names are kept."""

    stage: str
    run: str
    settings: Tree
    inputs: Mapping[str, str]
    results: Tree
    device: str
    versions: Mapping[str, str]
    git_revision: str | None
    started: str
    duration_s: float
    peak_memory_mb: float | None


def fingerprint(folder: Path) -> str:
    """Return a hash of what a stage did with what, from what; not of when, nor how fast."""
    try:
        known = json.loads((folder / RECORD).read_bytes())
        known |= known.pop("results", {})
    except (ValueError, TypeError, AttributeError, RecursionError):
        known = {"damaged": hashlib.sha256((folder / RECORD).read_bytes()).hexdigest()}
    kept = {name: value for name, value in known.items() if name not in _OF_ONE_TIME}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def read_record(folder: Path) -> Record | None:
    """Return a stage's record, None where the stage has not finished; a damaged one is refused."""
    return read_if_there(folder / RECORD, Record, "redo the stage with --force")


def segmenter_of(workspace: Workspace) -> str:
    """Return the name of a run's segmenter, the first of several; to have none is refused."""
    record = read_record(workspace.require("finetune"))
    names = tuple(record.results.get("arms", ())) if record else ()
    if not names:
        raise WorkspaceError(
            f"work directory {workspace.root}: {FOLDERS['finetune']} names no segmenter; redo it"
            " with `sacl finetune CONFIG.yaml --force`"
        )
    return str(names[0])


def _first_difference(was: Any, now: Any, default: Any, where: str) -> str | None:
    if not (isinstance(was, dict) and isinstance(now, dict)):
        same = was == now
        return None if same else f"{where[1:]} was {_in_a_word(was)} and is {_in_a_word(now)}"
    if unknown := next((key for key in was if key not in now), None):
        return f"{where[1:]}.{unknown} is a setting of an older version"
    defaults = default if isinstance(default, dict) else {}
    for key, value in now.items():
        usual = defaults.get(key)
        if found := _first_difference(was.get(key, usual), value, usual, f"{where}.{key}"):
            return found
    return None


def _in_a_word(value: Any) -> str:
    return "given" if isinstance(value, dict) else "none" if value is None else shown(value)


def state_of(
    workspace: Workspace,
    stage: str,
    settings: Checked,
    inputs: Mapping[str, str],
    folder: Path | None = None,
) -> Literal["absent", "current", "stale"]:
    """Return whether a stage has to run: `current` if settings and inputs are those of its record.

    A setting that the record lacks counts as its default. The results of other settings, on the
    same inputs, are not lost for these: that is refused, and so are other inputs from elsewhere.
    They lie in the stage's folder, or in another one if given.
    """
    record = read_record(folder or workspace.folder(stage))
    if record is None:
        return "absent"
    if are_other(record.inputs, inputs):
        if record.inputs.get(PLACE, inputs.get(PLACE)) != inputs.get(PLACE):
            raise WorkspaceError(
                f"work directory {workspace.root}: holds a run on other data, from another folder;"
                " take another --work, or repeat the same command with --force (deletes that run)"
            )
        return "stale"
    was = {name: record.settings.get(name) for name in ("seed", stage)}
    defaults = {stage: plain(type(settings)())}
    if changed := _first_difference(was, _kept(workspace, stage, settings), defaults, ""):
        raise WorkspaceError(
            f"work directory {workspace.root}: {FOLDERS[stage]} was made with another"
            f" configuration, {changed}; repeat the same command with --force (redoes every stage"
            " of the command), or take another --work"
        )
    return "current"


def are_other(was: Mapping[str, str], now: Mapping[str, str]) -> bool:
    """Tell whether inputs have changed; where they lie is no matter."""
    return without_place(was) != without_place(now)


def without_place(inputs: Mapping[str, str]) -> dict[str, str]:
    """Return inputs but for where they lie, which several machines may call differently."""
    return {name: of for name, of in inputs.items() if name != PLACE}


@contextlib.contextmanager
def recorded(
    workspace: Workspace, stage: str, settings: Checked, inputs: Mapping[str, str]
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Run a stage's body in its folder and write its `run.json` when it succeeds.

    A finished folder is set aside and deleted on success; it is put back after a `SaclError` before
    anything was written. One that the same settings and inputs left unfinished is kept, so that the
    stage can go on from its partial results. Other processes are kept out. A folder with what sacl
    did not write is refused.

    Yields the folder and a dict for results worth recording (`record["counts"] = ...`). A shard's
    body ends with `ShardDone`: its results stay, unfinished.
    """
    folder = workspace.folder(stage)
    with workspace.locked():
        kept = _kept(workspace, stage, settings)
        with workspace.prepared():
            _prepare(workspace, stage, settings, _note_of(kept, inputs))
        results: dict[str, Any] = {}
        start = time.time()
        try:
            yield folder, results
        except ShardDone:
            return
        except SaclError:
            if [path.name for path in folder.iterdir()] == [_PARTIAL]:
                _put_back(folder)
            raise
        if paces := paces_in(folder):
            results["pace"] = paces
        record = Record(
            stage=stage,
            run=workspace.name,
            settings=kept,
            inputs=dict(inputs),
            results=results,
            device=workspace.device,
            versions=versions(),
            git_revision=git_revision(),
            started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(start)),
            duration_s=round(time.time() - start, 2),
            peak_memory_mb=peak_memory_mb(),
        )
        write_json(folder / RECORD, record)
        settle(folder)


def _prepare(workspace: Workspace, stage: str, settings: Checked, note: str) -> None:
    """Make a stage's folder one that a note's results may be written into."""
    folder = workspace.folder(stage)
    if workspace.engine.shard is None:
        remove_partials(workspace.root)
    settle(folder)
    if (folder / RECORD).exists():
        _require_clearable(folder, settings)
        folder.rename(aside_of(folder))
    elif not _is_begun(folder, note):
        clear(workspace, stage, settings)
    write_text(folder / _PARTIAL, note)


def paces_in(folder: Path) -> dict[str, Any]:
    """Return what trainings noted of their time in a stage; nothing where the note is damaged."""
    try:
        known = json.loads((folder / PACE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def _kept(workspace: Workspace, stage: str, settings: Checked) -> dict[str, Any]:
    return {"seed": workspace.seed, stage: plain(settings)}


def _note_of(settings: Tree, inputs: Mapping[str, str]) -> str:
    return json.dumps({"settings": settings, "inputs": without_place(inputs)}, sort_keys=True)


def _is_begun(folder: Path, note: str) -> bool:
    """Tell whether what a note asks for was begun in a folder, and can go on."""
    partial = folder / _PARTIAL
    return partial.is_file() and partial.read_bytes() == note.encode()


def restore(workspace: Workspace, stage: str, settings: Checked, inputs: Mapping[str, str]) -> None:
    """Put finished results back that are asked for again while a redo of others is half done."""
    folder, of = workspace.folder(stage), (workspace, stage, settings)
    with contextlib.suppress(SaclError):  # of a damaged record, or one with other settings
        before = state_of(*of, inputs, aside_of(folder))
        if before == "current" and not _is_begun(folder, _note_of(_kept(*of), inputs)):
            _put_back(folder)


def settle(folder: Path) -> None:
    """Put finished results back that a killed redo set aside, or delete them where it finished.

    A finished stage has no note of what was begun.
    """
    aside = aside_of(folder)
    if (folder / RECORD).exists():
        (folder / _PARTIAL).unlink(missing_ok=True)
        remove_journal(folder)
        _delete(aside)
    elif not folder.exists():
        _put_back(folder)


def aside_of(folder: Path) -> Path:
    """Return where a stage's finished results lie while it is redone."""
    return folder.with_name(f".before-{folder.name}")


def _put_back(folder: Path) -> None:
    aside = aside_of(folder)
    if aside.exists():
        _delete(folder)
        aside.rename(folder)


def clear(workspace: Workspace, stage: str, settings: Checked) -> None:
    """Delete a stage's results, but nothing that is no stage's or that the settings read."""
    folder = workspace.folder(stage)
    _require_clearable(folder, settings)
    _delete(folder)


def _require_clearable(folder: Path, settings: Checked) -> None:
    """Refuse to delete what sacl did not write, or what the settings read."""
    for name, path in paths_in(settings):
        if real(path).is_relative_to(real(folder)):
            raise WorkspaceError(
                f"{name}: {path} lies in {folder}, which this stage writes; copy it elsewhere first"
            )
    if folder.is_symlink() or not folder.exists():
        return
    if not folder.is_dir():
        raise WorkspaceError(f"{folder}: is a file; move it away or take another --work")
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".partial-")]
    if entries and not any((folder / mark).is_file() for mark in (RECORD, _PARTIAL)):
        raise WorkspaceError(
            f"{folder}: was not written by sacl, it has no {RECORD}; move it away or take another"
            " --work"
        )


def _delete(folder: Path) -> None:
    """Delete a folder or link, its mark last: it is ours even when that is interrupted."""
    if folder.is_symlink() or not folder.exists():
        folder.unlink(missing_ok=True)
        return
    (folder / _PARTIAL).write_text("being deleted", encoding="utf-8")
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != _PARTIAL:
            entry.unlink()
    shutil.rmtree(folder)


def versions(more: Sequence[str] = ()) -> dict[str, str]:
    """Return the versions of Python and of the packages that decide a result; of more, if named.

    What is not installed is left out.
    """
    known = {"python": platform.python_version()}
    for package in (*_PACKAGES, *more):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            known[package] = importlib.metadata.version(package)
    return known


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
