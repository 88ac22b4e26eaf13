"""nnU-Net raw: `imagesTr/CASE_0000.nii.gz`, `labelsTr/CASE.nii.gz` and `dataset.json`.

`imagesVa`/`labelsVa` and `imagesTs`/`labelsTs` are read as validation and test. A training image
without a label map is an unlabeled scan. Both versions of `dataset.json` are understood. Where it
has a block `dataset`, {case: {images, label}}, the training cases are those, wherever they lie.
What nnU-Net version 2 reads of others is written too: `dataset.json` and `splits_final.json`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sacl.cohort.dataset import (
    Dataset,
    Layout,
    Modality,
    Part,
    Recognized,
    SourceCase,
    cases_of,
    the_file,
    three_parts,
)
from sacl.cohort.label_names import label_names
from sacl.cohort.splits import members_by_stratum, strata_of
from sacl.errors import DataError
from sacl.files import itk, nifti
from sacl.files.atomic import real, write_text
from sacl.files.documents import JsonObject, read_object
from sacl.types import PHASE, Case, LabelScheme

DATASET, SPLITS = "dataset.json", "splits_final.json"
_CHANNELS = {"ct": "CT", "mr": "MRI", None: "image"}
_MR_WORDS = ("mr", "t1", "t2", "flair", "adc", "dwi")


def _recognize(root: Path) -> Recognized | None:
    if not (root / DATASET).is_file():
        return None
    document = read_object(root / DATASET)
    parts = three_parts(root, "(.+)_0000", "(.+)", "CASE_0000.nii.gz", r".+_\d{4}")
    listed = document.get("dataset")
    if isinstance(listed, Mapping) and listed:
        reason = f"{DATASET}, which lists the files of {len(listed)} training cases"
        return reason, partial(_read, root, document, parts[1:], listed)
    for first in parts[0].scans.values():
        reason = f"{DATASET}, and imagesTr with channel files like {first.name}"
        return reason, partial(_read, root, document, parts, {})
    return None


def _read(root: Path, document: JsonObject, parts: list[Part], listed: JsonObject) -> Dataset:
    """List the cases; of several channels the first (0000) is taken."""
    ending = document.get("file_ending", ".nii.gz")
    known = (*nifti.SUFFIXES, *itk.SUFFIXES)
    if ending not in known:
        raise DataError(
            f"{DATASET}: file_ending '{str(ending)[:40]}', expected one of {', '.join(known)};"
            " convert the files"
        )
    names = label_names(document.get("labels"), DATASET)
    channels = document.get("channel_names", document.get("modality", {}))
    if not isinstance(channels, Mapping):
        raise DataError(
            f"{DATASET}: 'channel_names' is {str(channels)[:40]}, expected names by channel, such"
            ' as {"0": "CT"}'
        )
    training = tuple(_listed_case(root, str(case), files) for case, files in listed.items())
    cases, notes = cases_of(parts)
    if len(channels) > 1:
        first = next(iter(channels.values()))
        notes += (f"the first of {len(channels)} channels is used, {first}",)
    name = str(document.get("name") or real(root).name)
    modality = modality_of(channels)
    return Dataset("nnunet", name, names.organs, training + cases, modality, names.ignore, notes)


def modality_of(channels: Any) -> Modality | None:
    """Return the modality that the name of the first channel tells, None where it does not."""
    name = str(next(iter(channels.values()), "")) if isinstance(channels, Mapping) else ""
    if name.lower().startswith("ct"):
        return "ct"
    return "mr" if any(word in name.lower() for word in _MR_WORDS) else None


def write_dataset(path: Path, scheme: LabelScheme, modality: Modality | None, count: int) -> None:
    """Write `dataset.json` of `count` training cases.

    The channel's name `CT` makes nnU-Net normalize by the whole cohort.
    """
    document = {
        "channel_names": {"0": _CHANNELS[modality]},
        "labels": {"background": 0} | {n: v for v, n in enumerate(scheme.names, start=1)},
        "numTraining": count,
        "file_ending": ".nii.gz",
        "name": scheme.name,
    }
    write_text(path, json.dumps(document, indent=4) + "\n")


def folds_of(cases: Sequence[Case], count: int, seed: int) -> list[dict[str, list[str]]]:
    """Return `count` folds of cases: every subject is held out once, with all of its scans.

    Subjects are dealt to the folds phase by phase in a seeded order, so that the folds differ
    by at most one subject, in all and (by at most one too) of each phase. There are never more
    folds than subjects, and none for fewer than two.
    """
    strata = strata_of([(case.subject_id, case.scan_labels) for case in cases], PHASE)
    count = min(count, len(strata))
    if count < 2:
        return []
    generator = np.random.default_rng(seed)
    dealt = [
        members[index]
        for members in members_by_stratum(strata)
        for index in generator.permutation(len(members))
    ]
    fold_of = {subject: place % count for place, subject in enumerate(dealt)}
    return [
        {
            "train": [c.case_id for c in cases if fold_of[c.subject_id] != fold],
            "val": [c.case_id for c in cases if fold_of[c.subject_id] == fold],
        }
        for fold in range(count)
    ]


def _listed_case(root: Path, case_id: str, files: Any) -> SourceCase:
    """Return a case of the block `dataset`; of several images the first is taken."""
    images = files.get("images") if isinstance(files, Mapping) else None
    if not isinstance(images, list) or not images:
        raise DataError(f"{DATASET}: case {case_id} of 'dataset' has no list 'images'")

    def existing(name: Any) -> Path:
        place = root / os.path.expandvars(str(name))
        return the_file([place], f"{DATASET}: case {case_id} of 'dataset'")

    label = existing(files["label"]) if files.get("label") else None
    return SourceCase(case_id, existing(images[0]), label, origin="dataset")


NNUNET = Layout(
    "nnU-Net raw: imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz and dataset.json", _recognize
)
