"""Read label maps that another tool made: matched to cases by name, to organs by name."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sacl.cohort.given_files import DICOM, GivenFiles, find_given
from sacl.cohort.layouts.found import label_values
from sacl.cohort.overlap import merge_masks, organ_mask
from sacl.dicom.segmentation import read_segmentation
from sacl.errors import DataError
from sacl.files.nifti import read_label_table, read_labels
from sacl.files.voxel_values import distinct_values, relabeled
from sacl.geometry import repaired, require_same_grid, same_grid
from sacl.organs import match
from sacl.types import Grid, LabelMap, LabelScheme

_TABLES = ("labels.json", "dataset.json")
_MOST = np.iinfo(np.uint16).max


@dataclass(frozen=True)
class GivenMap:
    """One case's label map: its files, its names by value, and which organ each name is.

    `names` has a value per name of a single file, and is empty for masks. `organ_of` has the names
    that are an organ of the cohort or a part of one.
    """

    files: GivenFiles
    names: Mapping[int, str]
    organ_of: Mapping[str, str]

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that are read."""
        if self.files.file is not None:
            return (self.files.file,)
        return tuple(self.files.masks[name] for name in self.organ_of)


@dataclass(frozen=True)
class Survey:
    """What is known of all given maps before a voxel is read.

    `unmatched` are the names that are no organ of the cohort, with the number of maps that have
    them; `absent` are the cohort's organs that no map has.
    """

    maps: Mapping[str, GivenMap]
    missing: tuple[str, ...]
    unmatched: Mapping[str, int]
    absent: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class GivenLabels:
    """A given map in the cohort's scheme on its scan's grid, and what was decided on the way.

    `contested` are the voxels that masks of two organs claim, `unnamed` the label values without a
    name, which became background; `repair` says what resampling did, empty where none was needed.
    """

    label_map: LabelMap
    contested: Mapping[tuple[str, str], int] = field(default_factory=dict)
    unnamed: tuple[int, ...] = ()
    repair: str = ""


def survey_maps(
    source: Path,
    case_ids: Sequence[str],
    scheme: LabelScheme,
    allow_missing: bool = False,
    remedy: str = "add them",
) -> Survey:
    """Find the cases' label maps and match their names to the scheme's organs.

    The values of a single file are named by the label table in it (of DICOM, by its segments), else
    by a `labels.json` or `dataset.json` beside it or in the source. Aliases agree, and sides are
    merged where the scheme has the whole.

    Raises:
        DataError: a case has no map, label values have no names, or no name is an organ of the
            scheme.
    """
    found = find_given(source, case_ids)
    missing = tuple(name for name in case_ids if name not in found)
    if missing and not (allow_missing and found):
        raise DataError(
            f"{source.name}: no label map for {len(missing)} of {len(case_ids)} cases, the first is"
            f" {missing[0]}; expected {_expected(source, missing[0])}; {remedy}"
        )
    tables: dict[Path, dict[int, str] | None] = {}
    maps, unmatched = {}, Counter[str]()
    for case_id, files in found.items():
        names = {} if files.file is None else _names_of(files.file, source, tables)
        listed = list(dict.fromkeys(names.values() if files.file is not None else files.masks))
        organ_of = match(listed, scheme.names)
        maps[case_id] = GivenMap(files, names, organ_of)
        unmatched.update(name for name in listed if name not in organ_of)
    matched = {organ for given in maps.values() for organ in given.organ_of.values()}
    if not matched:
        raise DataError(
            f"{source.name}: none of its labels ({', '.join(list(unmatched)[:5])}) is an organ of"
            f" the cohort ({', '.join(scheme.names[:5])}); rename them"
        )
    absent = tuple(organ for organ in scheme.names if organ not in matched)
    return Survey(maps, missing, dict(unmatched.most_common()), absent)


def merged(surveys: Sequence[Survey]) -> Survey:
    """Return the surveys of several sources, each of other cases, as one."""
    unmatched = Counter[str]()
    for survey in surveys:
        unmatched.update(survey.unmatched)
    first, *others = surveys
    return Survey(
        {case_id: given for survey in surveys for case_id, given in survey.maps.items()},
        tuple(case_id for survey in surveys for case_id in survey.missing),
        dict(unmatched.most_common()),
        tuple(o for o in first.absent if all(o in other.absent for other in others)),
    )


def _expected(source: Path, case_id: str) -> str:
    if source.suffix == ".json":
        return "an 'anatomy_mask' of it"
    return f"{case_id}.nii.gz, or a folder {case_id} with one mask per organ"


def read_given_map(
    given: GivenMap, scheme: LabelScheme, grid: Grid, repairs_grid: bool = False
) -> GivenLabels:
    """Return a case's label map in the cohort's scheme, on the canonical grid of its scan.

    Names that are no organ of the scheme become background. Where masks of two organs overlap, the
    organ that is smaller in this scan wins.

    Raises:
        DataError: a file lies on another grid and that is not to be repaired, nothing of it lies
            in the scan, or a mask or label value is not to be understood.
    """
    if given.files.file is not None:
        return _from_file(given, given.files.file, scheme, (grid, repairs_grid))
    masks, repairs = [], []
    where = f"case {given.files.case_id}"
    organs = [organ for organ in scheme.names if organ in given.organ_of.values()]
    for organ in organs:
        inside = np.zeros(grid.shape, np.bool_, order="F")
        for name in (name for name, target in given.organ_of.items() if target == organ):
            voxels, own, _ = read_labels(given.files.masks[name])
            voxels, repair = _on_grid(voxels, own, (grid, repairs_grid), f"{where}, mask {name}")
            inside |= voxels > 0
            repairs += [f"{name}: {repair}"] if repair else []
        masks.append(organ_mask(organ, inside))
    labels = [scheme.label_of(organ) for organ in organs]
    merged, contested = merge_masks(masks, labels, grid.shape, "smaller")
    label_map = LabelMap(merged.astype(scheme.label_type, copy=False), grid, scheme)
    return GivenLabels(label_map, contested, repair="; ".join(repairs))


def _from_file(
    given: GivenMap, file: Path, scheme: LabelScheme, target: tuple[Grid, bool]
) -> GivenLabels:
    voxels, own = _labels_in(file, target[0])
    low, high = int(voxels.min()), int(voxels.max())
    if low < 0 or high > _MOST:
        raise DataError(
            f"{file.name}: label values {low} to {high}, expected 0 to {_MOST}; this is not a label"
            " map"
        )
    voxels, repair = _on_grid(voxels, own, target, f"case {given.files.case_id}")
    label_of = np.zeros(high + 1, scheme.label_type)
    for value, name in given.names.items():
        if value <= high and name in given.organ_of:
            label_of[value] = scheme.label_of(given.organ_of[name])
    unnamed = tuple(sorted(distinct_values(voxels) - set(given.names) - {0}))
    label_map = LabelMap(relabeled(voxels, label_of), target[0], scheme)
    return GivenLabels(label_map, unnamed=unnamed, repair=repair)


def _labels_in(file: Path, grid: Grid) -> tuple[np.ndarray, Grid]:
    if file.suffix == DICOM:  # its frames are laid on the scan's slices, or refused
        return read_segmentation(file, grid).voxels, grid
    voxels, own, _ = read_labels(file)
    return voxels, own


def _on_grid(
    voxels: np.ndarray, own: Grid, target: tuple[Grid, bool], where: str
) -> tuple[np.ndarray, str]:
    grid, repairs_grid = target
    if repairs_grid and not same_grid(grid, own):
        return repaired(voxels, own, grid, where)
    require_same_grid(grid, own, where)
    return voxels, ""


def _names_of(
    file: Path, source: Path, tables: dict[Path, dict[int, str] | None]
) -> dict[int, str]:
    """Return the names of a file's values; `tables` keeps the tables of folders already read."""
    if file.suffix == DICOM:
        return dict(enumerate(read_segmentation(file).scheme.names, start=1))
    inside = read_label_table(file)
    if inside is not None:
        return {value: name for name, value in inside.items() if value != 0 and name}
    for folder in (file.parent, source if source.is_dir() else source.parent):
        if folder not in tables:
            tables[folder] = _table_in(folder)
        names = tables[folder]
        if names is not None:
            return names
    raise DataError(
        f"{file.name}: its label values have no names; write them into {_TABLES[0]} beside the"
        ' maps, such as {"1": "spleen", "2": "liver"}'
    )


def _table_in(folder: Path) -> dict[int, str] | None:
    """Return the names in the folder's JSON: {"1": "spleen"} or {"spleen": 1}, or in "labels"."""
    path = next((folder / name for name in _TABLES if (folder / name).is_file()), None)
    if path is None:
        return None
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise DataError(f"{path.name}: not readable as JSON ({error})") from error
    table = document.get("labels", document) if isinstance(document, dict) else document
    return label_values(table, path.name)[0]
