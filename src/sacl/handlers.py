"""Commands that are not just one stage: plan, check, explain, export, and work on folders.

Modules that are slow to import are imported by the command that needs them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import sacl
from sacl.commands import COMMANDS, SHARDED_STAGES, engine_of, program
from sacl.errors import ConfigError, DataError, SaclError
from sacl.run.configure import load_config
from sacl.settings import RunConfig

_OF_TESTS = {
    *("ingest.data", "ingest.layout", "ingest.modality", "ingest.series", "ingest.window_hu"),
    *("ingest.organs", "ingest.overlap", "ingest.repair_grid", "ingest.scan_labels"),
}
"""Settings of `ingest` that an external test has, too."""


def config_of(known: argparse.Namespace, flags: dict[str, str]) -> RunConfig:
    """Return the settings that a command names, by a file, a folder of scans or flags."""
    data = COMMANDS[known.command].takes_data
    starts = data or known.command == "phantom"
    if known.config is None and starts and not flags.keys() & {"ingest.data", "phantom.scans"}:
        scans = " or a folder of scans" if data else ""
        raise ConfigError(f"{known.command}: which configuration? give CONFIG.yaml{scans}")
    return load_config(known.config, flags, getattr(known, "from_", None))


def plan_command(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    """Print a plan as YAML, and nothing else on stdout."""
    if known.config is not None:
        raise ConfigError("plan: expected only a folder of scans, got a settings file too")
    config_of(known, flags)  # which refuses a command without data
    from sacl.planning import as_file, plan_run

    config, plan = plan_run(flags, known.force)
    if not known.json:
        print(as_file(flags, config, plan), end="")
    return dataclasses.asdict(plan)


def check_command(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    """Check a cohort; errors in it end the program like any other bad input, after the page."""
    config, out = config_of(known, flags), known.out or Path("check.html")
    from sacl.stages.check import check

    given = None
    if known.config is None:
        from sacl.planning import given_of

        given = given_of(config, flags)
    record = check(config, out, force=known.force, given=given)
    errors = record.kinds["error"]
    if not known.json:
        print(record.as_text())
    elif errors:
        print(json.dumps(record.as_json()))
    print(f"page: {out}", file=sys.stderr)
    if errors:
        kinds = "1 kind of error" if errors == 1 else f"{errors} kinds of errors"
        raise DataError(f"check: {kinds} in {record.name}; see {out}")
    return record.as_json()


def explain_command(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    """Say how a cohort would be read, and read none of it."""
    config = config_of(known, flags)
    from sacl.run.pipeline import workspace_of
    from sacl.stages.ingest import explain

    sources = explain(config.ingest, workspace_of(config))
    if not known.json:
        print("\n\n".join(source.as_text() for source in sources))
    return {"sources": [dataclasses.asdict(source) for source in sources]}


def predict_command(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    """Predict label maps of new scans by a segmenter; scans left out are an error at the end."""
    _require_flags(known, "model", "input", "out")
    from sacl.stages.predict_folder import Extras, predict_folder

    config = load_config(None, flags)
    changes = _chosen_recipe(config, flags)
    model = sacl.load_model(*known.model, device=config.device, **changes)
    options = {"coarse": known.coarse, "force": known.force, "engine": engine_of(known)}
    extras = Extras(known.nifti, known.per_organ)
    predicted = predict_folder(model, known.input, known.out, extras=extras, **options)
    result = dataclasses.asdict(predicted)
    result |= {name: list(map(str, result[name])) for name in ("written", "beside")}
    if known.json and predicted.failures:
        print(json.dumps(result))
    predicted.require_all()
    return result


def merge_command(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    """Finish a stage whose cases were done in shards."""
    stage, named = known.config, known.target
    if named is None or str(stage) not in SHARDED_STAGES:
        listed = ", ".join(SHARDED_STAGES)
        raise ConfigError(f"merge: give a stage, one of {listed}, and CONFIG.yaml")
    from sacl.run import pipeline

    config = load_config(named, flags)
    workspace = pipeline.workspace_of(config, engine_of(known))
    folder = pipeline.run_stage(config, str(stage), workspace=workspace)
    return {"stage": str(stage), "folder": str(folder)}


def serve_command(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    """Segment the DICOM studies that come in, until it is asked to stop."""
    try:
        from sacl_node.serve import serve_by_flags
    except ModuleNotFoundError as error:
        if error.name != "pynetdicom":
            raise
        text = "serve: pynetdicom is not installed; `pip install 'sacl[node]'`"
        raise ConfigError(text) from error
    return serve_by_flags(known, load_config(None, flags).device)


def evaluate_command(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    """Score a folder of label maps against another, or models on another cohort."""
    if known.model or known.data:
        return _external_test(known, flags)
    _require_flags(known, "reference", "predicted", "out")
    from sacl.stages.evaluate_folders import evaluate_folders

    folders = (known.reference, known.predicted, known.out)
    options = {"allow_missing": known.allow_missing, "force": known.force}
    options |= {"engine": engine_of(known)}
    settings = load_config(None, flags).evaluate
    return {"folder": str(evaluate_folders(*folders, settings, **options))}


def _external_test(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    """Score models on another cohort; settings that choose who is trained are refused."""
    if known.shard:
        raise ConfigError(
            "evaluate: --shard works only with CONFIG.yaml or --predicted; leave it out"
        )
    _require_flags(known, "model", "data")
    splits = [name for name in flags if name.startswith("ingest.") and name not in _OF_TESTS]
    if splits:
        raise ConfigError(
            f"evaluate: --{splits[0]} has no effect on an external test, in which all labeled scans"
            " are scored; leave it out"
        )
    config = load_config(None, {**flags, "ingest.data": json.dumps(known.data)})
    from sacl.external import external_test

    options = {"coarse": known.coarse, "force": known.force, "engine": engine_of(known)}
    options |= {"changes": _chosen_recipe(config, flags)}
    tested = external_test(known.model, config, known.out, **options)
    print(f"report: {tested['report']}", file=sys.stderr)
    return tested


def _chosen_recipe(config: RunConfig, flags: dict[str, str]) -> dict[str, Any]:
    """Return how label maps are to be made otherwise than by the run's own recipe."""
    names = ("copies", "keep_component")
    return {n: getattr(config.predict, n) for n in names if f"predict.{n}" in flags}


def export_command(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    """Write label maps of a run, or of a folder, in another form."""
    if known.out is None or (known.config is None) == (known.predicted is None):
        raise ConfigError(
            "export: give --out, and either WORK|CONFIG.yaml|MODEL.sacl or --predicted"
        )
    misplaced = [name for name in ("splits", "folds") if getattr(known, name) is not None]
    if known.predicted is not None and misplaced:
        raise ConfigError(f"export: --{misplaced[0]} works only with a run; leave it out")
    from sacl.stages.export import export, export_folder, export_model

    form, sources = known.form or "nifti", known.source or []
    if known.config is not None and known.config.suffix == ".sacl":
        if misplaced or sources:
            raise ConfigError(
                f"export: --{[*misplaced, 'source'][0]} works with a run, not with a pack"
            )
        return export_model(known.config, known.out, form, force=known.force)
    if known.predicted is None:
        options = {"splits": tuple(known.splits or ()), "sources": sources}
        folds = 5 if known.folds is None else known.folds
        run = dataclasses.replace(_run_of(known, flags), engine=engine_of(known))
        return export(run, known.out, form, folds=folds, force=known.force, **options)
    if len(sources) > 1:
        raise ConfigError("export: --predicted takes one --source folder")
    how: dict[str, Any] = {"source": next(iter(sources), None), "engine": engine_of(known)}
    return export_folder(known.predicted, known.out, form, force=known.force, **how)


def pack_command(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    """Write the segmenter of a run into one file."""
    if known.target is None:
        raise ConfigError("pack: give WORK|CONFIG.yaml of a run, and the file to write: MODEL.sacl")
    if known.config is not None and known.config.suffix == known.target.suffix == ".sacl":
        raise ConfigError(f"pack: {known.config.name} is packed already; give a work directory")
    from sacl.pack import pack

    how = {"title": known.title, "license_text": known.license, "force": known.force}
    manifest = pack(_run_of(known, flags), known.target, **how)
    size = f"{known.target.stat().st_size / 1e6:.1f} MB"
    terms = known.license or "none stated, name one with --license"
    print(f"pack: {known.target}, {manifest.title}, {size}; license: {terms}", file=sys.stderr)
    return {"file": str(known.target), "title": manifest.title, "scores": manifest.scores}


def _run_of(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    """Return the work directory of a run that is named by it, or by its settings."""
    from sacl.run.pipeline import workspace_at, workspace_of

    named = known.config
    return workspace_at(named) if named.is_dir() else workspace_of(config_of(known, flags))


def doctor_command(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    """Print what a bug report needs; what is wrong ends the program."""
    from sacl.doctor import examine

    config = load_config(None, flags)
    health = examine(config.device, Path(config.work))
    record = dataclasses.asdict(health)
    if not known.json:
        print("\n".join(health.lines()))
    elif health.faults:
        print(json.dumps(record))
    if health.faults:
        raise SaclError(f"doctor: {'; '.join(health.faults)}; report this with the lines above")
    return record


def completion_command(known: argparse.Namespace, flags: dict[str, str]) -> Any:
    """Print a shell's script that completes commands, flags and settings."""
    import shtab

    shell = str(known.config)
    if shell not in shtab.SUPPORTED_SHELLS:
        shells = ", ".join(shtab.SUPPORTED_SHELLS)
        raise ConfigError(f"completion: which shell? expected one of {shells}")
    print(shtab.complete(program(with_settings=True), shell))
    return {"shell": shell}


def _require_flags(known: argparse.Namespace, *names: str) -> None:
    if not all(getattr(known, name) for name in names):
        listed = ", ".join(f"--{name}" for name in names)
        raise ConfigError(f"{known.command}: give CONFIG.yaml, or all of {listed}")
