"""locate: train the coarse networks, one per fold of the labeled subjects and one on all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch

from sacl.cohort.manifest import read_image, read_reference
from sacl.errors import DataError
from sacl.files.atomic import replacing
from sacl.geometry import require_same_grid
from sacl.networks.device import resolve_device
from sacl.patches.views import VIEWS
from sacl.prediction.coarse import (
    ALL_LABELED,
    Ensemble,
    SliceEnsemble,
    VolumeEnsemble,
    load_network,
    save_network,
    together,
)
from sacl.progress import track
from sacl.run.workspace import Workspace
from sacl.settings import LocateSettings, SlicesSettings, VolumeSettings
from sacl.training.coarse import CoarsePlan, coarse_case, train_coarse, volume_spec
from sacl.training.coarse_slices import (
    ScanSlices,
    SlicePlan,
    slice_spec,
    slices_of,
    train_on_slices,
)
from sacl.types import Case, Cohort, LabelMap, Volume

_FOLDS = 3
"""Cross-fitting folds over the labeled subjects; as many as subjects where there are fewer."""
SLICES_PER_STEP = 16
SLICES_LEARNING_RATE = 3e-3
VOLUME_LEARNING_RATE = 5e-3
"""Peak learning rates (AdamW, cosine)."""
_MOST_UNLABELED = 20_000
"""Unlabeled slices that are held in memory at most; of a larger cohort every n-th one is."""

Locator = Callable[[Case], LabelMap]
TrainOne = Callable[[Sequence[Case], str, int, str], tuple[Ensemble, list[float]]]
"""From labeled cases, a name, a seed and what to say, to a network and the loss of every step."""


def deal_folds(cohort: Cohort, folds: int) -> dict[str, int]:
    """Return the fold of every labeled subject; a fold's network is trained on the other folds.

    Subjects in which the same organs are annotated are dealt in turn, so that every network learns
    every organ as far as possible: of an organ that none of its scans annotates, a network would
    put out anything.

    Args:
        cohort: Its labeled cases are dealt, subject by subject.
        folds: As many as possible, up to this number.

    Raises:
        DataError: fewer than two subjects are labeled, or an organ is annotated in one fold alone.
    """
    annotated: dict[str, set[str]] = {}
    for case in cohort.labeled:
        annotated.setdefault(case.subject_id, set()).update(case.annotated)
    if len(annotated) < 2:
        raise DataError(
            f"cohort {cohort.name}: {len(annotated)} labeled subject, but the coarse network needs"
            " at least 2, so that none is located by a network that saw it; label another, or give"
            " label maps with --from DIR"
        )
    organs = cohort.scheme.names
    in_turn = sorted(annotated, key=lambda subject: [o not in annotated[subject] for o in organs])
    count = min(folds, len(annotated))
    fold_of = {subject: number % count for number, subject in enumerate(in_turn)}
    for organ in organs:
        knowing = {fold_of[subject] for subject in in_turn if organ in annotated[subject]}
        if len(knowing) < 2:
            raise DataError(
                f"cohort {cohort.name}: {organ} is annotated in too few labeled subjects, in one of"
                f" {count} folds alone, so that no other subject could teach where it is; label"
                " another subject with it, leave it out of ingest.organs, or give label maps with"
                " --from DIR"
            )
    return fold_of


def network_locator(settings: LocateSettings, workspace: Workspace, cohort: Cohort) -> Locator:
    """Return what locates a scan by networks that saw no reference of its subject."""
    fold_of = deal_folds(cohort, _FOLDS)
    networks = train_networks(settings, workspace, cohort, fold_of)
    every = together(list(networks.values()))

    def locator(case: Case) -> LabelMap:
        fold = fold_of.get(case.subject_id)
        ensemble = every if fold is None else networks[fold_name(fold)]
        located = ensemble.locate(read_image(workspace.folder("ingest"), case), case.window)
        return LabelMap(located.voxels, located.grid, cohort.scheme)

    return locator


def fold_name(fold: int) -> str:
    """Return the name of the network that has not seen a fold."""
    return f"fold-{fold}"


def train_networks(
    settings: LocateSettings, workspace: Workspace, cohort: Cohort, fold_of: Mapping[str, int]
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
        trained = load_network(folder, name, device)
        if trained is None:
            train_one = train_one or _trainer(settings, workspace, cohort, device)
            others = [case for case in cohort.labeled if fold_of[case.subject_id] != fold]
            what = f"coarse network {number + 1}/{len(held_out)}"
            trained, losses = train_one(others, name, workspace.seed * 101 + number, what)
            _write_losses(folder, name, losses)
            save_network(folder, name, trained)
        networks[name] = trained
    return networks


def reference_of(workspace: Workspace, case: Case, cohort: Cohort) -> LabelMap:
    """Return the reference of a labeled case."""
    reference = read_reference(workspace.folder("ingest"), case, cohort.scheme)
    assert reference is not None, "a labeled case has a reference"
    return reference


def _trainer(
    settings: LocateSettings, workspace: Workspace, cohort: Cohort, device: torch.device
) -> TrainOne:
    if settings.volume is not None:
        return _trainer_on_volumes(settings.volume, settings.channels, workspace, cohort, device)
    assert settings.slices is not None, "maps need no network"
    return _trainer_on_slices(settings.slices, settings.channels, workspace, cohort, device)


def _trainer_on_volumes(
    settings: VolumeSettings,
    channels: int,
    workspace: Workspace,
    cohort: Cohort,
    device: torch.device,
) -> TrainOne:
    on_grid = {}
    for case in cohort.labeled:
        scan, how = labeled_scan(workspace, case, cohort), (case.window, case.annotated)
        on_grid[case.case_id] = coarse_case(
            *scan, *how, settings.spacing_mm, settings.in_plane_size
        )
    spacings_mm = [case.spacing_mm for case in on_grid.values()]
    grid = (settings.crop, settings.in_plane_size)
    spec = volume_spec(cohort.scheme, spacings_mm, *grid, channels)

    def train_one(
        cases: Sequence[Case], name: str, seed: int, what: str
    ) -> tuple[Ensemble, list[float]]:
        network, losses = train_coarse(
            spec,
            [on_grid[case.case_id] for case in cases],
            CoarsePlan(steps=settings.steps, seed=seed, learning_rate=VOLUME_LEARNING_RATE),
            device,
            what=what,
            checkpoint=workspace.folder("locate") / f"{name}.checkpoint",
        )
        return VolumeEnsemble(spec, (network,), device), losses

    return train_one


def _trainer_on_slices(
    settings: SlicesSettings,
    channels: int,
    workspace: Workspace,
    cohort: Cohort,
    device: torch.device,
) -> TrainOne:
    spec = slice_spec(
        cohort.scheme, cohort.modality, cohort.window_hu, size=settings.size, width=channels
    )
    labeled = {}
    for case in cohort.labeled:
        volume, reference = labeled_scan(workspace, case, cohort)
        of_scan = slices_of(volume, case.window, settings.size, reference, case.annotated)
        labeled[case.case_id] = of_scan
    unlabeled = _unlabeled(settings, workspace, cohort)

    def train_one(
        cases: Sequence[Case], name: str, seed: int, what: str
    ) -> tuple[Ensemble, list[float]]:
        plan = SlicePlan(
            steps=settings.steps,
            teacher_steps=settings.teacher_steps,
            copy_paste=settings.copy_paste,
            ranges=VIEWS[settings.augment],
            seed=seed,
            batch=SLICES_PER_STEP,
            learning_rate=SLICES_LEARNING_RATE,
        )
        network, losses = train_on_slices(
            spec,
            [*(labeled[case.case_id] for case in cases), *unlabeled],
            plan,
            device,
            what=what,
            checkpoint=workspace.folder("locate") / f"{name}.checkpoint",
        )
        return SliceEnsemble((network,), device), losses

    return train_one


def labeled_scan(workspace: Workspace, case: Case, cohort: Cohort) -> tuple[Volume, LabelMap]:
    """Return image and reference of a labeled case, on one grid."""
    volume = read_image(workspace.folder("ingest"), case)
    reference = reference_of(workspace, case, cohort)
    require_same_grid(volume.grid, reference.grid, f"case {case.case_id}")
    return volume, reference


def _unlabeled(settings: SlicesSettings, workspace: Workspace, cohort: Cohort) -> list[ScanSlices]:
    """Return the training scans of subjects without any reference, none without a teacher."""
    if settings.teacher_steps == 0:
        return []
    seen = {case.subject_id for case in cohort.labeled}
    cases = [case for case in cohort.of_split("train") if case.subject_id not in seen]
    slices = sum(case.native.grid.shape[2] for case in cases)
    every = max(1, math.ceil(slices / _MOST_UNLABELED))
    folder = workspace.folder("ingest")
    return [
        slices_of(read_image(folder, case), case.window, settings.size, every=every)
        for case in track(cases, "read unlabeled scans")
    ]


def _write_losses(folder: Path, name: str, losses: Sequence[float]) -> None:
    """Put one network's losses into `losses.csv`, beside those of the networks before it."""
    path = folder / "losses.csv"
    rows = pd.DataFrame({"network": name, "step": range(len(losses)), "loss": losses})
    if path.is_file():
        before = pd.read_csv(path)
        rows = pd.concat([before[before["network"] != name], rows])
    with replacing(path) as temporary:
        rows.to_csv(temporary, index=False, float_format="%.5f")
