"""Smooth random fields in the world, and band-limited image noise; the same at any spacing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_SPLINE_VARIANCE = 0.4794
"""Mean over positions of the summed squares of the four cubic B-spline weights, per axis."""


@dataclass(frozen=True, eq=False)
class Lattice:
    """A smooth field: cubic B-spline coefficients on a lattice that fills a box in mm."""

    coefficients: np.ndarray
    low_mm: np.ndarray
    step_mm: float

    @property
    def bound(self) -> float:
        """No value of the field is larger than this in magnitude."""
        return float(np.abs(self.coefficients).max())

    def at(self, axes: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
        """Return the field on the grid spanned by x, y and z positions in mm, `[i, j, k]`."""
        weights = [
            _spline_weights((axis - low) / self.step_mm, count)
            for axis, low, count in zip(axes, self.low_mm, self.coefficients.shape, strict=True)
        ]
        along_k = self.coefficients @ weights[2].T
        along_jk = np.matmul(weights[1], along_k)
        return np.asarray(np.tensordot(weights[0], along_jk, axes=1), dtype=np.float32)


def smooth_field(
    rng: np.random.Generator, box_mm: np.ndarray, step_mm: float, deviation: float
) -> Lattice:
    """Draw a field of zero mean and the given standard deviation over a box `[2, 3]` in mm."""
    count = np.ceil((box_mm[1] - box_mm[0]) / step_mm).astype(int) + 4
    values = rng.standard_normal(count) * (deviation / _SPLINE_VARIANCE**1.5)
    return Lattice(values.astype(np.float32), box_mm[0] - step_mm, step_mm)


def _spline_weights(position: np.ndarray, count: int) -> np.ndarray:
    """Return cubic B-spline weights `[n, count]`; beyond the lattice the border value holds."""
    position = np.clip(position, 1.0, count - 2.001)
    first = np.floor(position).astype(int) - 1
    t = position - np.floor(position)
    parts = (
        (1 - t) ** 3 / 6,
        (3 * t**3 - 6 * t**2 + 4) / 6,
        (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6,
        t**3 / 6,
    )
    weights = np.zeros((len(position), count), dtype=np.float32)
    rows = np.arange(len(position))
    for offset, part in enumerate(parts):
        weights[rows, first + offset] = part
    return weights


def noise_slice(
    seed: int, k: int, shape: tuple[int, int], spacing_mm: tuple[float, float, float]
) -> np.ndarray:
    """Return the noise of axial slice `k`, unit standard deviation, `[i, j]`.

    The power spectrum rises like the ramp of filtered back-projection and falls with the kernel
    (Kijewski and Judy, Phys Med Biol 32:565, 1987), and is stronger across than along the patient's
    width, where fewer photons pass. Neighboring slices share noise when slices are thin.
    """
    shared = float(np.exp(-spacing_mm[2] / 2.5))
    white = sum(
        weight * np.random.default_rng((seed, 7, k + step + 1)).standard_normal(shape)
        for step, weight in ((0, 1.0), (-1, shared), (1, shared))
        if weight > 0.05
    )
    fx = np.fft.fftfreq(shape[0], spacing_mm[0])[:, None]
    fy = np.fft.rfftfreq(shape[1], spacing_mm[1])[None, :]
    f = np.hypot(fx, fy)
    cut = min(0.38, 0.42 / max(spacing_mm[:2]))
    streak = 1 + 0.6 * fy**2 / np.maximum(f, 1e-9) ** 2
    gain = (f + 0.012) ** 0.5 * np.exp(-((f / cut) ** 3)) * streak
    noise = np.fft.irfft2(np.fft.rfft2(white) * gain, shape)
    return np.asarray(noise / max(float(noise.std()), 1e-9), dtype=np.float32)
