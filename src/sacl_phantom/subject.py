"""One subject's anatomy as numbers: habitus, sizes, places, missing organs, bowel content."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sacl.files.documents import packaged


@dataclass(frozen=True)
class Tissues:
    """What `tissues.yaml` holds: HU, deviations of sizes, how often an organ is missing."""

    mean_hu: Mapping[str, tuple[float, float, float]]
    later_hu: Mapping[str, tuple[float, float]]
    fixed_hu: Mapping[str, float]
    size_deviation: Mapping[str, float]
    missing: Mapping[str, float]


@dataclass(frozen=True)
class Stretch:
    """A tube in the average adult: knots of its center line, radii in mm; `flat` thins it in y."""

    knots: tuple[tuple[float, float, float], ...]
    radii: tuple[float, ...]
    flat: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Vessel(Stretch):
    """A vessel's stretch; `courses.yaml`, where all of them are, says what its fields mean."""

    tissue: str
    follows: str = ""
    serves: str = ""
    labeled: bool = False


@dataclass(frozen=True)
class Courses:
    """What `courses.yaml` holds."""

    stomach: Stretch
    esophagus: Stretch
    duodenum: Stretch
    pancreas: Stretch
    muscles: tuple[Stretch, ...]
    vessels: tuple[Vessel, ...]


TISSUES: Tissues = packaged("sacl_phantom", "tissues.yaml", Tissues)
COURSES: Courses = packaged("sacl_phantom", "courses.yaml", Courses)


@dataclass(frozen=True, eq=False)
class Subject:
    """The numbers that make one person's abdomen; lengths in mm.

    The origin lies before the first lumbar disc; +x is the person's right, +y front, +z head.
    """

    seed: int
    scale: np.ndarray
    fat_mm: tuple[float, float, float]
    size: Mapping[str, float]
    shift_mm: Mapping[str, np.ndarray]
    missing: frozenset[str]
    fill: Mapping[str, float]

    @property
    def cavity_mm(self) -> np.ndarray:
        """Half axes of the abdominal cavity's outline along x and y."""
        return np.array([122.0, 82.0]) * self.scale[:2]

    @property
    def wall_mm(self) -> tuple[float, float, float]:
        """Thickness of the muscle wall in front, at the side and at the back."""
        m = self.size["muscle"]
        return 10.0 * m, 15.0 * m, 36.0 * m

    def place(self, what: str, *points: tuple[float, float, float]) -> np.ndarray:
        """Return the average adult's points `[n, 3]` at this person's place for them."""
        return np.array(points, dtype=np.float64) * self.scale + self.shift_mm.get(what, 0.0)

    def rng(self, what: int) -> np.random.Generator:
        """Return a generator of its own for one purpose, so that parts do not disturb others."""
        return np.random.default_rng((self.seed, what))


def draw_subject(seed: int) -> Subject:
    """Draw a subject; the same seed gives the same person."""
    rng = np.random.default_rng((seed, 1))
    habitus = float(np.clip(rng.standard_normal(), -1.7, 2.0))
    noise = rng.standard_normal(6)
    scale = 1 + habitus * np.array([0.05, 0.08, 0.0]) + noise[:3] * np.array([0.025, 0.03, 0.04])
    fat = (
        max(4.0, 15 + 9 * habitus + 4 * noise[3]),
        max(4.0, 12 + 8 * habitus + 3 * noise[4]),
        max(5.0, 12 + 7 * habitus + 3 * noise[5]),
    )
    stature = 0.03 * rng.standard_normal()
    size = {
        name: float(np.exp(stature + deviation * np.clip(rng.standard_normal(), -2, 2)))
        for name, deviation in TISSUES.size_deviation.items()
    }
    missing = frozenset(name for name, share in TISSUES.missing.items() if rng.random() < share)
    if {"kidney_right", "kidney_left"} <= missing:
        missing -= {"kidney_left"}
    return Subject(
        seed, np.clip(scale, 0.88, 1.2), fat, size, _draw_shifts(rng), missing, _draw_fill(rng)
    )


def _draw_shifts(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw how far each organ lies from its usual place; what hangs together moves together."""
    shift = {name: rng.normal(0, 3.0, 3) for name in TISSUES.size_deviation}
    shift["kidney_left"][2] += rng.normal(0, 5)
    shift["kidney_right"][2] += rng.normal(0, 5)
    shift["stomach"][2] += rng.normal(0, 6)
    shift["gallbladder"][:2] += rng.normal(0, 3, 2)
    shift["portal_vein_and_splenic_vein"] = shift["pancreas"]
    shift["mesentery"] = shift["pancreas"]
    shift["aorta"] = rng.normal(0, (3.0, 1.0, 2.0))
    shift["inferior_vena_cava"] = rng.normal(0, (2.5, 1.5, 2.0))
    for side in ("right", "left"):
        shift[f"adrenal_gland_{side}"] = 0.4 * shift[f"kidney_{side}"] + rng.normal(0, 1.5, 3)
    return shift


def _draw_fill(rng: np.random.Generator) -> dict[str, float]:
    """Draw what the hollow organs hold: HU of the content and how high the gas stands."""
    contrast = float(rng.choice([12.0, 25.0, 210.0], p=[0.5, 0.3, 0.2]))
    return {
        "stomach": float(rng.choice([12.0, 35.0, contrast])),
        "small_bowel": contrast,
        "colon": float(rng.normal(35, 15)),
        "stomach_gas": float(rng.uniform(-0.2, 0.9)),
        "colon_gas": float(rng.uniform(-0.4, 0.7)),
        "esophagus_gas": float(rng.random()),
        "steatosis": float(rng.random()),
        "lobulation": float(rng.uniform(0.3, 1.0)),
    }
