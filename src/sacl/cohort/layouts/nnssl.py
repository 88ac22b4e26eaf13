"""nnssl: `pretrain_data.json`, a collection of datasets, subjects, sessions and images; in and out.

The format of nnssl (MIC-DKFZ): `datasets` -> `subjects` (`subject_info`) -> `sessions`
(`session_info`) -> `images` with `name`, `image_path`, `modality`, `image_info` and
`associated_masks {anatomy_mask, anonymization_mask}`. Levels may be objects or lists, and anything
but `image_path` may be missing. Every image is an unlabeled training scan; plain values of the
three `info` blocks are scan-wise labels, an image's own before its session's and its subject's.

A path is absolute, relative to the JSON, or begins with `$VARIABLE`: that folder where the
environment has it, else the folder of the JSON or the one above it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sacl.cohort.dataset import (
    Dataset,
    Layout,
    Recognized,
    SourceCase,
    common_modality,
    the_file,
    told_apart,
)
from sacl.cohort.layouts.nnunet import modality_of
from sacl.cohort.manifest import read_image
from sacl.cohort.tables import scan_labels_of
from sacl.errors import DataError
from sacl.files.atomic import replacing, write_text
from sacl.files.documents import JsonObject, read_object
from sacl.files.nifti import read_label_map, stem
from sacl.progress import track
from sacl.types import Case, Cohort

NAME = "pretrain_data.json"
_MODALITIES = {"ct": "CT", "mr": "MRI"}
_SESSION = "ses-DEFAULT"


@dataclass(frozen=True)
class _Image:
    """One entry of the JSON with the keys of the levels above it; `labels` are scan-wise labels."""

    dataset: str
    subject: str
    session: str
    entry: JsonObject
    labels: Mapping[str, str]

    @property
    def name(self) -> str:
        return stem(Path(str(self.entry.get("name") or self.entry.get("image_path") or "")))


def _recognize(root: Path) -> Recognized | None:
    path = _file(root)
    document = read_object(path) if path.is_file() else {}
    if not isinstance(document.get("datasets"), (dict, list)):
        return None
    return f"{path.name} is a collection of nnssl", partial(_read, path, document)


def _read(path: Path, document: JsonObject) -> Dataset:
    """List the images of a collection, all for training and without a reference."""
    images = _images(document)
    # One name in two datasets is two people.
    places = list(dict.fromkeys((image.dataset, image.subject) for image in images.values()))
    names = told_apart([subject for _, subject in places], ["__".join(place) for place in places])
    subject_of = dict(zip(places, names, strict=True))
    cases = [
        SourceCase(
            case_id,
            _existing(path, image.entry.get("image_path"), case_id, "image_path"),
            subject_id=subject_of[image.dataset, image.subject],
            scan_labels=image.labels,
            origin=path.name,
            modality=modality_of({"0": image.entry.get("modality") or ""}),
        )
        for case_id, image in images.items()
    ]
    name = str(document.get("collection_name") or path.parent.name)
    return Dataset("nnssl", name, {}, tuple(cases), common_modality(cases))


def anatomy_masks(path: Path) -> dict[str, Path]:
    """Return the file of the anatomy mask by case, of all images of a collection that have one."""
    path = _file(path)
    files = {}
    for case_id, image in _images(read_object(path)).items():
        masks = image.entry.get("associated_masks")
        name = masks.get("anatomy_mask") if isinstance(masks, Mapping) else None
        if name:
            files[case_id] = _existing(path, name, case_id, "anatomy_mask")
    return files


def write_collection(
    out: Path, cohort: Cohort, cases: Sequence[Case], home: Path, maps: Path, force: bool
) -> Path:
    """Write images, coarse label maps and `pretrain_data.json` into a folder, and return the JSON.

    Files are hard links to the cohort's own, which lie in `home`, where the disk allows it, else
    copies. All paths in the JSON are relative to it. Scan-wise labels become `image_info`, coarse
    label maps (`maps/CASE.nii.gz`; a case may have none) the `anatomy_mask`.
    """
    images: dict[str, list[JsonObject]] = defaultdict(list)
    drawn = {path.stem.removesuffix(".nii"): path for path in maps.glob("*.nii.gz")}
    for case in cases:  # nothing is written where one of them is damaged
        read_image(home, case)
        if case.case_id in drawn:
            read_label_map(drawn[case.case_id], cohort.scheme)
    for case in track(cases, "export", len(cases)):
        name, path = Path(case.image).name, drawn.get(case.case_id)
        mask = f"anatomy/{path.name}" if path else None
        _put(home / case.image, out / "images" / name, force)
        if path and mask:
            _put(path, out / mask, force)
        entry = {
            "name": name,
            "image_path": f"images/{name}",
            "modality": _MODALITIES[cohort.modality],
            "image_info": dict(case.scan_labels),
            "associated_masks": {"anonymization_mask": None, "anatomy_mask": mask},
        }
        images[case.subject_id].append(entry)
    subjects = {}
    for subject, own in images.items():  # each with one session
        session = {"session_id": _SESSION, "session_info": None, "images": own}
        sessions = {_SESSION: session}
        subjects[subject] = {"subject_id": subject, "subject_info": None, "sessions": sessions}
    name = cohort.name
    dataset = {"dataset_index": name, "name": name, "dataset_info": None, "subjects": subjects}
    document = {"collection_index": 0, "collection_name": name, "datasets": {name: dataset}}
    write_text(out / NAME, json.dumps(document, indent=1) + "\n")
    return out / NAME


def _file(root: Path) -> Path:
    return root if root.suffix == ".json" else root / NAME


def _images(document: JsonObject) -> dict[str, _Image]:
    """Return all entries of the JSON by case: by name, by whole place where two share a name."""
    images = [
        _Image(dataset_id, subject_id, session_id, entry, _labels(subject, session, entry))
        for dataset_id, dataset in _level(document.get("datasets"), "dataset_index")
        for subject_id, subject in _level(dataset.get("subjects"), "subject_id")
        for session_id, session in _level(subject.get("sessions"), "session_id")
        for _, entry in _level(session.get("images"), "name")
    ]
    places = [f"{i.dataset}__{i.subject}__{i.session}__{i.name}" for i in images]
    by_case: dict[str, _Image] = {}
    case_ids = told_apart([image.name for image in images], places)
    for case_id, image in zip(case_ids, images, strict=True):
        if not image.name or case_id in by_case:
            raise DataError(
                f"{NAME}: subject {image.subject} has an image without a name, or two of the name"
                f" '{image.name}' in one session; name every image"
            )
        by_case[case_id] = image
    return by_case


def _level(entries: Any, key: str) -> Iterator[tuple[str, JsonObject]]:
    """Yield the names and the entries of an object, or of a list whose entries name themselves."""
    if isinstance(entries, Mapping):
        pairs: Iterable[tuple[Any, Any]] = entries.items()
    else:
        listed = entries if isinstance(entries, list) else []
        pairs = ((e.get(key, n), e) for n, e in enumerate(listed) if isinstance(e, Mapping))
    for name, entry in pairs:
        if isinstance(entry, Mapping):
            yield str(name), entry


def _labels(subject: JsonObject, session: JsonObject, entry: JsonObject) -> dict[str, str]:
    blocks = (subject.get("subject_info"), session.get("session_info"), entry.get("image_info"))
    said = (block for block in blocks if isinstance(block, Mapping))
    return {name: label for block in said for name, label in scan_labels_of(block, ()).items()}


def _existing(path: Path, text: Any, case_id: str, key: str) -> Path:
    if not isinstance(text, str) or not text:
        raise DataError(f"{path.name}: image {case_id} has no '{key}'")
    first, _, rest = text.partition("/")
    if not first.startswith("$"):
        places = [path.parent / text]
    elif variable := os.environ.get(first.strip("${}")):
        places = [Path(variable) / rest]
    else:
        places = [path.parent / rest, path.parent.parent / rest]
    remedy = f"; set {first} to the folder it stands for" if first.startswith("$") else ""
    return the_file(places, f"{path.name}: the '{key}' of {case_id}", remedy)


def _put(source: Path, target: Path, force: bool) -> None:
    """Link a file to another place, or copy it where it cannot be linked."""
    if target.exists() and not force:
        return
    with replacing(target) as temporary:
        with contextlib.suppress(OSError):
            os.link(source, temporary)
        if not temporary.exists():
            shutil.copyfile(source, temporary)


NNSSL = Layout(
    "nnssl: pretrain_data.json, a collection of datasets, subjects, sessions and images", _recognize
)
