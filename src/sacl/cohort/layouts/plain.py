"""General layouts: a table, a list in JSON (Decathlon, MONAI), or a plain folder.

`cohort.csv` has the columns case_id, image, and optionally label, subject_id and split. `annotated`
lists the organs that somebody looked for, such as `liver;spleen`, where these are not all. Every
other column is a scan-wise label. Paths are relative to the table. `labels.json` beside it names
the label values, else the table in the first label map.

A plain folder holds scans; label maps among them are paired by name. So are those in folders
below it: scans and label maps in two folders (`images`, `labels`), or a folder per scan.

The JSON lists of the Medical Segmentation Decathlon and of MONAI have `training [{image, label}]`
and, as they like, `validation`, `test` or `testing`. The decathlon's is called `dataset.json` and
names the labels; a datalist of MONAI may have any name.
`image` and `label` are a path or a list of them, of which the first is taken; absolute, or relative
to the JSON or to the folder above it. Where the decathlon names several modalities, an image file
holds a volume of each, of which the first is taken. An entry without `label` is an unlabeled scan;
other names for it (`seg`, `segmentation`, `mask`, `pseudo_label`) are not read, and a note says so.
Other plain values of an entry are scan-wise labels, as `fold` is; `subject_id` names the subject.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sacl.cohort.dataset import (
    Dataset,
    Layout,
    SourceCase,
    counted,
    files_by_case,
    in_short,
    require_labels_read,
    scan_files,
    the_file,
    told_apart,
    unread,
)
from sacl.cohort.label_names import TABLES, names_of_maps
from sacl.cohort.layouts.nnunet import modality_of
from sacl.cohort.tables import NOT_LABELS, annotated_of, scan_labels_of, split_of
from sacl.errors import DataError
from sacl.files.atomic import real
from sacl.files.documents import JsonObject, read_object, read_rows
from sacl.files.itk import stem_of
from sacl.files.nifti import is_nifti, read_volume
from sacl.run import workspace
from sacl.types import Split

_NAME = "cohort.csv"
_OF_A_DATASET = re.compile(r"(images?|imgs?|scans)(Tr|Va|Ts)?|(Training|Validation)Img", re.I)
_LABEL_WORDS = {
    *("seg", "segs", "segmentation", "segmentations", "label", "labels", "labelmap", "labelmaps"),
    *("mask", "masks", "pred", "prediction", "gt", "groundtruth", "annotation", "annotations"),
}
_IMAGE_WORDS = {
    *("ct", "mr", "mri", "image", "images", "imaging", "img", "imgs", "scan", "scans"),
    *("volume", "volumes", "data", "0000"),
}
_SPLIT_WORDS: dict[str, Split] = {
    **dict.fromkeys(("va", "val", "valid", "validation"), "validation"),
    **dict.fromkeys(("ts", "test", "testing"), "test"),
}
_OF_A_SPLIT = re.compile(r"(?<=[a-z])(Tr|Va|Ts)$")
_OVER_TIME = "4d"
_DEPTH = 3
"""Folders below the given one in which scans are looked for, each in the one before."""
_OF_A_RUN = workspace.FOLDERS["ingest"]
"""What a work directory holds, whose files are no data."""
_DECATHLON = "dataset.json"
_PARTS: dict[str, Split] = {
    "training": "train",
    "validation": "validation",
    "testing": "test",
    "test": "test",
}
_OTHER_LABELS = ("seg", "segmentation", "mask", "pseudo_label")


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
    return Dataset("table", name, names.organs, tuple(cases), None, names.ignore, names.notes)


def _table(root: Path) -> Path:
    return root if root.suffix == ".csv" else root / _NAME


def _recognize_folder(root: Path) -> str | None:
    images = scan_files(root)
    return f"{len(images)} {_kind(images)}" if images else None


def _read_folder(root: Path) -> Dataset:
    """List the scans, all for training; a label map by its name is none, unless all are so."""
    files = list(files_by_case(root).values())
    scans = [path for path in files if not _words(path) & _LABEL_WORDS] or files
    maps = [path for path in files if path not in scans]
    map_of = _paired(scans, maps)
    names = names_of_maps(map_of.values(), None, root / _NAME, root.name)
    left_out = [path.name for path in maps if path not in map_of.values()]
    read = [*files, *(root / name for name in TABLES)]
    notes = unread(root, read, f"{_kind(files)}; give other data as a second --data")
    if left_out:
        notes += (
            f"{in_short(left_out)} left out: named like label maps, but of no scan here; list the"
            " scans in a cohort.csv with case_id, image and label to train with them",
        )
    notes += names.notes
    cases = (SourceCase(stem_of(path), path, map_of.get(path), origin="folder") for path in scans)
    name = real(root).name
    return Dataset("folder", name, names.organs, tuple(cases), ignore=names.ignore, notes=notes)


def _paired(scans: Sequence[Path], maps: Sequence[Path]) -> dict[Path, Path]:
    """Return the label map of each scan, where one of each shares the rest of the name."""
    rest = {
        path: frozenset(_words(path) - {*_LABEL_WORDS, *_IMAGE_WORDS}) for path in (*scans, *maps)
    }
    of_map = {path: [m for m in maps if rest[m] == rest[path]] for path in scans}
    of_scan = {m: [path for path in scans if rest[m] == rest[path]] for m in maps}
    return {p: m[0] for p, m in of_map.items() if len(m) == 1 and len(of_scan[m[0]]) == 1}


def _kind(files: Sequence[Path]) -> str:
    return "NIfTI files" if all(map(is_nifti, files)) else "NIfTI, NRRD and MetaImage files"


def _words(path: Path) -> set[str]:
    return set(re.split(r"[-_. ]", stem_of(path).lower()))


def _below(root: Path) -> list[Path]:
    """Return the scan files in the folders below one, but for hidden ones and work directories."""
    folders, files = [root], []
    for _ in range(_DEPTH):
        below = (path for folder in folders for path in sorted(folder.iterdir()))
        folders = [
            path
            for path in below
            if path.is_dir() and path.name[0] != "." and not (path / _OF_A_RUN).is_dir()
        ]
        files += [file for folder in folders for file in scan_files(folder)]
    return files


def _recognize_folders(root: Path) -> str | None:
    if not root.is_dir() or scan_files(root) or (root / _OF_A_RUN).is_dir():
        return None
    files = _below(root)
    maps = [path for path in files if _words_below(root, path) & _LABEL_WORDS]
    labels = counted(len(maps), "label map")
    return f"{len(files)} {_kind(files)} in folders, {labels}" if files else None


def _read_folders(root: Path) -> Dataset:
    """List the scans, each with the label map that is called and lies alike.

    Words that say what a file is, such as `image`, `seg` or `labelsTr`, may differ. Folders called
    `Va`, `val`, `Ts`, `test` and the like hold scans for validation and test.

    Raises:
        DataError: a label map has no scan, or two, or a scan two label maps.
    """
    found = _below(root)
    words = {path: _words_below(root, path) for path in found}
    files = [path for path in found if _OVER_TIME not in words[path]]
    alike: dict[frozenset[str], list[list[Path]]] = {}
    for path in files:
        pair = alike.setdefault(frozenset(words[path] - _LABEL_WORDS - _IMAGE_WORDS), [[], []])
        pair[bool(words[path] & _LABEL_WORDS)].append(path)
    map_of: dict[Path, Path | None] = {}
    for scans, maps in alike.values():
        if maps and (len(scans), len(maps)) != (1, 1):
            both = f"{counted(len(scans), 'scan')} and {counted(len(maps), 'label map')} are"
            what = both if scans else "no scan is"
            raise DataError(
                f"{root.name}: {maps[0].relative_to(root)}: {what} called alike; list the scans in"
                " a cohort.csv with case_id, image and label"
            )
        map_of |= dict.fromkeys(scans, maps[0] if maps else None)
    names = names_of_maps(filter(None, map_of.values()), None, root / _NAME, root.name)
    channel = "_0000" if all(stem_of(path).endswith("_0000") for path in map_of) else ""
    own = [
        stem_of(path).removesuffix(channel) if _words(path) - _IMAGE_WORDS else path.parent.name
        for path in map_of
    ]
    longer = [f"{p.parent.name}_{stem_of(p)}" for p in map_of]
    cases = tuple(
        SourceCase(case_id, image, map_of[image], _split_of(root, image), origin=image.parent.name)
        for case_id, image in zip(told_apart(own, longer), map_of, strict=True)
    )
    notes: tuple[str, ...] = ()
    if left_out := [path.name for path in found if path not in files]:
        notes += (f"not read {in_short(left_out)}, a scan over time",)
    for folder in dict.fromkeys(path.parent for path in found):
        if _words_below(root, folder / "_") & _LABEL_WORDS:
            notes += require_labels_read(folder, found)
        else:
            notes += unread(folder, found, "scans and label maps")
    notes, name = notes + names.notes, real(root).name
    return Dataset("folders", name, names.organs, cases, ignore=names.ignore, notes=notes)


def _words_below(root: Path, path: Path) -> set[str]:
    """Return the words of a file's name and of its folders' below a root; `imagesTr` are two."""
    folders = (_OF_A_SPLIT.sub(r"_\1", part) for part in path.relative_to(root).parts[:-1])
    return _words(path).union(*(re.split(r"[-_. ]", folder.lower()) for folder in folders))


def _split_of(root: Path, path: Path) -> Split:
    words = _words_below(root, path.parent / "_")
    return next((_SPLIT_WORDS[word] for word in sorted(words) if word in _SPLIT_WORDS), "train")


def refuse_a_part(root: Path) -> None:
    """Refuse the images of a dataset without their label maps, most likely a slip."""
    place = real(root)
    labels = re.sub("image|img", "label", place.name, flags=re.IGNORECASE)
    beside = [place.parent / name for name in (labels, "labelsTr", "labels") if name != place.name]
    if _OF_A_DATASET.fullmatch(place.name) and any(map(scan_files, beside)):
        raise DataError(
            f"data '{root}': has a dataset's images but not its label maps; give the folder above"
            " it to read both, or --ingest.layout folder to read the images alone"
        )


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
    stems = [stem_of(image) for image in images]
    case_ids = told_apart(stems, [f"{p.parent.name}_{stem_of(p)}" for p in images])
    listed = document.get("modality") if layout == "decathlon" else None
    modalities = list(listed.values()) if isinstance(listed, Mapping) else []
    several = len(modalities) > 1
    cases = tuple(
        SourceCase(
            str(row.get("case_id") or name),
            image,
            _listed_file(path, row["label"], key) if row.get("label") else None,
            _PARTS[key],
            str(row["subject_id"]) if row.get("subject_id") else None,
            scan_labels_of(row, (*NOT_LABELS, *_OTHER_LABELS)),
            origin=key,
            load=partial(read_volume, image, several=True) if several else None,
        )
        for (key, row), image, name in zip(rows, images, case_ids, strict=True)
    )
    maps = [case.reference for case in cases if case.reference]
    names = names_of_maps(maps, document.get("labels"), path, path.name)
    notes = _notes([row for _, row in rows]) + names.notes
    if several:
        count, first = len(modalities), modalities[0]
        notes += (f"the first of {count} channels in a file is used, {first}",)
    if layout == "decathlon":
        for folder in dict.fromkeys(label.parent for label in maps):
            notes += unread(folder, maps, f"the label maps that {path.name} lists")
        for folder in dict.fromkeys(image.parent for image in images):
            notes += unread(folder, images, f"the images that {path.name} lists")
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


TABLE = Layout(
    "a table of scans: cohort.csv with case_id, image, and optionally label, subject_id and split",
    _recognize_table,
    _read_table,
)
FOLDER = Layout("a plain folder of scans", _recognize_folder, _read_folder)
FOLDERS = Layout(
    "folders of scans and of label maps called alike, or a folder per scan",
    _recognize_folders,
    _read_folders,
)
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
