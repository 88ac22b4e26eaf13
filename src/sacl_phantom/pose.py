"""How a subject lay in one scan: shift, turn, breath, deformation; and the points that result."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sacl_phantom.fields import Lattice, smooth_field
from sacl_phantom.frame import above_dome, wall_distance
from sacl_phantom.shapes import Points
from sacl_phantom.subject import Subject

_FIELD_BOX_MM = np.array([[-260.0, -220.0, -260.0], [260.0, 220.0, 260.0]])


@dataclass(frozen=True, eq=False)
class Pose:
    """How a subject lay in one scan: a shift, a turn about z, a breath, and its deformation."""

    shift_mm: np.ndarray
    turn: float
    breath_mm: float
    bend: tuple[Lattice, Lattice, Lattice]
    textures: tuple[Lattice, Lattice, Lattice]

    @property
    def reach_mm(self) -> float:
        """How far anatomical coordinates can lie from those of the grid."""
        return max(b.bound for b in self.bend) + 260 * abs(self.turn) + abs(self.breath_mm) + 1.0


def draw_pose(subject: Subject, rng: np.random.Generator) -> Pose:
    """Draw a scan's pose; the deformation is the subject's own but for a small part."""
    own = subject.rng(61)
    fields = [smooth_field(own, _FIELD_BOX_MM, 42.0, 2.6) for _ in range(3)]
    wobble = [smooth_field(rng, _FIELD_BOX_MM, 42.0, 0.6) for _ in range(3)]
    bend = [
        Lattice(f.coefficients + w.coefficients, f.low_mm, f.step_mm)
        for f, w in zip(fields, wobble, strict=True)
    ]
    textures = [smooth_field(own, _FIELD_BOX_MM, step, 1.0) for step in (17.0, 17.0, 6.5)]
    return Pose(
        rng.normal(0, (5.0, 4.0, 6.0)),
        float(rng.normal(0, np.radians(1.2))),
        float(rng.normal(0, 4.0)),
        (bend[0], bend[1], bend[2]),
        (textures[0], textures[1], textures[2]),
    )


def points_of(subject: Subject, pose: Pose, axes: tuple[np.ndarray, ...]) -> Points:
    """Return anatomical coordinates and textures at the cells spanned by x, y and z in mm."""
    x, y, z = (axis.astype(np.float32) for axis in axes)
    grid = (x[:, None, None], y[None, :, None], z[None, None, :])
    ux, uy, uz = (field.at((x, y, z)) for field in pose.bend)
    cos, sin = np.float32(np.cos(pose.turn)), np.float32(np.sin(pose.turn))
    ax = cos * grid[0] - sin * grid[1] + ux
    ay = sin * grid[0] + cos * grid[1] + uy
    # The front of the abdomen moves with the breath, the spine does not.
    az = grid[2] + uz - np.float32(pose.breath_mm) * np.clip((ay + 65) / 60, 0, 1)
    wall = wall_distance(subject, ax, ay)
    coarse, other, fine = (field.at((x, y, z)) for field in pose.textures)
    room = np.broadcast_to(grid[1], ax.shape)
    dome = above_dome(subject, ax, ay, az)
    return Points(ax, ay, az, wall, dome, coarse, other, fine, room)
