"""Shapes as approximate signed distances in mm: negative inside, positive outside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

_FAR_MM = 9.0
_OTHER_AXES = ((1, 2), (0, 2), (0, 1))


class Points(NamedTuple):
    """Where shapes are evaluated: anatomical coordinates and what hangs on them, all `[i, j, k]`.

    `wall` is the signed distance from the abdominal cavity's outline, `dome` the height above the
    diaphragm, both in mm; `coarse`, `other` and `fine` are random textures of unit variance;
    `room` is the height in the scanner, which no posture or deformation of the body changes.
    """

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    wall: np.ndarray
    dome: np.ndarray
    coarse: np.ndarray
    other: np.ndarray
    fine: np.ndarray
    room: np.ndarray

    def crop(self, window: tuple[slice, slice, slice]) -> Points:
        """Return the points of a window, as views."""
        return Points(*(array[window] for array in self))


class Surface(NamedTuple):
    """Signed distance from a surface and, for tubes, the height above their axis; both in mm."""

    distance: np.ndarray
    rise: np.ndarray | None = None


Paint = Callable[[Points, Surface, Mapping[str, float]], np.ndarray]


@dataclass(frozen=True, eq=False)
class Part:
    """Something to paint: where it is, its surface, its tissue, and the organ it belongs to.

    `paint` gives HU that vary inside; without it the part has the tissue's HU throughout.
    """

    tissue: str
    box_mm: np.ndarray
    surface: Callable[[Points], Surface]
    organ: str | None = None
    fuzz_mm: float = 0.5
    paint: Paint | None = None


def ellipsoid(
    p: Points, center: np.ndarray, axes: np.ndarray, turn: np.ndarray | None = None
) -> np.ndarray:
    """Return the distance from an ellipsoid to first order, exact on its surface.

    `turn` is a rotation matrix from the world to the ellipsoid's own axes.
    """
    d = (p.x - center[0], p.y - center[1], p.z - center[2])
    if turn is not None:
        d = tuple(row[0] * d[0] + row[1] * d[1] + row[2] * d[2] for row in turn)
    squares = [(q / r) ** 2 for q, r in zip(d, axes, strict=True)]
    k0 = np.sqrt(squares[0] + squares[1] + squares[2])
    k1 = np.sqrt(sum(s / r**2 for s, r in zip(squares, axes, strict=True)))
    return np.asarray(k0 * (k0 - 1) / np.maximum(k1, 1e-4), dtype=np.float32)


def around(center: np.ndarray, reach: np.ndarray | float) -> np.ndarray:
    """Return the box `[2, 3]` that reaches so far around a center."""
    return np.stack([center - reach, center + reach])


@dataclass(frozen=True, eq=False)
class Course:
    """A tube's center line: nodes `[n, 3]` in mm with a radius each; `flat` > 1 thins it in y."""

    nodes: np.ndarray
    radii: np.ndarray
    flat: float = 1.0

    @property
    def box_mm(self) -> np.ndarray:
        """The box `[2, 3]` that holds the tube."""
        reach = self.radii.max()
        return np.stack([self.nodes.min(0) - reach, self.nodes.max(0) + reach])


def course(points: np.ndarray, radii: np.ndarray, steps: int = 3, flat: float = 1.0) -> Course:
    """Lay a Catmull-Rom spline through points `[n, 3]` and refine it `steps` times."""
    padded = np.concatenate([[2 * points[0] - points[1]], points, [2 * points[-1] - points[-2]]])
    t = np.arange(steps)[:, None, None] / steps
    a, b, c, d = padded[:-3], padded[1:-2], padded[2:-1], padded[3:]
    inner = 0.5 * (
        2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3
    )
    nodes = np.concatenate([inner.transpose(1, 0, 2).reshape(-1, 3), points[-1:]])
    where = np.arange(len(nodes)) / steps
    return Course(nodes, np.interp(where, np.arange(len(points)), radii), flat)


def tube(p: Points, line: Course) -> Surface:
    """Return the distance from a tube around a course, and the height above its axis.

    Further than `_FAR_MM` outside a stretch of the tube its distance is not computed but infinite.
    """
    best = np.full(p.x.shape, np.inf, dtype=np.float32)
    axis_y = np.zeros(p.x.shape, dtype=np.float32)
    extents = [(a.min(rest), a.max(rest)) for a, rest in zip(p[:3], _OTHER_AXES, strict=True)]
    ends = zip(line.nodes[:-1], line.nodes[1:], line.radii[:-1], line.radii[1:], strict=True)
    for a, b, ra, rb in ends:
        reach = max(ra, rb) + _FAR_MM
        near = _overlap(extents, np.minimum(a, b) - reach, np.maximum(a, b) + reach)
        step = (b - a).astype(np.float32)
        dx, dy, dz = (axis[near] - np.float32(start) for axis, start in zip(p[:3], a, strict=True))
        t = dx * step[0]
        t += dy * step[1]
        t += dz * step[2]
        np.clip(t / np.float32(max(step @ step, 1e-6)), 0, 1, out=t)
        dx -= t * step[0]
        dy -= t * step[1]
        dz -= t * step[2]
        dy *= np.float32(line.flat)
        distance = np.sqrt(dx * dx + dy * dy + dz * dz) - (np.float32(ra) + t * np.float32(rb - ra))
        nearer = distance < best[near]
        np.copyto(best[near], distance, where=nearer)
        np.copyto(axis_y[near], np.float32(a[1]) + t * step[1], where=nearer)
    return Surface(best, p.y - axis_y)


def _overlap(
    extents: list[tuple[np.ndarray, np.ndarray]], low: np.ndarray, high: np.ndarray
) -> tuple[slice, ...]:
    """Return the window of an array whose planes' extents overlap a box, empty if there is none."""
    window = []
    for (least, most), lo, hi in zip(extents, low, high, strict=True):
        inside = np.flatnonzero((most >= lo) & (least <= hi))
        window.append(slice(inside[0], inside[-1] + 1) if len(inside) else slice(0, 0))
    return tuple(window)


def plate(p: Points, start: np.ndarray, stop: np.ndarray, thick: float, tall: float) -> np.ndarray:
    """Return the distance from an upright rounded plate between two points of the axial plane."""
    step = stop[:2] - start[:2]
    dx, dy = p.x - start[0], p.y - start[1]
    t = np.clip((dx * step[0] + dy * step[1]) / (step @ step), 0, 1)
    across = np.hypot(dx - t * step[0], dy - t * step[1])
    above = np.maximum(np.abs(p.z - start[2] - t * (stop[2] - start[2])) - tall, 0)
    return np.asarray(np.hypot(across, above) - thick, dtype=np.float32)


def blend(a: np.ndarray, b: np.ndarray, radius: float) -> np.ndarray:
    """Return the union of two shapes with a fillet of about `radius` mm where they meet."""
    h = np.maximum(radius - np.abs(a - b), 0) / radius
    return np.asarray(np.minimum(a, b) - h * h * radius / 4, dtype=np.float32)


def carve(a: np.ndarray, b: np.ndarray, radius: float) -> np.ndarray:
    """Return shape `a` without shape `b`, with a rounded rim."""
    return -blend(-a, b, radius)


def rise_to(value: np.ndarray, width: float) -> np.ndarray:
    """Return a ramp from 0 to 1 of the given width, centered where the value crosses 0."""
    return np.clip(value / width + 0.5, 0.0, 1.0)


def turned(degrees_about_x: float, about_y: float, about_z: float) -> np.ndarray:
    """Return the rotation matrix that turns world vectors into a tilted shape's own axes."""
    matrix = np.eye(3)
    for axis, degrees in enumerate((degrees_about_x, about_y, about_z)):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        one = np.eye(3)
        u, v = (axis + 1) % 3, (axis + 2) % 3
        one[u, u], one[u, v], one[v, u], one[v, v] = c, -s, s, c
        matrix = one @ matrix
    return matrix.T
