"""predict: scans that were never ingested, in the way in which a run's own were predicted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from sacl.cohort.layouts.label_maps import read_given_map, survey_maps
from sacl.cohort.references import SchemeMap
from sacl.errors import ConfigError, DataError, SaclError
from sacl.files.atomic import note_own, real, require_own
from sacl.files.nifti import is_nifti, read_frame, read_volume, stem, write_label_map
from sacl.networks.device import resolve_device
from sacl.patches.scan_ranges import doubts_about, measures_of
from sacl.patches.window import window_of
from sacl.prediction.coarse import load_coarse
from sacl.prediction.volume import (
    USUAL_RECIPE,
    AnyPredictor,
    load_predictor,
    predict_volume,
    read_recipe,
)
from sacl.progress import say, track
from sacl.run.record import arm_named, arms_of
from sacl.run.workspace import Workspace
from sacl.types import Volume

_BYTES_PER_VOXEL, _BASE_GB = 17, 0.7
"""Of a scan while it is read, predicted and cleaned, and of the rest: imports, networks, a batch;
by research/benchmarks/prediction_memory.py at 50 and at 200 slices."""
_SAY_ABOVE_GB = 2.0
_CHANNEL = "_0000"
"""nnU-Net's suffix of an image's first channel, which its label map does not have."""
_MOST_ORGAN = 0.6
"""Organs in more of a scan's voxels than this are a doubt."""

Locator = Callable[[str, Volume, tuple[float, float]], SchemeMap | None]
"""From case, scan and window to the coarse label map; None where none is needed."""


@dataclass(frozen=True)
class Predicted:
    """The label maps that were written, and by scan what speaks against believing them."""

    written: tuple[Path, ...]
    doubts: Mapping[str, tuple[str, ...]]


def predict_folder(  # noqa: PLR0913
    work: Path,
    images: Path,
    out: Path,
    *,
    arm: str | None = None,
    coarse: Path | None = None,
    copies: int | None = None,
    keep_component: float | None = None,
    device: str = "auto",
    force: bool = False,
) -> Predicted:
    """Predict scans as the run's own were, and say in what a scan is unlike those it learned from.

    The label maps get the scans' names, ending in `.nii.gz`, without the channel suffix where every
    scan of the folder has one; `images` may be one scan too. All headers are read before anything
    is written. A scan whose voxels turn out to be bad is left out, which is an error at the end.
    What is unset is as in the run; `coarse` is a folder of coarse label maps, `force` overwrites
    files of the user's.
    """
    workspace = Workspace(work, device=device)
    arm = arm_named(workspace, arm)
    targets = _targets(images, out)
    names = [path.name for path in targets.values()]
    require_own(out, names, force)
    _announce(list(targets))
    where = resolve_device(device)
    recipe = read_recipe(workspace.folder("predict")) or USUAL_RECIPE
    recipe = replace(
        recipe,
        copies=recipe.copies if copies is None else copies,
        keep_component=recipe.keep_component if keep_component is None else keep_component,
        from_coarse=recipe.from_coarse if arm == arms_of(workspace)[0] else (),
    )
    predictor = load_predictor(workspace.require("finetune") / arm, where, recipe)
    locator = _locator(predictor, workspace, coarse, [stem(p) for p in targets.values()])
    return _predict_all(targets, predictor, locator)


def _predict_all(
    targets: Mapping[Path, Path], predictor: AnyPredictor, locator: Locator
) -> Predicted:
    written: list[Path] = []
    bad, doubts = [], {}
    for scan, path in track(targets.items(), "predict", total=len(targets)):
        try:
            if against := predict_file(scan, path, predictor, locator):
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


def predict_file(scan: Path, path: Path, predictor: AnyPredictor, locator: Locator) -> list[str]:
    """Write a scan's label map, and return what speaks against believing it."""
    volume, native = read_volume(scan)
    spec = predictor.spec
    window = window_of(volume.voxels, spec.window, scan.name)
    coarse = locator(stem(path), volume, window)
    label_map = predict_volume(predictor, volume, window, coarse.label_map if coarse else None)
    write_label_map(path, label_map, native, note=partial(note_own, path))
    doubts = [native.contradiction] if native.contradiction else []
    doubts += [f"coarse map: {doubt}" for doubt in coarse.doubts] if coarse else []
    if spec.scans is not None:
        doubts += doubts_about(measures_of(volume), spec.scans, spec.window.modality)
    share = np.count_nonzero(label_map.voxels) / label_map.voxels.size
    if share > _MOST_ORGAN:
        doubts.append(f"organs fill {share:.0%} of the scan, expected at most {_MOST_ORGAN:.0%}")
    return doubts


def _locator(
    predictor: AnyPredictor, workspace: Workspace, coarse: Path | None, names: Sequence[str]
) -> Locator:
    """Return what locates the organs of a scan, before the first scan is read."""
    if not predictor.needs_coarse:
        return lambda name, volume, window: None
    if coarse is None:
        ensemble = load_coarse(workspace.require("locate"), predictor.device)
        return lambda name, volume, window: SchemeMap(ensemble.locate(volume, window))
    scheme = predictor.spec.label_scheme
    survey = survey_maps(coarse, names, scheme)
    return lambda name, volume, _: read_given_map(survey.maps[name], scheme, volume.grid)


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
