"""The private key from pseudonyms to the hospital's identifiers: drawn once, kept, extended.

Subjects become `p0001`, their scans `p0001-s01`, hospitals `site-01`, in an order drawn at random
by the operating system, not by a seed: no pseudonym can be computed from an identifier, nor
guessed from the order of names. Only this file, readable by its owner alone, leads back.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import os
import random
import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sacl.dicom.series import Series
from sacl.errors import DataError
from sacl.files.atomic import replacing
from sacl.files.documents import read_rows
from sacl.types import UNKNOWN

_CASE_ID = re.compile(r".+-s\d+")
_REMEDY = "restore it from a copy, or delete it so that new pseudonyms are drawn"


@dataclass(frozen=True)
class KeyRow:
    """A scan's pseudonyms and what they stand for; `part` tells apart the scans of one series."""

    case_id: str
    subject_id: str
    site: str
    patient_id: str
    study_uid: str
    series_uid: str
    part: str
    folder: str
    institution: str

    @property
    def subject(self) -> tuple[str, ...]:
        """Return what identifies the subject: PatientID, else the study, else the folder."""
        if self.patient_id:
            return (self.patient_id,)
        return ("", self.study_uid) if self.study_uid else ("", "", self.folder)

    @property
    def scan(self) -> tuple[str, ...]:
        """Return what identifies the scan."""
        return self.patient_id, self.study_uid, self.series_uid, self.folder, self.part


_COLUMNS = tuple(field.name for field in dataclasses.fields(KeyRow))


def read_key(path: Path) -> list[KeyRow]:
    """Return the rows of a key file; none where there is no file yet. What is no key is refused."""
    if not path.is_file():
        return []
    try:
        rows = [KeyRow(**row) for row in read_rows(path).values()]
    except (DataError, TypeError) as error:
        raise DataError(f"{path.name}: not readable as a key; {_REMEDY}") from error
    strange = next((row.case_id for row in rows if not _CASE_ID.fullmatch(row.case_id)), None)
    if strange is not None:
        raise DataError(
            f"{path.name}: '{strange}' is not a pseudonym of a scan, such as p0001-s01; {_REMEDY}"
        )
    return rows


def write_key(path: Path, rows: Iterable[KeyRow]) -> None:
    """Write a key file whole or not at all; only its owner can read it (mode 0600)."""
    with replacing(path) as temporary:
        temporary.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with os.fdopen(os.open(temporary, flags, 0o600), "w", newline="", encoding="utf-8") as out:
            writer = csv.DictWriter(out, _COLUMNS)
            writer.writeheader()
            writer.writerows(dataclasses.asdict(row) for row in rows)


def with_pseudonyms(
    every: Sequence[Series], known: Sequence[KeyRow]
) -> tuple[list[KeyRow], list[KeyRow]]:
    """Return a row per series, and the whole key: what was known, extended by what is new."""
    identities = ({**dataclasses.asdict(s.identity), "part": s.part} for s in every)
    bare = [KeyRow(**{name: who.get(name, "") for name in _COLUMNS}) for who in identities]
    subject_of = {row.subject: row.subject_id for row in known}
    site_of = {row.institution: row.site for row in known}
    _draw(subject_of, [row.subject for row in bare], "p{:04d}")
    _draw(site_of, [row.institution for row in bare if row.institution], "site-{:02d}")
    by_scan = {row.scan: row for row in known}
    numbers = [(row.subject_id, int(row.case_id.rpartition("-s")[2])) for row in known]
    last = dict(sorted(numbers))
    for row in bare:
        if row.scan not in by_scan:
            subject, site = subject_of[row.subject], site_of.get(row.institution, UNKNOWN)
            last[subject] = last.get(subject, 0) + 1
            case_id = f"{subject}-s{last[subject]:02d}"
            named = dataclasses.replace(row, case_id=case_id, subject_id=subject, site=site)
            by_scan[row.scan] = named
    return [by_scan[row.scan] for row in bare], list(by_scan.values())


def _draw(known: dict[Any, str], wanted: Iterable[Hashable], name: str) -> None:
    """Give everything that is wanted and not known the next free names, in random order."""
    new = [item for item in dict.fromkeys(wanted) if item not in known]
    random.SystemRandom().shuffle(new)
    taken = set(known.values())
    free = (name.format(n) for n in itertools.count(1) if name.format(n) not in taken)
    known.update(zip(new, free, strict=False))
