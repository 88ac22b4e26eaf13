"""What label values are called: in a JSON table, in the label map itself, or beside it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from sacl.cohort.dataset import (
    Dataset,
    SourceCase,
    files_by_case,
    in_short,
    require_labels_read,
    scan_files,
    unread,
)
from sacl.errors import DataError
from sacl.files.arrays import HIGHEST_LABEL, distinct_values
from sacl.files.documents import read_object
from sacl.files.itk import label_table_in, labels_in
from sacl.organs import canonical_name
from sacl.progress import track
from sacl.types import LabelScheme

TABLES = ("labels.json", "dataset.json")
"""Files beside label maps that name their values."""
_LONGEST_NAME = 100
_NUMBER = re.compile(r"[0-9]{1,10}", re.ASCII)
_BACKGROUND = ("background", "clear label")


@dataclass(frozen=True)
class LabelNames:
    """The organ of each label value, as the source calls it, and the value that is `ignore`.

    `notes` are what the user should know of the names.
    """

    organs: Mapping[int, str]
    ignore: int | None = None
    notes: tuple[str, ...] = ()


def label_names(labels: Any, where: str) -> LabelNames:
    """Return the organs by label value from either way to write them in JSON.

    nnU-Net version 2 writes `{name: value}`, version 1 and the Medical Segmentation Decathlon
    `{value: name}`. A list of values, `{"liver": [1, 2]}`, lays them together. What stands twice,
    lies outside of 0 to 65535, or gives 0 to an organ, is refused.
    """
    if not isinstance(labels, Mapping) or not labels:
        raise DataError(f"{where}: no table 'labels' of organ names and values")
    names: dict[int, str] = {}
    value_of: dict[str, int] = {}
    for key, entry in labels.items():
        name, values = (entry, [key]) if _NUMBER.fullmatch(str(key)) else (key, entry)
        name = _name(name, where)
        number = 0
        for value in values if isinstance(values, list) else [values]:
            number = _value(value, name, where)
            if number in names:
                raise DataError(
                    f"{where}: label '{name}' has the value {number}, and so has '{names[number]}';"
                    " give every organ values of its own (overlapping regions are not supported)"
                )
            names[number] = name
        first = value_of.setdefault(canonical_name(name), number)
        if first != number:
            raise DataError(
                f"{where}: '{name}' is named by the values {first} and {number}; correct one, or"
                f' write {{"{name}": [{first}, {number}]}} if both are the same organ'
            )
    return _without_background(names, where)


def with_label_names(dataset: Dataset, listing: Path, table: Any = None) -> Dataset:
    """Return a dataset with what the values of its label maps are called, if it has any.

    Its own table wins, then that beside the file that lists it, then those in the maps. If there
    is none, a value N is `label_N`.

    Raises:
        DataError: a table is damaged, a map has none where those of others differ, or all maps are
            empty.
    """
    maps = tuple(case.reference for case in dataset.cases if case.reference)
    if not maps:
        return dataset
    named = label_names(table, listing.name) if table else names_in_folder(listing.parent)
    tables = {} if named else {path: names for path in maps if (names := names_in_map(path))}
    if tables and not (named := _agreed(list(tables.values()))):
        return _each_by_its_own(dataset, tables)
    names = named or _numbered(maps, listing.parent.name)
    notes = dataset.notes + names.notes
    return replace(dataset, organs=names.organs, ignore=names.ignore, notes=notes)


def _agreed(tables: Sequence[LabelNames]) -> LabelNames | None:
    """Return several tables as one, None where a value is called differently in two of them."""
    names = {value: name for names in reversed(tables) for value, name in names.organs.items()}
    pairs = {(v, canonical_name(n)) for names in tables for v, n in names.organs.items()}
    ignored = {names.ignore for names in tables}
    if len(pairs) > len(names) or len(ignored) > 1 or ignored & names.keys():
        return None
    return LabelNames(dict(sorted(names.items())), next(iter(ignored)))


def _each_by_its_own(dataset: Dataset, tables: Mapping[Path, LabelNames]) -> Dataset:
    """Return a dataset in which each label map is read by its own table."""
    organs = dict.fromkeys(name for names in tables.values() for name in names.organs.values())

    def named(case: SourceCase) -> SourceCase:
        if case.reference is None:
            return case
        if case.reference not in tables:
            raise DataError(
                f"{case.reference.name}: has no table of label names, and those of the other maps"
                f" differ; add one, or write {TABLES[0]} beside the scans if one is right for all"
            )
        own, looked_for = tables[case.reference], case.annotated or tuple(organs)
        return replace(case, organs=own.organs, ignore=own.ignore, annotated=looked_for)

    note = "the tables of label names in the label maps differ; each map is read by its own"
    cases = tuple(map(named, dataset.cases))
    return replace(dataset, cases=cases, notes=(*dataset.notes, note))


@lru_cache
def _numbered(maps: tuple[Path, ...], where: str) -> LabelNames:
    values = sorted(_values_in(track(maps, "read label values")))
    if not values:
        raise DataError(f"{where}: all label maps are empty; draw organs in one of them")
    organs = {value: f"label_{value}" for value in values}
    note = (
        f"the label values have no names and are called {in_short(list(organs.values()))};"
        f' write {TABLES[0]} in {where} to name them, such as {{"liver": {values[0]}}}'
    )
    return LabelNames(organs, notes=(note,))


def _values_in(maps: Iterable[Path]) -> set[int]:
    """Return the values of label maps but for the background."""
    values: set[int] = set()
    for path in maps:
        voxels = labels_in(path)[0]
        require_labels(voxels, path.name)
        values |= distinct_values(voxels)
    return values - {0}


def names_in_map(path: Path) -> LabelNames | None:
    """Return the names in a label map's own table, None where it has none."""
    inside = {name: value for name, value in (label_table_in(path) or {}).items() if value}
    return label_names(inside, path.name) if inside else None


def names_in_folder(folder: Path) -> LabelNames | None:
    """Return the names that a folder's `labels.json` or `dataset.json` gives, None without one."""
    for path in (folder / name for name in TABLES):
        document = read_object(path) if path.is_file() else {}
        table = document.get("labels", document if path.name == TABLES[0] else None)
        if table:
            return label_names(table, path.name)
    return None


def pair_maps(
    reference: Path, predicted: Path, allow_missing: bool = False
) -> dict[str, tuple[Path, Path]]:
    """Return the label maps of two folders that are called alike, by name: reference, predicted.

    Unless missing ones are allowed, a map without a counterpart, or one not read, is refused.
    """
    if not allow_missing:
        require_labels_read(reference, scan_files(reference))
    maps_r, maps_p = map_files(reference), map_files(predicted)
    common = [name for name in maps_r if name in maps_p]
    for folder, lone, other in (
        (predicted, [n for n in maps_r if n not in maps_p], "reference"),
        (reference, [n for n in maps_p if n not in maps_r], "predicted map"),
    ):
        if lone and not (allow_missing and common):
            raise DataError(
                f"{folder.name}: no label map for {len(lone)} {other}s, {in_short(lone)}; name both"
                " files alike, or score the others alone with --allow-missing"
            )
    return {name: (maps_r[name], maps_p[name]) for name in common}


def left_unpaired(
    reference: Path, predicted: Path, pairs: Mapping[str, tuple[Path, Path]]
) -> Iterator[str]:
    """Yield in words what two folders hold beside their pairs of label maps."""
    paired = {path for pair in pairs.values() for path in pair}
    for folder in (reference, predicted):
        lone = [path.name for path in scan_files(folder) if path not in paired]
        if lone:
            yield f"{folder.name}: not scored {', '.join(lone)}"
        yield from unread(folder, scan_files(folder), "label maps")


def map_files(folder: Path) -> dict[str, Path]:
    """Return the label maps of a folder by name without nnU-Net's `_0000`; none is refused."""
    files = files_by_case(folder, "(.+?)(?:_0000)?")
    if not files:
        raise DataError(f"{folder.name}: no label map in this folder; give another one")
    return files


def scheme_of_folders(*folders: Path) -> LabelScheme:
    """Return the scheme of all label maps in some folders, the references' folder first.

    Names come from the label tables in the files, and from `dataset.json` or `labels.json` in the
    first folder or beside it; a value without a name is `label_N`. Where one value is named
    differently, that is refused.
    """
    paths = [path for folder in folders for path in scan_files(folder)]
    names, beside = _from_tables(paths), _beside(folders[0])
    for value in names.keys() & beside.keys():
        if canonical_name(names[value]) != canonical_name(beside[value]):
            raise DataError(
                f"{folders[0].name}: label {value} is '{beside[value]}' in its table and"
                f" '{names[value]}' in that of a label map; give all maps in one scheme"
            )
    names = {**names, **beside}
    highest = max(names or _values_in(paths), default=0)
    if not highest:
        raise DataError(f"{folders[0].name}: all label maps are empty; there is nothing to score")
    listed = tuple(names.get(n, f"label_{n}") for n in range(1, highest + 1))
    return LabelScheme(folders[0].name, listed)


def require_labels(voxels: Integer[np.ndarray, "i j k"], where: str) -> None:
    """Refuse values that cannot be labels."""
    low, high = int(voxels.min()), int(voxels.max())
    if low < 0 or high > HIGHEST_LABEL:
        raise DataError(
            f"{where}: label values {low} to {high}, expected 0 to {HIGHEST_LABEL}; this is not a"
            " label map"
        )


def _name(name: Any, where: str) -> str:
    text = str(name)
    if not isinstance(name, str) or not text.strip() or len(text) > _LONGEST_NAME:
        raise DataError(
            f"{where}: the label name {text[:40]!r} is no text of 1 to {_LONGEST_NAME} letters"
        )
    return text


def _value(value: Any, name: str, where: str) -> int:
    if not _NUMBER.fullmatch(str(value)) or int(value) > HIGHEST_LABEL:
        shown = str(value)[:40]
        raise DataError(
            f"{where}: label '{name}' has the value {shown!r}, expected a whole number from 0 to"
            f" {HIGHEST_LABEL}"
        )
    return int(value)


def _without_background(names: dict[int, str], where: str) -> LabelNames:
    ignore = next((value for value, name in names.items() if name.lower() == "ignore"), None)
    zero = names.get(0)
    if zero is not None and zero.lower() not in _BACKGROUND:
        raise DataError(f"{where}: label '{zero}' has the value 0, which is background")
    organs = {value: name for value, name in sorted(names.items()) if value not in (0, ignore)}
    return LabelNames(organs, ignore)


def _from_tables(paths: Sequence[Path]) -> dict[int, str]:
    """Return the names in the files' label tables by value, without the background."""
    names: dict[int, str] = {}
    for path in paths:
        for name, value in (label_table_in(path) or {}).items():
            if value > 0 and names.setdefault(value, name) != name:
                raise DataError(
                    f"{path.name}: label {value} is '{name}' here and '{names[value]}' in another"
                    " file; give all maps in one scheme"
                )
    return names


def _beside(folder: Path) -> Mapping[int, str]:
    """Return the names in the table of a folder or of the one above it, none without a table."""
    table = names_in_folder(folder) or names_in_folder(folder.parent) or LabelNames({})
    if table.ignore is not None:
        raise DataError(f"{folder.name}: an 'ignore' label cannot be scored; set its voxels to 0")
    if len(set(table.organs.values())) < len(table.organs):
        raise DataError(
            f"{folder.name}: an organ has several label values; regions are not supported here,"
            " give every organ one value"
        )
    return table.organs
