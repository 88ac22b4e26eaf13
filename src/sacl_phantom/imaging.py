"""From shapes to voxels: how much of each voxel every part fills, its HU, and the label on top."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sacl_phantom.anatomy import SCHEME
from sacl_phantom.frame import skin_distance
from sacl_phantom.pose import Pose, points_of
from sacl_phantom.shapes import Part, Points
from sacl_phantom.subject import Subject


@dataclass(frozen=True, eq=False)
class _Canvas:
    """A slab being painted: its HU, and how much background and the leading organ show in it."""

    hu: np.ndarray
    label: np.ndarray
    organ_share: np.ndarray
    other_share: np.ndarray

    def paint(
        self, window: tuple[slice, ...], share: np.ndarray, hu: np.ndarray, label: int
    ) -> None:
        """Lay a part over what is there; `share` is its part of each voxel, `hu` is weighted."""
        rest = 1 - share
        self.hu[window] *= rest
        self.hu[window] += hu
        self.organ_share[window] *= rest
        self.other_share[window] *= rest
        if label == 0:
            self.other_share[window] += share
            return
        leading, held = self.label[window], self.organ_share[window]
        same = leading == label
        held += np.where(same, share, 0)
        taken = ~same & (share > held)
        leading[taken] = label
        held[taken] = share[taken]


def _window(box: np.ndarray, axes: tuple[np.ndarray, ...]) -> tuple[slice, slice, slice] | None:
    """Return which cells of the slab lie in a box in mm, None where none does."""
    slices = []
    for low, high, axis in zip(box[0], box[1], axes, strict=True):
        first, last = np.searchsorted(axis, (low, high))
        if first >= last:
            return None
        slices.append(slice(int(first), int(last)))
    return slices[0], slices[1], slices[2]


@dataclass(frozen=True, eq=False)
class Painter:
    """Everything that painting a slab needs and that does not change between slabs."""

    subject: Subject
    pose: Pose
    contrast: dict[str, float]
    parts: list[Part]
    spacing_mm: tuple[float, float, float]

    @property
    def layers(self) -> int:
        """Into how many layers of cells a slice is divided, so that cells are about cubes."""
        return int(max(1, min(4, round(self.spacing_mm[2] / max(self.spacing_mm[:2])))))

    def paint(
        self, x: np.ndarray, y: np.ndarray, z: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return HU, labels and the depth under the skin in mm of the voxels at x, y and z."""
        layers, step = self.layers, self.spacing_mm[2]
        inside = (np.arange(layers) - (layers - 1) / 2) * step / layers
        axes = (x, y, (z[:, None] + inside).ravel())
        points = points_of(self.subject, self.pose, axes)
        shape = (len(x), len(y), len(z))
        canvas = _Canvas(
            np.full(shape, self.contrast["gas"] - 8, dtype=np.float32),
            np.zeros(shape, dtype=np.uint8),
            np.zeros(shape, dtype=np.float32),
            np.ones(shape, dtype=np.float32),
        )
        for part in self.parts:
            self._paint_part(part, points, canvas, (x, y, z))
        label = np.where(canvas.organ_share > canvas.other_share, canvas.label, 0)
        middle = points.crop((slice(None), slice(None), slice(layers // 2, None, layers)))
        return canvas.hu, label.astype(np.uint8), -skin_distance(self.subject, middle)

    def _paint_part(
        self, part: Part, points: Points, canvas: _Canvas, axes: tuple[np.ndarray, ...]
    ) -> None:
        reach = self.pose.reach_mm + max(self.spacing_mm)
        window = _window(part.box_mm + np.array([[-reach], [reach]]), axes)
        if window is None:
            return
        layers = self.layers
        cells = points.crop((*window[:2], slice(window[2].start * layers, window[2].stop * layers)))
        found = part.surface(cells)
        width = 0.55 * (self.spacing_mm[0] + self.spacing_mm[1]) + 2 * part.fuzz_mm
        share = np.clip(0.5 - found.distance / np.float32(width), 0, 1)
        hu: np.ndarray | float = self.contrast.get(part.tissue, 0.0)
        if part.paint is not None:
            hu = part.paint(cells, found, self.contrast)
        label = 0 if part.organ is None else SCHEME.label_of(part.organ)
        canvas.paint(window, _mean(share, layers), _mean(share * hu, layers), label)


def _mean(cells: np.ndarray, layers: int) -> np.ndarray:
    """Average the layers of cells that make up a slice."""
    total = cells[..., 0::layers].astype(np.float32)
    for layer in range(1, layers):
        total += cells[..., layer::layers]
    return total * np.float32(1 / layers)
