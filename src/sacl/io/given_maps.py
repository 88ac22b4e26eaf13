"""Read label maps that another tool made: matched to cases by name, to organs by name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from sacl.errors import DataError
from sacl.geometry import require_same_grid
from sacl.io.nifti import SUFFIXES, is_nifti, read_label_table, read_labels, stem
from sacl.organs import match
from sacl.types import Grid, LabelMap, LabelScheme

_TABLES = ("labels.json", "dataset.json")


def require_maps(folder: Path, case_ids: Iterable[str]) -> None:
    """Refuse a folder that lacks the label map of a case.

    Raises:
        DataError: how many are missing, and the first of them.
    """
    wanted = list(case_ids)
    missing = [case_id for case_id in wanted if _find(folder, case_id) is None]
    if missing:
        raise DataError(
            f"{folder.name}: no label map for {len(missing)} of {len(wanted)} cases, the first is"
            f" {missing[0]}; expected {missing[0]}.nii.gz, or a folder {missing[0]} with one mask"
            " per organ"
        )


def read_given_map(folder: Path, case_id: str, scheme: LabelScheme) -> LabelMap:
    """Return a case's label map in the cohort's scheme, on its own canonical grid.

    Either one file, `CASE.nii.gz`, whose values are named by the label table in the file or by a
    `labels.json` or `dataset.json` in the folder; or one mask per organ, `CASE/ORGAN.nii.gz` or
    `CASE/segmentations/ORGAN.nii.gz`, of which the smaller organ wins where two overlap. Organs
    that the scheme does not have become background; sides are merged where it has the whole.

    Raises:
        DataError: the label values have no names, or no name is an organ of the scheme.
    """
    path = _find(folder, case_id)
    if path is None:
        raise DataError(f"{folder.name}: no label map for case {case_id}")
    if path.is_dir():
        return _from_masks(path, case_id, scheme)
    values = read_label_table(path) or _names_in(folder)
    if values is None:
        raise DataError(
            f"{path.name}: its label values have no names; write them into {_TABLES[0]} beside the"
            ' maps, such as {"1": "spleen", "2": "liver"}'
        )
    organ_of = _matched(values, scheme, path.name)
    labels, grid, _ = read_labels(path)
    voxels = _empty(grid, scheme)
    for name, organ in organ_of.items():
        voxels[labels == values[name]] = scheme.label_of(organ)
    return LabelMap(voxels, grid, scheme)


def _find(folder: Path, case_id: str) -> Path | None:
    for suffix in SUFFIXES:
        if (folder / f"{case_id}{suffix}").is_file():
            return folder / f"{case_id}{suffix}"
    for masks in (folder / case_id / "segmentations", folder / case_id):
        if masks.is_dir() and any(is_nifti(path) for path in masks.iterdir()):
            return masks
    return None


def _names_in(folder: Path) -> dict[str, int] | None:
    """Return the names in the folder's JSON: {"1": "spleen"} or {"spleen": 1}, or in "labels"."""
    path = next((folder / name for name in _TABLES if (folder / name).is_file()), None)
    if path is None:
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        table = document.get("labels", document)
        pairs = [(k, int(v)) if isinstance(v, int) else (str(v), int(k)) for k, v in table.items()]
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path.name}: not a table of label values ({error}); expected"
            ' {"1": "spleen", "2": "liver"} or {"spleen": 1, "liver": 2}'
        ) from error
    return dict(pairs)


def _matched(names: Iterable[str], scheme: LabelScheme, where: str) -> Mapping[str, str]:
    names = [name for name in names if name]
    organ_of = match(names, scheme.names)
    if not organ_of:
        raise DataError(
            f"{where}: none of its labels ({', '.join(names[:5])}) is an organ of the cohort"
            f" ({', '.join(scheme.names[:5])}); rename them"
        )
    return organ_of


def _from_masks(masks: Path, case_id: str, scheme: LabelScheme) -> LabelMap:
    paths = {stem(path): path for path in sorted(masks.iterdir()) if is_nifti(path)}
    organ_of = _matched(paths, scheme, case_id)
    loaded: list[tuple[int, np.ndarray, Grid]] = []
    for name, organ in organ_of.items():
        labels, grid, _ = read_labels(paths[name])
        first = loaded[0][2] if loaded else grid
        require_same_grid(first, grid, f"{case_id}/{paths[name].name}")
        loaded.append((scheme.label_of(organ), np.asarray(labels > 0, dtype=np.bool_), grid))
    voxels = _empty(loaded[0][2], scheme)
    for label, mask, _ in sorted(loaded, key=lambda item: -np.count_nonzero(item[1])):
        voxels[mask] = label
    return LabelMap(voxels, loaded[0][2], scheme)


def _empty(grid: Grid, scheme: LabelScheme) -> np.ndarray:
    return np.zeros(grid.shape, dtype=np.uint8 if len(scheme.names) <= 255 else np.uint16)
