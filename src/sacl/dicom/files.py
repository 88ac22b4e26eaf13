"""Where DICOM files lie: a folder, a zip, zips in either; and why one is rejected.

A zip is read in place, one in a zip from a nameless copy of it. One that is dangerous is refused as
a whole, by the sizes that its members declare: `zipfile` yields no more bytes than these.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import cast

from pydicom.errors import BytesLengthException, InvalidDicomError

from sacl.run.workspace import is_work

CODES = (
    *("unsafe_archive", "damaged_archive", "no_permission", "wrong_modality", "localizer"),
    *("secondary_capture", "derived", "color", "inverted_gray", "unsupported_multiframe"),
    *("unsupported_pixels", "missing_tags", "missing_decoder", "truncated_pixels", "bad_geometry"),
    *("mixed_orientation", "too_few_slices", "repeated_positions", "missing_slices"),
    *("uneven_slices", "no_rescale", "not_largest"),
)
"""Every reason for which a series is rejected; `docs/how-to/dicom.md` says more of each."""

DAMAGE = (
    *(InvalidDicomError, BytesLengthException, zipfile.BadZipFile, zlib.error, struct.error),
    *(ArithmeticError, AttributeError, EOFError, LookupError, OSError, RuntimeError),
    *(TypeError, ValueError),
)
"""What reading a damaged file or archive raises."""


@dataclass(frozen=True)
class Fault:
    """The one reason why a series is rejected; the sentence names the remedy, but no person."""

    code: str
    sentence: str

    def __post_init__(self) -> None:
        assert self.code in CODES, self.code


MEMBER_BYTES = 2 * 1024**3
ARCHIVE_BYTES = 64 * 1024**3
MEMBERS = 500_000
DEPTH = 3
RATIO = 200
"""How often larger than stored; of large ones alone, a blank slice honestly shrinks 1000-fold."""
RATIO_FROM_MEMBER_BYTES = 16 * 1024**2
RATIO_FROM_ARCHIVE_BYTES = 256 * 1024**2

NO_PERMISSION = Fault("no_permission", "it may not be read; ask for the permission to read it")
_ENCRYPTED = 0x1


@dataclass(frozen=True, slots=True, order=True)
class Source:
    """One file where it lies; `member` is its name in the zip that `path` then is.

    `within` are the zips in that zip, the outer one first, that lead to it.
    """

    path: Path
    member: str = ""
    is_empty: bool = False
    within: tuple[str, ...] = ()

    def folder(self, root: Path) -> str:
        """Return the folder in which the file lies, relative to the root; private like any path."""
        inside = self.path.relative_to(root).as_posix()
        return str(PurePosixPath(inside, *self.within, self.member).parent)


@dataclass(frozen=True, slots=True)
class Refused:
    """A zip, or a file or folder without permission, that is not read, and why."""

    path: Path
    fault: Fault


def sources(root: Path) -> Iterator[Source | Refused]:
    """Yield every file below a folder or in a zip by name, of any kind, and what is refused.

    Work directories are left out.
    """
    locked: list[Refused] = []

    def refuse(error: OSError) -> None:
        if isinstance(error, PermissionError):
            locked.append(Refused(Path(error.filename or root), NO_PERMISSION))

    tree: Iterable[tuple[str, list[str], list[str]]] = os.walk(root, onerror=refuse)
    if root.is_file():
        tree = [(str(root.parent), [], [root.name])]
    for folder, below, names in tree:
        below[:] = sorted(name for name in below if not is_work(Path(folder, name)))
        for path in filter(Path.is_file, (Path(folder, name) for name in sorted(names))):
            if path.suffix.lower() == ".zip":
                yield from _in_zip(path)
            else:
                yield Source(path)
    yield from locked


def _in_zip(path: Path, within: tuple[str, ...] = ()) -> Iterator[Source | Refused]:
    try:
        with Opener() as opener:
            members = opener.archive(path, within).infolist()
        fault = archive_fault(members)
    except PermissionError:
        fault = NO_PERMISSION
    except DAMAGE:
        fault = Fault("damaged_archive", "the zip cannot be read; export or copy it again")
    if fault is not None:
        yield Refused(path, fault)
        return
    sizes = {member.filename: member.file_size for member in members if not member.is_dir()}
    for name, size in sorted(sizes.items()):
        if not name.lower().endswith(".zip") or size == 0:
            yield Source(path, name, size == 0, within)
        elif len(within) + 1 < DEPTH:
            yield from _in_zip(path, (*within, name))
        else:
            yield Refused(
                path, Fault("unsafe_archive", f"zips more than {DEPTH} deep; unpack them")
            )


def archive_fault(members: list[zipfile.ZipInfo]) -> Fault | None:
    """Return why an archive must not be read, None where it may."""
    if any(member.flag_bits & _ENCRYPTED for member in members):
        return Fault("damaged_archive", "the zip is encrypted; decrypt it first")
    if any(_climbs(member.orig_filename) for member in members):
        why = "a member has an absolute name or one with '..'; pack it again"
    elif any(stat.S_ISLNK(member.external_attr >> 16) for member in members):
        why = "a member is a link; pack the files themselves"
    elif len(members) > MEMBERS:
        why = f"{len(members)} members, expected at most {MEMBERS}"
    else:
        why = _why_too_large(members)
    return Fault("unsafe_archive", why) if why else None


def looks_like_dicom(start: bytes) -> bool:
    """Tell whether a file's first 132 bytes are those of a DICOM file, with preamble or without.

    Without one, the data set itself has to start: with group 0002 or 0008, little endian, and
    an element with a value representation (two capitals) or a short length.
    """
    vr, length = start[4:6], int.from_bytes(start[4:8], "little")
    is_element = len(start) >= 12 and ((vr.isalpha() and vr.isupper()) or length < 256)
    return start[128:132] == b"DICM" or (start[:2] in (b"\x02\x00", b"\x08\x00") and is_element)


class Opener(contextlib.ExitStack):
    """Opens one source after the other; the last zip stays open, its directory is read once."""

    _open: tuple[Path, tuple[str, ...]] | None = None
    _archive: zipfile.ZipFile

    def stream(self, source: Source, whole: bool = False) -> io.BufferedIOBase:
        """Return a source's bytes as a stream, to be closed; of a zip only what is read unpacks.

        A `whole` member of a zip lies in memory, its checksum verified.
        """
        if not source.member:
            return source.path.open("rb")
        archive = self.archive(source.path, source.within)
        if whole:
            return io.BytesIO(archive.read(source.member))
        return cast(io.BufferedIOBase, archive.open(source.member))

    def size(self, source: Source) -> int:
        """Return the bytes of a source, uncompressed."""
        if not source.member:
            return source.path.stat().st_size
        return self.archive(source.path, source.within).getinfo(source.member).file_size

    def archive(self, path: Path, within: tuple[str, ...] = ()) -> zipfile.ZipFile:
        """Return a zip, or one in it, open until another one is asked for."""
        if self._open != (path, within):
            self.close()
            self._open = None
            self._archive = self.enter_context(zipfile.ZipFile(path))
            for name in within:
                copy = self.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
                with self._archive.open(name) as member:
                    shutil.copyfileobj(member, copy)
                self._archive = self.enter_context(zipfile.ZipFile(copy))
            self._open = path, within
        return self._archive


def _climbs(name: str) -> bool:
    """Tell whether a member's name leads out of the archive's own folder, on any system."""
    parts = name.replace("\\", "/").split("/")
    return parts[0] == "" or ".." in parts or parts[0][1:2] == ":" or "\0" in name


def _why_too_large(members: list[zipfile.ZipInfo]) -> str:
    total = sum(member.file_size for member in members)
    stored = sum(member.compress_size for member in members)
    largest = max((member.file_size for member in members), default=0)
    trust = "unpack it yourself if you trust it"
    if largest > MEMBER_BYTES or total > ARCHIVE_BYTES:
        return (
            f"{total / 1024**3:.1f} GiB uncompressed, the largest member"
            f" {largest / 1024**3:.1f} GiB; expected at most {ARCHIVE_BYTES // 1024**3} and"
            f" {MEMBER_BYTES // 1024**3} GiB; {trust}"
        )
    if total > max(RATIO_FROM_ARCHIVE_BYTES, RATIO * stored) or any(
        m.file_size > max(RATIO_FROM_MEMBER_BYTES, RATIO * m.compress_size) for m in members
    ):
        return f"shrunk more than {RATIO}-fold, which scans do not; {trust}"
    return ""
