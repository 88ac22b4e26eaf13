"""Whatever in a header names somebody, so that it can be kept out of a text."""

from __future__ import annotations

import re

from pydicom import Dataset

from sacl.io.dicom.values import text

_NAMING = (
    *("PatientName", "PatientID", "OtherPatientNames", "OtherPatientIDs", "PatientBirthName"),
    *("PatientMotherBirthName", "PatientBirthDate", "PatientAddress", "AccessionNumber", "StudyID"),
    *("ReferringPhysicianName", "PerformingPhysicianName", "PhysiciansOfRecord", "OperatorsName"),
    *("RequestingPhysician", "NameOfPhysiciansReadingStudy", "InstitutionName", "StationName"),
    *("InstitutionalDepartmentName", "IssuerOfPatientID", "MedicalRecordLocator"),
)
_SHORTEST = 3
"""Shorter parts of a name, such as initials, stand in too many words."""
_MASK = "***"


def naming_words(header: Dataset) -> frozenset[str]:
    """Return all words of three letters or more that name patient, staff, place or examination.

    Lower case; a name's parts and an identifier as a whole. Empty where the header says that
    whoever was in it has been removed (`PatientIdentityRemoved`).
    """
    if text(header, "PatientIdentityRemoved").upper() == "YES":
        return frozenset()
    words: set[str] = set()
    for keyword in _NAMING:
        value = text(header, keyword).lower()
        words |= {value, *re.split(r"[\W_]+", value)}
    return frozenset(word for word in words if len(word) >= _SHORTEST)


def names_somebody(words: str, header: Dataset) -> bool:
    """Tell whether a text holds a word that names somebody, as a word of its own."""
    parts = set(re.split(r"[\W_]+", words.lower())) | {words.lower()}
    return bool(parts & naming_words(header))


def scrubbed(words: str, header: Dataset) -> str:
    """Return a text without words that name somebody, and without numbers of 5 digits or more.

    Wherever such a word stands, also inside of another one, it becomes `***`. What a free text
    says in other words, nobody can know: look at it before you pass it on.
    """
    for word in sorted(naming_words(header), key=len, reverse=True):
        words = re.sub(re.escape(word), _MASK, words, flags=re.IGNORECASE)
    words = re.sub(r"\d{1,4}[./-]\d{1,2}[./-]\d{1,4}|\d{5,}", _MASK, words)
    return " ".join(words.split())
