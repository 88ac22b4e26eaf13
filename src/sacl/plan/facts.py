"""The facts behind a plan: cohort and machine in numbers, and the result of a trial.

Of scans without a label map only headers count.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np
from jaxtyping import Bool
from scipy import ndimage

from sacl.cohort.manifest import read_cohort, read_reference
from sacl.files.arrays import label_boxes
from sacl.geometry import canonical_grid
from sacl.organs import side_pairs
from sacl.patches.region import Placement
from sacl.run.machine import available_cores
from sacl.types import UNKNOWN, Case, Cohort, Grid

Triple = tuple[float, float, float]

_MOST_MEASURED = 60
"""Label maps that are read at most, evenly chosen: more would hardly move a median."""
_LARGE_GPU_GB = 10.0
"""Memory from which on ResNet-50 trains on batches of 256 x 256 slices."""
_TRIAL_SHARE = 0.15
"""Part of a run's time that trials may take."""
_TRIAL_LEAST_S = 420.0
"""Seconds of a candidate below which a trial says nothing: coarse maps take a third of them, and
networks on slices learn slowly at first."""
_SQUARE_PAYS = 0.8
"""Width of the square around the organs relative to a slice below which it makes pixels finer."""
_READ_PIXELS = 96
"""Pixels across what a network on slices sees on a CPU."""
_MARGIN = 0.02
"""Mean Dice by which another candidate has to be ahead of the first to be taken."""


@dataclass(frozen=True)
class OrganExtent:
    """An organ of one label map: its volume, width and in-plane ends from the scan's corner.

    `width_mm` is the root of its median area over the axial slices that show it; `second_piece`
    the volume of its second largest piece relative to the largest, 0 where it is in one.
    """

    volume_ml: float
    width_mm: float
    low_mm: tuple[float, float]
    high_mm: tuple[float, float]
    second_piece: float


@dataclass(frozen=True)
class MeasuredScan:
    """A scan in numbers; `labeled` where its reference may be used, `organs` where it was read."""

    subject_id: str
    split: str
    shape: tuple[int, int, int]
    spacing_mm: Triple
    scan_labels: Mapping[str, str]
    labeled: bool = False
    annotated: tuple[str, ...] = ()
    organs: Mapping[str, OrganExtent] | None = None

    @property
    def field_of_view_mm(self) -> Triple:
        """Extent along x, y and z."""
        x, y, z = (n * s for n, s in zip(self.shape, self.spacing_mm, strict=True))
        return x, y, z

    @property
    def side_mm(self) -> float:
        """Side of the square that holds a whole slice."""
        return max(self.field_of_view_mm[:2])


@dataclass(frozen=True)
class DrawnOrgans:
    """The organs of the labeled scans in numbers, medians over scans.

    `square_mm` is the side of the square around all organs that a segmenter would read, and
    `square_share` that relative to a whole slice's; `narrowest` is the organ of the smallest
    `width_mm`, `widest_mm` the largest width of one. `second_piece` is the largest of all organs
    and scans, relative to the organ's main piece.
    """

    square_mm: float
    square_share: float
    narrowest: str
    narrowest_mm: float
    narrowest_ml: float
    widest_mm: float
    second_piece: float


@dataclass(frozen=True, kw_only=True)
class TaskFacts:
    """A cohort in numbers: medians over its scans, along x, y and z.

    `unlabeled_scans` are training scans of subjects without any reference, `held_out_scans` those
    with a reference that no training sees, `only_predicted_scans` held-out ones without. `side_mm`
    is the side of the square that holds a slice: median, smallest, largest. `values` counts the
    training scans by scan-wise label and value.
    """

    name: str
    modality: Literal["ct", "mr"]
    organs: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    partly_annotated: tuple[str, ...]
    scans: int
    subjects: int
    labeled_scans: int
    labeled_subjects: int
    unlabeled_scans: int
    held_out_scans: int
    slices: int
    spacing_mm: Triple
    field_of_view_mm: Triple
    side_mm: Triple
    values: Mapping[str, Mapping[str, int]]
    drawn: DrawnOrgans | None = None
    only_predicted_scans: int = 0

    @property
    def square_pays(self) -> bool:
        """Tell whether the square around all organs makes pixels finer than a whole slice does."""
        return self.drawn is not None and self.drawn.square_share < _SQUARE_PAYS

    @property
    def shown_mm(self) -> float:
        """Side of what a network on slices is shown: the organs' square if it pays, or a slice."""
        return self.drawn.square_mm if self.drawn and self.square_pays else self.side_mm[0]

    @property
    def read_mm(self) -> float:
        """Side in mm of a pixel as a network on slices reads it: the scans' own, or coarser."""
        return max(min(self.spacing_mm[:2]), _rounded(self.shown_mm / _READ_PIXELS))

    @property
    def anisotropy(self) -> float:
        """Spacing between slices relative to a pixel that is read."""
        return self.spacing_mm[2] / self.read_mm

    def pixels_of_narrowest(self, size: int) -> float:
        """Return the narrowest organ's width in pixels of a square of `size`, of whole slices."""
        return (self.drawn.narrowest_mm / self.side_mm[0] if self.drawn else 1.0) * size


def measure_cohort(folder: Path) -> TaskFacts:
    """Return an ingested cohort in numbers; label maps are read of labeled scans alone."""
    cohort = read_cohort(folder)
    labeled = [case.case_id for case in cohort.labeled]
    read = set(labeled[:: max(1, -(-len(labeled) // _MOST_MEASURED))])
    scans = [_measured(case, cohort, folder, case.case_id in read) for case in cohort.cases]
    return task_facts(cohort.name, cohort.modality, cohort.scheme.names, scans)


def _measured(case: Case, cohort: Cohort, folder: Path, reads: bool) -> MeasuredScan:
    grid, names = canonical_grid(case.native.grid), cohort.scheme.names
    reference = read_reference(folder, case, cohort.scheme) if reads else None
    organs: dict[str, OrganExtent] | None = None
    if reference is not None:
        boxes = zip(names, label_boxes(reference.voxels, len(names)), strict=True)
        organs = {
            organ: extent_of(reference.voxels[box] == label, box, grid)
            for label, (organ, box) in enumerate(boxes, start=1)
            if box is not None
        }
    return MeasuredScan(
        subject_id=case.subject_id,
        split=case.split,
        shape=grid.shape,
        spacing_mm=grid.spacing_mm,
        scan_labels=case.scan_labels,
        labeled=case.reference is not None,
        annotated=case.annotated,
        organs=organs,
    )


def extent_of(mask: Bool[np.ndarray, "i j k"], box: Sequence[slice], grid: Grid) -> OrganExtent:
    """Return an organ's extent by its bounding box and its mask, not empty, in that."""
    i_mm, j_mm, _ = grid.spacing_mm
    areas = np.count_nonzero(mask, axis=(0, 1))
    pieces, _ = ndimage.label(mask)
    *_, second, first = sorted([0, *np.bincount(pieces.ravel())[1:]])
    return OrganExtent(
        volume_ml=float(areas.sum()) * grid.voxel_ml,
        width_mm=float(np.sqrt(np.median(areas[areas > 0]) * i_mm * j_mm)),
        low_mm=(box[0].start * i_mm, box[1].start * j_mm),
        high_mm=(box[0].stop * i_mm, box[1].stop * j_mm),
        second_piece=float(second / first),
    )


def task_facts(
    name: str, modality: Literal["ct", "mr"], organs: Sequence[str], scans: Sequence[MeasuredScan]
) -> TaskFacts:
    """Return a cohort in numbers by its scans, of which there has to be one."""
    training = [scan for scan in scans if scan.split == "train"]
    labeled = [scan for scan in training if scan.labeled]
    learned = {scan.subject_id for scan in labeled}
    sides_mm = [scan.side_mm for scan in scans]
    return TaskFacts(
        name=name,
        modality=modality,
        organs=tuple(organs),
        pairs=tuple(side_pairs(organs)),
        partly_annotated=tuple(o for o in organs if any(o not in s.annotated for s in labeled)),
        scans=len(scans),
        subjects=len({scan.subject_id for scan in scans}),
        labeled_scans=len(labeled),
        labeled_subjects=len(learned),
        unlabeled_scans=sum(scan.subject_id not in learned for scan in training),
        held_out_scans=sum(scan.labeled for scan in scans) - len(labeled),
        slices=sum(scan.shape[2] for scan in scans),
        spacing_mm=_medians([scan.spacing_mm for scan in scans]),
        field_of_view_mm=_medians([scan.field_of_view_mm for scan in scans]),
        side_mm=(_rounded(median(sides_mm)), _rounded(min(sides_mm)), _rounded(max(sides_mm))),
        values={
            name: dict(sorted(Counter(s.scan_labels.get(name, UNKNOWN) for s in training).items()))
            for name in sorted({name for scan in training for name in scan.scan_labels})
        },
        drawn=_figures([scan for scan in labeled if scan.organs]),
        only_predicted_scans=sum(s.split != "train" and not s.labeled for s in scans),
    )


def _figures(scans: Sequence[MeasuredScan]) -> DrawnOrgans | None:
    extents: defaultdict[str, list[OrganExtent]] = defaultdict(list)
    squares_mm, shares, context = [], [], Placement().region_context
    for scan in scans:
        organs = scan.organs or {}
        for organ, extent in organs.items():
            extents[organ].append(extent)
        low = np.min([extent.low_mm for extent in organs.values()], axis=0)
        high = np.max([extent.high_mm for extent in organs.values()], axis=0)
        squares_mm.append(min(context * float((high - low).max()), scan.side_mm))
        shares.append(squares_mm[-1] / scan.side_mm)
    if not extents:
        return None
    widths_mm = {organ: median(e.width_mm for e in own) for organ, own in extents.items()}
    narrowest = min(widths_mm, key=widths_mm.__getitem__)
    return DrawnOrgans(
        square_mm=_rounded(median(squares_mm)),
        square_share=_rounded(median(shares)),
        narrowest=narrowest,
        narrowest_mm=_rounded(widths_mm[narrowest]),
        narrowest_ml=_rounded(median(extent.volume_ml for extent in extents[narrowest])),
        widest_mm=_rounded(max(widths_mm.values())),
        second_piece=_rounded(max(e.second_piece for own in extents.values() for e in own)),
    )


def _medians(triples: Sequence[Triple]) -> Triple:
    x, y, z = (_rounded(median(values)) for values in zip(*triples, strict=True))
    return x, y, z


def _rounded(value: float) -> float:
    """Return a number with three digits, so that rounding errors of a header decide nothing."""
    return float(f"{value:.3g}")


@dataclass(frozen=True)
class MachineFacts:
    """A machine in numbers; `gpu_gb` is 0 without a CUDA device, `memory_gb` where unknown."""

    device: str
    cores: int
    memory_gb: float
    gpu_gb: float = 0.0

    @property
    def is_large(self) -> bool:
        """Tell whether it is a GPU for large networks and fine slices."""
        return self.gpu_gb >= _LARGE_GPU_GB


def measure_machine(device: str) -> MachineFacts:
    """Return what this machine has for a `device` of the settings; one that it lacks is refused."""
    devices = importlib.import_module("sacl.networks.device")  # torch, when it is needed
    resolved, memory, gpu = devices.resolve_device(device), 0.0, 0.0
    with contextlib.suppress(AttributeError, OSError, ValueError):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    if resolved.type == "cuda":
        gpu = devices.torch.cuda.get_device_properties(resolved).total_memory / 1e9
    return MachineFacts(resolved.type, available_cores(), round(memory, 1), round(gpu, 1))


@dataclass(frozen=True)
class Tried:
    """What one candidate reached on labeled scans that its networks did not see.

    `dice` is the mean over organs of the mean over scans, `organs` the latter; `steps` those of its
    segmenter.
    """

    candidate: str
    dice: float
    organs: Mapping[str, float]
    steps: int
    seconds: float


def trial_s(seconds: float, candidates: int) -> float:
    """Return what a trial may give each candidate of a run's time, 0 where that is too short."""
    each_s = _TRIAL_SHARE * seconds / candidates
    return each_s if each_s >= _TRIAL_LEAST_S else 0.0


def best_of(tried: Sequence[Tried]) -> Tried:
    """Return the best candidate; the first unless another is clearly ahead of it."""
    first, best = tried[0], max(tried, key=lambda one: one.dice)
    return best if best.dice > first.dice + _MARGIN else first


def in_words(tried: Sequence[Tried]) -> str:
    """Return what a trial has shown in a line."""
    figures = ", ".join(f"{one.candidate} {one.dice:.2f}" for one in tried)
    return f"Dice on unseen labeled scans, after a short training each: {figures}"
