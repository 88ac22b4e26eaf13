"""SNOMED CT codes of organs, for results that other programs should understand.

The codes are those that DICOM PS3.16 uses (its context groups, as pydicom lists them), and SNOMED
CT's own where DICOM has none. A side is a code of its own: DICOM codes `kidney_left` as kidney with
the laterality left.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, cast

from pydicom.sr.codedict import codes

from sacl.organs import canonical_name

SCHEME = "SCT"
"""DICOM's coding scheme designator of SNOMED CT."""

Laterality = Literal["left", "right"]

_CALLED_ALIKE = """
adrenal_gland aorta brachiocephalic_trunk brachiocephalic_vein brain colon common_bile_duct
common_carotid_artery duodenum esophagus femur gallbladder heart hip hippocampus humerus
inferior_vena_cava kidney left_atrium left_ventricle liver lung pancreas portal_vein prostate
pulmonary_artery pulmonary_vein rectum rib right_atrium right_ventricle sacrum scapula skull
spinal_cord spleen splenic_vein sternum stomach subclavian_artery superior_vena_cava trachea uterus
"""
"""Organs that DICOM calls as this program does; its `Hip` is the region, not the bone alone."""
_VERTEBRAE = [f"{s}{n + 1}" for s, count in (("C", 7), ("T", 12), ("L", 5)) for n in range(count)]
_KEYWORDS = {
    **{name: name.title().replace("_", "") for name in _CALLED_ALIKE.split()},
    **{f"vertebrae_{level.lower()}": f"{level}Vertebra" for level in _VERTEBRAE},
    "atrial_appendage_left": "LeftAuricularAppendage",
    "celiac_trunk": "CeliacAxis",
    "clavicula": "Clavicle",
    "costal_cartilages": "CostalCartilage",
    # The common iliac vessels, which is what TotalSegmentator's classes show.
    "iliac_artery": "CommonIliacArtery",
    "iliac_vena": "CommonIliacVein",
    "kidney_cyst": "Cyst",
    "lung_lower_lobe": "LowerLobeOfLung",
    "lung_middle_lobe_right": "MiddleLobeOfRightLung",
    "lung_upper_lobe": "UpperLobeOfLung",
    # The wall of the left ventricle, which is what cardiac data sets mean by myocardium.
    "myocardium": "LeftVentricleMyocardium",
    # There is no code for both veins in one; the larger part is taken.
    "portal_vein_and_splenic_vein": "PortalVein",
    "small_bowel": "SmallIntestine",
    "thyroid_gland": "Thyroid",
    "urinary_bladder": "Bladder",
    # Parts without a code of their own take that of the whole. The decathlon's bare `anterior` and
    # `posterior` have none: they could be parts of anything.
    "anterior_hippocampus": "Hippocampus",
    "hippocampus_anterior": "Hippocampus",
    "hippocampus_posterior": "Hippocampus",
    "posterior_hippocampus": "Hippocampus",
}
"""DICOM's keyword of each organ that has a code, by its canonical name."""
_NOT_IN_DICOM = {
    # The intrinsic muscles of the back, not the erector spinae alone.
    "autochthon": ("244849004", "Deep muscle of back"),
    "gluteus_maximus": ("206007", "Gluteus maximus muscle"),
    "gluteus_medius": ("78333006", "Gluteus medius muscle"),
    "gluteus_minimus": ("75297007", "Gluteus minimus muscle"),
    "iliopsoas": ("68455001", "Iliopsoas muscle"),
    "vertebrae_s1": ("65985001", "First sacral vertebra"),
    "rib_1": ("48535007", "First rib"),
    "rib_2": ("78247007", "Second rib"),
    "rib_3": ("25888004", "Third rib"),
    "rib_4": ("25523003", "Fourth rib"),
    "rib_5": ("15339008", "Fifth rib"),
    "rib_6": ("59558009", "Sixth rib"),
    "rib_7": ("24915002", "Seventh rib"),
    "rib_8": ("5953002", "Eighth rib"),
    "rib_9": ("22565002", "Ninth rib"),
    "rib_10": ("77644006", "Tenth rib"),
    "rib_11": ("58830002", "Eleventh rib"),
    "rib_12": ("43993008", "Twelfth rib"),
}
_CODES: dict[str, tuple[str, str]] = _NOT_IN_DICOM | {
    name: (code.value, code.meaning)
    for name, keyword in _KEYWORDS.items()
    for code in [getattr(codes.SCT, keyword)]
}


@dataclass(frozen=True)
class SnomedCode:
    """A SNOMED CT code, its meaning in words, and the side where the code itself has none."""

    value: str
    meaning: str
    laterality: Laterality | None = None

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
            return SnomedCode(*_CODES[base], cast(Laterality, side[1]) if side else None)
    return None
