"""locate: train the coarse networks, one per fold of the labeled subjects and one on all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from sacl.cohort.dataset import in_short
from sacl.networks.device import resolve_device
from sacl.networks.segmenter import slice_spec
from sacl.prediction.coarse import (
    ALL_LABELED,
    Ensemble,
    in_haste,
    load_network,
    save_network,
    together,
)
from sacl.progress import duration, say, track
from sacl.run.clock import TooShort
from sacl.run.workspace import Workspace
from sacl.settings import LocateSettings
from sacl.stages.reserve import middle_of, report_seconds, share_of, timed
from sacl.stages.scan import Scan
from sacl.training.coarse import coarse_case, volume_spec
from sacl.training.locators import slices_of, train_coarse, train_on_slices
from sacl.training.pace import Pace, Plan, keep_pace, write_losses
from sacl.types import Case, Cohort, LabelMap

FOLDS = 3
"""Cross-fitting folds over the labeled subjects; as many as subjects where there are fewer."""
SEEN = -1
"""Fold of a labeled subject that every network is trained on."""
SLICES_PER_STEP = 16
SLICES_LEARNING_RATE = 3e-3
VOLUME_LEARNING_RATE = 1e-2
"""Peak learning rates (AdamW, cosine)."""
_MOST_RESERVED = 0.4
"""Whatever locates, this share of the time left is kept from training at most."""
_MOST_UNLABELED = 20_000
"""Unlabeled slices that take part at most; of a larger cohort every n-th one is."""

TrainOne = Callable[..., tuple[Ensemble, list[float]]]
"""From labeled cases, a seed, `what` to say and a `checkpoint`, to a network and its losses."""


def deal_folds(cohort: Cohort, folds: int) -> dict[str, int]:
    """Return the fold of every labeled subject; a fold's network is trained on the other folds.

    Every network learns every organ, for of one that none of its scans annotates it would put out
    anything: subjects are dealt organ by organ, the rarest first. Who alone shows an organ, or
    whose fold alone does, is `SEEN` by every network. There are up to `folds` folds.
    """
    annotated: dict[str, set[str]] = {}
    for case in cohort.labeled:
        annotated.setdefault(case.subject_id, set()).update(case.annotated)
    showing = {o: [s for s in annotated if o in annotated[s]] for o in cohort.scheme.names}
    alone = {subjects[0] for subjects in showing.values() if len(subjects) == 1}
    fold_of = dict.fromkeys(alone, SEEN)
    count = min(folds, len(annotated) - len(alone))
    for subjects in sorted(showing.values(), key=len):
        for subject in subjects:
            if subject not in fold_of:
                with_organ = [fold_of.get(other) for other in subjects]
                fold_of[subject] = min(
                    range(count), key=lambda n: (with_organ.count(n), [*fold_of.values()].count(n))
                )
    for subjects in showing.values():
        knowing = {fold_of[subject] for subject in subjects}
        if len(knowing) == 1 and SEEN not in knowing:
            fold_of |= dict.fromkeys(subjects, SEEN)
    return {subject: fold_of.get(subject, SEEN) for subject in annotated}


@dataclass(frozen=True)
class Networks:
    """Which of the trained networks locate a scan: that of its subject's fold, or the `others`.

    All locate `in_haste` where time is short.
    """

    fold_of: Mapping[str, int]
    others: tuple[str, ...]
    in_haste: bool = False

    def locator(self, workspace: Workspace, cohort: Cohort) -> Callable[[Case], LabelMap]:
        """Load the networks, and return what locates a scan."""
        folder, device = workspace.folder("locate"), resolve_device(workspace.device)
        names = {_fold_name(n) for n in self.fold_of.values() if n != SEEN} | {*self.others}
        networks = {name: load_network(folder, name, device) for name in sorted(names)}
        trained = {name: network for name, network in networks.items() if network is not None}
        if self.in_haste:
            trained = {name: in_haste(network) for name, network in trained.items()}
        every = together([trained[name] for name in self.others])

        def locate_case(case: Case) -> LabelMap:
            fold = self.fold_of.get(case.subject_id, SEEN)
            ensemble = every if fold == SEEN else trained[_fold_name(fold)]
            located = ensemble.locate(Scan(case, cohort, workspace).image, case.window)
            return LabelMap(located.voxels, located.grid, cohort.scheme)

        return locate_case


def trained_networks(settings: LocateSettings, workspace: Workspace, cohort: Cohort) -> Networks:
    """Train the networks that are not there, and return which of them locate what.

    Where every network has seen a subject, all locate its scans, which is said; so it is with all
    subjects where time is too short for more than one network.
    """
    fold_of = deal_folds(cohort, FOLDS)
    if seen := [subject for subject, fold in fold_of.items() if fold == SEEN]:
        say(
            f"locate: WARNING, no other labeled subjects show all organs of {in_short(seen)}, so"
            " every network learns from these scans; the quality of their coarse maps is unknown"
        )
    with workspace.in_turn("locate: the coarse networks are trained"):
        try:
            networks = train_networks(settings, workspace, cohort, fold_of)
        except TooShort:
            if not set(fold_of.values()) - {SEEN}:
                raise
            say(
                "locate: WARNING, too little time for more networks, so one learns from all labeled"
                " scans: nothing is cross-fitted, and the quality of the coarse maps is unknown"
            )
            fold_of = dict.fromkeys(fold_of, SEEN)
            networks = train_networks(settings, workspace, cohort, fold_of)
    return _in_time(Networks(fold_of, tuple(networks)), networks, workspace, cohort)


def _in_time(
    all_of_them: Networks,
    networks: Mapping[str, Ensemble],
    workspace: Workspace,
    cohort: Cohort,
) -> Networks:
    """Return by which networks, and how, all scans are located in the time there is for that."""
    last = networks[ALL_LABELED]
    only_way = len(networks) == 1 and in_haste(last) is last
    if workspace.budget is None or only_way:
        return all_of_them
    cost, left_s = _cost_of_maps(last, workspace, cohort), workspace.budget.left_s
    count = cost.networks_that_fit(len(networks), left_s)
    haste = cost.is_hasty(left_s)
    if count < len(networks) or haste:
        whole = duration(cost.seconds(len(networks)))
        how = ", reading every part once" if haste else ""
        say(
            f"locate: one network locates the scans without a label map{how}, since the full way"
            f" takes {whole} of the {duration(left_s)} left; more time gives better coarse maps"
        )
    others = all_of_them.others if count == len(networks) else (ALL_LABELED,)
    return replace(all_of_them, others=others, in_haste=haste)


def _fold_name(fold: int) -> str:
    return f"fold-{fold}"


def train_networks(
    settings: LocateSettings, workspace: Workspace, cohort: Cohort, fold_of: Mapping[str, int]
) -> dict[str, Ensemble]:
    """Return the networks by name, trained now or by the run that was interrupted.

    One per fold, which has not seen the fold's subjects, and one that has seen all labeled scans.
    """
    folder, device = workspace.folder("locate"), resolve_device(workspace.device)
    held_out: dict[str, int | None] = {
        _fold_name(n): n for n in sorted({*fold_of.values()} - {SEEN})
    }
    held_out[ALL_LABELED] = None
    networks: dict[str, Ensemble] = {}
    rest_s = reserve_s = _for_the_rest(workspace, cohort)
    train_on = _on_volumes if settings.volume else _on_slices
    train_one: TrainOne | None = None
    for number, (name, fold) in enumerate(held_out.items()):
        trained = load_network(folder, name, device)
        if trained is None:
            train_one = train_one or train_on(settings, workspace, cohort, device)
            if workspace.budget and networks and reserve_s == rest_s:
                cost = _cost_of_maps(next(iter(networks.values())), workspace, cohort)
                reserve_s += cost.reserve(len(held_out), workspace.budget.left_s)
            pace = Pace(workspace.deadline(number, len(held_out), reserve_s))
            trained, losses = train_one(
                [case for case in cohort.labeled if fold_of[case.subject_id] != fold],
                workspace.seed * 101 + number,
                what=f"coarse network {number + 1}/{len(held_out)}",
                checkpoint=folder / f"{name}.checkpoint",
                pace=pace,
            )
            keep_pace(folder, name, pace)
            write_losses(folder / "losses.csv", losses, name)
            save_network(folder, name, trained)
        networks[name] = trained
    return networks


def _for_the_rest(workspace: Workspace, cohort: Cohort) -> float:
    """Return the seconds to leave to what no training is: of many scans, those of the report."""
    budget = workspace.budget
    if budget is None or budget.copies is None:
        return 0.0
    return max(budget.unmeasured_s, report_seconds(workspace, cohort))


@dataclass(frozen=True)
class CostOfMaps:
    """Seconds in which one network locates all scans, and those that several locate together.

    Locating may take the share `most` of the time left. Where one network takes more, it locates in
    haste, all scans in `hasty_s`.
    """

    all_s: float
    others_s: float
    hasty_s: float
    most: float

    def seconds(self, networks: int) -> float:
        """Return how long locating takes where the others are located by so many networks."""
        return self.all_s + (networks - 1) * self.others_s

    def networks_that_fit(self, networks: int, left_s: float) -> int:
        """Return how many networks locate the others: all, or one where time is short."""
        return networks if self.seconds(networks) <= self.most * left_s else 1

    def is_hasty(self, left_s: float) -> bool:
        """Tell whether time is too short for one network, and a faster way is there."""
        return self.hasty_s < self.all_s > self.most * left_s

    def reserve(self, networks: int, left_s: float) -> float:
        """Return how much of the time left no coarse network may be trained in."""
        seconds = self.seconds(self.networks_that_fit(networks, left_s))
        return min(self.hasty_s if self.is_hasty(left_s) else seconds, _MOST_RESERVED * left_s)


def _cost_of_maps(network: Ensemble, workspace: Workspace, cohort: Cohort) -> CostOfMaps:
    """Return how long locating all scans will take, measured by one network on one scan."""
    assert workspace.budget is not None, "only where time is limited"
    case = middle_of(cohort.cases)
    scan, hasty = Scan(case, cohort, workspace), in_haste(network)
    seconds = timed(lambda: network.locate(scan.image, case.window))
    hasty_s = seconds if hasty is network else timed(lambda: hasty.locate(scan.image, case.window))
    labeled = cohort.labeled_subjects
    others = [case for case in cohort.cases if case.subject_id not in labeled]
    times = share_of(cohort.cases, case)
    return CostOfMaps(
        seconds * times,
        seconds * share_of(others, case),
        hasty_s * times,
        workspace.budget.most_for_maps,
    )


def _on_volumes(
    settings: LocateSettings, workspace: Workspace, cohort: Cohort, device: torch.device
) -> TrainOne:
    """Return what trains a 3-D network on some of the labeled scans, all of which are read here."""
    volume = settings.volume
    assert volume is not None
    labeled = {}
    for case in cohort.labeled:
        scan, how = Scan(case, cohort, workspace), (case.window, case.annotated)
        on_grid = coarse_case(
            scan.image, scan.reference, *how, volume.spacing_mm, volume.in_plane_size
        )
        labeled[case.case_id] = on_grid.on_disk(workspace.folder("locate"))
    grid = ([case.spacing_mm for case in labeled.values()], volume.crop, volume.in_plane_size)
    spec = volume_spec(cohort.scheme, *grid, settings.channels)

    def train_one(cases: Sequence[Case], seed: int, **how: Any) -> tuple[Ensemble, list[float]]:
        plan = Plan(steps=volume.steps, learning_rate=VOLUME_LEARNING_RATE, seed=seed)
        scans = [labeled[case.case_id] for case in cases]
        network, losses = train_coarse(spec, scans, plan, device, **how)
        return Ensemble(spec, (network,), device), losses

    return train_one


def _on_slices(
    settings: LocateSettings, workspace: Workspace, cohort: Cohort, device: torch.device
) -> TrainOne:
    """Return what trains a network on slices; unlabeled training scans take part in each."""
    slices = settings.slices
    assert slices is not None
    spec, folder = slice_spec(cohort, slices.size, settings.channels), workspace.folder("locate")
    labeled, unlabeled = {}, []
    for case in cohort.labeled:
        scan, how = Scan(case, cohort, workspace), (case.window, slices.size)
        of_scan = slices_of(scan.image, *how, scan.reference, case.annotated)
        labeled[case.case_id] = of_scan.on_disk(folder)
    taking_part = cohort.unlabeled if slices.teacher_steps else ()
    every = max(1, math.ceil(sum(c.native.grid.shape[2] for c in taking_part) / _MOST_UNLABELED))
    for case in track(taking_part, "read unlabeled scans"):
        image = Scan(case, cohort, workspace).image
        unlabeled.append(slices_of(image, case.window, slices.size, every=every).on_disk(folder))

    def train_one(cases: Sequence[Case], seed: int, **how: Any) -> tuple[Ensemble, list[float]]:
        plan = Plan(
            steps=slices.steps,
            teacher_steps=slices.teacher_steps,
            copy_paste=slices.copy_paste,
            augment=slices.augment,
            seed=seed,
            batch=SLICES_PER_STEP,
            learning_rate=SLICES_LEARNING_RATE,
        )
        scans = [*(labeled[case.case_id] for case in cases), *unlabeled]
        network, losses = train_on_slices(spec, scans, plan, device, **how)
        return Ensemble(spec, (network,), device), losses

    return train_one
