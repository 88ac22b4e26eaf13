"""Outline a mask along its pixel edges, so that filling the outlines gives the same pixels.

Pixel (r, c) covers the square from corner (r, c) to corner (r + 1, c + 1). An outline runs with the
mask on its right. Pixels that touch at a corner only are outlined apart.

A hole is joined to the outline around it by a cut of no width (a keyhole), so that every outline
is one closed polygon. It encloses the same pixel centers under the even-odd rule and under the
nonzero winding rule, and also where a reader takes the union of all polygons of a slice.
"""

from __future__ import annotations

import numpy as np

Corner = tuple[int, int]


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Return a closed polygon per 4-connected part of a mask, without its last corner again.

    Args:
        mask: bool `[row, column]`; an empty mask has no outline.

    Returns:
        Corners `[n, 2]` (row, column) in pixel edges: the first pixel's center is (0.5, 0.5).
    """
    rings = _rings(_edges(mask))
    outer = [ring for ring in rings if _turns_right(ring)]
    holes = [_from_left(ring) for ring in rings if not _turns_right(ring)]
    ring_at = {corner: number for number, ring in enumerate(outer) for corner in ring}
    for hole in sorted(holes, key=lambda ring: ring[0][1]):
        row, column = hole[0]
        # A hole's leftmost corner has mask on its left: going there, the first corner of an
        # outline met is of the same part, its outer one or a hole further left, joined already.
        column -= 1
        while (row, column) not in ring_at:
            column -= 1
        number = ring_at[row, column]
        at = outer[number].index((row, column))
        outer[number][at:at] = [(row, column), *hole, hole[0]]
        ring_at.update((corner, number) for corner in hole)
    return [_without_straight(np.array(ring)) for ring in outer]


def _edges(mask: np.ndarray) -> dict[Corner, list[Corner]]:
    """Return the edges between mask and background by the corner that they leave, one or two."""
    padded = np.pad(np.asarray(mask, np.bool_), 1)
    inside, above, left = padded[1:, 1:], padded[:-1, 1:], padded[1:, :-1]
    found: dict[Corner, list[Corner]] = {}

    def add(where: np.ndarray, leave: Corner, arrive: Corner) -> None:
        for row, column in np.argwhere(where).tolist():
            start = (row + leave[0], column + leave[1])
            found.setdefault(start, []).append((row + arrive[0], column + arrive[1]))

    add(inside & ~above, (0, 0), (0, 1))
    add(~inside & above, (0, 1), (0, 0))
    add(inside & ~left, (1, 0), (0, 0))
    add(~inside & left, (0, 0), (1, 0))
    return found


def _rings(edges: dict[Corner, list[Corner]]) -> list[list[Corner]]:
    """Return the closed walks along all edges, every unit step a corner; uses up the edges."""
    rings = []
    while edges:
        start = next(iter(edges))
        ring, after = [start], _leave(edges, start, None)
        while True:
            before, corner = ring[-1], after
            # Where two parts of the mask touch, turning right stays with one's own.
            right = (corner[0] + corner[1] - before[1], corner[1] - corner[0] + before[0])
            if corner == start and (right == ring[1] or start not in edges):
                break
            ring.append(corner)
            after = _leave(edges, corner, right)
        rings.append(ring)
    return rings


def _leave(edges: dict[Corner, list[Corner]], corner: Corner, wanted: Corner | None) -> Corner:
    """Take an edge that leaves a corner, the wanted one where there are two."""
    ends = edges[corner]
    after = ends.pop(ends.index(wanted) if wanted in ends else 0)
    if not ends:
        del edges[corner]
    return after


def _turns_right(ring: list[Corner]) -> bool:
    """Tell whether a ring goes around its part of the mask, not around a hole in it."""
    row, column = np.array(ring).T
    return bool(np.sum(np.roll(row, -1) * column - row * np.roll(column, -1)) > 0)


def _from_left(ring: list[Corner]) -> list[Corner]:
    """Return a ring from its leftmost corner on, the uppermost of these."""
    start = min(range(len(ring)), key=lambda n: (ring[n][1], ring[n][0]))
    return ring[start:] + ring[:start]


def _without_straight(ring: np.ndarray) -> np.ndarray:
    """Return a polygon without the corners at which it goes straight on."""
    arriving = np.sign(ring - np.roll(ring, 1, axis=0))
    leaving = np.roll(arriving, -1, axis=0)
    return np.asarray(ring[(arriving != leaving).any(axis=1)])
