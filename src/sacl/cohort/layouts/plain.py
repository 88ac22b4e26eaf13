"""Scans in no public layout: a table of them, or a plain folder.

`cohort.csv` has the columns case_id, image, and optionally label, subject_id and split. `annotated`
lists the organs that somebody looked for, such as `liver;spleen`, where these are not all. Every
other column is a scan-wise label. Paths are relative to the table. `labels.json` beside it names
the label values, else the table in the first label map.

A plain folder holds NIfTI scans; label maps among them are paired by name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from sacl.cohort.dataset import (
    Dataset,
    Layout,
    SourceCase,
    files_by_case,
    in_short,
    nifti_files,
    the_file,
    unread,
)
from sacl.cohort.label_names import TABLES, LabelNames, names_of_maps
from sacl.cohort.tables import annotated_of, scan_labels_of, split_of
from sacl.errors import DataError
from sacl.files.atomic import real
from sacl.files.documents import read_rows
from sacl.files.nifti import stem

_NAME = "cohort.csv"
_OF_A_DATASET = re.compile(r"(images?|imgs?|scans)(Tr|Va|Ts)?|(Training|Validation)Img", re.I)
_LABEL_WORDS = {
    *("seg", "segs", "segmentation", "segmentations", "label", "labels", "labelmap"),
    *("mask", "masks", "pred", "prediction", "gt"),
}
_IMAGE_WORDS = {"ct", "mr", "mri", "image", "img", "scan", "volume", "0000"}


def _recognize_table(root: Path) -> str | None:
    path = _table(root)
    return f"{path.name} is a table of scans" if path.is_file() else None


def _read_table(root: Path) -> Dataset:
    path = _table(root)
    cases = []
    for case_id, row in read_rows(path).items():
        if not row.get("image"):
            raise DataError(f"{path.name}: case {case_id} has no image; fill the column 'image'")
        where = f"{path.name}: case {case_id}"
        cases.append(
            SourceCase(
                case_id,
                the_file([path.parent / row["image"]], where),
                the_file([path.parent / row["label"]], where) if row.get("label") else None,
                split_of(row, path.name) or "train",
                row.get("subject_id") or None,
                scan_labels_of(row),
                path.name,
                annotated=annotated_of(row),
            )
        )
    maps = [case.reference for case in cases if case.reference]
    names = names_of_maps(maps, None, path, path.name)
    name = real(path.parent).name
    return Dataset("table", name, names.organs, tuple(cases), ignore=names.ignore)


def _table(root: Path) -> Path:
    return root if root.suffix == ".csv" else root / _NAME


def _recognize_folder(root: Path) -> str | None:
    images = nifti_files(root)
    return f"{len(images)} NIfTI files" if images else None


def _read_folder(root: Path) -> Dataset:
    """List the scans, all for training; a label map by its name is none, unless all are so."""
    files = list(files_by_case(root).values())
    if not files:
        raise DataError(f"{root}: no .nii or .nii.gz file in this folder")
    scans = [path for path in files if not _words(path) & _LABEL_WORDS] or files
    maps = [path for path in files if path not in scans]
    names, reason = _names_of(maps, root)
    map_of = _paired(scans, maps) if names.organs else {}
    left_out = [path.name for path in maps if path not in map_of.values()]
    read = [*files, *(root / name for name in TABLES)]
    notes = unread(root, read, "NIfTI files; give other data as a second --data")
    if left_out:
        notes += (
            f"{in_short(left_out)} left out: label maps by their names, {reason}; list the scans in"
            " a cohort.csv with case_id, image and label to train with them",
        )
    cases = (SourceCase(stem(path), path, map_of.get(path), origin="folder") for path in scans)
    name = real(root).name
    return Dataset("folder", name, names.organs, tuple(cases), ignore=names.ignore, notes=notes)


def _names_of(maps: Sequence[Path], root: Path) -> tuple[LabelNames, str]:
    """Return the names of label values, or none and the reason why maps are left out."""
    try:
        return names_of_maps(maps, None, root / _NAME, root.name), "of no scan here"
    except DataError:
        return LabelNames({}), "and nothing names their values (no labels.json)"


def _paired(scans: Sequence[Path], maps: Sequence[Path]) -> dict[Path, Path]:
    """Return the label map of each scan, where one of each shares the rest of the name."""
    rest = {
        path: frozenset(_words(path) - {*_LABEL_WORDS, *_IMAGE_WORDS}) for path in (*scans, *maps)
    }
    of_map = {path: [m for m in maps if rest[m] == rest[path]] for path in scans}
    of_scan = {m: [path for path in scans if rest[m] == rest[path]] for m in maps}
    return {p: m[0] for p, m in of_map.items() if len(m) == 1 and len(of_scan[m[0]]) == 1}


def _words(path: Path) -> set[str]:
    return set(re.split(r"[-_. ]", stem(path).lower()))


def refuse_a_part(root: Path) -> None:
    """Refuse the images of a dataset without their label maps, most likely a slip."""
    place = real(root)
    labels = re.sub("image|img", "label", place.name, flags=re.IGNORECASE)
    beside = [place.parent / name for name in (labels, "labelsTr", "labels") if name != place.name]
    if _OF_A_DATASET.fullmatch(place.name) and any(map(nifti_files, beside)):
        raise DataError(
            f"data '{root}': the images of a dataset without its label maps; give the folder above"
            " to read both, or --ingest.layout folder to read the images alone"
        )


TABLE = Layout(
    "a table of scans: cohort.csv with case_id, image, and optionally label, subject_id and split",
    _recognize_table,
    _read_table,
)
FOLDER = Layout("a plain folder of NIfTI scans", _recognize_folder, _read_folder)
