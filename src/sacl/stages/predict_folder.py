"""predict: scans that were never ingested, in the way in which a run's own were predicted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sacl.cohort.references import SchemeMap
from sacl.errors import ConfigError, DataError, SaclError
from sacl.files.atomic import note_own, real, require_own
from sacl.files.nifti import is_nifti, read_frame, read_volume, stem, write_label_map
from sacl.model import Model
from sacl.prediction.given import read_given_map, survey_maps
from sacl.progress import say, track
from sacl.types import Grid

_BYTES_PER_VOXEL, _BASE_GB = 17, 0.7
"""Of a scan while it is read, predicted and cleaned, and of the rest: imports, networks, a batch;
by research/benchmarks/prediction_memory.py at 50 and at 200 slices."""
_SAY_ABOVE_GB = 2.0
_CHANNEL = "_0000"
"""nnU-Net's suffix of an image's first channel, which its label map does not have."""

ReadCoarse = Callable[[str, Grid], SchemeMap | None]
"""From a case and its scan's grid to the coarse label map that was given; None where none was."""


@dataclass(frozen=True)
class Predicted:
    """The label maps that were written, and by scan what speaks against believing them."""

    written: tuple[Path, ...]
    doubts: Mapping[str, tuple[str, ...]]


def predict_folder(
    model: Model, images: Path, out: Path, *, coarse: Path | None = None, force: bool = False
) -> Predicted:
    """Predict scans as a run's own were, and say in what a scan is unlike those it learned from.

    The label maps get the scans' names, ending in `.nii.gz`, without the channel suffix where every
    scan of the folder has one; `images` may be one scan too. All headers are read before anything
    is written. A scan whose voxels turn out to be bad is left out, which is an error at the end.
    `coarse` is a folder of coarse label maps, `force` overwrites files of the user's.
    """
    targets = _targets(images, out)
    names = [path.name for path in targets.values()]
    require_own(out, names, force)
    _announce(list(targets))
    read_coarse = _given_maps(model, coarse, [stem(path) for path in targets.values()])
    return _predict_all(targets, model, read_coarse)


def _predict_all(targets: Mapping[Path, Path], model: Model, read_coarse: ReadCoarse) -> Predicted:
    written: list[Path] = []
    bad, doubts = [], {}
    for scan, path in track(targets.items(), "predict", total=len(targets)):
        try:
            if against := predict_file(scan, path, model, read_coarse):
                doubts[scan.name] = tuple(against)
                say(f"  in doubt: {scan.name}: {'; '.join(against)}")
            written.append(path)
        except DataError as error:
            bad.append(scan.name)
            say(f"  left out: {error}")
    if bad:
        raise DataError(
            f"{len(bad)} of {len(targets)} scans could not be predicted ({', '.join(bad[:3])});"
            f" the reasons stand above, the other {len(written)} are done"
        )
    more = f"; {len(doubts)} in doubt" if doubts else ""
    maps = "1 label map" if len(written) == 1 else f"{len(written)} label maps"
    say(f"predict: {maps} written to {written[0].parent}{more}")
    return Predicted(tuple(written), doubts)


def predict_file(scan: Path, path: Path, model: Model, read_coarse: ReadCoarse) -> list[str]:
    """Write a scan's label map, and return what speaks against believing it."""
    volume, native = read_volume(scan)
    coarse = read_coarse(stem(path), volume.grid)
    segmented = model.segment(volume, scan.name, coarse.label_map if coarse else None)
    write_label_map(path, segmented.label_map, native, note=partial(note_own, path))
    doubts = [native.contradiction] if native.contradiction else []
    doubts += [f"coarse map: {doubt}" for doubt in coarse.doubts] if coarse else []
    return [*doubts, *segmented.doubts]


def _given_maps(model: Model, coarse: Path | None, names: Sequence[str]) -> ReadCoarse:
    """Return what reads the given coarse map of a scan, before the first scan is read."""
    model.require_coarse(given=coarse is not None)
    if coarse is None or not model.needs_coarse:
        return lambda name, grid: None
    survey = survey_maps(coarse, names, model.scheme)
    return lambda name, grid: read_given_map(survey.maps[name], model.scheme, grid)


def _targets(images: Path, out: Path) -> dict[Path, Path]:
    """Return where each scan's label map goes; two may not share a name, nor overwrite a scan."""
    if not images.exists():
        raise DataError(f"--images {images}: no such file or folder")
    scans = [images]
    if images.is_dir():
        scans = sorted(path for path in images.iterdir() if is_nifti(path))
    if not scans:
        raise DataError(f"{images}: no NIfTI scan (.nii or .nii.gz) in this folder")
    beside = scans if images.is_dir() else [p for p in images.parent.iterdir() if is_nifti(p)]
    has_channels = all(stem(path).endswith(_CHANNEL) for path in beside)
    suffix = _CHANNEL if has_channels else ""
    targets = {scan: out / f"{stem(scan).removesuffix(suffix)}.nii.gz" for scan in scans}
    if len(set(targets.values())) < len(targets):
        raise DataError(f"{images}: two scans differ only in .nii and .nii.gz; keep one of them")
    resolved = {real(scan) for scan in scans}
    if over := next((path.name for path in targets.values() if real(path) in resolved), None):
        raise ConfigError(
            f"--out {out}: the label map {over} would overwrite the scan; give another folder"
        )
    return targets


def _announce(scans: Sequence[Path]) -> None:
    """Check all headers, and say how much memory the largest scan takes where it is much."""
    voxels, bad = [], []
    for scan in scans:
        try:
            voxels.append(math.prod(read_frame(scan).grid.shape))
        except SaclError as error:
            bad.append(str(error))
    if bad:
        raise DataError("; ".join(bad))
    need = _BASE_GB + max(voxels) * _BYTES_PER_VOXEL / 1e9
    if need > _SAY_ABOVE_GB:
        say(f"predict: the largest scan takes about {need:.1f} GB of memory")
