"""predict: scans + segmenter -> label maps on the scans' own grids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from sacl.cohort.layouts.label_maps import read_given_map, survey_maps
from sacl.cohort.manifest import read_cohort, read_image
from sacl.errors import ConfigError, DataError, SaclError, WorkspaceError
from sacl.files.nifti import (
    is_nifti,
    read_frame,
    read_label_map,
    read_volume,
    stem,
    write_label_map,
)
from sacl.geometry import require_same_grid
from sacl.networks.device import resolve_device
from sacl.networks.memory import prediction_gb
from sacl.networks.segmenter import load_segmenter
from sacl.patches.window import window_of
from sacl.prediction.coarse import load_coarse
from sacl.prediction.volume import Predictor, predict_volume
from sacl.progress import say, track
from sacl.run.record import fingerprint, read_record, recorded
from sacl.run.workspace import Workspace
from sacl.settings import PredictSettings
from sacl.types import Case, Cohort, LabelMap, Volume

BATCH = 32
"""Slices or patches per forward pass."""
_SAY_ABOVE_GB = 2.0

Locator = Callable[[str, Volume, tuple[float, float]], LabelMap | None]
"""From case, scan and window to the coarse label map; None where the segmenter needs none."""


def inputs(settings: PredictSettings, workspace: Workspace) -> dict[str, str]:
    """Return the fingerprints of what the stage reads."""
    stages = ("ingest", "locate", "finetune")
    return {stage: fingerprint(workspace.require(stage)) for stage in stages}


def predict(settings: PredictSettings, workspace: Workspace) -> Path:
    """Write a label map per arm and scan, on the grid of the scan's own file; return the folder.

    The first arm predicts all scans, its twin those held-out ones that have a reference to be
    scored against.
    """
    with recorded(workspace, "predict", settings, inputs(settings, workspace)) as (folder, results):
        cohort = read_cohort(workspace.require("ingest"))
        counts = {}
        for number, arm in enumerate(_arms(workspace)):
            cases = _cases(cohort, is_twin=number > 0)
            predictor = _predictor(workspace, arm, settings)
            for case in track(cases, f"predict ({arm})"):
                path = folder / arm / f"{case.case_id}.nii.gz"
                if not path.is_file():
                    _predict_case(path, case, cohort, predictor, workspace)
            counts[arm] = len(cases)
        results["scans"] = counts
    return folder


def predict_folder(  # noqa: PLR0913
    work: Path,
    images: Path,
    out: Path,
    *,
    arm: str | None = None,
    coarse: Path | None = None,
    settings: PredictSettings | None = None,
    device: str = "auto",
) -> list[Path]:
    """Predict scans that were never ingested, and return the label maps' paths.

    The label maps get the scans' file names, ending in `.nii.gz`. All headers are read before
    anything is written. A scan whose voxels turn out to be bad is reported and left out, the
    others are predicted all the same.

    Args:
        work: Work directory of a finished run.
        images: A folder of NIfTI scans, or one scan.
        out: Folder for the label maps.
        arm: Which segmenter of the run; the pretrained one where unset.
        coarse: Folder of coarse label maps (query head); the run's own networks where unset.
        settings: Batch and cleaning.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.

    Raises:
        ConfigError: the run has no such arm, or a label map would overwrite a scan.
        DataError: there is no scan, a header is damaged, or (at the end) some scans were bad.
    """
    workspace = Workspace(work, device=device)
    arms = _arms(workspace)
    if arm is not None and arm not in arms:
        raise ConfigError(f"predict: no arm '{arm}' in {work.name}; it has {', '.join(arms)}")
    targets = _targets(images, out)
    _announce(list(targets))
    predictor = _predictor(workspace, arm or arms[0], settings or PredictSettings())
    locator = _locator(predictor, workspace, coarse, [stem(path) for path in targets])
    written, bad = [], []
    for scan, path in track(targets.items(), "predict", total=len(targets)):
        try:
            _predict_file(scan, path, predictor, locator)
            written.append(path)
        except DataError as error:
            bad.append(scan.name)
            say(f"  left out: {error}")
    if bad:
        raise DataError(
            f"{len(bad)} of {len(targets)} scans could not be predicted ({', '.join(bad[:3])});"
            f" the reasons stand above, the other {len(written)} are done"
        )
    return written


def _arms(workspace: Workspace) -> list[str]:
    record = read_record(workspace.require("finetune"))
    arms: list[str] = (record or {}).get("results", {}).get("arms", [])
    if not arms:
        raise WorkspaceError(
            f"work directory {workspace.root.name}: 5-segmenter names no arm; redo `sacl finetune`"
        )
    return arms


def _predictor(workspace: Workspace, arm: str, settings: PredictSettings) -> Predictor:
    device = resolve_device(workspace.device)
    segmenter = load_segmenter(workspace.require("finetune") / arm, device)
    return Predictor(segmenter, device, BATCH, settings.keep_component, settings.copies)


def _cases(cohort: Cohort, is_twin: bool) -> list[Case]:
    if is_twin:
        return [c for c in cohort.cases if c.split != "train" and c.reference is not None]
    return list(cohort.cases)


def _predict_case(
    path: Path, case: Case, cohort: Cohort, predictor: Predictor, workspace: Workspace
) -> None:
    volume = read_image(workspace.folder("ingest"), case)
    coarse = None
    if predictor.spec.needs_coarse:
        maps = workspace.folder("locate") / "maps"
        coarse, _ = read_label_map(maps / f"{case.case_id}.nii.gz", cohort.scheme)
        require_same_grid(volume.grid, coarse.grid, f"case {case.case_id}")
    predicted = predict_volume(predictor, volume, case.window, coarse)
    write_label_map(path, predicted, case.native)


def _predict_file(scan: Path, path: Path, predictor: Predictor, locator: Locator) -> None:
    volume, native = read_volume(scan)
    window = window_of(volume.voxels, predictor.spec.window, scan.name)
    coarse = locator(stem(scan), volume, window)
    write_label_map(path, predict_volume(predictor, volume, window, coarse), native)


def _locator(
    predictor: Predictor, workspace: Workspace, coarse: Path | None, names: Sequence[str]
) -> Locator:
    """Return what locates the organs of a scan, before the first scan is read."""
    if not predictor.spec.needs_coarse:
        return lambda name, volume, window: None
    if coarse is None:
        ensemble = load_coarse(workspace.require("locate"), predictor.device)
        return lambda name, volume, window: ensemble.locate(volume, window)
    scheme = predictor.spec.label_scheme
    survey = survey_maps(coarse, names, scheme)

    def given(name: str, volume: Volume, window: tuple[float, float]) -> LabelMap:
        return read_given_map(survey.maps[name], scheme, volume.grid).label_map

    return given


def _targets(images: Path, out: Path) -> dict[Path, Path]:
    """Return where each scan's label map goes.

    Raises:
        DataError: there is no scan, or two scans share a name.
        ConfigError: a label map would overwrite a scan.
    """
    scans = sorted(p for p in images.iterdir() if is_nifti(p)) if images.is_dir() else [images]
    if not scans:
        raise DataError(f"{images.name}: no NIfTI scan (.nii or .nii.gz) in this folder")
    targets = {scan: out / f"{stem(scan)}.nii.gz" for scan in scans}
    if len(set(targets.values())) < len(targets):
        raise DataError(
            f"{images.name}: two scans differ only in .nii and .nii.gz; keep one of them"
        )
    resolved = {scan.resolve() for scan in scans}
    for path in targets.values():
        if path.resolve() in resolved:
            raise ConfigError(
                f"--out {out.name}: the label map {path.name} would overwrite the scan; give"
                " another folder"
            )
    return targets


def _announce(scans: Sequence[Path]) -> None:
    """Check all headers, and say how much memory the largest scan takes where it is much.

    Raises:
        DataError: one line that names each bad file.
    """
    largest, bad = 0, []
    for scan in scans:
        try:
            i, j, k = read_frame(scan).grid.shape
            largest = max(largest, i * j * k)
        except SaclError as error:
            bad.append(str(error))
    if bad:
        raise DataError("; ".join(bad))
    need = prediction_gb(largest)
    if need > _SAY_ABOVE_GB:
        say(f"predict: the largest scan takes about {need:.1f} GB of memory")
