"""Files that are written whole or not at all, and fingerprints of files that are read."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from glob import escape
from pathlib import Path
from typing import Any

import msgspec

from sacl.errors import DataError

_TEXTS = (".csv", ".tsv", ".json", ".txt")
_SMALL = 1_000_000


def real(path: Path) -> Path:
    """Return where a path leads; a loop of links, where `Path.resolve` fails, leads to itself."""
    return Path(os.path.realpath(path))


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all: to a temporary file, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, with its suffixes; rename it when the body succeeds.

    A full disk, or a folder that cannot be written, is one line.
    """
    temporary = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise DataError(f"{path.name}: cannot be written, {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_partials(folder: Path, names: Iterable[str] | None = None) -> None:
    """Remove the temporary files that killed processes left.

    They lie at any depth of the folder, or directly in it where only those of files of some names
    are to go. Nobody may be writing them: a work directory is locked by then.
    """
    if names is None:
        partials = list(folder.rglob(".partial-*"))
    else:
        partials = [path for name in names for path in folder.glob(f".partial-*-{escape(name)}")]
    for path in partials:
        if path.is_file() and not path.is_symlink():
            path.unlink(missing_ok=True)


def plain(value: Any) -> Any:
    """Return settings as JSON types; of a path only the name is kept."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, Path):
        return value.name
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return value


def fingerprint_of(files: Iterable[Path], root: Path) -> str:
    """Return a hash of files: where they lie seen from a root, their sizes and their times.

    Of a small table or JSON the content counts instead of the time. A symlink counts as what it
    leads to; a file that is not there counts as missing.
    """
    digest = hashlib.sha256()
    for path in files:
        place = os.path.relpath(path, root) if path.is_absolute() == root.is_absolute() else path
        try:
            stat = path.stat()
            is_text = path.suffix in _TEXTS and stat.st_size < _SMALL and path.is_file()
            state = hashlib.sha256(path.read_bytes()).hexdigest() if is_text else stat.st_mtime_ns
            line = f"{place}|{stat.st_size}|{state}\n"
        except OSError:
            line = f"{place}|missing\n"
        digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def folder_fingerprint(root: Path) -> str:
    """Return a hash of all files below a folder, hidden ones and pipes apart, or of one file.

    Symlinks to folders are followed, each folder once.
    """
    if not root.is_dir():
        return fingerprint_of([root], root.parent)
    files: list[Path] = []
    entered: set[str] = set()
    for folder, inner, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in entered:
            inner.clear()
            continue
        entered.add(real)
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        paths = (Path(folder, name) for name in sorted(names) if not name.startswith("."))
        files += [path for path in paths if path.is_file()]
    return fingerprint_of(files, root)
