"""Generate one phantom scan: draw subject, pose and contrast, paint slab by slab, add noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sacl.types import Grid, LabelMap, Volume
from sacl_phantom.anatomy import SCHEME, anatomy
from sacl_phantom.contrast import Phase, draw_contrast
from sacl_phantom.fields import noise_slice
from sacl_phantom.imaging import Painter
from sacl_phantom.pose import draw_pose
from sacl_phantom.subject import draw_subject

_CELLS_PER_SLAB = 3_000_000


@dataclass(frozen=True, eq=False)
class PhantomScan:
    """A generated scan: int16 HU, its reference label map, and what it is."""

    image: Volume
    labels: LabelMap
    phase: Phase
    subject_seed: int


def make_scan(
    seed: int,
    phase: Phase,
    shape: tuple[int, int, int] = (128, 104, 40),
    spacing_mm: tuple[float, float, float] = (3.0, 3.0, 6.0),
    noise_hu: float = 18.0,
    subject_seed: int | None = None,
) -> PhantomScan:
    """Generate a scan of a subject in one contrast phase on a canonical grid, RAS+.

    The subject is `subject_seed` (by default `seed`); pose, breath, contrast and noise follow
    `seed`. The same arguments give the same voxels. Memory is bounded by working in slabs.

    Raises:
        ConfigError: there is no such phase.
    """
    subject_seed = seed if subject_seed is None else subject_seed
    subject = draw_subject(subject_seed)
    rng = np.random.default_rng((seed, 2))
    contrast = draw_contrast(subject, phase, rng)
    pose = draw_pose(subject, rng)
    noise = noise_hu * float(np.exp(rng.normal(0, 0.15))) * float(subject.scale[0] ** 2)
    image = np.empty(shape, dtype=np.int16)
    labels = np.empty(shape, dtype=np.uint8)
    painter = Painter(subject, pose, contrast, anatomy(subject), spacing_mm)
    center = pose.shift_mm - np.array([0.0, 12.0, 0.0])
    axes = [
        (np.arange(n) - (n - 1) / 2) * step + offset
        for n, step, offset in zip(shape, spacing_mm, center, strict=True)
    ]
    slices = max(1, _CELLS_PER_SLAB // (shape[0] * shape[1] * painter.layers))
    for first in range(0, shape[2], slices):
        slab = slice(first, min(first + slices, shape[2]))
        hu, labels[:, :, slab], depth = painter.paint(axes[0], axes[1], axes[2][slab])
        for n, k in enumerate(range(slab.start, slab.stop)):
            # Rays through the middle of the body are attenuated most.
            strength = noise * (0.62 + 0.42 * np.clip(depth[:, :, n] / 90, 0, 1))
            hu[:, :, n] += strength * noise_slice(seed, k, shape[:2], spacing_mm)
        image[:, :, slab] = np.clip(np.rint(hu), -1024, 3071)
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = [-(n - 1) / 2 * step for n, step in zip(shape, spacing_mm, strict=True)]
    affine[:3, 3] += np.round(rng.normal(0, (12, 25, 150)), 1)
    grid = Grid(shape, affine)
    return PhantomScan(Volume(image, grid), LabelMap(labels, grid, SCHEME), phase, subject_seed)
