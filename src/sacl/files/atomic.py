"""Files that are written whole or not at all, which of them are ours, and fingerprints of files."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import platform
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from sacl.errors import ConfigError, DataError

Item = TypeVar("Item")
_TEXTS = (".csv", ".tsv", ".json", ".txt")
_SMALL = 1_000_000
_WRITTEN = ".written-by-sacl"
_LONGEST_HOST = 60
_TOKEN = secrets.token_hex(3)
"""Tells processes apart that containers of one name have given the same number."""
_PARTIAL = re.compile(r"^(\.partial-\d+-)+")


def real(path: Path) -> Path:
    """Return where a path leads; a loop of links, where `Path.resolve` fails, leads to itself."""
    return Path(os.path.realpath(path))


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all: to a temporary file, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def require_ours(path: Path, mark: str, force: bool = False) -> None:
    """Refuse to overwrite a file without our mark in its first 1,000 characters, unless forced.

    What a killed process left of such a file is removed.
    """
    remove_partials(path.parent, [path.name])
    if force or not path.exists():
        return
    ours = False
    with contextlib.suppress(OSError):
        ours = mark in path.read_bytes()[:1000].decode("utf-8", errors="replace")
    if not ours:
        raise DataError(
            f"{path.name}: exists and was not written by sacl; give another name, or overwrite"
            " it with --force"
        )


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, with its suffixes; rename it when the body succeeds."""
    temporary = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        name = _PARTIAL.sub("", path.name)
        raise DataError(f"{name}: cannot be written, {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_partials(folder: Path, names: Iterable[str] | None = None) -> None:
    """Remove the temporary files that killed processes left, at any depth of a locked folder.

    Where only those of files of some names are to go, they lie directly in the folder.
    """
    ours = ["**/.partial-*"] if names is None else [f".partial-*-{escape(name)}" for name in names]
    for path in [path for pattern in ours for path in folder.glob(pattern)]:
        if path.is_file() and not path.is_symlink():
            path.unlink(missing_ok=True)


def require_own(
    folder: Path, names: Sequence[str], force: bool = False, is_shared: bool = False
) -> None:
    """Refuse to overwrite files that sacl did not write, or that were changed since.

    What killed processes left of them is removed, unless others are at work in the folder.

    Raises:
        ConfigError: naming the first such file.
    """
    if not is_shared:
        remove_partials(folder, names)
    if force:
        return
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file; give a folder")
    written = set(read_lines(folder / _WRITTEN, _Written))
    for name in names:
        path = folder / name
        if path.exists() and _state_of(path) not in written:
            raise ConfigError(
                f"{path}: exists and is not as sacl wrote it; give another folder, or"
                " --force to overwrite it"
            )


@contextlib.contextmanager
def owned(path: Path) -> Iterator[Path]:
    """Yield a temporary path as `replacing` does; the file may be overwritten by `require_own`."""
    with replacing(path) as temporary:
        yield temporary
        note_own(path, temporary)


def note_own(path: Path, whole: Path) -> None:
    """Note a whole file as ours before it gets its name.

    A process that is killed in between leaves nothing that sacl would not overwrite.
    """
    append_line(path.parent / _WRITTEN, _state_of(whole, path.name))


def append_line(folder: Path, document: Any) -> None:
    """Append a line of JSON to this process's own file in a folder: several may write at once."""
    folder.mkdir(parents=True, exist_ok=True)
    host = re.sub(r"[^\w.-]", "-", platform.node())[:_LONGEST_HOST] or "here"
    with (folder / f"{host}-{_TOKEN}-{os.getpid()}.jsonl").open("ab") as file:
        known = msgspec.to_builtins(document, enc_hook=_name_of)
        file.write(f"\n{json.dumps(known)}\n".encode())


def read_lines(folder: Path, kind: type[Item]) -> list[Item]:
    """Return what all processes appended that is of a kind; what is damaged was not said."""
    decoder, lines = msgspec.json.Decoder(kind), list[Item]()
    for path in sorted(folder.glob("*.jsonl")):
        for text in filter(None, path.read_bytes().splitlines()):
            try:
                lines.append(decoder.decode(text))
            except (ValueError, RecursionError):  # NaN, or a name that is no Unicode, or damage
                with contextlib.suppress(ValueError, RecursionError):
                    lines.append(msgspec.convert(json.loads(text), kind))
    return lines


@dataclass(frozen=True)
class _Written:
    """A file as sacl wrote it."""

    name: str
    size: int
    time_ns: int


def _state_of(path: Path, name: str = "") -> _Written:
    stat = path.stat()
    return _Written(name or path.name, stat.st_size, stat.st_mtime_ns)


def plain(value: Any) -> Any:
    """Return settings as JSON types; of a path only the name is kept."""
    return msgspec.json.decode(msgspec.json.encode(value, enc_hook=_name_of))


def _name_of(value: Any) -> Any:
    return value.name if isinstance(value, Path) else value.tolist()  # a number of NumPy, or more


def array_of(kind: type, value: Any) -> Any:
    """Return the affine of a grid; msgspec asks for every type that it does not know."""
    numpy = importlib.import_module("numpy")  # which takes a while to import
    return numpy.asarray(value, dtype=numpy.float64) if kind is numpy.ndarray else value


def fingerprint_of(files: Iterable[Path], root: Path) -> str:
    """Return a hash of files: where they lie seen from a root, their sizes and their times.

    Of a small table or JSON the content counts instead of the time.
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


def place_of(paths: Iterable[Path]) -> str:
    """Return a hash of where files or folders lie, which does not tell where that is."""
    text = "\n".join(str(real(path)) for path in paths)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def folder_fingerprint(root: Path, left_out: Callable[[Path], bool] = lambda _: False) -> str:
    """Return a hash of all files below a folder, hidden ones and pipes apart, or of one file.

    Folders that are `left_out` do not count.
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
        shown = (name for name in inner if not name.startswith("."))
        inner[:] = sorted(name for name in shown if not left_out(Path(folder, name)))
        paths = (Path(folder, name) for name in sorted(names) if not name.startswith("."))
        files += [path for path in paths if path.is_file()]
    return fingerprint_of(files, root)
