"""Whether scans are CT or MR: as the source says, else guessed by the air; a cohort is one."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Literal

from sacl.cohort.layouts.found import Found, FoundCase, Modality, naming_case
from sacl.errors import ConfigError
from sacl.files.nifti import read_volume
from sacl.types import NativeFrame, Volume

_AIR_HU = -500.0


def read_scan(case: FoundCase) -> tuple[Volume, NativeFrame]:
    """Read a case's image, by its own reader where it has one.

    Raises:
        DataError: as `read_volume`.
    """
    with naming_case(case):
        return case.load() if case.load is not None else read_volume(case.image)


def with_modality(found: Found, wanted: Literal["auto", "ct", "mr"]) -> Found:
    """Return a dataset of which every case says its modality.

    Where neither the case nor the dataset says it, it is the wanted one; with `auto` the first such
    scan decides for all of them: the air of a CT lies near -1000 HU, MR has hardly any negatives.
    """
    cases = [dataclasses.replace(c, modality=c.modality or found.modality) for c in found.cases]
    unknown = [case for case in cases if case.modality is None]
    guess: Modality | None = None if wanted == "auto" else wanted
    notes: tuple[str, ...] = ()
    if unknown and guess is None:
        low = float(read_scan(unknown[0])[0].voxels.min())
        guess = "ct" if low < _AIR_HU else "mr"
        notes = (
            f"taken as {guess.upper()}, the lowest intensity of {unknown[0].case_id} is {low:g};"
            " set --ingest.modality if this is wrong",
        )
    told = tuple(dataclasses.replace(case, modality=case.modality or guess) for case in cases)
    return dataclasses.replace(found, cases=told, notes=found.notes + notes)


def of_one_modality(found: Found, wanted: Literal["auto", "ct", "mr"]) -> tuple[Modality, Found]:
    """Return the modality of a cohort and its scans of that modality.

    Of a mixed cohort only the wanted scans are kept. Of one that is all of another modality than
    is wanted, all are: the user knows better than a header.

    Raises:
        ConfigError: the cohort is mixed and nothing is wanted.
    """
    counts = Counter(case.modality for case in found.cases if case.modality is not None)
    if len(counts) == 1:
        (only,) = counts
        if wanted in ("auto", only):
            return only, found
        note = f"read as {wanted.upper()}, as ingest.modality says; the data says {only.upper()}"
        return _known(wanted), dataclasses.replace(found, notes=(*found.notes, note))
    if wanted == "auto":
        raise ConfigError(
            f"ingest.modality: {found.name} has {counts['ct']} CT and {counts['mr']} MR scans, and"
            " a cohort is of one modality; keep one with --ingest.modality ct or mr"
        )
    kept = tuple(case for case in found.cases if case.modality == wanted)
    note = f"{len(kept)} {wanted.upper()} scans are kept, {len(found.cases) - len(kept)} left out"
    return _known(wanted), dataclasses.replace(found, cases=kept, notes=(*found.notes, note))


def _known(wanted: Literal["auto", "ct", "mr"]) -> Modality:
    return "ct" if wanted == "ct" else "mr"
