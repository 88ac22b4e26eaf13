"""SNOMED CT codes of organs, for results that other programs should understand.

The codes, listed in `snomed.yaml`, are those that DICOM PS3.16 uses (its context groups, as pydicom
lists them), and SNOMED CT's own where DICOM has none. A side is a code of its own: DICOM codes
`kidney_left` as kidney with the laterality left.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pydicom.sr.codedict import codes

from sacl.files.documents import packaged
from sacl.organs import canonical_name

SCHEME = "SCT"
"""DICOM's coding scheme designator of SNOMED CT."""

_LISTED: dict[str, Any] = packaged("sacl.dicom", "snomed.yaml", dict)
_KEYWORDS: dict[str, str] = {
    **{name: name.title().replace("_", "") for name in _LISTED["alike"].split()},
    **{
        f"vertebrae_{part.lower()}{n}": f"{part}{n}Vertebra"
        for part, count in _LISTED["vertebrae"].items()
        for n in range(1, count + 1)
    },
    **_LISTED["keywords"],
}
_CODES: dict[str, tuple[str, str]] = _LISTED["others"] | {
    name: (code.value, code.meaning)
    for name, keyword in _KEYWORDS.items()
    for code in [getattr(codes.SCT, keyword)]
}


@dataclass(frozen=True)
class SnomedCode:
    """A SNOMED CT code, its meaning in words, and the side, left or right, that it does not say."""

    value: str
    meaning: str
    laterality: str | None = None

    @property
    def is_abnormal(self) -> bool:
        """Tell whether this is a change of an organ, such as a cyst, and no organ."""
        return self.value == codes.SCT.Cyst.value


def code_of(organ: str) -> SnomedCode | None:
    """Return the SNOMED CT code of an organ by its name or alias, None where none is known.

    A part or a numbered organ without a code of its own has that of the whole: both parts of the
    hippocampus are coded as hippocampus.

    Example:
        >>> code_of("RK")
        SnomedCode(value='64033007', meaning='Kidney', laterality='right')
    """
    name = canonical_name(organ)
    if name in _CODES:
        return SnomedCode(*_CODES[name])
    unsided = re.sub(r"_(left|right)(?=_|$)", "", name)
    side = re.search(r"_(left|right)(?=_|$)", name)
    for base in (unsided, re.sub(r"_\d+$", "", unsided), unsided.removesuffix("s")):
        if base in _CODES:
            return SnomedCode(*_CODES[base], side[1] if side else None)
    return None
