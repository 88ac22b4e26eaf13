"""locate: train the coarse networks, one per fold of the labeled subjects and one on all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from sacl.cohort.manifest import read_image, read_reference
from sacl.files.atomic import replacing
from sacl.geometry import require_same_grid
from sacl.networks.coarse import CoarseSpec
from sacl.networks.device import resolve_device
from sacl.networks.encoder import EncoderSpec
from sacl.networks.segmenter import SegmenterSpec
from sacl.patches.query import cut
from sacl.patches.region import Placement, slice_boxes
from sacl.patches.store import IMAGE_SCALE, quantized
from sacl.patches.views import VIEWS
from sacl.patches.window import WindowRule, normalize
from sacl.prediction.coarse import (
    ALL_LABELED,
    CoarseEnsemble,
    Ensemble,
    load_network,
    network_folder,
    save_network,
)
from sacl.prediction.coarse_grid import coarse_grid, image_to_coarse, labels_to_coarse
from sacl.prediction.slice_location import SliceEnsemble, save_slice_network
from sacl.progress import track
from sacl.run.record import read_record
from sacl.run.workspace import Workspace
from sacl.settings import LocateSettings, SlicesSettings, VolumeSettings
from sacl.training.coarse import (
    KEEP_COMPONENT,
    MIN_VOLUME_ML,
    CoarseCase,
    CoarsePlan,
    plan_network,
    train_coarse,
)
from sacl.training.slice_location import MARGIN, ScanSlices, SlicePlan, train_on_slices
from sacl.types import Case, Cohort, LabelMap

SLICES_PER_STEP = 16
SLICES_LEARNING_RATE = 3e-3
VOLUME_LEARNING_RATE = 5e-3
"""Peak learning rates (AdamW, cosine)."""
_MOST_UNLABELED = 20_000
"""Unlabeled slices that are held in memory at most; of a larger cohort every n-th one is."""

Trained = tuple[Ensemble, list[float]]
"""A network as an ensemble of one, and its losses."""
TrainOne = Callable[[Sequence[Case], str, int, str], Trained]
"""From the labeled cases, the network's name, its number and what to say, to the network."""


def fold_name(fold: int) -> str:
    """Return the name of the network that has not seen a fold."""
    return f"fold-{fold}"


def train_networks(
    settings: LocateSettings, workspace: Workspace, cohort: Cohort, fold_of: dict[str, int]
) -> dict[str, Ensemble]:
    """Return the networks by name, trained now or by the run that was interrupted.

    One per fold, which has not seen the fold's subjects and locates them, and one that has seen all
    labeled scans; together they locate the others.
    """
    folder, device = workspace.folder("locate"), resolve_device(workspace.device)
    held_out: dict[str, int | None] = {fold_name(n): n for n in sorted(set(fold_of.values()))}
    held_out[ALL_LABELED] = None
    networks: dict[str, Ensemble] = {}
    train_one: TrainOne | None = None
    for number, (name, fold) in enumerate(held_out.items()):
        saved = load_network(folder, name, device)
        if saved is None:
            train_one = train_one or _trainer(settings, workspace, cohort)
            others = [case for case in cohort.labeled if fold_of[case.subject_id] != fold]
            what = f"coarse network {number + 1}/{len(held_out)}"
            saved, losses = train_one(others, name, workspace.seed * 101 + number, what)
            _write_losses(folder, name, losses)
            _save(folder, name, saved)
        networks[name] = saved
    return networks


def _trainer(settings: LocateSettings, workspace: Workspace, cohort: Cohort) -> TrainOne:
    if settings.volume is not None:
        return _trainer_on_volumes(settings.volume, settings.channels, workspace, cohort)
    assert settings.slices is not None, "maps need no network"
    return _trainer_on_slices(settings.slices, settings.channels, workspace, cohort)


def _save(folder: Path, name: str, trained: Ensemble) -> None:
    if isinstance(trained, SliceEnsemble):
        cleaning = (trained.min_volume_ml, trained.keep_component)
        save_slice_network(network_folder(folder, name), trained.networks[0], *cleaning)
    else:
        save_network(folder, name, trained.networks[0], trained.spec)


def _trainer_on_volumes(
    settings: VolumeSettings, channels: int, workspace: Workspace, cohort: Cohort
) -> TrainOne:
    folder, device = workspace.folder("locate"), resolve_device(workspace.device)
    on_grid = _coarse_cases(settings, workspace, cohort, device)
    coarse_of = dict(zip((c.case_id for c in cohort.labeled), on_grid, strict=True))
    spec = _spec_of(settings, channels, cohort, on_grid)

    def train_one(cases: Sequence[Case], name: str, seed: int, what: str) -> Trained:
        plan = CoarsePlan(
            steps=settings.steps,
            batch=1,
            learning_rate=VOLUME_LEARNING_RATE,
            seed=seed,
        )
        network, losses = train_coarse(
            spec,
            [coarse_of[case.case_id] for case in cases],
            plan,
            device,
            what=what,
            checkpoint=folder / f"{name}.checkpoint",
        )
        return CoarseEnsemble(spec, (network,), device), losses

    return train_one


def _coarse_cases(
    settings: VolumeSettings, workspace: Workspace, cohort: Cohort, device: torch.device
) -> list[CoarseCase]:
    names = cohort.scheme.names
    cases = []
    for case in cohort.labeled:
        image = read_image(workspace.folder("ingest"), case)
        reference = reference_of(workspace, case, cohort)
        require_same_grid(image.grid, reference.grid, f"case {case.case_id}")
        grid = coarse_grid(image.grid, settings.spacing_mm, settings.in_plane_size)
        cases.append(
            CoarseCase(
                image_to_coarse(image.voxels, case.window, grid, device).cpu(),
                labels_to_coarse(reference.voxels, len(names), grid, device),
                torch.tensor([name in case.annotated for name in names]),
                grid.spacing_mm,
            )
        )
    return cases


def _spec_of(
    settings: VolumeSettings, channels: int, cohort: Cohort, cases: Sequence[CoarseCase]
) -> CoarseSpec:
    i, j, k = np.median([case.spacing_mm for case in cases], axis=0)
    spacing_mm = (float(i), float(j), float(k))
    scheme = cohort.scheme
    return plan_network(settings, channels, scheme.name, scheme.names, spacing_mm)


def _trainer_on_slices(
    settings: SlicesSettings, channels: int, workspace: Workspace, cohort: Cohort
) -> TrainOne:
    folder, device = workspace.folder("locate"), resolve_device(workspace.device)
    spec = _slice_spec(settings, channels, workspace, cohort)
    labeled = {
        case.case_id: _slices_of(case, spec, workspace, cohort, every=1) for case in cohort.labeled
    }
    unlabeled = _unlabeled(settings, spec, workspace, cohort)

    def train_one(cases: Sequence[Case], name: str, seed: int, what: str) -> Trained:
        plan = SlicePlan(
            steps=settings.steps,
            teacher_steps=settings.teacher_steps,
            batch=SLICES_PER_STEP,
            learning_rate=SLICES_LEARNING_RATE,
            copy_paste=settings.copy_paste,
            ranges=VIEWS[settings.augment],
            seed=seed,
        )
        network, losses = train_on_slices(
            spec,
            [*(labeled[case.case_id] for case in cases), *unlabeled],
            plan,
            device,
            what=what,
            checkpoint=folder / f"{name}.checkpoint",
        )
        cleaning = (MIN_VOLUME_ML, KEEP_COMPONENT)
        return SliceEnsemble((network,), device, *cleaning), losses

    return train_one


def _slice_spec(
    settings: SlicesSettings, channels: int, workspace: Workspace, cohort: Cohort
) -> SegmenterSpec:
    ingested = (read_record(workspace.require("ingest")) or {})["settings"]["ingest"]
    return SegmenterSpec(
        encoder=EncoderSpec(width=channels, in_channels=1),
        decoder="unet",
        head="dense",
        scheme=cohort.scheme.name,
        organs=cohort.scheme.names,
        image_size=settings.size,
        window=WindowRule(cohort.modality, tuple(ingested["window_hu"])),
        placement=Placement(region="slice"),
    )


def _unlabeled(
    settings: SlicesSettings, spec: SegmenterSpec, workspace: Workspace, cohort: Cohort
) -> list[ScanSlices]:
    """Return the training scans of subjects without any reference, none without a teacher."""
    if settings.teacher_steps == 0:
        return []
    seen = {case.subject_id for case in cohort.labeled}
    cases = [case for case in cohort.of_split("train") if case.subject_id not in seen]
    slices = sum(case.native.grid.shape[2] for case in cases)
    every = max(1, math.ceil(slices / _MOST_UNLABELED))
    return [
        _slices_of(case, spec, workspace, cohort, every)
        for case in track(cases, "read unlabeled scans")
    ]


def _slices_of(
    case: Case, spec: SegmenterSpec, workspace: Workspace, cohort: Cohort, every: int
) -> ScanSlices:
    """Return every n-th axial slice of a training scan, whole and coarse."""
    volume = read_image(workspace.folder("ingest"), case)
    boxes = slice_boxes(volume.grid)[::every]
    images = [
        cut(normalize(volume.voxels[:, :, box.start[2]], case.window), box, spec.image_size, MARGIN)
        for box in boxes
    ]
    stored = quantized(np.stack(images), IMAGE_SCALE).astype(np.uint16)
    if case.reference is None:
        return ScanSlices(stored, None, ())
    reference = reference_of(workspace, case, cohort)
    require_same_grid(volume.grid, reference.grid, f"case {case.case_id}")
    labels = [
        cut(reference.voxels[:, :, box.start[2]], box, spec.image_size, MARGIN, nearest=True)
        for box in boxes
    ]
    return ScanSlices(stored, np.stack(labels), tuple(case.annotated))


def reference_of(workspace: Workspace, case: Case, cohort: Cohort) -> LabelMap:
    """Return the reference of a labeled case."""
    reference = read_reference(workspace.folder("ingest"), case, cohort.scheme)
    assert reference is not None, "a labeled case has a reference"
    return reference


def _write_losses(folder: Path, name: str, losses: Sequence[float]) -> None:
    """Put one network's losses into `losses.csv`, beside those of the networks before it."""
    path = folder / "losses.csv"
    rows = pd.DataFrame({"network": name, "step": range(len(losses)), "loss": losses})
    if path.is_file():
        before = pd.read_csv(path)
        rows = pd.concat([before[before["network"] != name], rows])
    with replacing(path) as temporary:
        rows.to_csv(temporary, index=False, float_format="%.5f")
