"""Measure a scan and its reference once, so that a cohort can be checked without its voxels.

Whatever cannot be read becomes a finding.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int32, Integer, Num
from scipy import ndimage

from sacl.check.findings import Finding
from sacl.cohort.dataset import Dataset, SourceCase
from sacl.cohort.label_names import require_labels
from sacl.cohort.merging import AIR_HU
from sacl.cohort.references import mask_in
from sacl.errors import SaclError
from sacl.files.arrays import label_boxes
from sacl.files.itk import frame_in, labels_in, volume_in
from sacl.geometry import canonical_grid, describe, orientation_of, same_grid
from sacl.organs import canonical_name
from sacl.plan.facts import MeasuredScan, OrganExtent, extent_of
from sacl.report.pictures import ShownScan, reduced, strip, telling_slices
from sacl.types import Grid, NativeFrame, Split

_UNREADABLE = (SaclError, OSError, ValueError, MemoryError)

_SAMPLE_VOXELS = 1_000_000
_SOFT_TISSUE_HU = (-150.0, 250.0)
_UNSHIFTED_TISSUE = (874.0, 1274.0)
"""Where soft tissue lies when an intercept of -1024 was not applied."""
_DRAWN_HU = (-175.0, 275.0)
_DRAWN_VOXELS, _DRAWN_PIXELS = 128, 96
_ANY_NEIGHBOR = ndimage.generate_binary_structure(3, 3)
_UNITS_MM = {1: 1000.0, 3: 0.001}
"""NIfTI's codes of meters and micrometers, in mm; all other codes are taken as mm."""


@dataclass(frozen=True, eq=False)
class Geometry:
    """How a scan lies in space, and how its header contradicts itself, if it does.

    `shape` and `spacing_mm` are canonical (x, y, z), `orientation` is the file's own (`LPS`: i
    runs to the left, j to the back, k to the head). `tilt_deg` is the largest angle between a
    voxel axis and its world axis, `shear` the largest cosine between two voxel axes, `unit_mm` the
    unit that the header names.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    orientation: str
    origin_mm: tuple[float, float, float]
    tilt_deg: float
    shear: float
    unit_mm: float = 1.0
    contradiction: str = ""

    @property
    def field_of_view_mm(self) -> tuple[float, float, float]:
        """Extent along x, y and z."""
        x, y, z = (n * s for n, s in zip(self.shape, self.spacing_mm, strict=True))
        return x, y, z


@dataclass(frozen=True)
class Intensities:
    """An image in a few numbers, and what tells its voxels from any other's.

    `p005` and `p995` are percentiles 0.5 and 99.5. `soft_share` is the share of the voxels between
    -150 and 250, `soft_median` their median (NaN where there are none); `unshifted_share` the share
    that would be soft tissue in a CT without its intercept.
    """

    low: float
    high: float
    p005: float
    median: float
    p995: float
    soft_share: float
    soft_median: float
    unshifted_share: float
    digest: str


@dataclass(frozen=True)
class OrganFacts:
    """An organ's mask in a few numbers; `center_mm` is its center of mass in the world, RAS+."""

    extent: OrganExtent
    voxels: int
    volume_ml: float
    center_mm: tuple[float, float, float]
    pieces: int
    main_share: float
    second_share: float
    at_border: bool


@dataclass(frozen=True, eq=False)
class ReferenceFacts:
    """What was annotated in a scan: the organs looked for, those there, and a header's doubt."""

    annotated: tuple[str, ...]
    present: Mapping[str, OrganFacts]
    digest: str = ""
    contradiction: str = ""


@dataclass(frozen=True, eq=False)
class ScanFacts:
    """All that is known of one case; None where it could not be read, or is not there.

    `split` and `labeled` (whether its reference is used) are those that a run would have.
    `picture` is a strip of three planes (WebP), empty where the image could not be read.
    """

    case_id: str
    subject_id: str
    split: Split
    geometry: Geometry | None = None
    image: Intensities | None = None
    reference: ReferenceFacts | None = None
    scan_labels: Mapping[str, str] = field(default_factory=dict)
    modality: Literal["ct", "mr"] | None = None
    labeled: bool = False
    problems: tuple[Finding, ...] = ()
    picture: bytes = field(default=b"", repr=False)

    @property
    def measured(self) -> MeasuredScan:
        """The scan as a plan measures it, of which the geometry has to be known."""
        assert self.geometry is not None
        reference = self.reference if self.labeled else None
        return MeasuredScan(
            self.subject_id,
            self.split,
            self.geometry.shape,
            self.geometry.spacing_mm,
            self.scan_labels,
            self.labeled,
            annotated=reference.annotated if reference else (),
            organs={o: f.extent for o, f in reference.present.items()} if reference else None,
        )

    def state_of(self, organ: str) -> Literal["annotated", "absent", "not annotated"]:
        """Return whether an organ is there, was looked for in vain, or was not looked for."""
        if self.reference is None or organ not in self.reference.annotated:
            return "not annotated"
        return "annotated" if organ in self.reference.present else "absent"


def looks_like_ct(image: Intensities) -> bool:
    """Return whether an image holds intensities as low as air has in HU."""
    return image.low <= AIR_HU


def measure_geometry(frame: NativeFrame) -> Geometry:
    """Return how a scan lies, from its file's own grid."""
    grid = canonical_grid(frame.grid)
    letters = [""] * 3
    for world, (axis, flip) in enumerate(orientation_of(frame.grid)):
        letters[axis] = ("RAS", "LPI")[flip][world]
    cosine = grid.affine[:3, :3] / grid.spacing_mm
    x, y, z = frame.grid.affine[:3, 3].tolist()
    return Geometry(
        shape=grid.shape,
        spacing_mm=grid.spacing_mm,
        orientation="".join(letters),
        origin_mm=(x, y, z),
        tilt_deg=math.degrees(math.acos(min(1.0, *np.abs(np.diag(cosine)).tolist()))),
        shear=float(np.abs(cosine.T @ cosine - np.eye(3)).max()),
        unit_mm=_UNITS_MM.get(frame.xyzt_units & 7, 1.0),
        contradiction=frame.contradiction,
    )


def measure_image(voxels: Num[np.ndarray, "i j k"]) -> Intensities:
    """Return an image's numbers; percentiles and shares are of a regular sample of 1e6 voxels."""
    step = max(1, math.ceil((voxels.size / _SAMPLE_VOXELS) ** (1 / 3)))
    sample = voxels[::step, ::step, ::step].astype(np.float32).ravel()
    p005, median, p995 = (float(value) for value in np.percentile(sample, (0.5, 50, 99.5)))
    soft = sample[(sample >= _SOFT_TISSUE_HU[0]) & (sample <= _SOFT_TISSUE_HU[1])]
    unshifted = (sample >= _UNSHIFTED_TISSUE[0]) & (sample <= _UNSHIFTED_TISSUE[1])
    return Intensities(
        low=float(voxels.min()),
        high=float(voxels.max()),
        p005=p005,
        median=median,
        p995=p995,
        soft_share=soft.size / sample.size,
        soft_median=float(np.median(soft)) if soft.size else math.nan,
        unshifted_share=float(unshifted.mean()),
        digest=digest_of(voxels),
    )


def digest_of(voxels: Num[np.ndarray, "i j k"]) -> str:
    """Return a hash of an array's shape and values as float32, whatever the file stores."""
    digest = hashlib.blake2b(repr(voxels.shape).encode(), digest_size=16)
    for k in range(voxels.shape[2]):  # by slice: a copy of the whole costs as much as the scan
        digest.update(np.ascontiguousarray(voxels[:, :, k], dtype=np.float32).data)
    return digest.hexdigest()


def measure_organ(
    mask: Bool[np.ndarray, "i j k"], start: tuple[int, int, int], grid: Grid
) -> OrganFacts:
    """Return the numbers of an organ, not empty, by its mask in the box that starts at a voxel."""
    pieces, count = ndimage.label(mask, _ANY_NEIGHBOR)
    sizes = np.sort(np.bincount(pieces.ravel())[1:])[::-1]
    held = [mask.sum(axis=tuple({0, 1, 2} - {axis})) for axis in range(3)]
    voxels = int(sizes.sum())
    center = [
        float((profile * (np.arange(len(profile)) + first)).sum()) / voxels
        for profile, first in zip(held, start, strict=True)
    ]
    x, y, z = grid.affine[:3, :3] @ center + grid.affine[:3, 3]
    ends = [first + n for first, n in zip(start, mask.shape, strict=True)]
    box = [slice(first, end) for first, end in zip(start, ends, strict=True)]
    return OrganFacts(
        extent=extent_of(mask, box, grid),
        voxels=voxels,
        volume_ml=voxels * grid.voxel_ml,
        center_mm=(float(x), float(y), float(z)),
        pieces=int(count),
        main_share=float(sizes[0]) / voxels,
        second_share=float(sizes[1]) / voxels if count > 1 else 0.0,
        at_border=min(start) == 0 or any(e == n for e, n in zip(ends, grid.shape, strict=True)),
    )


def measure_labels(
    voxels: Integer[np.ndarray, "i j k"], grid: Grid, names: Mapping[int, str]
) -> tuple[dict[str, OrganFacts], list[int]]:
    """Return the numbers of every organ in a canonical label map, and the values without a name."""
    present: dict[str, OrganFacts] = {}
    strange = []
    for value, box in enumerate(label_boxes(voxels), start=1):
        if box is None:
            continue
        if value not in names:
            strange.append(value)
            continue
        start = (box[0].start, box[1].start, box[2].start)
        mask = np.asarray(voxels[box] == value, dtype=np.bool_)
        present[names[value]] = measure_organ(mask, start, grid)
    return present, strange


class _Fault(Exception):
    """Why a reference cannot be measured: the code and the message of its finding."""


@contextlib.contextmanager
def _fault(code: str) -> Iterator[None]:
    """Turn what a reader raises into a fault."""
    try:
        yield
    except _UNREADABLE as error:
        raise _Fault(code, _reason(error)) from error


def measure_case(case: SourceCase, dataset: Dataset) -> ScanFacts:
    """Return the facts of a case; one image or one label map is in memory at a time."""
    problems: list[Finding] = []
    geometry, image, grid, shown = _measure_image(case, problems)
    drawn = shown.predicted if shown else None
    reference = None
    try:
        reference = _measure_reference(case, dataset, grid, drawn) if case.has_reference else None
    except _Fault as fault:
        code, message = fault.args
        problems.append(Finding(code, case.case_id, message))
    picture = b""
    if shown and drawn is not None:
        picture = strip(shown, telling_slices(drawn > 0), _DRAWN_PIXELS, quality=70)
    return ScanFacts(
        case_id=case.case_id,
        subject_id=case.subject,
        split=case.split,
        geometry=geometry,
        image=image,
        reference=reference,
        scan_labels=case.scan_labels,
        modality=case.modality,
        labeled=case.has_reference,
        problems=tuple(problems),
        picture=picture,
    )


def all_organs(dataset: Dataset) -> tuple[str, ...]:
    """Return every organ that a dataset or one of its cases names, in this project's spelling."""
    names: dict[str, None] = {}
    for case in dataset.cases:
        names |= dict.fromkeys(map(canonical_name, dataset.table_of(case).values()))
        names |= dict.fromkeys(map(canonical_name, case.masks))
    return tuple(names)


def _measure_image(
    case: SourceCase, problems: list[Finding]
) -> tuple[Geometry | None, Intensities | None, Grid | None, ShownScan | None]:
    """Measure the image and return few of its voxels; of one that is damaged the header alone."""
    try:
        volume, frame = case.load() if case.load else volume_in(case.image)
    except _UNREADABLE as error:
        problems.append(Finding("unreadable", case.case_id, _reason(error)))
        with contextlib.suppress(*_UNREADABLE):
            header = None if case.load else measure_geometry(frame_in(case.image))
            return header, None, None, None
        return None, None, None, None
    image, grid = measure_image(volume.voxels), volume.grid
    few = reduced(volume.voxels, _DRAWN_VOXELS).copy()
    x, y, z = np.array(grid.spacing_mm) * grid.shape / few.shape
    low, high = _DRAWN_HU if looks_like_ct(image) else (image.p005, image.p995)
    window, nothing = (low, max(high, low + 1e-6)), np.zeros(few.shape, np.int32)
    return measure_geometry(frame), image, grid, ShownScan(few, (x, y, z), window, nothing)


def _measure_reference(
    case: SourceCase, dataset: Dataset, grid: Grid | None, drawn: Int32[np.ndarray, "i j k"] | None
) -> ReferenceFacts:
    """Measure a label map, or one mask after the other, and draw it on the scan's few voxels.

    Raises:
        _Fault: a file cannot be read, lies on another grid than the image, or has other values.
    """
    names = {value: canonical_name(name) for value, name in dataset.table_of(case).items()}
    known = names.values() if case.reference else case.masks
    annotated = known if case.annotated is None else case.annotated
    present: dict[str, OrganFacts] = {}
    digests, doubts = [], []
    files = {"": case.reference} if case.reference else case.masks
    for number, (name, path) in enumerate(files.items(), start=1):
        with _fault("label-unreadable"):
            voxels, own, frame = labels_in(path)
        if grid is not None and not same_grid(grid, own):
            message = f"{path.name}: {describe(own)}, expected the image's {describe(grid)}"
            raise _Fault("label-grid", message)
        with _fault("label-values"):
            require_labels(voxels, path.name)
            if name:
                voxels = mask_in(voxels, path.name).view(np.uint8)
                names = {1: canonical_name(name)}
        held, strange = measure_labels(voxels, own, names)
        if (ignore := dataset.ignored_in(case)) in strange:
            raise _Fault("ignored-voxels", f"voxels of the value {ignore}, 'ignore'")
        if strange:
            message = f"values {strange[:10]} in {path.name}, expected {sorted(names)}"
            raise _Fault("label-values", message)
        present |= held
        few = reduced(voxels, _DRAWN_VOXELS)
        if drawn is not None and few.shape == drawn.shape:
            np.copyto(drawn, few * (number if name else 1), where=few > 0)
        digests.append(f"{name} {digest_of(voxels)}")
        doubts.append(frame.contradiction)
    listed = tuple(map(canonical_name, annotated))
    return ReferenceFacts(listed, present, "; ".join(digests), next(filter(None, doubts), ""))


def _reason(error: BaseException) -> str:
    """Return an error as one line; of what is not ours only the kind, which names no path."""
    if isinstance(error, SaclError):
        return " ".join(str(error).split())
    return f"reading failed with {type(error).__name__}"
