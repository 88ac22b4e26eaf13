"""pretrain: patches or volumes of unlabeled and labeled scans -> an encoder, by one method."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

import torch

from sacl import ranks
from sacl.files.weights import save_weights
from sacl.methods import Method, Pretraining, Recipe, method_named
from sacl.methods.batches import Queries, training_patches
from sacl.networks.device import resolve_device
from sacl.networks.encoder import PretrainedEncoder
from sacl.patches.views import VIEWS
from sacl.progress import say
from sacl.run.record import fingerprint, recorded
from sacl.run.workspace import Workspace
from sacl.settings import PretrainSettings
from sacl.stages.query_volumes import read_store
from sacl.training.loop import train
from sacl.training.pace import Pace, keep_pace, write_losses

LEARNING_RATE = 1e-3


def inputs(settings: PretrainSettings, workspace: Workspace) -> dict[str, str]:
    """Return the fingerprints of what the stage reads."""
    read = ("ingest", "locate") if settings.on_volumes else ("extract",)
    return {stage: fingerprint(workspace.require(stage)) for stage in read}


def pretrain(settings: PretrainSettings, workspace: Workspace) -> Path:
    """Pretrain the encoder on the training scans, and return its folder.

    `encoder.json` says what the encoder is and how it was made; later stages read nothing else.
    """
    method = method_named(settings.method)
    ranks.require_samples(_samples(settings, method), "pretrain.batch")
    with recorded(workspace, "pretrain", settings, inputs(settings, workspace)) as (folder, done):
        recipe, pretraining = _built(settings, workspace)
        network, losses, begun = pretraining.network, list[float](), time.monotonic()
        if pretraining.loss is not None:
            pace, checkpoint = Pace(workspace.deadline()), folder / "training.pt"
            with ranks.shared(_take_part, settings, workspace):
                losses = _train(pretraining, settings, recipe.device, pace, checkpoint)
            keep_pace(folder, settings.method, pace)
        network.to(memory_format=torch.contiguous_format)
        write_losses(folder / "losses.csv", losses)
        made = PretrainedEncoder(
            method=method.name,
            spec=network.encoder.spec,
            reads_attention=method.reads_attention,
            pixels_trained=len(losses) * pretraining.pixels_per_step,
            projector=recipe.projector,
            decoder=recipe.decoder if method.trains_decoder else None,
        )
        if made.decoder:
            save_weights(folder, "decoder", network.decoder, {"decoder": made.decoder})
        save_weights(folder, "encoder", network.encoder, asdict(made))
        done.update(
            pretraining.facts,
            method=method.name,
            steps=len(losses),
            seconds=round(time.monotonic() - begun, 1),
        )
    return folder


def _built(settings: PretrainSettings, workspace: Workspace) -> tuple[Recipe, Pretraining]:
    """Return how a method is used, and what it makes of the patches, on the device."""
    method, store = method_named(settings.method), read_store(workspace, settings.on_volumes)
    recipe = Recipe(
        network=settings.network,
        width=settings.width,
        batch=_samples(settings, method),
        temperature=settings.temperature,
        scan_labels=_scan_labels(settings, method, store),
        ranges=VIEWS[settings.augment],
        seed=workspace.seed,
        device=resolve_device(workspace.device),
    )
    pretraining = method.build(store, recipe)
    pretraining.network.to(recipe.device)
    return recipe, pretraining


def _samples(settings: PretrainSettings, method: Method) -> int:
    return settings.batch or method.usual_batch(settings.on_volumes)


def _take_part(settings: PretrainSettings, workspace: Workspace) -> None:
    """Train as the first rank does, which keeps what comes of it."""
    recipe, pretraining = _built(settings, workspace)
    _train(pretraining, settings, recipe.device, Pace())


def _scan_labels(settings: PretrainSettings, method: Method, store: Queries) -> tuple[str, ...]:
    """Return the scan-wise labels that make classes: none where no training scan has them."""
    names = settings.scan_label_names if method.reads_scan_label else ()
    if names and (training_patches(store, names).scan_label < 0).all():
        say(
            f"pretrain: no training scan has the scan-wise label '{' x '.join(names)}', so the"
            " classes are organs alone; give it with --ingest.scan_labels CSV"
        )
        return ()
    return names


def _train(
    pretraining: Pretraining,
    settings: PretrainSettings,
    device: torch.device,
    pace: Pace,
    checkpoint: Path | None = None,
) -> list[float]:
    assert pretraining.loss is not None
    network = pretraining.network
    if not settings.on_volumes:
        network.to(memory_format=torch.channels_last)
    return train(
        network,
        pretraining.loss,
        {network: LEARNING_RATE},
        settings.steps,
        device,
        what=f"pretrain ({settings.method})",
        checkpoint=checkpoint,
        pace=pace,
    )
