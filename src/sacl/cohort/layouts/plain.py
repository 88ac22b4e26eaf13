"""Scans in no public layout: a table of them, or a plain folder.

`cohort.csv` has the columns case_id, image, and optionally label, subject_id and split. `annotated`
lists the organs that somebody looked for, such as `liver;spleen`, where these are not all. Every
other column is a scan-wise label. Paths are relative to the table. The meaning of the label values
comes from `labels.json` beside the table (`{name: value}` or `{value: name}`), else from the label
table in the first label map.

A plain folder holds NIfTI scans without annotation.
"""

from __future__ import annotations

import re
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
from sacl.cohort.label_names import names_of_maps
from sacl.cohort.tables import annotated_of, scan_labels_of, split_of
from sacl.errors import DataError
from sacl.files.documents import read_rows
from sacl.files.nifti import stem

_NAME = "cohort.csv"
_OF_A_DATASET = re.compile(r"(images?|imgs?|scans)(Tr|Va|Ts)?|(Training|Validation)Img", re.I)
_NOT_A_SCAN = re.compile(
    r"(^|[-_. ])(segs?|segmentations?|labels?|labelmaps?|masks?|preds?|predictions?|gt)"
    r"([-_. ]|$)",
    re.IGNORECASE,
)


def _recognize_table(root: Path) -> str | None:
    path = _table(root)
    return f"{path.name} is a table of scans" if path.is_file() else None


def _read_table(root: Path) -> Dataset:
    """List the cases of the table.

    Raises:
        DataError: the table lacks a column, a file that it names is missing, or the label maps'
            values have no names.
    """
    path = _table(root)
    cases = []
    for case_id, row in read_rows(path).items():
        if not row.get("image"):
            raise DataError(f"{path.name}: case {case_id} has no image; fill the column 'image'")
        cases.append(
            SourceCase(
                case_id,
                _existing(path, row["image"], case_id),
                _existing(path, row["label"], case_id) if row.get("label") else None,
                split_of(row, path.name) or "train",
                row.get("subject_id") or None,
                scan_labels_of(row),
                path.name,
                annotated=annotated_of(row),
            )
        )
    maps = [case.reference for case in cases if case.reference]
    names = names_of_maps(maps, None, path, path.name)
    name = path.parent.resolve().name
    return Dataset("table", name, names.organs, tuple(cases), ignore=names.ignore)


def _table(root: Path) -> Path:
    return root if root.suffix == ".csv" else root / _NAME


def _existing(table: Path, name: str, case_id: str) -> Path:
    return the_file([table.parent / name], f"{table.name}: case {case_id}")


def list_images(folder: Path) -> list[Path]:
    """Return the NIfTI files of a folder by name.

    Raises:
        DataError: there is no such folder, no NIfTI file in it, or two files of one name.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    images = files_by_case(folder)
    if not images:
        raise DataError(f"{folder}: no .nii or .nii.gz file in this folder")
    return list(images.values())


def _recognize_folder(root: Path) -> str | None:
    images = nifti_files(root)
    return f"{len(images)} NIfTI files and no annotation" if images else None


def _read_folder(root: Path) -> Dataset:
    """List the scans, all for training and without a reference.

    Files that are called segmentations are left out, unless all are.

    Raises:
        DataError: as `list_images`.
    """
    images = list_images(root)
    scans = [path for path in images if not _NOT_A_SCAN.search(stem(path))] or images
    left_out = [path.name for path in images if path not in scans]
    note = (
        f"{in_short(left_out)} left out, label maps by their names; to train with them, list the"
        " scans in a cohort.csv with case_id, image and label"
    )
    notes: tuple[str, ...] = (note,) if left_out else ()
    notes += unread(root, images, "NIfTI files; read other data by a --data of its own")
    cases = (SourceCase(stem(path), path, None, "train", origin="folder") for path in scans)
    return Dataset("folder", root.resolve().name, {}, tuple(cases), notes=notes)


def refuse_a_part(root: Path) -> None:
    """Refuse the images of a dataset without their label maps, most likely a slip.

    Raises:
        DataError: names the folder to give instead.
    """
    place = root.resolve()
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
FOLDER = Layout("a plain folder of NIfTI scans without annotation", _recognize_folder, _read_folder)
