"""The solid organs and their neighbors: liver, spleen, kidneys, adrenals, pancreas, gallbladder."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sacl_phantom.shapes import (
    Part,
    Points,
    Surface,
    around,
    blend,
    carve,
    course,
    ellipsoid,
    plate,
    rise_to,
    tube,
    turned,
)
from sacl_phantom.subject import COURSES, Subject


def liver(s: Subject) -> Part:
    """Lay the liver under the right dome, its left lobe across the midline before the stomach."""
    rng = s.rng(21)
    size, lateral = s.size["liver"], float(rng.normal(0, 9))
    right = s.place("liver", (66, -3, 42))[0]
    left = s.place("liver", (8 - lateral / 2, 40, 60))[0]
    right_axes = np.array([66, 80, 89]) * size * s.scale**0.5
    left_axes = np.array([70 + lateral, 34, 40]) * size
    rise = float(rng.uniform(0.75, 0.95))
    behind = s.place("adrenal_gland_right", (37, -21, 0))[0]

    def surface(p: Points) -> Surface:
        body = blend(ellipsoid(p, right, right_axes), ellipsoid(p, left, left_axes), 25.0)
        # Right lobe reaches down at the side, the visceral surface rises toward the hilum.
        below = np.minimum(45 - rise * (p.x - 5) + 0.12 * p.y, 27) - p.z + s.shift_mm["liver"][2]
        body = np.maximum(body, 0.74 * below + 2.5 * p.coarse)
        body = np.maximum(body, p.wall + 1.5)
        # The right adrenal gland, the crus and the spine lie behind its bare area.
        bare = -blend(behind[1] - p.y, behind[0] - p.x + 3 * p.coarse, 22.0)
        body = carve(body, bare, 8.0)
        return Surface(np.maximum(body, 0.9 * (p.dome + 4.0)))

    def paint(p: Points, _: Surface, hu: Mapping[str, float]) -> np.ndarray:
        vessel = np.exp(-(p.coarse**2 + p.other**2) / 0.035)
        lumen = 0.75 * hu["portal_vein_and_splenic_vein"] + 0.25 * hu["inferior_vena_cava"]
        parenchyma = hu["liver"] + 3.5 * p.fine + 2.5 * p.coarse
        return parenchyma + vessel * (lumen - hu["liver"])

    box = np.array([[-85, -95, -75], [140, 95, 130]]) * s.scale * max(size, 1.0)
    return Part("liver", box, surface, "liver", 0.8, paint)


def spleen(s: Subject) -> Part:
    """Lay the spleen along the left back ribs, hollow toward stomach and kidney."""
    rng = s.rng(22)
    size = s.size["spleen"]
    center = s.place("spleen", (-93, -34, 48))[0]
    axes = np.array([36, 57, 56]) * size * np.exp(rng.normal(0, 0.06, 3))
    turn = turned(float(rng.normal(-25, 8)), 12, float(rng.normal(-22, 8)))
    hollow = center + np.array([30, 14, 2]) * size
    angle = rng.uniform(0, np.pi)

    def surface(p: Points) -> Surface:
        body = ellipsoid(p, center, axes, turn) + 1.2 * p.coarse
        body = carve(body, ellipsoid(p, hollow, np.array([23, 36, 58]) * size), 10.0)
        body = np.maximum(body, p.wall + 3.0)
        return Surface(np.maximum(body, 0.9 * (p.dome + 4.0)))

    def paint(p: Points, _: Surface, hu: Mapping[str, float]) -> np.ndarray:
        along = np.cos(angle) * p.x + np.sin(angle) * p.y + 0.5 * p.z + 7 * p.other
        return hu["spleen"] + hu["zebra"] * np.sin(along / 3.2) + 3.0 * p.fine

    return Part("spleen", around(center, 1.1 * axes.max()), surface, "spleen", 0.7, paint)


def kidney(s: Subject, side: int) -> list[Part]:
    """Lay a kidney beside the psoas with cortex, pyramids, fat in its sinus, at times cysts.

    `side` is +1 for the right and -1 for the left one.
    """
    name = "kidney_right" if side > 0 else "kidney_left"
    rng = s.rng(23 + side)
    center = s.place(name, (60, -47, -24) if side > 0 else (-62, -45, -8))[0]
    axes = np.array([27.5, 25.5, 53]) * s.size[name] * np.exp(rng.normal(0, 0.04, 3))
    lean = rng.normal((0.20, 0.12), 0.05)
    sinus = np.array([15, 11, 24]) * s.size[name]

    def upright(p: Points) -> Points:
        tall = p.z - center[2]
        return p._replace(x=p.x + side * lean[0] * tall, y=p.y + lean[1] * tall)

    def surface(p: Points) -> Surface:
        q = upright(p)
        body = ellipsoid(q, center, axes) + 0.8 * p.coarse
        hilum = center + np.array([-side * 19, 10, 0]) * s.size[name]
        return Surface(carve(body, ellipsoid(q, hilum, sinus), 4.0))

    def paint(p: Points, found: Surface, hu: Mapping[str, float]) -> np.ndarray:
        q = upright(p)
        angle = np.arctan2(q.y - center[1], q.x - center[0])
        pyramids = np.sin(5 * angle) + np.sin((q.z - center[2]) / 5.0) + 0.6
        inside = rise_to(-found.distance - 6.5, 2.0) * rise_to(pyramids, 0.8)
        cortex = hu["kidney_cortex"]
        return cortex + inside * (hu["kidney_medulla"] - cortex) + 3.0 * p.fine

    parts = [Part("kidney_cortex", around(center, 1.3 * axes), surface, name, 0.5, paint)]
    for _ in range(int(rng.choice(4, p=[0.7, 0.15, 0.1, 0.05]))):
        direction = rng.normal(0, 1, 3)
        direction[0] = side * abs(direction[0])
        place = center + 0.75 * axes * direction / np.linalg.norm(direction)
        parts.append(ball("cyst", place, float(rng.uniform(4, 11)), name))
    return parts


def ball(tissue: str, center: np.ndarray, radius: float, organ: str) -> Part:
    """Return a round lesion that belongs to an organ."""
    box, axes = around(center, radius), np.full(3, radius)
    return Part(tissue, box, lambda p: Surface(ellipsoid(p, center, axes)), organ)


def adrenal(s: Subject, side: int) -> Part:
    """Lay an adrenal gland, an inverted Y of two thin limbs, on the front of the kidney's top."""
    name = "adrenal_gland_right" if side > 0 else "adrenal_gland_left"
    rng = s.rng(26 + side)
    thick = 2.3 * s.size[name] * float(np.exp(rng.normal(0, 0.08)))
    tall = 10.0 * s.size[name]
    knots = (
        ((33, -27, 41), (33, -47, 39), (44, -46, 37), (31, -24, 44))
        if side > 0
        else ((-36, -24, 27), (-31, -43, 25), (-47, -43, 24), (-37, -19, 28))
    )
    body, medial, lateral, tip = s.place(name, *knots)
    medial = medial + rng.normal(0, 2, 3)
    lateral = lateral + rng.normal(0, 2, 3)

    def surface(p: Points) -> Surface:
        limbs = np.minimum(*(plate(p, body, end, thick, tall) for end in (medial, lateral)))
        return Surface(blend(limbs, plate(p, tip, body, thick * 1.2, tall * 0.7), 3.0))

    def paint(p: Points, _: Surface, hu: Mapping[str, float]) -> np.ndarray:
        return hu["adrenal_gland"] + 2.0 * p.fine

    box = around(body, np.array([26.0, 32.0, tall + 14.0]))
    return Part("adrenal_gland", box, surface, name, 0.3, paint)


def pancreas(s: Subject) -> Part:
    """Lay the pancreas from the duodenum across the aorta to the hilum of the spleen."""
    rng = s.rng(28)
    bend = float(rng.normal(0, 5))
    knots = np.array(COURSES.pancreas.knots)
    knots[2:5, 2] += bend / 2, bend, bend
    points = s.place("pancreas", *knots)
    radii = np.array(COURSES.pancreas.radii) * s.size["pancreas"]
    line = course(points, radii, 2)
    lobes = s.fill["lobulation"]

    def surface(p: Points) -> Surface:
        return Surface(tube(p, line).distance + lobes * (1.6 * p.fine + 1.2 * p.coarse))

    def paint(p: Points, _: Surface, hu: Mapping[str, float]) -> np.ndarray:
        fat = np.clip(0.10 * lobes * (p.fine + 0.3), 0, 0.5)
        return hu["pancreas"] + fat * (hu["fat"] - hu["pancreas"]) + 2.0 * p.fine

    return Part("pancreas", line.box_mm, surface, "pancreas", 1.2, paint)


def gallbladder(s: Subject) -> list[Part]:
    """Hang the gallbladder under the liver, at times with a stone."""
    rng = s.rng(29)
    points = s.place("gallbladder", (44, 22, 18), (52, 36, 2), (61, 50, -16 - rng.uniform(0, 10)))
    radii = np.array([6.0, 12.0, 14.5]) * s.size["gallbladder"] * float(np.exp(rng.normal(0, 0.08)))
    line = course(points, radii, 3)

    def surface(p: Points) -> Surface:
        return Surface(np.maximum(tube(p, line).distance, p.wall + 4.0))

    parts = [Part("gallbladder", line.box_mm, surface, "gallbladder", 0.6)]
    if rng.random() < 0.12:
        low = points[2] - np.array([0.0, 0.6 * radii[2], 0.0])
        parts.append(ball("spongy_bone", low, float(rng.uniform(2.5, 5)), "gallbladder"))
    return parts


def solid_organs(s: Subject) -> list[Part]:
    """Return liver and spleen, which other organs indent."""
    parts = [liver(s), spleen(s)]
    rng = s.rng(30)
    if rng.random() < 0.25:
        place = s.place("liver", (80, -10, 45))[0] + rng.normal(0, 18, 3)
        parts.append(ball("cyst", place, float(rng.uniform(4, 13)), "liver"))
    return parts
