"""A dataset as its source lists it: its scans where they lie, and what their label values mean."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from sacl.errors import DataError
from sacl.files.atomic import fingerprint_of
from sacl.files.itk import is_scan, stem_of
from sacl.types import SPLITS, NativeFrame, Split, Volume

Modality = Literal["ct", "mr"]

_LONGEST_NAME = 200
"""Letters of a case's name: it becomes a file name, which most disks limit to 255 bytes."""
_NAMED = 5
_DATA_OF = {".mhd": (".raw", ".zraw"), ".nhdr": (".raw", ".raw.gz")}
"""Endings of the files in which the voxels of a header's file lie."""
_VOLUME = re.compile(
    r"(\.nii\.\w+|\.(nii|gz|gzip|nii~|nrrd|nhdr|mha|mhd|hdr|img|dcm|ima|npy|npz|h5|zip|tar|7z))$"
    r"|^(?!readme|licen[cs]e)[^.]+$",
    re.IGNORECASE,
)
"""Names of files that may hold a scan or a label map: of another format, or with no ending."""


@dataclass(frozen=True)
class SourceCase:
    """One scan where it lies: its image, its reference if it has one, and what is known of it.

    `origin` is where the split was read. A reference is one label map (`reference`) or one binary
    mask per organ (`masks`, by the organ's name in the source). `organs` and `ignore` are this
    case's label values where they differ from the dataset's; `annotated` the organs that somebody
    looked for, None for all of its table: any other organ is unknown, not absent. `load` reads the
    image where it is not the one scan in a file; `image` then only names it.
    """

    case_id: str
    image: Path
    reference: Path | None = None
    split: Split = "train"
    subject_id: str | None = None
    scan_labels: Mapping[str, str] = field(default_factory=dict)
    origin: str = ""
    masks: Mapping[str, Path] = field(default_factory=dict)
    organs: Mapping[int, str] | None = None
    annotated: tuple[str, ...] | None = None
    modality: Modality | None = None
    load: Callable[[], tuple[Volume, NativeFrame]] | None = None
    ignore: int | None = None

    @property
    def has_reference(self) -> bool:
        """Tell whether somebody annotated this scan, in one label map or in masks."""
        return self.reference is not None or bool(self.masks)

    @property
    def subject(self) -> str:
        """The scan's subject; a scan of an unnamed subject is a subject of its own."""
        return self.subject_id or self.case_id


@dataclass(frozen=True)
class Dataset:
    """A dataset as listed; nothing is read yet but small text files.

    `organs` has the organ of each label value, both as the source has them; `ignore` is the value
    of voxels that are not annotated. `notes` are lines for the user on what was chosen.
    """

    layout: str
    name: str
    organs: Mapping[int, str]
    cases: tuple[SourceCase, ...]
    modality: Modality | None = None
    ignore: int | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.cases:
            raise DataError(f"{self.name}: no scan in this {self.layout} dataset")
        image_of: dict[str, str] = {}
        for case in self.cases:
            _require_name(case.case_id, self.name)
            if case.case_id in image_of:
                raise DataError(
                    f"{self.name}: case {case.case_id} appears twice,"
                    f" {image_of[case.case_id]} and {case.image.name}; remove or rename one"
                )
            image_of[case.case_id] = case.image.name

    def table_of(self, case: SourceCase) -> Mapping[int, str]:
        """Return the organ of each label value in a case's map, as the source calls it."""
        return self.organs if case.organs is None else case.organs

    def ignored_in(self, case: SourceCase) -> int | None:
        """Return the value of voxels that are not annotated in a case's map."""
        return self.ignore if case.ignore is None else case.ignore

    def with_changed(self, which: Callable[[SourceCase], bool], **changes: Any) -> Dataset:
        """Return the dataset with some fields of some cases changed."""
        cases = (dataclasses.replace(c, **changes) if which(c) else c for c in self.cases)
        return dataclasses.replace(self, cases=tuple(cases))

    def with_notes(self, *notes: str) -> Dataset:
        """Return the dataset with more to tell the user; an empty note is none."""
        new = tuple(filter(None, notes))
        return dataclasses.replace(self, notes=self.notes + new) if new else self

    def fingerprint(self, root: Path) -> str:
        """Return a hash of all that is known of the cases and of their files below `root`."""
        known, files = [f"{self.layout} {self.organs} {self.ignore}"], []
        for case in self.cases:
            own = dataclasses.replace(case, image=Path(), reference=None, masks={}, load=None)
            known.append(f"{own} {list(case.masks)}")
            files += [case.image, *filter(None, [case.reference]), *case.masks.values()]
        text = "\n".join(known).encode(errors="surrogateescape")
        return hashlib.sha256(text + fingerprint_of(files, root).encode()).hexdigest()[:16]


def _require_name(case_id: str, where: str) -> None:
    """Refuse a case's name that cannot be a file's on every system, or not be printed."""
    if case_id.startswith(".") or set(case_id) & set("/\\\0\n\r\t"):
        raise DataError(f"{where}: case_id '{case_id}' cannot be a file name; rename it")
    if len(case_id) > _LONGEST_NAME:
        raise DataError(
            f"{where}: case_id '{case_id[:40]}...' has {len(case_id)} letters, expected"
            f" {_LONGEST_NAME} at most; rename it"
        )
    try:
        case_id.encode()
    except UnicodeEncodeError as error:
        shown = case_id.encode(errors="backslashreplace").decode()
        raise DataError(f"{where}: the name '{shown}' is not UTF-8; rename the file") from error


Recognized = tuple[str, Callable[[], Dataset]]
"""By what a path's layout was recognized, and what lists its dataset."""


@dataclass(frozen=True)
class Layout:
    """A way to lay out a dataset on disk, described in one line by `expected`.

    `recognize` returns None where a path has not this layout.
    """

    expected: str
    recognize: Callable[[Path], Recognized | None]


@dataclass(frozen=True)
class Part:
    """A folder of images and one of label maps that hold one split of a dataset.

    `image` and `label` are the patterns of `files_by_case`, `channel` that of further images of a
    case, which are not read.
    """

    images: Path
    labels: Path
    split: Split
    image: str
    label: str
    expected: str
    channel: str = ""

    @cached_property
    def scans(self) -> dict[str, Path]:
        """The images by case."""
        return files_by_case(self.images, self.image)


def three_parts(root: Path, *names: str) -> list[Part]:
    """Return the parts of a dataset with `imagesTr` and `labelsTr`, and Va and Ts likewise."""
    folders = ((root / f"images{part}", root / f"labels{part}") for part in ("Tr", "Va", "Ts"))
    return [Part(*pair, split, *names) for pair, split in zip(folders, SPLITS, strict=True)]


def cases_of(parts: Iterable[Part]) -> tuple[tuple[SourceCase, ...], tuple[str, ...]]:
    """Return the cases of all parts, and notes on unread files; a map without image is refused."""
    cases: list[SourceCase] = []
    notes: tuple[str, ...] = ()
    for part in parts:
        images, labels = part.scans, files_by_case(part.labels, part.label)
        more = [p for p in scan_files(part.images) if re.fullmatch(part.channel, stem_of(p))]
        notes += require_labels_read(part.labels, labels.values())
        notes += unread(part.images, [*images.values(), *more], part.expected)
        where = part.images.name
        alone = sorted(set(labels) - set(images))
        if alone:
            raise DataError(
                f"{where}: {labels[alone[0]].name} has no image ({len(alone)} such files); add the"
                " image or remove the label map"
            )
        cases += [
            SourceCase(case_id, image, labels.get(case_id), part.split, origin=where)
            for case_id, image in images.items()
        ]
    return tuple(cases), notes


def common_modality(cases: Iterable[SourceCase]) -> Modality | None:
    """Return the modality that all cases share, None where they do not."""
    modalities = {case.modality for case in cases}
    return modalities.pop() if len(modalities) == 1 else None


@contextlib.contextmanager
def naming_case(case: SourceCase) -> Iterator[None]:
    """Put the case into an error that names a file alone; several may be called alike."""
    try:
        yield
    except DataError as error:
        if case.case_id in case.image.name or f"case {case.case_id}" in str(error):
            raise
        raise DataError(f"case {case.case_id}, {error}") from error


def told_apart(names: Sequence[str], longer: Sequence[str]) -> list[str]:
    """Return names, and instead of those that several share the longer ones."""
    count = Counter(names)
    return [long if count[name] > 1 else name for name, long in zip(names, longer, strict=True)]


def scan_files(folder: Path) -> list[Path]:
    """Return the files directly in a folder that are scans of any format but DICOM, by name."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if is_scan(path) and path.is_file())


def unread(folder: Path, read: Iterable[Path], expected: str) -> tuple[str, ...]:
    """Return a note that names the files of a folder that are not read, if there are any."""
    names = _unread(folder, read)
    note = f"{folder.name}: not read {in_short(names)}; expected {expected}"
    return (note,) if names else ()


def require_labels_read(folder: Path, read: Iterable[Path]) -> tuple[str, ...]:
    """Refuse an unread file that may be an annotation; a note names others, such as texts."""
    names = _unread(folder, read)
    lost = [name for name in names if _VOLUME.search(name)]
    if lost:
        raise DataError(
            f"{folder.name}: cannot read {in_short(lost)}, so annotation would be lost; convert"
            " it or rename it to CASE.nii.gz, or remove it from the folder"
        )
    return (f"{folder.name}: not read {in_short(names)}",) if names else ()


def in_short(names: Sequence[str], most: int = _NAMED) -> str:
    """Return names as text, the first few where there are many: `a, b and 1 more`."""
    shown = [name.encode(errors="backslashreplace").decode() for name in names[:most]]
    rest = len(names) - most
    return ", ".join(shown) + (f" and {rest} more" if rest > 0 else "")


def counted(count: int, noun: str, several: str = "") -> str:
    """Return a number with its noun, in the plural unless it is 1.

    Example:
        >>> counted(1, "scan"), counted(3, "kind of error", "kinds of errors")
        ('1 scan', '3 kinds of errors')
    """
    return f"{count} {noun if count == 1 else several or noun + 's'}"


def first_of(remarks: Sequence[tuple[str, str]], what: str = "scans") -> str:
    """Return the first of some remarks, each of a case, and how many more there are."""
    (case_id, remark), rest = remarks[0], len(remarks) - 1
    return f"{case_id}: {remark}" + (f"; {rest} more {what} likewise" if rest else "")


def by_kind(remarks: Iterable[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """Return remarks, each of a case, in groups of those that differ in numbers alone."""
    kinds: dict[str, list[tuple[str, str]]] = {}
    for case_id, remark in remarks:
        kinds.setdefault(re.sub(r"[\d.]+", "", remark), []).append((case_id, remark))
    return list(kinds.values())


def files_by_case(folder: Path, name: str = "(.+)") -> dict[str, Path]:
    """Return the scans or label maps in a folder by case; two files of one case are refused.

    `name` is the pattern of a file's name without its format, of which the first group is the case.
    """
    files: dict[str, Path] = {}
    for path in scan_files(folder):
        called = re.fullmatch(name, stem_of(path))
        if called is not None and (other := files.setdefault(called[1], path)) != path:
            raise DataError(
                f"{folder.name}: case {called[1]} appears twice, {other.name} and {path.name};"
                " remove or rename one"
            )
    return files


def the_file(places: Sequence[Path], where: str, remedy: str = "") -> Path:
    """Return the first of several places that is a file of a scan; `where` says who names it."""
    name = places[0].name
    for place in places:
        with contextlib.suppress(OSError, ValueError):
            if place.is_file() and is_scan(place):
                return place
            if place.is_file():
                formats = "NIfTI, NRRD or MetaImage"
                raise DataError(f"{where} names {name}, which is no {formats} file; convert it")
    shown = name if len(name) <= _LONGEST_NAME else f"{name[:40]}..."
    raise DataError(f"{where} names {shown}, but there is no such file{remedy}")


def _unread(folder: Path, read: Iterable[Path]) -> list[str]:
    """Return the names of the files and pipes of a folder that are not among those read."""
    known = {path.name for path in read}
    known |= {
        f"{Path(name).stem}{data}" for name in known for data in _DATA_OF.get(Path(name).suffix, ())
    }
    paths = folder.glob("[!.]*")
    return sorted(p.name for p in paths if p.name not in known and not p.is_dir())
