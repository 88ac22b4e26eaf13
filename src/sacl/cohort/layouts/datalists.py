"""JSON lists of images and label maps: the Medical Segmentation Decathlon's, and MONAI's.

Both have `training [{image, label}]` and, as they like, `validation`, `test` or `testing`. The
decathlon's is called `dataset.json` and names the labels; a datalist of MONAI may have any name.
`image` and `label` are a path or a list of them, of which the first is taken; absolute, or relative
to the JSON or to the folder above it. An entry without `label` is an unlabeled scan; other names
for it (`seg`, `segmentation`, `mask`, `pseudo_label`) are not read, and a note says so. The other
plain values of an entry are scan-wise labels, `fold` among them; `subject_id` names the subject.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sacl.cohort.dataset import Dataset, Layout, SourceCase, the_file, told_apart, unread
from sacl.cohort.label_names import names_of_maps
from sacl.cohort.layouts.nnunet import modality_of
from sacl.cohort.tables import NOT_LABELS, scan_labels_of
from sacl.errors import DataError
from sacl.files.documents import JsonObject, read_object
from sacl.files.nifti import stem
from sacl.types import Split

_DECATHLON = "dataset.json"
_PARTS: dict[str, Split] = {
    "training": "train",
    "validation": "validation",
    "testing": "test",
    "test": "test",
}
_OTHER_LABELS = ("seg", "segmentation", "mask", "pseudo_label")


def _recognize_decathlon(root: Path) -> str | None:
    path = root / _DECATHLON
    document = read_object(path) if path.is_file() else {}
    listed = document.get("training")
    if not isinstance(listed, list) or not listed or not isinstance(listed[0], dict):
        return None
    if "labels" not in document:  # a datalist of MONAI may have any name, this one too
        return None
    return f"{_DECATHLON} lists {len(listed)} training pairs of image and label"


def _recognize_monai(root: Path) -> str | None:
    paths = _datalists(root)
    if len(paths) > 1:
        raise DataError(
            f"{root.name}: {len(paths)} datalists, {paths[0].name} and {paths[1].name}; name the"
            " one to read"
        )
    if not paths:
        return None
    return f"{paths[0].name} lists {len(read_object(paths[0])['training'])} images"


def _read(path: Path, layout: str) -> Dataset:
    document = read_object(path)
    rows = [(key, row) for key in _PARTS for row in _rows(document.get(key), key, path.name)]
    images = [_listed_file(path, row.get("image"), key) for key, row in rows]
    stems = [stem(image) for image in images]
    case_ids = told_apart(stems, [f"{p.parent.name}_{stem(p)}" for p in images])
    cases = tuple(
        SourceCase(
            str(row.get("case_id") or name),
            image,
            _listed_file(path, row["label"], key) if row.get("label") else None,
            _PARTS[key],
            str(row["subject_id"]) if row.get("subject_id") else None,
            scan_labels_of(row, (*NOT_LABELS, *_OTHER_LABELS)),
            origin=key,
        )
        for (key, row), image, name in zip(rows, images, case_ids, strict=True)
    )
    maps = [case.reference for case in cases if case.reference]
    names = names_of_maps(maps, document.get("labels"), path, path.name)
    notes = _notes([row for _, row in rows])
    if layout == "decathlon":
        for folder in dict.fromkeys(label.parent for label in maps):
            notes += unread(folder, maps, f"the label maps that {path.name} lists")
    return Dataset(
        layout=layout,
        name=str(document.get("name") or path.parent.name),
        organs=names.organs,
        cases=cases,
        modality=modality_of(document.get("modality")),
        ignore=names.ignore,
        notes=notes,
    )


def _datalists(root: Path) -> list[Path]:
    """Return the path itself where it is a datalist, else those directly in the folder."""
    if root.is_file():
        return [root] if root.suffix == ".json" and _is_datalist(read_object(root)) else []
    paths = []
    for path in sorted(path for path in root.glob("*.json") if path.is_file()):
        try:
            if _is_datalist(read_object(path)):
                paths.append(path)
        except DataError:
            continue  # another JSON of the folder, which is not to be read
    return paths


def _is_datalist(document: JsonObject) -> bool:
    training = document.get("training")
    if not isinstance(training, list) or not training:
        return False
    return isinstance(training[0], Mapping) and "image" in training[0]


def _rows(listed: Any, key: str, where: str) -> list[JsonObject]:
    """Return the entries of a list; a bare path is an image without a label."""
    if not isinstance(listed or [], list):
        raise DataError(f"{where}: '{key}' is a {type(listed).__name__}, expected a list")
    rows = [{"image": row} if isinstance(row, str) else row for row in listed or []]
    strange = [row for row in rows if not isinstance(row, Mapping)]
    if strange:
        shown = repr(strange[0])[:80]
        raise DataError(f"{where}: an entry of '{key}' is {shown}, expected image and label")
    # The `._*` files of macOS are no scans.
    return [row for row in rows if not Path(str(row.get("image"))).name.startswith("._")]


def _listed_file(datalist: Path, listed: Any, key: str) -> Path:
    """Return the file that an entry names, the first one where it names several."""
    name = listed[0] if isinstance(listed, list) and listed else listed
    if not isinstance(name, str) or not name:
        shown = repr(listed)[:80]
        raise DataError(f"{datalist.name}: an entry of '{key}' has no image, got {shown}")
    return the_file(
        [datalist.parent / name, datalist.parent.parent / name],
        f"{datalist.name}: an entry of '{key}'",
        " beside the JSON or in the folder above it",
    )


def _notes(rows: Sequence[JsonObject]) -> tuple[str, ...]:
    """Return what the user should know of how the entries were read."""
    several = sum(isinstance(row.get("image"), list) and len(row["image"]) > 1 for row in rows)
    notes = [f"{several} entries list several images, the first is used"] if several else []
    for name in _OTHER_LABELS:
        if lost := sum(name in row and not row.get("label") for row in rows):
            notes.append(f"{lost} entries have '{name}' and no 'label'; they count as unlabeled")
    return tuple(notes)


DECATHLON = Layout(
    "Medical Segmentation Decathlon: dataset.json lists training [{image, label}] and test",
    _recognize_decathlon,
    lambda root: _read(root / _DECATHLON, "decathlon"),
)
MONAI_DATALIST = Layout(
    "a datalist of MONAI: a JSON with training [{image, label, fold}], validation and testing",
    _recognize_monai,
    lambda root: _read(_datalists(root)[0], "monai_datalist"),
)
