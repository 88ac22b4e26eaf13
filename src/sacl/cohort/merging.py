"""Merge several datasets into one: ids stay unique, subjects apart, organs with their cases."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence

from sacl.cohort.layouts.found import Found, FoundCase
from sacl.cohort.splits import subject_of
from sacl.organs import snake_case

DATASET = "dataset"
"""The scan-wise label that says which dataset a scan of a merged cohort is from."""


def merge(founds: Sequence[Found]) -> Found:
    """Return all cases as one dataset; a single one is returned as it is.

    A case id that several datasets have gets its dataset's name in front, and so does a subject:
    whoever has the same number in two datasets is not the same person, but for DICOM exports, which
    are read with one key. Each case keeps its split, its scan-wise labels and what its label
    values mean.
    """
    if len(founds) == 1:
        return founds[0]
    names = _unique([found.name for found in founds])
    case_ids = Counter(case.case_id for found in founds for case in found.cases)
    # Exports that share a key share their pseudonyms: there, one name is one person.
    spaces = [found.layout if found.layout == "dicom" else str(n) for n, found in enumerate(founds)]
    named = {
        (space, subject_of(case))
        for space, found in zip(spaces, founds, strict=True)
        for case in found.cases
    }
    subjects = Counter(subject for _, subject in named)
    clashing = {s for s, count in subjects.items() if count > 1}
    cases = tuple(
        _renamed(case, found, name, case_ids[case.case_id] > 1, subject_of(case) in clashing)
        for found, name in zip(founds, names, strict=True)
        for case in found.cases
    )
    renamed = sum(count for count in case_ids.values() if count > 1)
    notes = [f"{name}: {n}" for found, name in zip(founds, names, strict=True) for n in found.notes]
    if renamed:
        notes.append(f"{renamed} cases of the same name have their dataset's name in front now")
    return Found(
        layout="+".join(dict.fromkeys(found.layout for found in founds)),
        name="+".join(names),
        organs={},
        cases=cases,
        notes=tuple(notes),
    )


def _renamed(
    case: FoundCase, found: Found, name: str, clashes: bool, subject_clashes: bool
) -> FoundCase:
    return dataclasses.replace(
        case,
        case_id=f"{name}_{case.case_id}" if clashes else case.case_id,
        subject_id=f"{name}_{subject_of(case)}" if subject_clashes else case.subject_id,
        scan_labels={DATASET: snake_case(name), **case.scan_labels},
        origin=f"{name}, {case.origin}",
        organs=found.organs if case.organs is None else case.organs,
        ignore=found.ignore if case.ignore is None else case.ignore,
        modality=case.modality or found.modality,
    )


def _unique(names: Sequence[str]) -> list[str]:
    """Return names that can stand in a file name, numbered where two datasets have the same."""
    plain = [re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "data" for name in names]
    counts = Counter(plain)
    seen: Counter[str] = Counter()
    unique = []
    for name in plain:
        seen[name] += 1
        unique.append(f"{name}-{seen[name]}" if counts[name] > 1 else name)
    return unique
