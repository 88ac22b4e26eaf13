"""Several datasets as one cohort: unique ids, subjects apart, all scans CT or all MR."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Literal

from sacl.cohort.dataset import Dataset, Modality, SourceCase, naming_case
from sacl.errors import ConfigError
from sacl.files.itk import volume_in
from sacl.organs import snake_case
from sacl.types import NativeFrame, Volume

DATASET = "dataset"
"""The scan-wise label that says which dataset a scan of a merged cohort is from."""
AIR_HU = -500.0
"""No MR goes below: its intensities are magnitudes, or normalized to a few units."""
_SEP = r"[-_. ]"
_NUMBERED = r"(?:frame|fr|phase|ph|time(?:point)?|tp?|visit|v|ses(?:sion)?|week|month|day|year)"
_SAID = (
    r"(?:ed|es|end[-_]?diastol(?:e|ic)|end[-_]?systol(?:e|ic)|diastole|systole|left|right|[lr]|lh|rh"
    r"|baseline|follow[-_]?up\d*|fu\d*|pre|post|prior|inspiration|expiration|insp|exp)"
)
_DATE = r"(?:19|20)\d\d[-_.]?(?:0[1-9]|1[0-2])[-_.]?(?:0[1-9]|[12]\d|3[01])"
_MARK = re.compile(
    rf"^(?P<who>.*\d.*?){_SEP}(?:{_NUMBERED}{_SEP}?\d+|{_SAID}|{_DATE})$", re.IGNORECASE
)
"""A name with a number in it, then what tells two scans of one person apart."""
_BIDS = re.compile(r"^(?P<who>sub-[A-Za-z0-9]+)_.+$")


def merge(datasets: Sequence[Dataset]) -> Dataset:
    """Return all cases as one dataset; a single one is returned as it is.

    A case id that several datasets have gets its dataset's name in front, and so does a subject:
    whoever has the same number in two datasets is not the same person, but for DICOM exports, which
    are read with one key.
    """
    if len(datasets) == 1:
        return datasets[0]
    names = _unique([dataset.name for dataset in datasets])
    case_ids = Counter(case.case_id for dataset in datasets for case in dataset.cases)
    # Exports that share a key share their pseudonyms: there, one name is one person.
    named = {
        ("dicom" if dataset.layout == "dicom" else n, case.subject)
        for n, dataset in enumerate(datasets)
        for case in dataset.cases
    }
    subjects = Counter(subject for _, subject in named)
    cases = tuple(
        dataclasses.replace(
            case,
            case_id=f"{name}_{case.case_id}" if case_ids[case.case_id] > 1 else case.case_id,
            subject_id=f"{name}_{case.subject}" if subjects[case.subject] > 1 else case.subject_id,
            scan_labels={DATASET: snake_case(name), **case.scan_labels},
            origin=f"{name}, {case.origin}",
            organs=dataset.table_of(case),
            ignore=dataset.ignored_in(case),
            modality=case.modality or dataset.modality,
        )
        for dataset, name in zip(datasets, names, strict=True)
        for case in dataset.cases
    )
    renamed = sum(count for count in case_ids.values() if count > 1)
    notes = [f"{name}: {n}" for d, name in zip(datasets, names, strict=True) for n in d.notes]
    if renamed:
        notes.append(f"{renamed} cases that shared a name now have their dataset's name in front")
    return Dataset(
        layout="+".join(dict.fromkeys(dataset.layout for dataset in datasets)),
        name="+".join(names),
        organs={},
        cases=cases,
        notes=tuple(notes),
    )


def person_in(case_id: str) -> str:
    """Return whom a scan's name speaks of: the name without frame, visit, date and side.

    Only a name with a number before such a mark is shortened: `liver_left` names no person.

    Example:
        >>> person_in("patient003_frame01"), person_in("p12_t0_left"), person_in("liver_12")
        ('patient003', 'p12', 'liver_12')
        >>> person_in("sub-01_ses-02_T1w"), person_in("case7_ED"), person_in("hippocampus_003")
        ('sub-01', 'case7', 'hippocampus_003')
    """
    if bids := _BIDS.match(case_id):
        return bids["who"]
    while mark := _MARK.match(case_id):
        case_id = mark["who"]
    return case_id


def with_guessed_subjects(dataset: Dataset) -> Dataset:
    """Return a dataset in which scans whose names speak of one person are of one subject.

    Two scans of a person in different splits would let a network be tested on whom it was trained
    on. Subjects that are known stay as they are.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for case in dataset.cases:
        if case.subject_id is None:
            groups[person_in(case.case_id)].append(case.case_id)
    groups = {person: scans for person, scans in groups.items() if len(scans) > 1}
    if not groups:
        return dataset
    subject_of = {case_id: person for person, scans in groups.items() for case_id in scans}
    cases = tuple(
        dataclasses.replace(case, subject_id=subject_of.get(case.case_id, case.subject_id))
        for case in dataset.cases
    )
    person, (first, second, *_) = next(iter(groups.items()))
    note = (
        f"ATTENTION, guessed from the names: {len(subject_of)} scans are of {len(groups)} subjects,"
        f" such as {first} and {second} of {person}; a subject's scans stay in one"
        " split. If this is wrong, name the subjects in a table with case_id and subject_id"
        " (--ingest.scan_labels TABLE.csv)"
    )
    return dataclasses.replace(dataset, cases=cases).with_notes(note)


def read_scan(case: SourceCase) -> tuple[Volume, NativeFrame]:
    """Read a case's image, by its own reader where it has one."""
    with naming_case(case):
        return case.load() if case.load is not None else volume_in(case.image)


def with_modality(dataset: Dataset, wanted: Literal["auto", "ct", "mr"]) -> Dataset:
    """Return a dataset of which every case says its modality: its own, the dataset's, the wanted.

    With `auto` most of three scans decide: the air of a CT is near -1000 HU, MR has no negatives.
    """
    cases = [dataclasses.replace(c, modality=c.modality or dataset.modality) for c in dataset.cases]
    unknown = [case for case in cases if case.modality is None]
    guess: Modality | None = None if wanted == "auto" else wanted
    note = ""
    if unknown and guess is None:
        read = dict.fromkeys((0, len(unknown) // 2, len(unknown) - 1))
        lows = {unknown[n].case_id: float(read_scan(unknown[n])[0].voxels.min()) for n in read}
        guess = "ct" if 2 * sum(low < AIR_HU for low in lows.values()) > len(lows) else "mr"
        agree = [name for name, low in lows.items() if (low < AIR_HU) == (guess == "ct")]
        against = f", against {len(lows) - len(agree)} of {len(lows)} scans read"
        note = (
            f"taken as {guess.upper()}, since the lowest intensity of {agree[0]} is"
            f" {lows[agree[0]]:g}{against if len(agree) < len(lows) else ''}; set"
            " --ingest.modality if this is wrong"
        )
    known = tuple(dataclasses.replace(case, modality=case.modality or guess) for case in cases)
    return dataclasses.replace(dataset, cases=known).with_notes(note)


def of_one_modality(
    dataset: Dataset, wanted: Literal["auto", "ct", "mr"]
) -> tuple[Modality, Dataset]:
    """Return the modality of a cohort and its scans of that modality.

    Of a mixed cohort the wanted scans are kept; it is refused where nothing is wanted. Of one that
    is all of another modality than is wanted, all are: the user knows better than a header.
    """
    counts = Counter(case.modality for case in dataset.cases if case.modality is not None)
    known: Modality = "ct" if wanted == "ct" else "mr"
    if len(counts) == 1:
        (only,) = counts
        if wanted in ("auto", only):
            return only, dataset
        note = f"read as {wanted.upper()}, as ingest.modality says; the data says {only.upper()}"
        return known, dataset.with_notes(note)
    if wanted == "auto":
        raise ConfigError(
            f"ingest.modality: {dataset.name} has {counts['ct']} CT and {counts['mr']} MR scans,"
            " but a cohort has one modality; keep one with --ingest.modality ct or mr"
        )
    kept = tuple(case for case in dataset.cases if case.modality == wanted)
    left_out = len(dataset.cases) - len(kept)
    note = f"{len(kept)} {wanted.upper()} scans are kept, {left_out} left out"
    return known, dataclasses.replace(dataset, cases=kept).with_notes(note)


def _unique(names: Sequence[str]) -> list[str]:
    """Return names that can stand in a file name, numbered where two datasets have the same."""
    plain = [re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "data" for name in names]
    return [
        f"{name}-{plain[: n + 1].count(name)}" if plain.count(name) > 1 else name
        for n, name in enumerate(plain)
    ]
