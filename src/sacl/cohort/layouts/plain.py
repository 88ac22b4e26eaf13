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
import unicodedata
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sacl.cohort.dataset import (
    Dataset,
    Layout,
    Recognized,
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
from sacl.cohort.label_names import TABLES, with_label_names
from sacl.cohort.layouts.nnunet import modality_of
from sacl.cohort.tables import BESIDE, NOT_LABELS, SPLIT_OF, annotated_of, scan_labels_of, split_of
from sacl.errors import DataError
from sacl.files.atomic import real
from sacl.files.documents import JsonObject, read_object, read_rows
from sacl.files.itk import stem_of
from sacl.files.nifti import is_nifti, read_volume
from sacl.organs import words_for
from sacl.run.workspace import is_work
from sacl.types import Split

_NAME = "cohort.csv"
_OF_A_DATASET = re.compile(r"(images?|imgs?|scans)(Tr|Va|Ts)?|(Training|Validation)Img", re.I)
_FILE_WORDS = words_for("files")
_LABEL_WORDS, _IMAGE_WORDS = set(_FILE_WORDS["label"]), set(_FILE_WORDS["image"])
_OF_A_SPLIT = re.compile(r"(?<=[a-z])(Tr|Va|Ts)$")
_OVER_TIME = "4d"
_DEPTH = 3
"""Folders below the given one in which scans are looked for, each in the one before."""
_DECATHLON = "dataset.json"
_PARTS = ("training", "validation", "testing", "test")
_OTHER_LABELS = ("seg", "segmentation", "mask", "pseudo_label")


def _recognize_table(root: Path) -> Recognized | None:
    path = root if root.suffix == ".csv" else root / _NAME
    if not path.is_file():
        return None
    return f"{path.name} is a table of scans", partial(_read_table, path)


def _read_table(path: Path) -> Dataset:
    cases = []
    for case_id, row in read_rows(path).items():
        where = f"{path.name}: case {case_id}"
        if not row.get("image"):
            raise DataError(f"{where} has no image; fill the column 'image'")
        case = SourceCase(
            case_id,
            the_file([path.parent / row["image"]], where),
            the_file([path.parent / row["label"]], where) if row.get("label") else None,
            split_of(row, path.name) or "train",
            row.get("subject_id") or None,
            scan_labels_of(row),
            path.name,
            annotated=annotated_of(row),
        )
        cases.append(case)
    return with_label_names(Dataset("table", real(path.parent).name, {}, tuple(cases)), path)


def _recognize_folder(root: Path) -> Recognized | None:
    files = scan_files(root)
    return (f"{len(files)} {_kind(files)}", partial(_read_folder, root)) if files else None


def _read_folder(root: Path) -> Dataset:
    """List the scans, all for training; a label map by its name is none, unless all are so.

    A label map is a scan's where one of each shares the rest of the name.

    Raises:
        DataError: no scan has one, but there are some in folders below.
    """
    files = list(files_by_case(root).values())
    groups = _called_alike(root, files)
    map_of = {scans[0]: maps[0] for scans, maps in groups if len(scans) == len(maps) == 1}
    scans = [path for path in files if not _words(root, path) & _LABEL_WORDS] or files
    left_out = [p.name for p in files if p not in scans and p not in map_of.values()]
    read = [*files, *(root / name for name in (*TABLES, *BESIDE))]
    notes = unread(root, read, f"{_kind(files)}; give other data as a second --data")
    if maps := [path for path in _below(root) if _words(root, path) & _LABEL_WORDS]:
        note = (
            f"not read {counted(len(maps), 'label map')} in folders below, such as"
            f" {maps[0].relative_to(root)}; to read them, move the scans into a folder images"
        )
        if not map_of:
            raise DataError(f"{root.name}: {note}, else move these away")
        notes += (note,)
    if left_out:
        notes += (
            f"{in_short(left_out)} left out: named like label maps, but of no scan here; list the"
            " scans in a cohort.csv with case_id, image and label to train with them",
        )
    cases = (SourceCase(stem_of(path), path, map_of.get(path), origin="folder") for path in scans)
    dataset = Dataset("folder", real(root).name, {}, tuple(cases), notes=notes)
    return with_label_names(dataset, root / _NAME)


def _called_alike(root: Path, files: Sequence[Path]) -> list[tuple[list[Path], list[Path]]]:
    """Return the scans and label maps that lie and are called alike.

    Words that say what a file is, such as `image`, `seg` or `labelsTr`, may differ.
    """
    groups: dict[tuple[str, ...], tuple[list[Path], list[Path]]] = {}
    for path in files:
        words = _words_in_order(root, path)
        rest = tuple(word for word in words if word not in _LABEL_WORDS | _IMAGE_WORDS)
        group = groups.setdefault(rest, ([], []))
        group[not _LABEL_WORDS.isdisjoint(words)].append(path)
    return list(groups.values())


def _kind(files: Sequence[Path]) -> str:
    return "NIfTI files" if all(map(is_nifti, files)) else "NIfTI, NRRD and MetaImage files"


def _words(root: Path, path: Path) -> set[str]:
    """Return the words of a file's name and of its folders' below a root; `imagesTr` are two."""
    return set(_words_in_order(root, path))


def _words_in_order(root: Path, path: Path) -> list[str]:
    folders = (_OF_A_SPLIT.sub(r"_\1", part) for part in path.relative_to(root).parts[:-1])
    text = unicodedata.normalize("NFC", "/".join([*folders, stem_of(path)]))  # macOS writes NFD
    return re.split(r"[-_. /]", text.lower())


def _below(root: Path) -> list[Path]:
    """Return the scan files in the folders below one, but for hidden ones and work directories."""
    folders, files = [root], []
    for _ in range(_DEPTH):
        below = (path for folder in folders for path in sorted(folder.iterdir()))
        folders = [
            path for path in below if path.is_dir() and path.name[0] != "." and not is_work(path)
        ]
        files += [file for folder in folders for file in scan_files(folder)]
    return files


def _recognize_folders(root: Path) -> Recognized | None:
    if not root.is_dir() or scan_files(root) or is_work(root):
        return None
    files = _below(root)
    labels = counted(sum(bool(_words(root, p) & _LABEL_WORDS) for p in files), "label map")
    reason = f"{len(files)} {_kind(files)} in folders, {labels}"
    return (reason, partial(_read_folders, root, files)) if files else None


def _read_folders(root: Path, files: Sequence[Path]) -> Dataset:
    """List the scans, each with the label map that is called and lies alike.

    Folders called `Va`, `val`, `Ts`, `test` and the like hold scans for validation and test.

    Raises:
        DataError: a label map has no scan, or two, or a scan two label maps.
    """
    over_time = [path for path in files if _OVER_TIME in _words(root, path)]
    map_of: dict[Path, Path | None] = {}
    for scans, maps in _called_alike(root, [path for path in files if path not in over_time]):
        if maps and (len(scans), len(maps)) != (1, 1):
            both = f"{counted(len(scans), 'scan')} and {counted(len(maps), 'label map')} are"
            raise DataError(
                f"{root.name}: {maps[0].relative_to(root)}: {both if scans else 'no scan is'}"
                " called alike; list the scans in a cohort.csv with case_id, image and label"
            )
        map_of |= dict.fromkeys(scans, maps[0] if maps else None)
    channel = "_0000" if all(stem_of(path).endswith("_0000") for path in map_of) else ""
    own = [
        stem_of(p).removesuffix(channel) if _words(p.parent, p) - _IMAGE_WORDS else p.parent.name
        for p in map_of
    ]
    longer = [f"{p.parent.name}_{stem_of(p)}" for p in map_of]
    cases = tuple(
        SourceCase(case_id, image, map_of[image], _split_of(root, image), origin=image.parent.name)
        for case_id, image in zip(told_apart(own, longer), map_of, strict=True)
    )
    notes: tuple[str, ...] = ()
    if over_time:
        notes += (f"not read {in_short([path.name for path in over_time])}, a scan over time",)
    for folder in dict.fromkeys(path.parent for path in files):
        if _words(root, folder / "_") & _LABEL_WORDS:
            notes += require_labels_read(folder, files)
        else:
            notes += unread(folder, files, "scans and label maps")
    dataset = Dataset("folders", real(root).name, {}, cases, notes=notes)
    return with_label_names(dataset, root / _NAME)


def _split_of(root: Path, path: Path) -> Split:
    words = _words(root, path.parent / "_")
    splits = {SPLIT_OF[word] for word in words & SPLIT_OF.keys()} - {"train"}
    return min(splits, default="train")


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


def _recognize_decathlon(root: Path) -> Recognized | None:
    path = root / _DECATHLON
    document = read_object(path) if path.is_file() else {}
    listed = _training(document)
    if not listed or "labels" not in document:  # a datalist of MONAI may have this name too
        return None
    reason = f"{_DECATHLON} lists {len(listed)} training pairs of image and label"
    return reason, partial(_read_json, path, document, "decathlon")


def _recognize_monai(root: Path) -> Recognized | None:
    """Recognize a path that is a datalist, else the one directly in a folder."""
    documents = {}
    for path in [root] if root.is_file() else sorted(root.glob("*.json")):
        try:
            document = read_object(path) if path.suffix == ".json" and path.is_file() else {}
        except DataError:
            if path == root:
                raise
            continue  # another JSON of the folder, which is not to be read
        if "image" in next(iter(_training(document)), {}):
            documents[path] = document
    if len(documents) > 1:
        first, second, *_ = documents
        raise DataError(
            f"{root.name}: {len(documents)} datalists, {first.name} and {second.name}; name the"
            " one to read"
        )
    for path, document in documents.items():
        reason = f"{path.name} lists {len(document['training'])} images"
        return reason, partial(_read_json, path, document, "monai_datalist")
    return None


def _training(document: JsonObject) -> Sequence[Any]:
    """Return the training entries of a datalist, none where the first of them is no object."""
    listed = document.get("training")
    return listed if isinstance(listed, list) and isinstance(next(iter(listed), 0), dict) else []


def _read_json(path: Path, document: JsonObject, layout: str) -> Dataset:
    rows = [(key, row) for key in _PARTS for row in _rows(document.get(key), key, path.name)]
    images = [_listed_file(path, row.get("image"), key) for key, row in rows]
    longer = [f"{image.parent.name}_{stem_of(image)}" for image in images]
    case_ids = told_apart(list(map(stem_of, images)), longer)
    listed = document.get("modality") if layout == "decathlon" else None
    channels = list(listed.values()) if isinstance(listed, Mapping) else []
    several = len(channels) > 1
    cases = tuple(
        SourceCase(
            str(row.get("case_id") or name),
            image,
            _listed_file(path, row["label"], key) if row.get("label") else None,
            SPLIT_OF[key],
            str(row["subject_id"]) if row.get("subject_id") else None,
            scan_labels_of(row, (*NOT_LABELS, *_OTHER_LABELS)),
            origin=key,
            load=partial(read_volume, image, several=True) if several else None,
        )
        for (key, row), image, name in zip(rows, images, case_ids, strict=True)
    )
    notes = _notes([row for _, row in rows])
    if several:
        notes += (f"the first of {len(channels)} channels in a file is used, {channels[0]}",)
    if layout == "decathlon":
        maps = [case.reference for case in cases if case.reference]
        for what, files in ("label maps", maps), ("images", images):
            for folder in dict.fromkeys(file.parent for file in files):
                notes += unread(folder, files, f"the {what} that {path.name} lists")
    name = str(document.get("name") or path.parent.name)
    dataset = Dataset(layout, name, {}, cases, modality_of(document.get("modality")), notes=notes)
    return with_label_names(dataset, path, document.get("labels"))


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
    where = f"{datalist.name}: an entry of '{key}'"
    if not isinstance(name, str) or not name:
        raise DataError(f"{where} has no image, got {repr(listed)[:80]}")
    places = [datalist.parent / name, datalist.parent.parent / name]
    return the_file(places, where, " beside the JSON or in the folder above it")


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
)
FOLDER = Layout("a plain folder of scans", _recognize_folder)
FOLDERS = Layout(
    "folders of scans and of label maps called alike, or a folder per scan", _recognize_folders
)
DECATHLON = Layout(
    "Medical Segmentation Decathlon: dataset.json lists training [{image, label}] and test",
    _recognize_decathlon,
)
MONAI_DATALIST = Layout(
    "a datalist of MONAI: a JSON with training [{image, label, fold}], validation and testing",
    _recognize_monai,
)
