"""finetune: labeled patches + encoder -> the segmenter, and its from-scratch twin if asked for."""

from __future__ import annotations

from pathlib import Path

from sacl.cohort.manifest import read_cohort
from sacl.networks.device import resolve_device
from sacl.prediction.volume import predictor_of
from sacl.run.record import fingerprint, recorded
from sacl.run.workspace import Workspace
from sacl.settings import FinetuneSettings
from sacl.stages.arms import Arm, train_arm
from sacl.stages.reserve import measure_costs
from sacl.stages.slices import SliceStart, read_start
from sacl.stages.volumes import VolumeStart, read_volumes
from sacl.training.pace import Pace


def inputs(settings: FinetuneSettings, workspace: Workspace) -> dict[str, str]:
    """Return the fingerprints of what the stage reads."""
    read = ("extract", "pretrain") if settings.volume is None else ("ingest", "locate")
    return {s: fingerprint(workspace.require(s)) for s in read}


def finetune(settings: FinetuneSettings, workspace: Workspace) -> Path:
    """Train the segmenter on the labeled scans, and its twin if asked for; return their folder.

    The two differ in where they start, in nothing else: decoder and head start from the same
    random weights where none are pretrained, and step n sees the same batch.

    Raises:
        DataError: no labeled scan has a slice or a patch to train on.
    """
    with recorded(workspace, "finetune", settings, inputs(settings, workspace)) as (
        folder,
        results,
    ):
        arms, start = _arms_and_start(settings, workspace)
        models, reserve_s = {}, _reserve_s(start, settings.twin, workspace)
        for number, arm in enumerate(arms):
            pace = Pace(workspace.deadline(number, len(arms), reserve_s))
            models[arm.name] = train_arm(arm, start, settings, workspace, pace)
        results.update(
            arms=[arm.name for arm in arms],
            steps={name: model.steps for name, model in models.items()},
            seconds={name: model.seconds for name, model in models.items()},
        )
    return folder


def plan_arms(settings: FinetuneSettings, method: str) -> list[Arm]:
    """Return the arms, the one named after the pretraining method first.

    An encoder that was not pretrained learns as fast as the decoder, unless it is to be frozen.
    """
    pretrained, rate = method != "none", settings.encoder_rate
    arms = [Arm(method, pretrained, rate if pretrained or rate == 0 else 1.0)]
    return [*arms, Arm("scratch", False, 1.0)] if settings.twin else arms


def _arms_and_start(
    settings: FinetuneSettings, workspace: Workspace
) -> tuple[list[Arm], SliceStart | VolumeStart]:
    if settings.volume is not None:
        return [Arm("volume", False, 1.0)], read_volumes(settings, workspace)
    start = read_start(settings, workspace)
    return plan_arms(settings, start.method), start


def _reserve_s(start: SliceStart | VolumeStart, twin: bool, workspace: Workspace) -> float | None:
    """Return how much time predicting and scoring will take, None where no time is given."""
    budget = workspace.budget
    if budget is None or budget.copies is None:
        return None
    cohort, device = read_cohort(workspace.require("ingest")), resolve_device(workspace.device)
    held_out = [case for case in cohort.cases if case.split != "train" and case.reference]
    predictor = predictor_of(start.build(workspace.seed, pretrained=False), device)
    predicted = [*cohort.cases, *(held_out if twin else ())]
    costs = measure_costs(predictor, predicted, workspace, cohort)
    return costs.reserve(budget.copies, budget.left_s)
