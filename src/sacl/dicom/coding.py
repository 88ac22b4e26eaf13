"""How an organ is called in a DICOM result: its name, code, side and color."""

from __future__ import annotations

from collections.abc import Sequence

from highdicom.color import CIELabColor
from highdicom.sr import CodedConcept
from pydicom import Dataset
from pydicom.sr.codedict import codes

from sacl.errors import DataError
from sacl.files.label_table import label_color
from sacl.snomed import LATERALITY_CODES, SCHEME, code_of

CATEGORY = codes.SCT.AnatomicalStructure
"""What all organs are, of CID 7150."""
PRIVATE_SCHEME = "99SACL"
"""Designator of the codes of organs without a SNOMED CT code: their code is their name."""
_LONGEST = 64
"""Of segment labels, structure names and code meanings: DICOM's value representation LO."""


def require_names(names: Sequence[str]) -> None:
    """Refuse organ names that DICOM cannot hold.

    Raises:
        DataError: a name is too long, or has a character that separates values.
    """
    for name in names:
        if len(name) > _LONGEST or "\\" in name or not name.isprintable():
            raise DataError(
                f"organ '{name}': DICOM names have at most {_LONGEST} characters and no backslash;"
                " rename the organ"
            )


def title_of(run: str) -> str:
    """Return the description of the series that holds a run's result."""
    return f"sacl {run}".replace("\\", "/")[:_LONGEST].strip()


def organ_code(organ: str) -> CodedConcept:
    """Return an organ's code with its side as a modifier; a private one where there is no other."""
    known = code_of(organ)
    if known is None:
        return CodedConcept(organ, PRIVATE_SCHEME, organ)
    concept = CodedConcept(known.value, SCHEME, known.meaning)
    if known.laterality is not None:
        side = CodedConcept(
            LATERALITY_CODES[known.laterality], SCHEME, known.laterality.capitalize()
        )
        concept.SegmentedPropertyTypeModifierCodeSequence = [side]
    return concept


def private_scheme() -> Dataset:
    """Return the item that tells a reader what the private codes are (PS3.3, C.12.1.1.5)."""
    item = Dataset()
    item.CodingSchemeDesignator = PRIVATE_SCHEME
    item.CodingSchemeName = "Organ names of the sacl program"
    item.CodingSchemeResponsibleOrganization = "sacl"
    return item


def rgb(label: int) -> tuple[int, int, int]:
    """Return the color of a label value, 0 to 255 each: the same as in the NIfTI label table."""
    red, green, blue = (round(255 * part) for part in label_color(label))
    return red, green, blue


def cielab(label: int) -> CIELabColor:
    """Return the color of a label value as DICOM recommends it for display."""
    return CIELabColor.from_rgb(*rgb(label))
