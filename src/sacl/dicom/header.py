"""Read single values of a header, tolerating what hospitals write; find the persons it names."""

from __future__ import annotations

import contextlib
import logging
import math
import re
import warnings
from collections.abc import Iterator
from typing import Any

from pydicom import Dataset
from pydicom.multival import MultiValue

from sacl.dicom.files import DAMAGE

Numbers = tuple[float, ...]

_PATIENT = (
    *("PatientName", "PatientID", "OtherPatientNames", "OtherPatientIDs", "PatientBirthName"),
    *("PatientMotherBirthName", "PatientBirthDate", "AccessionNumber", "MedicalRecordLocator"),
)
_STAFF_AND_PLACE = (
    *("PatientAddress", "StudyID", "IssuerOfPatientID", "InstitutionName", "StationName"),
    *("ReferringPhysicianName", "PerformingPhysicianName", "PhysiciansOfRecord", "OperatorsName"),
    *("RequestingPhysician", "NameOfPhysiciansReadingStudy", "InstitutionalDepartmentName"),
)
_SHORTEST = 3
"""Shorter parts of a name, such as initials, stand in too many words."""
_MASK = "***"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom from printing the values it finds odd: they can be a patient's."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def text(header: Dataset, keyword: str) -> str:
    """Return a value as stripped text, values of a list joined by a backslash; empty if none."""
    return "\\".join(str(item).strip().strip("\0") for item in _values(header, keyword))


def numbers(header: Dataset, keyword: str, count: int) -> Numbers | None:
    """Return so many finite numbers of a value, None where it is missing or garbled."""
    try:
        values = tuple(float(item) for item in _values(header, keyword))
    except DAMAGE:
        return None
    return values if len(values) == count and all(map(math.isfinite, values)) else None


def one_number(header: Dataset, keyword: str) -> float | None:
    """Return one finite number, None where it is missing or garbled."""
    values = numbers(header, keyword, 1)
    return values[0] if values else None


def integer(header: Dataset, keyword: str) -> int | None:
    """Return a whole number, None where it is missing or garbled."""
    value = one_number(header, keyword)
    return None if value is None else int(value)


def near(a: Numbers | None, b: Numbers | None, tolerance: float) -> bool:
    """Tell whether two lists of numbers are there and differ nowhere by more than the tolerance."""
    if a is None or b is None:
        return False
    return all(abs(x - y) <= tolerance for x, y in zip(a, b, strict=True))


def names_the_patient(words: str, header: Dataset) -> bool:
    """Tell whether a text holds a patient's name or number, whole or a part of three letters.

    Where the header says that the identity has been removed, its names are made up.
    """
    if text(header, "PatientIdentityRemoved").upper() == "YES":
        return False
    return bool(_parts(words) & _words(header, _PATIENT))


def scrubbed(words: str, header: Dataset) -> str:
    """Return a text without words that name somebody, and without numbers of 5 digits or more.

    A person described in other words is not recognized: look at a text before you pass it on.
    """
    for word in sorted(_words(header, _PATIENT + _STAFF_AND_PLACE), key=len, reverse=True):
        words = re.sub(re.escape(word), _MASK, words, flags=re.IGNORECASE)
    words = re.sub(r"\d{1,4}[./-]\d{1,2}[./-]\d{1,4}|\d{5,}", _MASK, words)
    return " ".join(words.split())


def _values(header: Dataset, keyword: str) -> list[Any]:
    """Return the values of an attribute; none where it is missing, empty or cannot be read."""
    try:
        value = header.get(keyword)
    except DAMAGE:
        return []
    if isinstance(value, (MultiValue, list)):
        return list(value)
    return [] if value is None else [value]


def _words(header: Dataset, keywords: tuple[str, ...]) -> set[str]:
    parts = {part for keyword in keywords for part in _parts(text(header, keyword))}
    return {part for part in parts if len(part) >= _SHORTEST}


def _parts(words: str) -> set[str]:
    return {words.lower(), *re.split(r"[\W_]+", words.lower())}
