"""What commands do with finished runs, or with folders of scans and label maps.

Modules that are slow to import are imported by the command that needs them.
"""

from __future__ import annotations

import argparse
from typing import Any

from sacl.errors import ConfigError
from sacl.run.configure import load_config
from sacl.run_commands import config_of


def predict_command(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    """Predict label maps of a folder of scans by a segmenter."""
    _require_flags(known, "segmenter", "images", "out")
    from sacl.stages.predict_folder import predict_folder

    config = load_config(None, flags)
    given = [name for name in ("copies", "keep_component") if f"predict.{name}" in flags]
    options = {name: getattr(known, name) for name in ("arm", "coarse", "force")}
    options |= {name: getattr(config.predict, name) for name in given}
    predicted = predict_folder(
        known.segmenter, known.images, known.out, device=config.device, **options
    )
    return {"written": [str(p) for p in predicted.written], "doubts": dict(predicted.doubts)}


def evaluate_command(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    """Score a folder of label maps against another."""
    _require_flags(known, "reference", "predicted", "out")
    from sacl.stages.evaluate import evaluate_folders

    settings = load_config(None, flags).evaluate
    folders = (known.reference, known.predicted, known.out)
    options = {"allow_missing": known.allow_missing, "force": known.force}
    return {"folder": str(evaluate_folders(*folders, settings, **options))}


def export_command(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    """Write label maps of a run, or of a folder, in another form."""
    if known.out is None or (known.config is None) == (known.predicted is None):
        raise ConfigError("export: give --out, and either WORK|CONFIG.yaml or --predicted")
    misplaced = [name for name in ("arm", "splits", "folds") if getattr(known, name) is not None]
    if known.predicted is not None and misplaced:
        raise ConfigError(f"export: --{misplaced[0]} goes with a run only; leave it out")
    from sacl.stages.export import export, export_folder

    form, sources = known.form or "nifti", known.source or []
    if known.predicted is None:
        folds = 5 if known.folds is None else known.folds
        options = {"arm": known.arm, "splits": tuple(known.splits or ()), "folds": folds}
        options |= {"sources": sources, "force": known.force}
        return export(_finished_run(known, flags), known.out, form, **options)
    if len(sources) > 1:
        raise ConfigError("export: --predicted goes with one --source folder")
    source = next(iter(sources), None)
    return export_folder(known.predicted, known.out, form, source=source, force=known.force)


def _finished_run(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    """Return the work directory that is given, or that a configuration names."""
    if known.config.is_dir():
        from sacl.run.record import workspace_at

        return workspace_at(known.config)
    from sacl.run.pipeline import workspace_of

    return workspace_of(config_of(known, flags))


def _require_flags(known: argparse.Namespace, *names: str) -> None:
    if not all(getattr(known, name) for name in names):
        listed = ", ".join(f"--{name}" for name in names)
        raise ConfigError(f"{known.command}: give CONFIG.yaml, or all of {listed}")
