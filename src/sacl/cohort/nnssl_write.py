"""Write a cohort as nnssl's `pretrain_data.json`, with the files that it names beside it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sacl.cohort.layouts.nnssl import NAME
from sacl.files.atomic import replacing, write_text
from sacl.progress import track
from sacl.types import Case, Cohort

_MODALITIES = {"ct": "CT", "mr": "MRI"}
_SESSION = "ses-DEFAULT"


def write_collection(
    out: Path, cohort: Cohort, cases: Sequence[Case], home: Path, maps: Path, force: bool
) -> Path:
    """Write images, coarse label maps and `pretrain_data.json` into a folder, and return the JSON.

    Files are hard links to the cohort's own where the disk allows it, else copies. All paths in
    the JSON are relative to it. Scan-wise labels become `image_info`, coarse label maps the
    `anatomy_mask`.

    Args:
        out: Where to write.
        cohort: The cohort.
        cases: Those of its cases to write.
        home: The cohort's folder.
        maps: Folder of coarse label maps, `CASE.nii.gz`; a case may have none.
        force: Write files anew that are there.
    """
    subjects: dict[str, Any] = {}
    for case in track(cases, "export", len(cases)):
        image = f"images/{Path(case.image).name}"
        mask = f"anatomy/{case.case_id}.nii.gz"
        has_mask = (maps / f"{case.case_id}.nii.gz").is_file()
        _put(home / case.image, out / image, force)
        if has_mask:
            _put(maps / f"{case.case_id}.nii.gz", out / mask, force)
        entry = {
            "name": Path(case.image).name,
            "image_path": image,
            "modality": _MODALITIES[cohort.modality],
            "image_info": dict(case.scan_labels),
            "associated_masks": {
                "anonymization_mask": None,
                "anatomy_mask": mask if has_mask else None,
            },
        }
        _images_of(subjects, case.subject_id).append(entry)
    write_text(out / NAME, json.dumps(_collection(cohort.name, subjects), indent=1) + "\n")
    return out / NAME


def _images_of(subjects: dict[str, Any], subject_id: str) -> list[dict[str, Any]]:
    """Return the list of a subject's images, new where there is none yet."""
    session: dict[str, Any] = {"session_id": _SESSION, "session_info": None, "images": []}
    subject = {"subject_id": subject_id, "subject_info": None, "sessions": {_SESSION: session}}
    images: list[dict[str, Any]]
    images = subjects.setdefault(subject_id, subject)["sessions"][_SESSION]["images"]
    return images


def _collection(name: str, subjects: dict[str, Any]) -> dict[str, Any]:
    dataset = {"dataset_index": name, "name": name, "dataset_info": None, "subjects": subjects}
    return {"collection_index": 0, "collection_name": name, "datasets": {name: dataset}}


def _put(source: Path, target: Path, force: bool) -> None:
    """Link a file to another place, or copy it where it cannot be linked."""
    if target.exists() and not force:
        return
    with replacing(target) as temporary:
        with contextlib.suppress(OSError):
            os.link(source, temporary)
        if not temporary.exists():
            shutil.copyfile(source, temporary)
