"""The records that pass between stages: frozen, and checked when they are made.

Arrays are `[i, j, k]`. World coordinates are (x, y, z) in mm, RAS+. Label 0 is background.
A name that has a unit ends in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from sacl.errors import DataError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

UNKNOWN = "unknown"
"""The value of a scan-wise label that is not known; allowed everywhere."""
PHASE = "phase"
"""Name of the scan-wise label that holds the contrast phase."""
PHASES = ("native", "arterial_early", "arterial_late", "portal_venous", "delayed")
"""The contrast phases in the order of time after the injection."""


def join_labels(values: Sequence[str]) -> str:
    """Return several scan-wise labels as one; unknown where one of them is.

    Example:
        >>> join_labels(["native", "siemens"]), join_labels(["native", "unknown"])
        ('native / siemens', 'unknown')
    """
    return UNKNOWN if UNKNOWN in values else " / ".join(values)


@dataclass(frozen=True)
class LabelScheme:
    """The organs of a cohort: `names[n]` is the organ whose label value is `n + 1`."""

    name: str
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.names:
            raise DataError(f"scheme {self.name}: no organ; name at least one")
        if len(set(self.names)) != len(self.names):
            raise DataError(f"scheme {self.name}: an organ is named twice in {self.names}")

    @property
    def label_type(self) -> type[np.unsignedinteger]:
        """The smallest type of voxel that holds every label."""
        return np.uint8 if len(self.names) <= 255 else np.uint16

    def label_of(self, organ: str) -> int:
        """Return the label value of an organ, 1-based; one that is not in the scheme is refused."""
        if organ not in self.names:
            raise DataError(
                f"scheme {self.name}: no organ '{organ}'; it has {', '.join(self.names)}"
            )
        return self.names.index(organ) + 1


@dataclass(frozen=True, eq=False)
class Grid:
    """A voxel grid in the world: its shape and the affine from (i, j, k) to (x, y, z) mm, RAS+."""

    shape: tuple[int, int, int]
    affine: np.ndarray

    def __post_init__(self) -> None:
        affine = np.asarray(self.affine, dtype=np.float64)
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise DataError(f"grid: shape {self.shape} is not three positive numbers")
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise DataError("grid: the affine is not a finite 4 x 4 matrix; repair the header")
        sizes = self.spacing_mm
        if abs(np.linalg.det(affine[:3, :3])) < 1e-9 or max(sizes) > 1000 * min(*sizes, 1.0):
            mm = " x ".join(f"{size:.3g}" for size in sizes)
            raise DataError(f"grid: no scan has {mm} mm, or axes in one plane; repair the header")

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighboring voxels along i, j and k, in mm."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(i), float(j), float(k)

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in milliliters."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0


@dataclass(frozen=True, eq=False)
class Volume:
    """Image intensities on a grid; HU for CT, arbitrary for MR."""

    voxels: np.ndarray
    grid: Grid

    def __post_init__(self) -> None:
        if self.voxels.shape != self.grid.shape:
            raise DataError(f"volume: {self.voxels.shape} voxels on a grid of {self.grid.shape}")


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Organ labels on a grid: a coarse, a reference and a predicted map are this one type."""

    voxels: np.ndarray
    grid: Grid
    scheme: LabelScheme

    def __post_init__(self) -> None:
        if self.voxels.shape != self.grid.shape:
            raise DataError(f"label map: {self.voxels.shape} voxels on a grid of {self.grid.shape}")
        if self.voxels.dtype.kind not in "ui":
            raise DataError(f"label map: voxels are {self.voxels.dtype}, expected integers")

    def mask(self, organ: str) -> np.ndarray:
        """Return the organ's binary mask, bool `[i, j, k]`."""
        return np.asarray(self.voxels == self.scheme.label_of(organ), dtype=np.bool_)


@dataclass(frozen=True, eq=False)
class NativeFrame:
    """How a scan lay in its own file, so that a result goes back to exactly that grid.

    The codes are those of its NIfTI header. `qform` holds pixdim[0:4], quaternion b, c, d and
    offset x, y, z as stored, since a quaternion recomputed from the affine differs in the last
    bits. `contradiction` says in words how sform, qform and pixdim differ, if they do.
    """

    grid: Grid
    qform_code: int = 0
    sform_code: int = 1
    xyzt_units: int = 2
    qform: tuple[float, ...] = ()
    contradiction: str = ""


@dataclass(frozen=True)
class Box:
    """A half-open voxel box `[start, stop)` in (i, j, k); it may reach beyond the volume."""

    start: tuple[int, int, int]
    stop: tuple[int, int, int]

    def __post_init__(self) -> None:
        if any(a >= b for a, b in zip(self.start, self.stop, strict=True)):
            raise DataError(f"box: start {self.start} is not below stop {self.stop}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along i, j and k."""
        i, j, k = (b - a for a, b in zip(self.start, self.stop, strict=True))
        return i, j, k


@dataclass(frozen=True, eq=False)
class Case:
    """One scan of a subject, in canonical (closest RAS+) orientation.

    `image` and `reference` are file names in the cohort's folder; there is no reference where the
    scan has none, or it is hidden. `window` are the two intensities that become 0 and 1.
    """

    case_id: str
    subject_id: str
    image: str
    reference: str | None
    split: Split
    native: NativeFrame
    window: tuple[float, float]
    scan_labels: Mapping[str, str] = field(default_factory=dict)
    annotated: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise DataError(f"case {self.case_id}: split '{self.split}', expected one of {SPLITS}")
        if not self.window[1] > self.window[0]:
            raise DataError(
                f"case {self.case_id}: constant image, its intensity window is {self.window};"
                " check the file or leave the case out"
            )

    def scan_label(self, name: str) -> str:
        """Return a scan-wise label such as `phase`; `unknown` where the case does not have it."""
        return self.scan_labels.get(name, UNKNOWN)


@dataclass(frozen=True, eq=False)
class Cohort:
    """The cases of an experiment; no subject stands in two splits.

    `window_hu` are the CT intensities that become 0 and 1; an MR scan has a window of its own.
    `phase_source` says where contrast phases that it has are from, a table or DICOM tags.
    """

    name: str
    scheme: LabelScheme
    cases: tuple[Case, ...]
    modality: Literal["ct", "mr"] = "ct"
    window_hu: tuple[float, float] = (-175.0, 275.0)
    phase_source: Literal["table", "tags"] = "table"

    def __post_init__(self) -> None:
        seen: set[str] = set()
        split_of: dict[str, str] = {}
        for case in self.cases:
            if case.case_id in seen:
                raise DataError(f"cohort {self.name}: case {case.case_id} appears twice")
            seen.add(case.case_id)
            if split_of.setdefault(case.subject_id, case.split) != case.split:
                raise DataError(
                    f"cohort {self.name}: subject {case.subject_id} is in two splits,"
                    f" {split_of[case.subject_id]} and {case.split}; keep a subject in one"
                )

    def of_split(self, split: Split) -> tuple[Case, ...]:
        """Return the cases of one split, in the cohort's order."""
        return tuple(case for case in self.cases if case.split == split)

    @property
    def labeled(self) -> tuple[Case, ...]:
        """The training cases with a reference: all that any training may see of annotation."""
        return tuple(c for c in self.of_split("train") if c.reference is not None)

    @property
    def labeled_subjects(self) -> frozenset[str]:
        """The subjects of those cases."""
        return frozenset(case.subject_id for case in self.labeled)

    @property
    def unlabeled(self) -> tuple[Case, ...]:
        """The training cases of subjects without any reference."""
        seen = self.labeled_subjects
        return tuple(case for case in self.of_split("train") if case.subject_id not in seen)

    @property
    def held_out(self) -> tuple[Case, ...]:
        """The cases with a reference that no training sees."""
        return tuple(c for c in self.cases if c.split != "train" and c.reference is not None)


@dataclass(frozen=True)
class OrganScore:
    """Agreement of one organ in one scan; NaN means undefined, never 0."""

    case_id: str
    organ: str
    dice: float
    hd95_mm: float
    nsd: float
    reference_ml: float
    predicted_ml: float
