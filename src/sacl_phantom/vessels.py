"""The great vessels: aorta, inferior vena cava, portal and splenic vein, and their branches."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from sacl_phantom.shapes import Part, Points, Surface, course, tube
from sacl_phantom.subject import COURSES, Subject, Vessel


def _part(s: Subject, vessel: Vessel) -> Part:
    owner, is_cava = vessel.follows or vessel.tissue, vessel.tissue == "inferior_vena_cava"
    radii = np.array(vessel.radii) * s.size.get(owner, 1.0)
    line = course(s.place(owner, *vessel.knots), radii, 3, 1.3 if is_cava else 1.0)
    organ, paint = vessel.tissue if vessel.labeled else None, _mixing if is_cava else None
    return Part(vessel.tissue, line.box_mm, partial(tube, line=line), organ, 0.4, paint)


def _mixing(p: Points, _: Surface, hu: Mapping[str, float]) -> np.ndarray:
    """Paint the vena cava: enhanced renal blood joins unenhanced blood from the legs."""
    above = np.clip((p.z + 25) / 40, 0, 1)
    early = hu["renal_vein"] - hu["inferior_vena_cava"]
    return hu["inferior_vena_cava"] + 0.55 * early * (above - 0.6) + 4.0 * p.fine * (early > 20)


def vessels(s: Subject) -> list[Part]:
    """Return the great vessels in the order in which they are painted."""
    return [_part(s, one) for one in COURSES.vessels if one.serves not in s.missing]
