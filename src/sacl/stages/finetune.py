"""finetune: labeled and unlabeled scans, and an encoder for slices -> the segmenter."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from sacl import ranks
from sacl.cohort.manifest import read_cohort
from sacl.files.weights import read_weights, save_weights
from sacl.networks.device import resolve_device
from sacl.networks.segmenter import SEGMENTER, TrainedModel
from sacl.prediction.volume import predictor_of
from sacl.progress import say
from sacl.run.record import fingerprint, recorded
from sacl.run.workspace import Workspace
from sacl.settings import FinetuneSettings
from sacl.stages.reserve import measure_costs
from sacl.stages.slices import SliceStart, read_start
from sacl.stages.volumes import VolumeStart, read_volumes
from sacl.training.pace import Pace, keep_pace, write_losses


def inputs(settings: FinetuneSettings, workspace: Workspace) -> dict[str, str]:
    """Return the fingerprints of what the stage reads."""
    volume = settings.volume
    read = ["extract"] if volume is None else ["ingest", "locate"]
    read += ["pretrain"] if volume is None or volume.pretrained else []
    return {s: fingerprint(workspace.require(s)) for s in read}


def finetune(settings: FinetuneSettings, workspace: Workspace) -> Path:
    """Train the segmenter on the labeled scans, and return the folder that it lies in.

    Raises:
        DataError: no labeled scan has a slice or a patch to train on.
        ConfigError: there are more ranks than samples in a step.
    """
    ranks.require_samples(settings.samples, "finetune.batch", settings.least_samples)
    with recorded(workspace, "finetune", settings, inputs(settings, workspace)) as (folder, done):
        start = _read(settings, workspace)
        pace = Pace(workspace.deadline(reserve_s=_reserve_s(start, workspace)))
        model = _trained(start, workspace, pace)
        steps, seconds = {start.name: model.steps}, {start.name: model.seconds}
        done.update(arms=[start.name], steps=steps, seconds=seconds)
    return folder


def _read(settings: FinetuneSettings, workspace: Workspace) -> SliceStart | VolumeStart:
    read = read_start if settings.volume is None else read_volumes
    return read(settings, workspace)


def _take_part(settings: FinetuneSettings, workspace: Workspace) -> None:
    """Train as the first rank does, which keeps what comes of it."""
    _read(settings, workspace).train(workspace, None, Pace())


def _trained(start: SliceStart | VolumeStart, workspace: Workspace, pace: Pace) -> TrainedModel:
    """Train and save the segmenter, unless an interrupted run has; return what it took."""
    folder = workspace.folder("finetune") / start.name
    if (folder / f"{SEGMENTER}.json").is_file():
        return TrainedModel.from_json(read_weights(folder, SEGMENTER)[1])
    begun = time.monotonic()
    with ranks.shared(_take_part, start.settings, workspace):
        segmenter, losses = start.train(workspace, folder / "training.pt", pace)
    write_losses(folder / "losses.csv", losses)
    keep_pace(folder.parent, start.name, pace)
    model = TrainedModel(
        spec=segmenter.spec,
        method=start.method,
        steps=len(losses),
        seconds=round(time.monotonic() - begun, 1),
    )
    save_weights(folder, SEGMENTER, segmenter, model.to_json())
    say(f"finetune: {start.name}, {len(losses)} steps, last loss {np.mean(losses[-20:]):.3f}")
    return model


def _reserve_s(start: SliceStart | VolumeStart, workspace: Workspace) -> float | None:
    """Return how much time predicting and scoring will take, None where no time is given."""
    budget = workspace.budget
    if budget is None or budget.copies is None:
        return None
    cohort, device = read_cohort(workspace.require("ingest")), resolve_device(workspace.device)
    predictor = predictor_of(start.build(workspace.seed), device)
    costs = measure_costs(predictor, workspace, cohort)
    return costs.reserve(budget.copies, budget.left_s)
