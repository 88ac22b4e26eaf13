"""SNOMED CT codes of organs, for results that other programs should understand.

The codes are those that DICOM PS3.16 uses (its context groups, as pydicom lists them), and SNOMED
CT's own where DICOM has none. A side is a code of its own: DICOM codes `kidney_left` as kidney with
the laterality left.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from sacl.organs import canonical_name

SCHEME = "SCT"
"""DICOM's coding scheme designator of SNOMED CT."""

Laterality = Literal["left", "right"]
LATERALITY_CODES: dict[Laterality, str] = {"left": "7771000", "right": "24028007"}
"""SNOMED CT codes of the two sides."""

_CODES = {
    "adrenal_gland": ("23451007", "Adrenal gland"),
    "aorta": ("15825003", "Aorta"),
    "atrial_appendage_left": ("33626005", "Left auricular appendage"),
    "brachiocephalic_trunk": ("12691009", "brachiocephalic trunk"),
    "brachiocephalic_vein": ("8887007", "Brachiocephalic vein"),
    "brain": ("12738006", "Brain"),
    "celiac_trunk": ("57850000", "Celiac Axis"),
    "clavicula": ("51299004", "Clavicle"),
    "colon": ("71854001", "Colon"),
    "common_bile_duct": ("79741001", "Common bile duct"),
    "common_carotid_artery": ("32062004", "Common carotid artery"),
    "costal_cartilages": ("50016007", "Costal Cartilage"),
    "duodenum": ("38848004", "Duodenum"),
    "esophagus": ("32849002", "Esophagus"),
    "femur": ("71341001", "Femur"),
    "gallbladder": ("28231008", "Gallbladder"),
    "heart": ("80891009", "Heart"),
    # The hip bone is what TotalSegmentator's class shows; the code names the region.
    "hip": ("29836001", "Hip"),
    "hippocampus": ("5366008", "Hippocampus"),
    "humerus": ("85050009", "Humerus"),
    # The common iliac vessels, which is what TotalSegmentator's classes show.
    "iliac_artery": ("73634005", "Common iliac artery"),
    "iliac_vena": ("46027005", "Common iliac vein"),
    "inferior_vena_cava": ("64131007", "Inferior vena cava"),
    "kidney": ("64033007", "Kidney"),
    "kidney_cyst": ("367643001", "Cyst"),
    "left_atrium": ("82471001", "Left atrium"),
    "left_ventricle": ("87878005", "Left ventricle"),
    "liver": ("10200004", "Liver"),
    "lung": ("39607008", "Lung"),
    "lung_lower_lobe": ("90572001", "Lower lobe of lung"),
    "lung_middle_lobe_right": ("72481006", "Middle lobe of right lung"),
    "lung_upper_lobe": ("45653009", "Upper lobe of lung"),
    # The wall of the left ventricle, which is what cardiac data sets mean by myocardium.
    "myocardium": ("49848007", "Left Ventricle Myocardium"),
    "pancreas": ("15776009", "Pancreas"),
    "portal_vein": ("32764006", "Portal vein"),
    # There is no code for both veins in one; the larger part is taken.
    "portal_vein_and_splenic_vein": ("32764006", "Portal vein"),
    "prostate": ("41216001", "Prostate"),
    "pulmonary_artery": ("81040000", "Pulmonary artery"),
    "pulmonary_vein": ("122972007", "Pulmonary vein"),
    "rectum": ("34402009", "Rectum"),
    "rib": ("113197003", "Rib"),
    "right_atrium": ("73829009", "Right atrium"),
    "right_ventricle": ("53085002", "Right ventricle"),
    "sacrum": ("54735007", "Sacrum"),
    "scapula": ("79601000", "Scapula"),
    "skull": ("89546000", "Skull"),
    "small_bowel": ("30315005", "Small intestine"),
    "spinal_cord": ("2748008", "Spinal cord"),
    "spleen": ("78961009", "Spleen"),
    "splenic_vein": ("35819009", "Splenic vein"),
    "sternum": ("56873002", "Sternum"),
    "stomach": ("69695003", "Stomach"),
    "subclavian_artery": ("36765005", "Subclavian artery"),
    "superior_vena_cava": ("48345005", "Superior vena cava"),
    "thyroid_gland": ("69748006", "Thyroid"),
    "trachea": ("44567001", "Trachea"),
    "urinary_bladder": ("89837001", "Bladder"),
    "uterus": ("35039007", "Uterus"),
    "vertebrae_c1": ("14806007", "C1 vertebra"),
    "vertebrae_c2": ("39976000", "C2 vertebra"),
    "vertebrae_c3": ("113205007", "C3 vertebra"),
    "vertebrae_c4": ("5329002", "C4 vertebra"),
    "vertebrae_c5": ("36978003", "C5 vertebra"),
    "vertebrae_c6": ("36054005", "C6 vertebra"),
    "vertebrae_c7": ("87391001", "C7 vertebra"),
    "vertebrae_t1": ("64864005", "T1 vertebra"),
    "vertebrae_t2": ("53733008", "T2 vertebra"),
    "vertebrae_t3": ("1626008", "T3 vertebra"),
    "vertebrae_t4": ("73071006", "T4 vertebra"),
    "vertebrae_t5": ("56401006", "T5 vertebra"),
    "vertebrae_t6": ("45296009", "T6 vertebra"),
    "vertebrae_t7": ("62487009", "T7 vertebra"),
    "vertebrae_t8": ("11068009", "T8 vertebra"),
    "vertebrae_t9": ("82687006", "T9 vertebra"),
    "vertebrae_t10": ("7610001", "T10 vertebra"),
    "vertebrae_t11": ("12989004", "T11 vertebra"),
    "vertebrae_t12": ("23215003", "T12 vertebra"),
    "vertebrae_l1": ("66794005", "L1 vertebra"),
    "vertebrae_l2": ("14293000", "L2 vertebra"),
    "vertebrae_l3": ("36470004", "L3 vertebra"),
    "vertebrae_l4": ("11994002", "L4 vertebra"),
    "vertebrae_l5": ("49668003", "L5 vertebra"),
}
_NOT_IN_DICOM = {
    # The intrinsic muscles of the back, not the erector spinae alone.
    "autochthon": ("244849004", "Deep muscle of back"),
    "gluteus_maximus": ("206007", "Gluteus maximus muscle"),
    "gluteus_medius": ("78333006", "Gluteus medius muscle"),
    "gluteus_minimus": ("75297007", "Gluteus minimus muscle"),
    "iliopsoas": ("68455001", "Iliopsoas muscle"),
    "vertebrae_s1": ("65985001", "First sacral vertebra"),
}
_CODES |= _NOT_IN_DICOM
_ABNORMAL = frozenset({_CODES["kidney_cyst"][0]})
_PARTS = {
    "anterior_hippocampus": "hippocampus",
    "hippocampus_anterior": "hippocampus",
    "hippocampus_posterior": "hippocampus",
    "posterior_hippocampus": "hippocampus",
}
"""Organs without a code of their own, and the whole whose code they take.

The decathlon's bare `anterior` and `posterior` have none: they could be parts of anything.
"""


@dataclass(frozen=True)
class SnomedCode:
    """A SNOMED CT code, its meaning in words, and the side where the code itself has none."""

    value: str
    meaning: str
    laterality: Laterality | None = None

    @property
    def is_abnormal(self) -> bool:
        """Tell whether this is a change of an organ, such as a cyst, and no organ."""
        return self.value in _ABNORMAL


def code_of(organ: str) -> SnomedCode | None:
    """Return the SNOMED CT code of an organ by its name or alias, None where none is known.

    A part or a numbered organ without a code of its own has that of the whole: both parts of the
    hippocampus are coded as hippocampus, all ribs as rib.

    Example:
        >>> code_of("RK")
        SnomedCode(value='64033007', meaning='Kidney', laterality='right')
    """
    name = canonical_name(organ)
    name = _PARTS.get(name, name)
    if name in _CODES:
        return SnomedCode(*_CODES[name])
    unsided = re.sub(r"_(left|right)(?=_|$)", "", name)
    side = re.search(r"_(left|right)(?=_|$)", name)
    for base in (unsided, re.sub(r"_\d+$", "", unsided), unsided.removesuffix("s")):
        if base in _CODES:
            laterality: Laterality | None = None
            if side is not None:
                laterality = "left" if side[1] == "left" else "right"
            return SnomedCode(*_CODES[base], laterality)
    return None
