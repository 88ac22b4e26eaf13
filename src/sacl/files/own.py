"""Which files of a user's folder are ours to overwrite, by a mark in them or a note beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec

from sacl.errors import ConfigError, DataError
from sacl.files.atomic import remove_partials, write_text

_WRITTEN = ".written-by-sacl.json"


def require_ours(path: Path, mark: str, force: bool = False) -> None:
    """Refuse to overwrite a file that does not have our mark near its start, unless `force` is on.

    `mark` is text that every file of this kind has in its first 1,000 characters. What a killed
    process left of such a file is removed.
    """
    remove_partials(path.parent, [path.name])
    if force or not path.exists():
        return
    try:
        ours = mark in path.read_bytes()[:1000].decode("utf-8", errors="replace")
    except OSError:
        ours = False
    if not ours:
        raise DataError(
            f"{path.name}: lies there and was not written by sacl; name another --out, or overwrite"
            " it with --force"
        )


def require_own(folder: Path, names: Sequence[str], force: bool = False) -> None:
    """Refuse to overwrite files that sacl did not write, or that were changed since.

    What killed processes left of them is removed.

    Raises:
        ConfigError: naming the first such file.
    """
    remove_partials(folder, [*names, _WRITTEN])
    if force:
        return
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file; give a folder")
    written = _written(folder)
    for name in names:
        path = folder / name
        if path.exists() and _state(path) not in written.get(name, []):
            raise ConfigError(
                f"{path}: is there already and is not as sacl wrote it; give another folder, or"
                " --force to overwrite it"
            )


def note_own(path: Path, whole: Path) -> None:
    """Note a whole file as ours before it gets its name, beside the one that has the name now.

    A process that is killed in between leaves nothing that sacl would not overwrite.
    """
    written = _written(path.parent)
    states = [*written.get(path.name, [])[-1:], _state(whole)]
    write_text(path.parent / _WRITTEN, json.dumps(written | {path.name: states}, indent=0) + "\n")


def _written(folder: Path) -> dict[str, list[list[int]]]:
    text = folder / _WRITTEN
    try:
        return msgspec.json.decode(text.read_bytes(), type=dict[str, list[list[int]]])
    except (OSError, ValueError, msgspec.MsgspecError, RecursionError):
        return {}


def _state(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]
