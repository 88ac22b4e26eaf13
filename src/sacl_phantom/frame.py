"""What holds the organs: skin, fat, muscle wall, ribs, spine, psoas, diaphragm, lungs, couch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from sacl_phantom.shapes import Part, Points, Surface, around, course, ellipsoid, rise_to, tube
from sacl_phantom.subject import COURSES, Subject

_EVERYWHERE = np.array([[-1e4] * 3, [1e4] * 3])


def wall_distance(s: Subject, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the distance from the cavity's outline, a superellipse, along rays from its axis."""
    a, b = s.cavity_mm.astype(np.float32)
    radius = np.hypot(x, y)
    share = (np.abs(x / a) ** 2.4 + np.abs(y / b) ** 2.4) ** (1 / 2.4)
    return np.asarray(radius - radius / np.maximum(share, 1e-3), dtype=np.float32)


def above_dome(s: Subject, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Return the height above the diaphragm in mm; its right dome stands higher than the left."""
    bumps = ((58, -4, 112, 66, 84), (-58, -6, 102, 64, 82), (4, 34, 92, 55, 60))
    domes = []
    for *summit, wx, wy in bumps:
        cx, cy, top = summit * s.scale
        away = ((x - cx) / (wx * s.scale[0])) ** 2 + ((y - cy) / (wy * s.scale[1])) ** 2
        domes.append(top - 56 * away**2)
    return np.asarray(z - np.maximum(np.maximum(domes[0], domes[1]), domes[2]), dtype=np.float32)


def _directions(p: Points) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return how much a point lies in front, at the side and at the back; the three add to 1."""
    radius = np.hypot(p.x, p.y) + 1e-3
    up = p.y / radius
    front = np.clip(up, 0, 1) ** 2
    back = np.clip(-up, 0, 1) ** 2
    return front, 1 - front - back, back


def skin_distance(s: Subject, p: Points) -> np.ndarray:
    """Return the distance from the skin; positive outside the body."""
    front, side, back = _directions(p)
    thick = [wall + fat for wall, fat in zip(s.wall_mm, s.fat_mm, strict=True)]
    furrow = 0.7 * s.wall_mm[2] * np.exp(-((p.x / 22) ** 2) / 2) - 4
    depth = front * thick[0] + side * thick[1] + back * (thick[2] - 0.35 * furrow)
    return np.asarray(p.wall - depth, dtype=np.float32)


def _body(s: Subject) -> list[Part]:
    def paint_skin(_: Points, found: Surface, hu: Mapping[str, float]) -> np.ndarray:
        inner = rise_to(-found.distance - 2.2, 1.0)
        return hu["skin"] + inner * (hu["fat"] - hu["skin"])

    def fat_paint(p: Points, found: Surface, hu: Mapping[str, float]) -> np.ndarray:
        strand = np.exp(-(p.coarse**2 + p.other**2) / 0.03) * (p.wall < -4)
        blood = 0.5 * (hu["portal_vein_and_splenic_vein"] + hu["muscle"])
        fat = paint_skin(p, found, hu) + 5 * p.fine
        return fat + strand * (blood - fat)

    def muscle(p: Points) -> Surface:
        shares = zip(_directions(p), s.wall_mm, strict=True)
        thick = sum(share * wall for share, wall in shares) + np.asarray(p.coarse)
        white_line = 2.0 - np.abs(p.x)
        shell = np.maximum(p.wall - thick, -p.wall)
        return Surface(np.maximum(shell, np.where(p.y > 0, white_line, -99.0)))

    def paint_muscle(p: Points, _: Surface, hu: Mapping[str, float]) -> np.ndarray:
        layers = np.exp(-(((p.wall % 6.0) - 5.4) ** 2) / 0.5) * (np.abs(p.x) > 55)
        marbling = np.clip(0.12 * (p.fine - 0.4) + 0.35 * layers, 0, 0.7)
        return hu["muscle"] + marbling * (hu["fat"] - hu["muscle"])

    return [
        Part("fat", _EVERYWHERE, lambda p: Surface(skin_distance(s, p)), paint=fat_paint),
        Part("muscle", _EVERYWHERE, muscle, paint=paint_muscle),
    ]


def _couch(s: Subject) -> Part:
    top = -(s.cavity_mm[1] + s.wall_mm[2] + s.fat_mm[2]) - 6.0

    def surface(p: Points) -> Surface:
        below = np.abs(p.room - (top + 0.0006 * p.x**2 - 6.0)) - 3.0
        return Surface(np.maximum(below, np.abs(p.x) - 200.0))

    box = np.array([[-210.0, top - 30, -1e4], [210.0, top + 40, 1e4]])
    return Part("couch", box, surface)


def _lungs_and_heart(s: Subject) -> list[Part]:
    heart_at = np.array([-26.0, 40.0, 134.0]) * s.scale
    heart_axes = np.array([60.0, 42.0, 42.0])

    def lungs(p: Points) -> Surface:
        inside = np.maximum(p.wall + 2.0, -p.dome)
        mediastinum = 27 - np.abs(p.x + 4) + np.maximum(p.y - 10, 0) * 0.25
        return Surface(np.maximum(inside, np.where(p.y < 60, mediastinum, -p.dome)))

    def paint_lung(p: Points, _: Surface, hu: Mapping[str, float]) -> np.ndarray:
        vessel = np.exp(-(p.coarse**2 + p.other**2) / 0.03)
        return hu["lung"] + 30 * p.fine + 600 * vessel - 0.3 * p.y

    def diaphragm(p: Points) -> Surface:
        return Surface(np.maximum(np.abs(p.dome + 1.5) - 2.0, p.wall))

    box = around(heart_at, heart_axes)
    above = np.array([[-1e4, -1e4, 20.0], [1e4, 1e4, 1e4]])
    return [
        Part("lung", above, lungs, fuzz_mm=1.5, paint=paint_lung),
        Part("muscle", above, diaphragm),
        Part("heart", box, lambda p: Surface(ellipsoid(p, heart_at, heart_axes)), fuzz_mm=2.5),
    ]


def _marbled(p: Points, _: Surface, hu: Mapping[str, float]) -> np.ndarray:
    return hu["muscle"] + np.clip(4 * p.fine, -20, 8)


def _muscles(s: Subject) -> list[Part]:
    parts = []
    for side in (1, -1):
        for stretch in COURSES.muscles:
            mirrored = [(side * x, y, z) for x, y, z in stretch.knots]
            points, radii = s.place("muscle", *mirrored), np.array(stretch.radii)
            line = course(points, radii * s.size["muscle"], 2, stretch.flat)
            parts.append(Part("muscle", line.box_mm, partial(tube, line=line), paint=_marbled))
    return parts


def _ribs(s: Subject) -> Part:
    half = 3.5 * s.size["bone"]

    def surface(p: Points) -> Surface:
        # Ribs run down from back to front; below the costal margin there are none.
        slanted = p.z + 46 * np.arctan2(np.abs(p.x), -p.y)
        off = np.abs((slanted + 9) % 29.0 - 14.5)
        bar = np.hypot(np.maximum(off - 4, 0), p.wall - 7.0) - half
        margin = -34 + 0.95 * (p.y + 45) - p.z
        return Surface(np.maximum(bar, np.maximum(margin, 24 - np.abs(p.x))))

    def paint(_: Points, found: Surface, hu: Mapping[str, float]) -> np.ndarray:
        marrow = rise_to(-found.distance - 1.5, 1.0)
        return hu["cortical_bone"] + marrow * (hu["spongy_bone"] - hu["cortical_bone"])

    box = np.array([[-1e4, -1e4, -120.0], [1e4, 1e4, 1e4]])
    return Part("cortical_bone", box, surface, paint=paint)


def _spine(s: Subject) -> list[Part]:
    size = s.size["bone"]
    start = float(s.rng(51).uniform(0, 34))
    pitch = 34.0 * size

    def level(p: Points) -> np.ndarray:
        return np.abs((p.z + start) % pitch - pitch / 2)

    def column(p: Points) -> Surface:
        y = p.y + 49 * s.scale[1] - 4 * np.cos(p.z / 60)
        waist = 1 - 0.10 * np.cos(np.pi * np.clip(level(p) / (pitch / 2), 0, 1)) ** 2
        body = (np.hypot(p.x / (1.33 * waist), y / waist) - 17.0 * size) * waist
        return Surface(body.astype(np.float32))

    def paint_column(p: Points, found: Surface, hu: Mapping[str, float]) -> np.ndarray:
        rim = np.maximum(found.distance, level(p) - 13.0 * size)
        bone = hu["cortical_bone"] + rise_to(-rim - 1.2, 1.4) * (
            hu["spongy_bone"] + 18 * p.fine - hu["cortical_bone"]
        )
        disc = rise_to(level(p) - 13.3 * size, 1.4)
        return bone + disc * (hu["disc"] - bone)

    def arch(p: Points) -> Surface:
        y = p.y + 77 * s.scale[1]
        ring = np.abs(np.hypot(p.x, y) - 12.5) - 3.0
        spine = np.maximum(np.abs(p.x) - 3.0, np.abs(y + 26) - 13.0)
        wings = np.maximum(np.abs(y - 3) - 3.2, np.abs(np.abs(p.x) - 24) - 13.0)
        present = np.abs((p.z + start + 4) % pitch - pitch / 2) - 9.5
        joints = np.hypot(np.abs(p.x) - 15, y + 5) - 6.0
        parts = np.minimum(np.maximum(np.minimum(spine, wings), present), ring)
        return Surface(np.minimum(parts, joints).astype(np.float32))

    def canal(p: Points) -> Surface:
        return Surface((np.hypot(p.x, p.y + 76 * s.scale[1]) - 9.0).astype(np.float32))

    box = np.array([[-45.0, -135.0, -1e4], [45.0, -15.0, 1e4]]) * (1.0, 1.2, 1.0)
    return [
        Part("arch_bone", box, arch, fuzz_mm=1.0),
        Part("cortical_bone", box, column, paint=paint_column),
        Part("canal", box, canal, fuzz_mm=1.5),
    ]


def outer_frame(s: Subject) -> list[Part]:
    """Return what is painted before the organs."""
    return [*_body(s), _couch(s), *_lungs_and_heart(s), *_muscles(s)]


def skeleton(s: Subject) -> list[Part]:
    """Return the bones, painted last."""
    return [_ribs(s), *_spine(s)]
