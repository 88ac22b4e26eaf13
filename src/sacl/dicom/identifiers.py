"""Whatever in a header names somebody, so that it can be kept out of a text."""

from __future__ import annotations

import re

from pydicom import Dataset

from sacl.dicom.values import text

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


def names_the_patient(words: str, header: Dataset) -> bool:
    """Tell whether a text holds a patient's name or number, whole or a part of three letters.

    It does not where the header says that the identity has been removed: then its names are made
    up (`PatientIdentityRemoved`).
    """
    if text(header, "PatientIdentityRemoved").upper() == "YES":
        return False
    return bool(_parts(words) & _words(header, _PATIENT))


def scrubbed(words: str, header: Dataset) -> str:
    """Return a text without words that name somebody, and without numbers of 5 digits or more.

    Wherever such a word stands, also inside of another one, it becomes `***`. What a free text
    says in other words, nobody can know: look at it before you pass it on.
    """
    for word in sorted(_words(header, _PATIENT + _STAFF_AND_PLACE), key=len, reverse=True):
        words = re.sub(re.escape(word), _MASK, words, flags=re.IGNORECASE)
    words = re.sub(r"\d{1,4}[./-]\d{1,2}[./-]\d{1,4}|\d{5,}", _MASK, words)
    return " ".join(words.split())


def _words(header: Dataset, keywords: tuple[str, ...]) -> set[str]:
    """Return all values and parts of values of three letters or more, in lower case."""
    found = {part for keyword in keywords for part in _parts(text(header, keyword))}
    return {part for part in found if len(part) >= _SHORTEST}


def _parts(words: str) -> set[str]:
    return {words.lower(), *re.split(r"[\W_]+", words.lower())}
