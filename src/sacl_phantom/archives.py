"""Generated cohorts that lie as the paper's would: BTCV, FLARE 2021, a hospital's two phases.

Folders, names and label values are those of the downloads (`sacl.cohort.layouts.challenges`), and
so are their traps: images and label maps are called differently, FLARE's masks are nested in a
folder of their own name, orders of voxels are mixed (RAS, LAS, LPS), and every other image is
stored with an intercept. Label maps name no organ.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from sacl.errors import ConfigError
from sacl.files.atomic import write_text
from sacl.files.nifti import write_volume
from sacl.types import Volume
from sacl_phantom.anatomy import ORGANS
from sacl_phantom.cohort import NOISE_HU, STORED_FLIPS, flipped
from sacl_phantom.contrast import Phase
from sacl_phantom.scan import make_scan

_MARK = ".sacl_phantom.json"
"""In an archive's folder: what was asked for, so that nothing else is ever overwritten."""
_INTERCEPT = -1024
_FEWEST_SLICES = 2 / 3
"""A scan has this share of the slices asked for, or more."""
_PAPER_ORGANS = (*ORGANS[:11], "adrenal_glands")
_FLARE_ORGANS = ("liver", "kidneys", "spleen", "pancreas")
_WORDS: dict[Phase, str] = {"native": "non-contrast", "portal_venous": "portal venous"}


@dataclass(frozen=True, kw_only=True)
class ArchiveRequest:
    """What is asked for: labeled scans, further ones without label maps, and the largest shape."""

    layout: str
    scans: int = 30
    unlabeled: int = 20
    shape: tuple[int, int, int] = (512, 512, 150)
    spacing_mm: tuple[float, float, float] = (0.8, 0.8, 3.0)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.scans < 1 or self.unlabeled < 0 or min(self.shape) < 8 or min(self.spacing_mm) <= 0:
            raise ConfigError(
                f"{self.layout}: expected one scan or more, 8 x 8 x 8 voxels or more and a spacing"
                f" > 0 mm, got {self.scans} scans, {self.shape} voxels and {self.spacing_mm} mm"
            )


@dataclass(frozen=True)
class _Scan:
    """A scan of an archive: its files below the root, no label map where that is not public."""

    subject: int
    phase: Phase
    image: str
    label: str | None = None


@dataclass(frozen=True)
class _Archive:
    """All scans of an archive, the organs of its label values from 1 on, and its texts by name."""

    scans: Sequence[_Scan]
    organs: tuple[str, ...]
    texts: Mapping[str, str] = field(default_factory=dict)


def write_archive(root: Path, request: ArchiveRequest) -> Iterator[None]:
    """Write an archive scan by scan, keep those that lie there, and yield after every one.

    Memory holds one scan at a time.

    Raises:
        ConfigError: something else lies in the folder.
    """
    _take(root, request)
    archive = LAYOUTS[request.layout](request)
    for name, text in archive.texts.items():
        write_text(root / name, text)
    for number, scan in enumerate(archive.scans):
        if not (root / scan.image).exists():
            _write_scan(root, scan, number, archive.organs, request)
        yield


def _take(root: Path, request: ArchiveRequest) -> None:
    """Make the folder ours, or see that it is, with the same request."""
    asked = json.dumps(asdict(request), indent=1) + "\n"
    mark = root / _MARK
    is_ours = mark.is_file() and mark.read_text(encoding="utf-8") == asked
    if root.exists() and (not root.is_dir() or any(root.iterdir())) and not is_ours:
        raise ConfigError(f"{root}: holds something else; give another --out, or empty it")
    write_text(mark, asked)


def _write_scan(
    root: Path, scan: _Scan, number: int, organs: tuple[str, ...], request: ArchiveRequest
) -> None:
    """Generate a scan and write its files, the label map first."""
    seed, (i, j, most) = request.seed * 10_000, request.shape
    rng = np.random.default_rng((seed, number, 901))
    slices = int(rng.integers(max(1, round(_FEWEST_SLICES * most)), most + 1))
    voxels = (i, j, slices), request.spacing_mm, NOISE_HU
    made = make_scan(seed + number, scan.phase, *voxels, seed + scan.subject)
    flips = STORED_FLIPS[number % len(STORED_FLIPS)]
    native = flipped(made.image.grid, flips)
    if scan.label is not None:
        labels = _values_of(organs)[np.flip(made.labels.voxels, flips)]
        write_volume(root / scan.label, Volume(labels, native))
    image = Volume(np.flip(made.image.voxels, flips), native)
    write_volume(root / scan.image, image, _INTERCEPT * (number % 2))


def _values_of(organs: tuple[str, ...]) -> np.ndarray:
    """Return an archive's label value of each of the phantom's, 0 where it has no such organ."""
    names = [(organ, organ.replace("_right", "s").replace("_left", "s")) for organ in ORGANS]
    values = [next((organs.index(n) + 1 for n in pair if n in organs), 0) for pair in names]
    return np.array([0, *values], np.uint8)


def _btcv(request: ArchiveRequest) -> _Archive:
    """Portal venous scans; 1 to 10, 21 to 60 and so on are for training, 61 to 80 for testing."""
    numbers = [n + 1 if n < 10 else n + 11 for n in range(request.scans)]
    first = max(61, numbers[-1] + 1)
    raw = "RawData/{0}/{1}/{1}{2:04d}.nii.gz"
    scans = []
    for n in numbers:
        image, label = (raw.format("Training", kind, n) for kind in ("img", "label"))
        scans.append(_Scan(n, "portal_venous", image, label))
    for n in range(first, first + request.unlabeled):
        scans.append(_Scan(n, "portal_venous", raw.format("Testing", "img", n)))
    return _Archive(scans, ORGANS)


def _flare21(request: ArchiveRequest) -> _Archive:
    """Scans in two phases that no table names; the validation scans have no label maps."""
    scans = []
    for n in range(request.scans):
        image = f"TrainingImg/train_{n:03d}_0000.nii.gz"
        label = f"TrainingMask/TrainingMask/train_{n:03d}.nii.gz"
        scans.append(_Scan(n, "arterial_late" if n % 3 == 2 else "portal_venous", image, label))
    for n in range(request.unlabeled):
        name = f"ValidationImg/validation_{n + 1:03d}_0000.nii.gz"
        scans.append(_Scan(request.scans + n, "portal_venous", name))
    return _Archive(scans, _FLARE_ORGANS)


def _hospital(request: ArchiveRequest) -> _Archive:
    """Every person without contrast and in the portal venous phase, by a table; 12 organs."""
    scans, table = [], ["case_id,subject_id,image,label,phase\n"]
    for n in range(request.scans + request.unlabeled):
        phase: Phase = "portal_venous" if n % 2 else "native"
        name = f"ct_{n // 2:04d}_{'pv' if n % 2 else 'nc'}"
        label = f"labels/{name}.nii.gz" if n < request.scans else None
        scans.append(_Scan(n // 2, phase, f"images/{name}.nii.gz", label))
        table.append(f"{name},p{n // 2:04d},{scans[-1].image},{label or ''},{_WORDS[phase]}\n")
    values = json.dumps({organ: n for n, organ in enumerate(_PAPER_ORGANS, start=1)}, indent=1)
    texts = {"cohort.csv": "".join(table), "labels.json": values + "\n"}
    return _Archive(scans, _PAPER_ORGANS, texts)


LAYOUTS: dict[str, Callable[[ArchiveRequest], _Archive]] = dict(
    btcv=_btcv, flare21=_flare21, hospital=_hospital
)
"""What writes each archive's scans down, in their order."""
