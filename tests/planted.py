"""A clean cohort of small CTs in memory, to plant one fault in, and its way through the check."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sacl.check.cohort_checks import CohortFacts, check_cohort, likely_modality
from sacl.check.facts import all_organs, measure_case
from sacl.check.findings import Finding
from sacl.cohort.layouts.listing import find
from sacl.cohort.tables import with_table
from sacl.files.nifti import write_volume
from sacl.types import Grid, Volume

SHAPE, SPACING_MM = (24, 20, 16), 14.0
LABELS = {"spleen": 1, "kidney_right": 2, "kidney_left": 3, "liver": 4, "aorta": 5}
SUFFIX = {"train": "Tr", "test": "Ts"}


@dataclass
class Scan:
    """One scan before it is written; a test may change all of it."""

    image: np.ndarray
    labels: np.ndarray | None
    affine: np.ndarray
    label_affine: np.ndarray | None = None
    subject: str = ""
    split: str = "train"
    phase: str = "native"


@dataclass
class Files:
    """A cohort before it is written: scans by case, names of labels, and what is done at last."""

    scans: dict[str, Scan]
    labels: dict[str, int] = field(default_factory=lambda: dict(LABELS))
    modality: str = "CT"
    afterwards: Callable[[Path], None] = lambda root: None


def clean_scan(number: int) -> Scan:
    """Return a body of soft tissue in air, with five organs of adult size on their sides."""
    rng = np.random.default_rng(number)
    image = np.full(SHAPE, -1000.0)
    image[2:22, 3:18, :] = 40
    labels = np.zeros(SHAPE, np.uint8)
    shift = number % 3
    labels[12:21, 5:14, 6 : 13 + shift] = LABELS["liver"]
    labels[3:7, 5:9, 8 : 12 + shift] = LABELS["spleen"]
    labels[16:19, 14:17, 2 : 6 + shift] = LABELS["kidney_right"]
    labels[5:8, 14:17, 2 : 7 + shift] = LABELS["kidney_left"]
    labels[10:12, 14:16, 1 : 13 + shift] = LABELS["aorta"]
    image += 30 * (labels > 0) + rng.normal(0, 12, SHAPE)
    affine = np.diag([SPACING_MM] * 3 + [1.0])
    affine[:3, 3] = (-160 - number, -130, 200 + number)
    # No two references are alike: every body has its own corner of the liver missing.
    labels[12 + number % 4, 5, 6 + number // 4] = 0
    return Scan(image.astype(np.int16), labels, affine)


def clean_files() -> Files:
    """Return ten scans of nine subjects, seven for training, with two phases."""
    scans = {}
    for number in range(10):
        scan = clean_scan(number)
        scan.subject = f"s{max(number, 1)}"
        scan.split = "train" if number < 7 else "test"
        scan.phase = ("native", "portal_venous")[number % 2]
        scans[f"c{number}"] = scan
    return Files(scans)


def write_files(files: Files, root: Path) -> Path:
    """Write a cohort in nnU-Net's raw layout."""
    names = {"background": 0, **files.labels}
    document = {"channel_names": {"0": files.modality}, "labels": names, "file_ending": ".nii"}
    root.mkdir(parents=True)
    (root / "dataset.json").write_text(json.dumps({"name": "planted", **document}))
    rows = []
    for case, scan in files.scans.items():
        part = SUFFIX[scan.split]
        grid = Grid(scan.image.shape, scan.affine)
        write_volume(root / f"images{part}" / f"{case}_0000.nii", Volume(scan.image, grid))
        if scan.labels is not None:
            affine = scan.affine if scan.label_affine is None else scan.label_affine
            label = Volume(scan.labels, Grid(scan.labels.shape, affine))
            write_volume(root / f"labels{part}" / f"{case}.nii", label)
        rows.append((case, scan.subject, scan.phase))
    with (root / "scan_labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("case_id", "subject_id", "phase"), *rows])
    files.afterwards(root)
    return root


def cohort_of(root: Path) -> CohortFacts:
    """Read and measure a cohort."""
    found = with_table(find(root)[0], root / "scan_labels.csv")
    scans = tuple(measure_case(case, found) for case in found.cases)
    modality = found.modality or likely_modality(scans)
    return CohortFacts(found.name, all_organs(found), scans, modality)


def findings_of(files: Files, root: Path) -> list[Finding]:
    """Write, read, measure and check a cohort."""
    return check_cohort(cohort_of(write_files(files, root / "planted")))
