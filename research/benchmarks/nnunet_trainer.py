"""Plan, preprocess, train and predict with nnU-Net at a chosen size; runs in nnU-Net's environment.

Started by `nnunet_reference.py` and `planned_nnunet.py` as `python nnunet_trainer.py
SETTINGS.json`; imports nothing of sacl. nnU-Net's own planner, preprocessor, trainer and predictor
do the work; this file only edits the plans and sets the trainer's lengths before it starts. Where
`seconds` are set instead of epochs, planning and training take so long, and the rate falls to 0 by
then. What is done already is skipped.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.experiment_planning import plan_and_preprocess_api as planning
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_results
from nnunetv2.run.run_training import get_trainer_from_args

DATASET_ID = 1
_ENDLESS = 100_000
"""Epochs of a training that ends by its time."""
_PACKAGES = (
    *("nnunetv2", "dynamic_network_architectures", "batchgenerators", "batchgeneratorsv2"),
    *("acvl_utils", "torch", "numpy", "scipy", "scikit-image", "simpleitk"),
)


def main() -> None:
    """Do the steps that are left, and record each where it has ended."""
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    path = Path(sys.argv[1]).with_name("record.json")
    record: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    for step in STEPS:
        if step.__name__ not in record:
            start = time.monotonic()
            done_before = [record[s.__name__]["seconds"] for s in STEPS if s.__name__ in record]
            settings["spent_before_s"] = sum(done_before)
            done = step(settings)
            record[step.__name__] = {**done, "seconds": round(time.monotonic() - start, 1)}
            record["versions"] = versions()
            record["changed"] = changed(settings, record)
            path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


class TimeOver(Exception):
    """The time of a training is used up."""


def plan(settings: dict[str, Any]) -> dict[str, Any]:
    """Let nnU-Net plan and preprocess a configuration; return the planned size and ours."""
    planning.extract_fingerprints([DATASET_ID], num_processes=1, check_dataset_integrity=True)
    planning.plan_experiments([DATASET_ID])
    path = Path(nnUNet_preprocessed) / settings["dataset"] / "nnUNetPlans.json"
    plans = json.loads(path.read_text(encoding="utf-8"))
    name = settings["configuration"]
    chosen = plans["configurations"][name]
    planned = size_of(chosen)
    if settings["batch_size"]:
        chosen["batch_size"] = settings["batch_size"]
    if settings["base_features"]:
        features = chosen["architecture"]["arch_kwargs"]["features_per_stage"]
        scale = settings["base_features"] / features[0]
        chosen["architecture"]["arch_kwargs"]["features_per_stage"] = [
            max(1, round(count * scale)) for count in features
        ]
    path.write_text(json.dumps(plans, indent=4), encoding="utf-8")
    planning.preprocess([DATASET_ID], configurations=(name,), num_processes=(1,))
    return {"planned": planned, "used": size_of(chosen)}


def size_of(configuration: dict[str, Any]) -> dict[str, Any]:
    """Return what decides the cost of an iteration."""
    return {
        "patch_size": configuration["patch_size"],
        "spacing_mm": configuration["spacing"],
        "batch_size": configuration["batch_size"],
        "features_per_stage": configuration["architecture"]["arch_kwargs"]["features_per_stage"],
    }


def train(settings: dict[str, Any]) -> dict[str, Any]:
    """Train on all labeled scans (fold `all`), and keep the last network."""
    random.seed(settings["seed"])
    np.random.seed(settings["seed"])  # noqa: NPY002 - nnU-Net draws from the global state
    torch.manual_seed(settings["seed"])
    # Augment in this process, so that the seed decides; nnU-Net's planner would not bear the 0.
    os.environ["nnUNet_n_proc_DA"] = "0"  # noqa: SIM112
    device = torch.device(settings["device"])
    trainer = get_trainer_from_args(
        str(DATASET_ID), settings["configuration"], "all", device=device
    )
    standard = lengths_of(trainer)
    trainer.num_epochs = settings["epochs"] or _ENDLESS
    trainer.num_iterations_per_epoch = settings["iterations"]
    trainer.num_val_iterations_per_epoch = settings["validation_iterations"]
    trainer.disable_checkpointing = True  # of epochs; the best of them would not be used
    trainer.logger.plot_progress_png = lambda folder: None  # seconds in every epoch
    trainer.initialize()
    start = time.monotonic()
    if settings["seconds"]:
        _end_in_time(trainer, settings["seconds"] - settings["spent_before_s"])
    with contextlib.suppress(TimeOver):
        trainer.run_training()
    seconds, trainer.num_epochs = time.monotonic() - start, trainer.current_epoch
    trainer.disable_checkpointing = False
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    return {
        "model": str(Path(trainer.output_folder_base).relative_to(nnUNet_results)),
        "standard": standard,
        "used": lengths_of(trainer),
        "parameters": sum(weight.numel() for weight in trainer.network.parameters()),
        "seconds_per_iteration": round(seconds / (trainer.num_epochs * settings["iterations"]), 3),
        "last_loss": float(trainer.logger.get_value("train_losses", -1)),
        "torch_threads": torch.get_num_threads(),
    }


def _end_in_time(trainer: Any, seconds: float) -> None:
    """Let the rate fall to 0 over the epochs that fit, measured after each, and then end."""
    start, of_epoch = time.monotonic(), trainer.on_epoch_end

    def after_epoch() -> None:
        of_epoch()
        done = trainer.current_epoch
        fit = max(done, int(seconds * done / (time.monotonic() - start)))
        trainer.lr_scheduler.max_steps = fit
        if done >= fit:
            raise TimeOver

    trainer.on_epoch_end = after_epoch


def lengths_of(trainer: Any) -> dict[str, Any]:
    """Return how long a trainer trains."""
    return {
        "epochs": trainer.num_epochs,
        "iterations_per_epoch": trainer.num_iterations_per_epoch,
        "validation_iterations_per_epoch": trainer.num_val_iterations_per_epoch,
    }


def predict(settings: dict[str, Any]) -> dict[str, Any]:
    """Predict the test scans as nnU-Net does, mirrored views and overlapping tiles included."""
    record = json.loads(Path(sys.argv[1]).with_name("record.json").read_text(encoding="utf-8"))
    predictor = nnUNetPredictor(
        device=torch.device(settings["device"]), allow_tqdm=False, use_mirroring=settings["mirror"]
    )
    model = Path(nnUNet_results) / record["train"]["model"]
    predictor.initialize_from_trained_model_folder(str(model), ("all",))
    Path(settings["predicted"]).mkdir(exist_ok=True)
    predictor.predict_from_files_sequential(
        settings["images"],
        settings["predicted"],
        save_probabilities=settings["probabilities"],
        overwrite=False,
    )
    return {"mirrored": list(predictor.allowed_mirroring_axes or ()) if settings["mirror"] else []}


def changed(settings: dict[str, Any], record: dict[str, Any]) -> list[str]:
    """Return in words what differs from standard nnU-Net: what it planned against what was done."""
    told = [
        f"{settings['configuration']} alone: no ensemble, no choice among configurations",
        "one network trained on all labeled scans: no cross-validation, no postprocessing",
    ]
    if settings["in_plane_size"]:
        size = settings["in_plane_size"]
        told.append(f"slices resampled to {size} x {size} pixels before nnU-Net sees them")
    if not settings["mirror"]:
        told.append("predicted without mirrored views")
    plans, lengths = record["plan"], record.get("train", {})
    for before, after in (
        (plans["planned"], plans["used"]),
        (lengths.get("standard", {}), lengths.get("used", {})),
    ):
        names = [name for name in before if before[name] != after[name]]
        told += [f"{name}: {after[name]} instead of {before[name]}" for name in names]
    return told


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide nnU-Net's result."""
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **found}


STEPS = (plan, train, predict)


if __name__ == "__main__":
    main()
