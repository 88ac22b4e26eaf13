"""A datalist of MONAI: a JSON with `training [{image, label, fold}]`, `validation` and `testing`.

`image` and `label` are a path or a list of them, of which the first is taken. Paths are absolute,
or relative to the JSON or to the folder above it. An entry without `label` is an unlabeled scan;
other names for it (`seg`, `segmentation`, `mask`, `pseudo_label`) are not read, and that is said.
The other plain values of an entry are scan-wise labels, `fold` among them; `subject_id` names the
subject. The label values are named by `labels` in the JSON (`{name: value}` or `{value: name}`),
else by the label table in the first label map, else by `labels.json` beside the JSON.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sacl.cohort.layouts.found import Found, FoundCase, label_values, modality_of, read_json
from sacl.errors import DataError
from sacl.files.nifti import is_nifti, read_label_table, stem
from sacl.organs import snake_case
from sacl.types import UNKNOWN, Split

_PARTS: dict[str, Split] = {
    "training": "train",
    "validation": "validation",
    "testing": "test",
    "test": "test",
}
_OTHER_LABELS = ("seg", "segmentation", "mask", "pseudo_label")
_NOT_SCAN_LABELS = ("case_id", "subject_id", "image", "label", *_OTHER_LABELS)


def recognize(root: Path) -> str | None:
    """Return why a path is a datalist, or a folder with one, None where it is not.

    Raises:
        DataError: the folder has several.
    """
    paths = _datalists(root)
    if len(paths) > 1:
        raise DataError(
            f"{root.name}: {len(paths)} datalists, {paths[0].name} and {paths[1].name}; name the"
            " one to read"
        )
    return f"{paths[0].name} lists {len(read_json(paths[0])['training'])} images" if paths else None


def read(root: Path) -> Found:
    """List the cases of a datalist.

    Raises:
        DataError: the JSON is damaged, a file that it lists is missing or no NIfTI, or the label
            maps' values have no names.
    """
    path = _datalists(root)[0]
    document = read_json(path)
    rows = [(key, row) for key in _PARTS for row in _rows(document.get(key), key, path.name)]
    images = [_existing(path, row.get("image"), key) for key, row in rows]
    cases = [
        FoundCase(
            str(row.get("case_id") or name),
            image,
            _existing(path, row["label"], key) if row.get("label") else None,
            _PARTS[key],
            str(row["subject_id"]) if row.get("subject_id") else None,
            _scan_labels(row),
            origin=key,
        )
        for (key, row), image, name in zip(rows, images, _names(images), strict=True)
    ]
    organs, ignore = _organs(path, document, cases)
    return Found(
        layout="monai_datalist",
        name=str(document.get("name") or path.parent.name),
        organs=organs,
        cases=tuple(cases),
        modality=modality_of(document.get("modality")),
        ignore=ignore,
        notes=_notes([row for _, row in rows]),
    )


def _datalists(root: Path) -> list[Path]:
    """Return the path itself where it is a datalist, else those directly in the folder."""
    if root.is_file():
        return [root] if root.suffix == ".json" and _is_datalist(read_json(root)) else []
    found = []
    for path in sorted(root.glob("*.json")):
        try:
            if _is_datalist(read_json(path)):
                found.append(path)
        except DataError:
            continue  # another JSON of the folder, which nobody asked to read
    return found


def _is_datalist(document: Mapping[str, Any]) -> bool:
    training = document.get("training")
    if not isinstance(training, list) or not training:
        return False
    return isinstance(training[0], Mapping) and "image" in training[0]


def _rows(listed: Any, key: str, where: str) -> list[Mapping[str, Any]]:
    """Return the entries of a list; a bare path is an image without a label."""
    if not isinstance(listed or [], list):
        raise DataError(f"{where}: '{key}' is a {type(listed).__name__}, expected a list")
    rows = [{"image": row} if isinstance(row, str) else row for row in listed or []]
    strange = next((row for row in rows if not isinstance(row, Mapping)), None)
    if strange is not None:
        raise DataError(f"{where}: an entry of '{key}' is {strange!r}, expected image and label")
    return [row for row in rows if not _is_companion(row.get("image"))]


def _is_companion(image: Any) -> bool:
    """Tell whether an entry is a `._*` file of macOS."""
    return isinstance(image, str) and Path(image).name.startswith("._")


def _existing(datalist: Path, listed: Any, key: str) -> Path:
    """Return the file that an entry names, the first one where it names several.

    Raises:
        DataError: there is no path, no such file, or it is no NIfTI file.
    """
    name = listed[0] if isinstance(listed, list) and listed else listed
    if not isinstance(name, str) or not name:
        raise DataError(f"{datalist.name}: an entry of '{key}' has no image, got {listed!r}")
    places = [datalist.parent / name, datalist.parent.parent / name]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise DataError(
            f"{datalist.name}: '{key}' lists {places[0].name}, there is no such file beside the"
            " JSON or in the folder above it"
        )
    if not is_nifti(found):
        raise DataError(f"{datalist.name}: '{key}' lists {found.name}, no NIfTI file; convert it")
    return found


def _names(images: Sequence[Path]) -> list[str]:
    """Return a case's name by image: the file's, with its folder's where two files share one."""
    count = Counter(map(stem, images))
    return [
        stem(path) if count[stem(path)] == 1 else f"{path.parent.name}_{stem(path)}"
        for path in images
    ]


def _scan_labels(row: Mapping[str, Any]) -> dict[str, str]:
    return {
        snake_case(name): snake_case(str(value)) or UNKNOWN
        for name, value in row.items()
        if name not in _NOT_SCAN_LABELS and isinstance(value, (str, int, float))
    }


def _organs(
    datalist: Path, document: Mapping[str, Any], cases: Iterable[FoundCase]
) -> tuple[dict[int, str], int | None]:
    """Return the organs by label value, and the value of `ignore`.

    Raises:
        DataError: there are label maps, and nobody names their values.
    """
    first = next((case.reference for case in cases if case.reference), None)
    if first is None:
        return {}, None
    if document.get("labels"):
        return label_values(document["labels"], datalist.name)
    names = read_label_table(first)
    if names is not None:
        return label_values({name: value for name, value in names.items() if value}, first.name)
    beside = datalist.with_name("labels.json")
    if beside.is_file():
        return label_values(read_json(beside), beside.name)
    raise DataError(
        f"{datalist.name}: the label values have no names; add a table 'labels' to it, such as"
        ' {"liver": 1, "spleen": 2}, or write labels.json beside it'
    )


def _notes(rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return what the user should know of how the entries were read."""
    several = sum(isinstance(row.get("image"), list) and len(row["image"]) > 1 for row in rows)
    notes = [f"{several} entries list several images, the first is used"] if several else []
    for name in _OTHER_LABELS:
        unread = sum(name in row and not row.get("label") for row in rows)
        if unread:
            notes.append(f"{unread} entries have '{name}' and no 'label'; they count as unlabeled")
    return tuple(notes)
