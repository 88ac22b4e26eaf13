"""The great vessels: aorta, inferior vena cava, portal and splenic vein, and their branches."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sacl_phantom.shapes import Paint, Part, Points, Surface, course, tube
from sacl_phantom.subject import Subject

Stretch = tuple[tuple[tuple[float, float, float], ...], tuple[float, ...]]


def _vessel(
    s: Subject, tissue: str, owner: str, stretch: Stretch, organ: str | None = None
) -> Part:
    points, radii = stretch
    size = s.size.get(owner, 1.0)
    flat = 1.3 if tissue == "inferior_vena_cava" else 1.0
    line = course(s.place(owner, *points), np.array(radii) * size, 3, flat)

    def surface(p: Points) -> Surface:
        return tube(p, line)

    paint: Paint | None = _mixing if tissue == "inferior_vena_cava" else None
    return Part(tissue, line.box_mm, surface, organ, 0.4, paint)


def _mixing(p: Points, _: Surface, hu: Mapping[str, float]) -> np.ndarray:
    """Paint the vena cava: enhanced renal blood joins unenhanced blood from the legs."""
    above = np.clip((p.z + 25) / 40, 0, 1)
    early = hu["renal_vein"] - hu["inferior_vena_cava"]
    return hu["inferior_vena_cava"] + 0.55 * early * (above - 0.6) + 4.0 * p.fine * (early > 20)


_AORTA: Stretch = (
    (
        (-8, -22, 200),
        (-13, -22, 120),
        (-12, -18, 80),
        (-9, -15, 40),
        (-7, -14, 0),
        (-5, -15, -50),
        (-3, -17, -88),
    ),
    (12.5, 12, 11.5, 11, 10, 9, 8.5),
)
_ILIACS: tuple[Stretch, ...] = (
    (((-3, -17, -86), (14, -16, -106), (34, -20, -150)), (6.5, 6, 5.5)),
    (((-3, -17, -86), (-20, -16, -106), (-38, -20, -150)), (6.5, 6, 5.5)),
)
_CAVA: Stretch = (
    (
        (21, -19, -96),
        (22, -17, -55),
        (23, -15, -15),
        (25, -10, 25),
        (28, -2, 60),
        (26, 6, 90),
        (20, 14, 125),
    ),
    (11.5, 12, 12.5, 13, 14, 14, 14),
)
_CAVA_ILIACS: tuple[Stretch, ...] = (
    (((21, -19, -94), (34, -24, -116), (42, -26, -150)), (8.5, 8, 7)),
    (((21, -19, -94), (-6, -26, -116), (-34, -26, -150)), (8.5, 8, 7)),
)
_PORTAL: tuple[Stretch, ...] = (
    (((9, 11, -4), (20, 11, 12), (32, 9, 26), (46, 6, 40)), (7, 7.2, 7, 6.5)),
    (((46, 6, 40), (64, 0, 45), (82, -6, 50)), (6, 5.2, 3.5)),
    (((44, 8, 40), (36, 22, 50), (24, 34, 58)), (5, 4.5, 3.2)),
)
_SPLENIC: Stretch = (
    ((9, 11, -4), (-12, 12, 7), (-36, 1, 15), (-60, -16, 28), (-80, -27, 40)),
    (5.5, 5, 5, 4.8, 3.8),
)
_MESENTERIC_VEIN: Stretch = (((9, 11, -4), (11, 16, -30), (8, 20, -95)), (6, 5.5, 4))
_MESENTERIC_ARTERY: Stretch = (
    ((-6, -5, 4), (-6, 6, -10), (-4, 12, -30), (0, 18, -95)),
    (4.2, 4, 3.6, 2.8),
)
_CELIAC: tuple[Stretch, ...] = (
    (((-10, -6, 18), (-8, 6, 20), (10, 14, 20), (28, 14, 26)), (3.6, 3.2, 2.8, 2.4)),
    (((-8, 6, 20), (-30, 8, 24), (-55, -14, 36), (-76, -24, 42)), (3.0, 2.8, 2.6, 2.2)),
)


def _renal(s: Subject) -> list[Part]:
    parts = []
    for name, vein, artery in (
        ("kidney_right", ((44, -38, -22), (32, -24, -14)), ((-4, -16, -8), (16, -29, -12))),
        ("kidney_left", ((-46, -36, -8), (-16, -2, -6)), ((-10, -16, -6), (-28, -28, -8))),
    ):
        if name in s.missing:
            continue
        hilum = vein[0]
        joins = (22, -12, -10)
        veins: Stretch = ((hilum, vein[1], joins), (5, 5, 5))
        arteries: Stretch = ((*artery, hilum), (3.2, 3, 2.6))
        parts.append(_vessel(s, "aorta", "aorta", arteries))
        parts.append(_vessel(s, "renal_vein", "inferior_vena_cava", veins))
    return parts


def vessels(s: Subject) -> list[Part]:
    """Return the great vessels in the order in which they are painted."""
    portal = "portal_vein_and_splenic_vein"
    parts = [_vessel(s, portal, "mesentery", _MESENTERIC_VEIN)]
    parts += [_vessel(s, "aorta", "mesentery", _MESENTERIC_ARTERY)]
    parts += [_vessel(s, "aorta", "mesentery", stretch) for stretch in _CELIAC]
    parts += _renal(s)
    cava = "inferior_vena_cava"
    parts += [_vessel(s, cava, cava, stretch) for stretch in _CAVA_ILIACS]
    parts.append(_vessel(s, cava, cava, _CAVA, cava))
    splenic = [] if "spleen" in s.missing else [_SPLENIC]
    parts += [_vessel(s, portal, portal, stretch, portal) for stretch in (*_PORTAL, *splenic)]
    parts += [_vessel(s, "aorta", "aorta", stretch) for stretch in _ILIACS]
    parts.append(_vessel(s, "aorta", "aorta", _AORTA, "aorta"))
    return parts
