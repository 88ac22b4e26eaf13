"""A listed dataset -> the cohort: which subjects are labeled, what is annotated in each scan."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sacl.cohort.annotation import (
    annotated_organs,
    choose_scheme,
    dataset_in_lines,
    keep_annotated,
    require_all_learned,
)
from sacl.cohort.dataset import Dataset, SourceCase
from sacl.cohort.merging import read_scan
from sacl.cohort.references import Decided, MapRules, read_source_map
from sacl.cohort.splits import SplitRules, choose_splits
from sacl.errors import SaclError
from sacl.files.nifti import write_label_map, write_volume
from sacl.types import Case, LabelScheme

Window = Callable[[np.ndarray, str], tuple[float, float]]
"""Tells a scan's two intensities that become 0 and 1, by its voxels and its name in errors."""


@dataclass(frozen=True)
class CohortPlan:
    """What holds for all cases: the organs, the splits, who is labeled, and lines on all this."""

    dataset: Dataset
    scheme: LabelScheme
    labeled: tuple[str, ...]
    lines: tuple[str, ...]

    def shows(self, case: SourceCase) -> bool:
        """Tell whether a reference may be seen: by scoring, or by training where labeled."""
        return case.has_reference and (case.split != "train" or case.subject in self.labeled)


def plan_cohort(
    dataset: Dataset, organs: Sequence[str], rules: SplitRules, seed: int
) -> CohortPlan:
    """Return a cohort's plan; organs, subjects or an order that the data lack are refused."""
    scheme, notes = choose_scheme(dataset, organs)
    dataset = keep_annotated(dataset, scheme)
    lines = (*dataset.notes, *notes, *dataset_in_lines(dataset, scheme))
    dataset, labeled = choose_splits(dataset, rules, seed)
    plan = CohortPlan(dataset, scheme, tuple(labeled), lines)
    shown = [case for case in dataset.cases if case.split == "train" and plan.shows(case)]
    require_all_learned(dataset, shown, scheme)
    return plan


@dataclass(frozen=True)
class Converted:
    """A case as written, and what was decided of it."""

    case: Case
    decided: Decided


def convert_case(
    folder: Path, source: SourceCase, plan: CohortPlan, rules: MapRules, window_of: Window
) -> Converted:
    """Write a case's canonical image and, where it may be seen, its reference.

    Nothing is left of a case of which a file is damaged or contradicts the others.
    """
    image = f"images/{source.case_id}.nii"
    volume, native = read_scan(source)
    window = window_of(volume.voxels, f"case {source.case_id}")
    write_volume(folder / image, volume)
    case = Case(
        case_id=source.case_id,
        subject_id=source.subject,
        image=image,
        reference=None,
        split=source.split,
        native=native,
        window=window,
        scan_labels=source.scan_labels,
    )
    grid = volume.grid
    del volume  # the voxels are not kept while the reference is read
    if not plan.shows(source):
        return Converted(case, ({}, "", native.contradiction))
    annotated = annotated_organs(plan.dataset, source, plan.scheme)
    name = f"references/{source.case_id}.nii.gz"
    try:
        reference = read_source_map(plan.dataset, source, annotated, grid, rules)
        write_label_map(folder / name, reference.label_map)
    except SaclError:
        (folder / image).unlink()
        raise
    doubts = [native.contradiction] if native.contradiction else []
    if reference.contradiction not in ("", native.contradiction):
        doubts.append(f"label map: {reference.contradiction}")
    case = dataclasses.replace(case, reference=name, annotated=annotated)
    return Converted(case, (reference.contested, reference.repair, "; ".join(doubts)))
