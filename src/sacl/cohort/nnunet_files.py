"""The JSON files of nnU-Net version 2: `dataset.json`, `summary.json` and `splits_final.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from sacl.files.atomic import write_text
from sacl.types import UNKNOWN, Case, LabelScheme

DATASET, SUMMARY, SPLITS = "dataset.json", "summary.json", "splits_final.json"
_CHANNELS = {"ct": "CT", "mr": "MRI", None: "image"}


def write_dataset(
    path: Path, scheme: LabelScheme, modality: Literal["ct", "mr"] | None, training: int
) -> None:
    """Write `dataset.json`; the channel's name `CT` makes nnU-Net normalize by the whole cohort."""
    document = {
        "channel_names": {"0": _CHANNELS[modality]},
        "labels": {"background": 0} | {n: v for v, n in enumerate(scheme.names, start=1)},
        "numTraining": training,
        "file_ending": ".nii.gz",
        "name": scheme.name,
    }
    write_text(path, json.dumps(document, indent=4) + "\n")


def write_summary(
    path: Path,
    cases: Mapping[str, Mapping[int, Mapping[str, float]]],
    means: Mapping[int, Mapping[str, float]],
    foreground: Mapping[str, float],
) -> None:
    """Write `summary.json`; of files only the names are kept, and NaN is written as `NaN`.

    Args:
        path: Where to write it.
        cases: The figures of `metrics.nnunet` by case and label.
        means: The mean figures by label.
        foreground: The mean figures over the labels.
    """
    document = {
        "foreground_mean": foreground,
        "mean": {str(label): figures for label, figures in means.items()},
        "metric_per_case": [
            {
                "metrics": {str(label): figures for label, figures in by_label.items()},
                "prediction_file": f"{case_id}.nii.gz",
                "reference_file": f"{case_id}.nii.gz",
            }
            for case_id, by_label in cases.items()
        ],
    }
    # NaN is no JSON, but what nnU-Net writes and reads.
    write_text(path, json.dumps(document, indent=4, sort_keys=True) + "\n")


def write_folds(path: Path, folds: Sequence[Mapping[str, Sequence[str]]]) -> None:
    """Write `splits_final.json`."""
    write_text(path, json.dumps(folds, indent=4) + "\n")


def folds_of(
    cases: Sequence[Case], count: int, seed: int, scan_label: str = "phase"
) -> list[dict[str, list[str]]]:
    """Return `count` folds of cases: every subject is held out once, with all of its scans.

    Subjects are dealt to the folds stratum by stratum in a seeded order, so that the folds differ
    by at most one subject, in all and (by at most one too) of each stratum. A subject's stratum is
    the set of values that its scans have for `scan_label`. There are never more folds than
    subjects, and none for fewer than two subjects.
    """
    values: dict[str, set[str]] = {}
    for case in cases:
        label = case.scan_labels.get(scan_label, UNKNOWN)
        values.setdefault(case.subject_id, set()).add(label)
    count = min(count, len(values))
    if count < 2:
        return []
    strata: dict[str, list[str]] = {}
    for subject in sorted(values):
        strata.setdefault("+".join(sorted(values[subject])), []).append(subject)
    generator = np.random.default_rng(seed)
    dealt = [
        members[index]
        for _, members in sorted(strata.items())
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
