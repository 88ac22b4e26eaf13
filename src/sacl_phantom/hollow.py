"""The hollow organs: stomach, esophagus, duodenum, colon and small bowel, with gas and content."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from sacl_phantom.shapes import Course, Part, Points, Surface, course, rise_to, tube
from sacl_phantom.subject import COURSES, Subject


@dataclass(frozen=True)
class Content:
    """What a hollow organ holds: its wall, the fluid's HU and mottle, and where gas stands.

    `gas` is the height of the gas level above the axis as a share of the radius; 2 means none.
    """

    wall_mm: float
    fluid_hu: float
    gas: float
    mottle_hu: float = 0.0


def hollow(
    tissue: str, line: Course, content: Content, organ: str | None = None, limit_mm: float = 2.0
) -> Part:
    """Return a tube with a wall around content, gas lying in front as in a person on the back."""
    level = content.gas * float(line.radii.mean())

    def surface(p: Points) -> Surface:
        distance, rise = tube(p, line)
        distance = np.maximum(distance + 0.8 * p.coarse, p.wall + limit_mm)
        return Surface(np.maximum(distance, 0.9 * (p.dome + 4.0)), rise)

    def paint(p: Points, found: Surface, hu: Mapping[str, float]) -> np.ndarray:
        assert found.rise is not None
        lumen = rise_to(-found.distance - content.wall_mm, 1.5)
        gas = rise_to(found.rise - level, 2.0)
        fluid = content.fluid_hu + content.mottle_hu * np.minimum(p.fine + 0.3 * p.other, 1.0)
        inside = fluid + gas * (hu["gas"] - fluid)
        return hu[tissue] + lumen * (inside - hu[tissue])

    return Part(tissue, line.box_mm, surface, organ, 0.8, paint)


def stomach(s: Subject) -> Part:
    """Lay the stomach from under the left dome to the pylorus; its lumen belongs to the organ."""
    points = s.place("stomach", *COURSES.stomach.knots)
    radii = np.array(COURSES.stomach.radii) * s.size["stomach"]
    content = Content(4.5, s.fill["stomach"], s.fill["stomach_gas"], 12.0)
    return hollow("stomach", course(points, radii, 2), content, "stomach", 4.0)


def esophagus(s: Subject) -> Part:
    """Lay the esophagus in front and to the left of the aorta, down to the stomach."""
    points = s.place("esophagus", *COURSES.esophagus.knots)
    radii = np.array(COURSES.esophagus.radii) * s.size["esophagus"]
    line = course(points, radii, 2, 1.15)
    content = Content(4.0, 30.0, 0.3 if s.fill["esophagus_gas"] > 0.8 else 2.0)
    part = hollow("esophagus", line, content, "esophagus")
    # Unlike the bowel, it passes the diaphragm.
    return replace(part, surface=partial(tube, line=line), fuzz_mm=0.9)


def duodenum(s: Subject) -> Part:
    """Wind the duodenum around the pancreatic head and back across the midline."""
    points = s.place("pancreas", *COURSES.duodenum.knots)
    radii = np.array(COURSES.duodenum.radii) * s.size["bowel"]
    content = Content(3.0, s.fill["small_bowel"], float(s.rng(41).uniform(0.2, 2)))
    return hollow("bowel", course(points, radii, 2, 1.2), content)


def colon(s: Subject) -> list[Part]:
    """Frame the abdomen with the colon: ascending, transverse and descending."""
    rng = s.rng(42)
    drop = float(rng.normal(0, 14))
    stretches = (
        (((94, -12, -150), (97, -8, -95), (96, -2, -62), (88, 22, -44)), 23.0),
        (((88, 28, -44), (56, 58, -40 + drop / 2), (0, 66, -44 + drop), (-52, 60, -30)), 19.0),
        (((-58, 58, -28), (-88, 40, 2), (-103, 2, 14), (-104, -30, -20)), 18.0),
        (((-104, -34, -26), (-105, -34, -70), (-100, -24, -150)), 14.0),
    )
    parts = []
    for points, radius in stretches:
        line = course(s.place("bowel", *points), np.full(len(points), radius), 4)
        bulge = 1 + 0.16 * np.sin(np.arange(len(line.nodes)) * 2.1) + rng.normal(0, 0.05)
        line = Course(line.nodes, line.radii * bulge * s.size["bowel"])
        gas = s.fill["colon_gas"] + float(rng.normal(0, 0.25))
        parts.append(hollow("bowel", line, Content(2.5, s.fill["colon"], gas, 55.0)))
    return parts


def small_bowel(s: Subject) -> list[Part]:
    """Pack loops of small bowel into the middle and lower abdomen and the upper left."""
    rng = s.rng(43)
    parts = []
    for n in range(34):
        upper_left = n < 9
        low, high = (
            ((-92, -8, -42), (-25, 52, 8)) if upper_left else ((-86, -14, -150), (86, 66, -48))
        )
        at, heading = rng.uniform(low, high), rng.normal(0, 1, 3) * (1, 0.7, 0.5)
        points = [at]
        for _ in range(4):
            heading = heading / np.linalg.norm(heading) + rng.normal(0, 0.55, 3)
            at = np.clip(at + 20 * heading / np.linalg.norm(heading), low, high)
            points.append(at)
        radius = float(rng.uniform(8.5, 13.5)) * s.size["bowel"]
        line = course(np.array(points) * s.scale + s.shift_mm["bowel"], np.full(5, radius), 2)
        filled = s.fill["small_bowel"] if rng.random() < 0.7 else 20.0
        gas = float(rng.uniform(-0.3, 0.6)) if rng.random() < 0.25 else 2.0
        wall = radius if rng.random() < 0.35 else 2.5
        parts.append(hollow("bowel", line, Content(wall, filled, gas, 8.0)))
    return parts
