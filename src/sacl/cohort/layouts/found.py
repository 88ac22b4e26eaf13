"""What every layout finds: the cases of a dataset and the meaning of its label values."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sacl.errors import DataError
from sacl.files.nifti import is_nifti
from sacl.types import NativeFrame, Split, Volume

Modality = Literal["ct", "mr"]

_MR_WORDS = ("mr", "t1", "t2", "flair", "adc", "dwi")


@dataclass(frozen=True)
class FoundCase:
    """One scan where it lies: its image, its reference if it has one, and what is known of it.

    `subject_id` is None where nobody says; `origin` is the place that the split was read from, in
    the words of the source. A reference is one label map (`reference`) or one binary mask per organ
    (`masks`, by the organ's name in the source). `organs` and `ignore` are this case's label values
    where they differ from the dataset's; `annotated` the organs that somebody looked for in this
    scan, None for all of its table: an organ that is not among them is unknown, not absent. `load`
    reads the image where it is not a NIfTI file; `image` then only names it.
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


@dataclass(frozen=True)
class Found:
    """A dataset as listed, nothing read yet but small text files.

    `organs` maps a label value of the source to the organ's name in the source; empty where the
    source annotates nothing. `ignore` is the value of voxels that nobody annotated. `notes` tell
    the user what was chosen.
    """

    layout: str
    name: str
    organs: Mapping[int, str]
    cases: tuple[FoundCase, ...]
    modality: Modality | None = None
    ignore: int | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.cases:
            raise DataError(f"{self.name}: no scan found in this {self.layout} dataset")
        where: dict[str, str] = {}
        for case in self.cases:
            if case.case_id.startswith(".") or "/" in case.case_id or "\\" in case.case_id:
                raise DataError(
                    f"{self.name}: case_id '{case.case_id}' cannot be a file name; rename it"
                )
            if case.case_id in where:
                raise DataError(
                    f"{self.name}: case {case.case_id} stands in it twice,"
                    f" {where[case.case_id]} and {case.image.name}; remove or rename one"
                )
            where[case.case_id] = case.image.name


@contextlib.contextmanager
def naming_case(case: FoundCase) -> Iterator[None]:
    """Put the case into an error that names a file alone, where all cases' files are called alike.

    Raises:
        DataError: the same, with the case in front.
    """
    try:
        yield
    except DataError as error:
        if case.case_id in case.image.name or f"case {case.case_id}" in str(error):
            raise
        raise DataError(f"case {case.case_id}, {error}") from error


def nifti_files(folder: Path) -> list[Path]:
    """Return the NIfTI files directly in a folder by name; none where there is no folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if is_nifti(path) and path.is_file())


def pair(
    images: Mapping[str, Path],
    references: Mapping[str, Path],
    where: str,
    split: Split,
) -> list[FoundCase]:
    """Return a case per image, with the reference of the same key where there is one.

    Raises:
        DataError: a reference has no image.
    """
    alone = sorted(set(references) - set(images))
    if alone:
        raise DataError(
            f"{where}: {references[alone[0]].name} has no image ({len(alone)} such files); add the"
            " image or remove the label map"
        )
    return [
        FoundCase(key, image, references.get(key), split, origin=where)
        for key, image in images.items()
    ]


def by_key(paths: Iterable[Path], keys: Iterable[str], where: str) -> dict[str, Path]:
    """Return files by case, refusing two files of one case."""
    found: dict[str, Path] = {}
    for path, key in zip(paths, keys, strict=True):
        if key in found:
            raise DataError(
                f"{where}: case {key} stands in it twice, {found[key].name} and {path.name};"
                " remove or rename one"
            )
        found[key] = path
    return found


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object of the dataset.

    Raises:
        DataError: the file is not a JSON object.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        reason = error if isinstance(error, ValueError) else type(error).__name__
        raise DataError(f"{path.name}: not readable as JSON ({reason})") from error
    if not isinstance(document, dict):
        raise DataError(f"{path.name}: expected a JSON object, got a {type(document).__name__}")
    return document


def label_values(labels: Any, where: str) -> tuple[dict[int, str], int | None]:
    """Return the organs by label value, and the value of `ignore`, from either way to write them.

    nnU-Net version 2 writes `{name: value}`, version 1 and the Medical Segmentation Decathlon
    `{value: name}`.

    Raises:
        DataError: the table is missing, has regions, or gives background another value than 0.
    """
    if not isinstance(labels, Mapping) or not labels:
        raise DataError(f"{where}: no table 'labels' of organ names and values")
    organs: dict[int, str] = {}
    ignore = None
    for key, entry in labels.items():
        name, value = (str(entry), key) if str(key).isdigit() else (str(key), entry)
        if isinstance(value, (list, tuple)):
            raise DataError(
                f"{where}: label '{name}' is a region, the list {list(value)}; regions are not"
                " supported, give every organ one label value"
            )
        if not str(value).isdigit() or int(value) in organs:
            raise DataError(
                f"{where}: label '{name}' has the value {value!r}, expected a whole number of its"
                " own"
            )
        if name.lower() == "ignore":
            ignore = int(value)
        elif int(value) != 0:
            organs[int(value)] = name
        elif name.lower() not in ("background", "clear label"):
            raise DataError(f"{where}: label '{name}' has the value 0, which is background")
    return dict(sorted(organs.items())), ignore


def modality_of(channels: Any) -> Modality | None:
    """Return the modality that the name of the first channel tells, None where it does not."""
    name = str(next(iter(channels.values()), "")) if isinstance(channels, Mapping) else ""
    if name.lower().startswith("ct"):
        return "ct"
    return "mr" if any(word in name.lower() for word in _MR_WORDS) else None
