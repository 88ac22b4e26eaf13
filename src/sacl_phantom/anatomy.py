"""The 13 organs and the parts of a subject in the order in which they are painted."""

from __future__ import annotations

from sacl.organs import BTCV_ORGANS
from sacl.types import LabelScheme
from sacl_phantom.frame import outer_frame, skeleton
from sacl_phantom.hollow import colon, duodenum, esophagus, small_bowel, stomach
from sacl_phantom.shapes import Part
from sacl_phantom.subject import Subject
from sacl_phantom.vessels import vessels
from sacl_phantom.viscera import adrenal, gallbladder, kidney, pancreas, solid_organs

ORGANS = BTCV_ORGANS
SCHEME = LabelScheme("btcv", ORGANS)


def anatomy(s: Subject) -> list[Part]:
    """Return all parts of a subject in the order in which they are painted, later over earlier."""
    parts = [*outer_frame(s), *small_bowel(s), *colon(s), *solid_organs(s)]
    parts += [duodenum(s), stomach(s), esophagus(s), pancreas(s)]
    parts += [*kidney(s, 1), *kidney(s, -1), adrenal(s, 1), adrenal(s, -1)]
    parts += [*gallbladder(s), *vessels(s), *skeleton(s)]
    return [part for part in parts if part.organ not in s.missing]
