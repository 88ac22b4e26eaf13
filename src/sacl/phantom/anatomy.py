"""The 13 organs and the parts of a subject in the order in which they are painted."""

from __future__ import annotations

from sacl.phantom.frame import outer_frame, skeleton
from sacl.phantom.hollow import colon, duodenum, esophagus, small_bowel, stomach
from sacl.phantom.shapes import Part
from sacl.phantom.subject import Subject
from sacl.phantom.vessels import vessels
from sacl.phantom.viscera import adrenal, gallbladder, kidney, pancreas, solid_organs
from sacl.types import LabelScheme

ORGANS = (
    "spleen",
    "kidney_right",
    "kidney_left",
    "gallbladder",
    "esophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior_vena_cava",
    "portal_vein_and_splenic_vein",
    "pancreas",
    "adrenal_gland_right",
    "adrenal_gland_left",
)
"""The 13 organs of BTCV; their label values are 1 to 13."""

SCHEME = LabelScheme("btcv", ORGANS)


def anatomy(s: Subject) -> list[Part]:
    """Return all parts of a subject in the order in which they are painted, later over earlier."""
    parts = [*outer_frame(s), *small_bowel(s), *colon(s), *solid_organs(s)]
    parts += [duodenum(s), stomach(s), esophagus(s), pancreas(s)]
    parts += [*kidney(s, 1), *kidney(s, -1), adrenal(s, 1), adrenal(s, -1)]
    parts += [*gallbladder(s), *vessels(s), *skeleton(s)]
    return [part for part in parts if part.organ not in s.missing]
