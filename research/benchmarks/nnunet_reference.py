"""Train nnU-Net v2 (2-D) on a run's labeled subjects and score it as `sacl evaluate` does.

An outside reference for `python -m research compare`: the same labeled scans, the same held-out
scans, references on their own grids, the same Dice. nnU-Net lives in an environment of its own,
never in this project's; `README.md` beside this file says how to make it, and has the commands.

The defaults are a size for a CPU; `changed` in the JSON says what differs from standard nnU-Net.
`--seed` is that of the training; who is labeled and held out follows the configuration's own seed.
With `--in-plane-size N` nnU-Net sees a slice's whole field of view at N x N pixels of nominal
spacing; images and predicted probabilities are interpolated linearly, labels take the class that
covers most of a pixel.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from research.benchmarks.circumstances import circumstances
from sacl import load_config
from sacl.cohort.layouts.nnunet import DATASET, write_dataset
from sacl.cohort.manifest import read_cohort, read_image, read_reference
from sacl.errors import ConfigError, DataError, SaclError
from sacl.files.atomic import plain
from sacl.files.documents import write_json
from sacl.files.nifti import read_label_map, write_label_map, write_volume
from sacl.geometry import require_same_grid
from sacl.patches.coarse_grid import (
    CoarseGrid,
    arg_max_on_scan,
    coarse_grid,
    image_to_coarse,
    labels_to_coarse,
)
from sacl.progress import say, track
from sacl.run.pipeline import run_stage
from sacl.run.record import fingerprint
from sacl.scores.organs_of_case import score_case
from sacl.scores.summary import (
    RESAMPLES,
    ScoreRow,
    bootstrap_mean,
    score_table,
    subject_means,
    summarize,
)
from sacl.settings import RunConfig
from sacl.types import Case, Cohort, Grid, LabelMap, OrganScore, Volume

RESULTS = Path(__file__).parents[1] / "results"
TRAINER = Path(__file__).with_name("nnunet_trainer.py")
NAME = "Dataset001_sacl"
RUN = "nnunet-2d"
_NOMINAL = np.diag([1.0, 1.0, 10.0, 1.0])  # slices farthest apart, so nnU-Net takes axial ones


def main(arguments: Sequence[str] | None = None) -> int:
    """Ingest, hand over, run nnU-Net, score and write; return the exit code."""
    known = _flags().parse_args(arguments)
    try:
        print(reference(known))
    except SaclError as error:
        print(f"nnunet_reference: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder of the cohort")
    parser.add_argument("--work", type=Path, required=True, help="work directory")
    parser.add_argument("--python", type=Path, required=True, help="of nnU-Net's environment")
    parser.add_argument("--labeled-subjects", type=int, help="the configuration's where unset")
    parser.add_argument("--in-plane-size", type=int, help="pixels along a slice; unset: as it is")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--iterations", type=int, default=50, help="per epoch")
    parser.add_argument("--batch-size", type=int, default=0, help="0: as nnU-Net plans it")
    parser.add_argument("--base-features", type=int, default=0, help="0: as nnU-Net plans it")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--seed", type=int, default=0, help="of nnU-Net's training")
    parser.add_argument("--out", type=Path, help="JSON to write; in results/ where unset")
    return parser


def reference(known: argparse.Namespace) -> Path:
    """Run whatever is not done yet, and return the path of the result."""
    _check(known)
    flags = {"ingest.data": str(known.data), "work": str(known.work)}
    if known.labeled_subjects is not None:
        flags["ingest.labeled_subjects"] = str(known.labeled_subjects)
    config = load_config(known.config, flags)
    cohort_folder = run_stage(config, "ingest")
    cohort = read_cohort(cohort_folder)
    tests = [case for case in cohort.of_split("validation") if case.reference is not None]
    _require_complete(cohort, tests)
    home = (known.work / f"nnunet-s{known.seed}").resolve()
    _write_settings(home, known, fingerprint(cohort_folder))
    _hand_over(home, cohort_folder, cohort, tests, known.in_plane_size)
    run_nnunet(home, known.python)
    tolerance_mm = config.evaluate.nsd_tolerance_mm
    rows = [
        ScoreRow(RUN, case.subject_id, case.split, score)
        for case in track(tests, "scoring scans")
        for score in _scores(home, cohort_folder, cohort, case, tolerance_mm)
    ]
    result = _result(known, config, cohort, rows, json.loads((home / "record.json").read_text()))
    name = f"{config.name}_{result['cohort']['labeled_subjects']}"
    out = known.out or RESULTS / f"nnunet_{name}{f'_seed{known.seed}' if known.seed else ''}.json"
    write_json(out, result)
    print(*(f"changed: {text}" for text in result["changed"]), sep="\n")
    print(f"{RUN:<14} Dice {result['dice']['mean']['mean']:.3f}")
    return out


def _check(known: argparse.Namespace) -> None:
    least = {"epochs": 1, "iterations": 1, "batch_size": 0, "base_features": 0, "in_plane_size": 16}
    for name, low in least.items():
        value = getattr(known, name)
        if value is not None and value < low:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: expected {low} or more")
    if not known.python.is_file():
        raise ConfigError(f"--python {known.python.name}: no such file; give nnU-Net's Python")
    if known.python.absolute().parent == Path(sys.executable).absolute().parent:
        raise ConfigError("--python: this is the project's own; give nnU-Net an environment")
    importing = [known.python, "-c", "import nnunetv2"]
    if subprocess.run(importing, check=False, capture_output=True).returncode:
        raise ConfigError("--python: cannot import nnunetv2; see research/benchmarks/README.md")


def _require_complete(cohort: Cohort, tests: Sequence[Case]) -> None:
    """Refuse what nnU-Net would learn wrongly: it has no organ that is unknown in a scan."""
    for cases, what in ((cohort.labeled, "labeled"), (tests, "held-out")):
        if not cases:
            raise DataError(f"{cohort.name}: no {what} scan; see ingest.validation_subjects")
    for case in cohort.labeled:
        missing = set(cohort.scheme.names) - set(case.annotated)
        if missing:
            raise DataError(
                f"case {case.case_id}: {min(missing)} is not annotated; nnU-Net needs it"
            )


def _write_settings(home: Path, known: argparse.Namespace, cohort: str) -> None:
    """Write what the trainer is to do; a folder that holds something else is refused."""
    same = ("seed", "epochs", "iterations", "batch_size", "base_features", "in_plane_size")
    settings = {
        **{name: getattr(known, name) for name in same},
        "device": known.device,
        "configuration": "2d",
        "seconds": 0,  # no limit: the epochs decide
        "mirror": True,
        "validation_iterations": 1,  # nnU-Net's validation is on training scans here
        "probabilities": known.in_plane_size is not None,
        "cohort": cohort,
        "dataset": NAME,
        "images": str(home / "raw" / NAME / "imagesTs"),
        "predicted": str(home / "predicted"),
    }
    path = home / "settings.json"
    if path.is_file():
        before = json.loads(path.read_text())
        changed = next((name for name in settings if before.get(name) != settings[name]), None)
        if changed:
            raise ConfigError(
                f"--work {known.work.name}: holds a run of other {changed}; give another"
            )
    write_json(path, settings)


def _hand_over(
    home: Path, folder: Path, cohort: Cohort, tests: Sequence[Case], size: int | None
) -> None:
    """Write the labeled scans and the images of the test scans as an nnU-Net raw dataset."""
    raw = home / "raw" / NAME
    if (raw / DATASET).is_file():
        return
    parts = [("imagesTr", case) for case in cohort.labeled] + [("imagesTs", c) for c in tests]
    for part, case in track(parts, "handing over"):
        image = read_image(folder, case)
        label_map = read_reference(folder, case, cohort.scheme) if part == "imagesTr" else None
        if size is not None:
            grid = coarse_grid(image.grid, image.grid.spacing_mm, size)
            label_map = _resampled_labels(label_map, grid) if label_map else None
            image = _resampled_image(image, grid)
        write_volume(raw / part / f"{case.case_id}_0000.nii.gz", image)
        if label_map is not None:
            write_label_map(raw / "labelsTr" / f"{case.case_id}.nii.gz", label_map)
    write_dataset(raw / DATASET, cohort.scheme, cohort.modality, len(cohort.labeled))


def _resampled_image(image: Volume, grid: CoarseGrid) -> Volume:
    """Return the image on the square grid, scaled to [0, 1] but not clipped; 0 outside the scan."""
    ends = (float(image.voxels.min()), float(image.voxels.max()))
    voxels = image_to_coarse(image.voxels, ends, grid, torch.device("cpu")).numpy()
    return Volume(voxels, Grid(grid.shape, _NOMINAL))


def _resampled_labels(label_map: LabelMap, grid: CoarseGrid) -> LabelMap:
    scheme = label_map.scheme
    labels = labels_to_coarse(label_map.voxels, len(scheme.names), grid, torch.device("cpu"))
    voxels = labels.numpy().astype(scheme.label_type)
    return LabelMap(voxels, Grid(grid.shape, _NOMINAL), scheme)


def run_nnunet(home: Path, python: Path) -> None:
    """Run the trainer in nnU-Net's environment; what it says goes to `nnunet.log`."""
    environment = {
        **{name: text for name, text in os.environ.items() if not name.startswith("PYTHON")},
        **{f"nnUNet_{name}": str(home / name) for name in ("raw", "preprocessed", "results")},
        "nnUNet_n_proc_DA": "1",
        "nnUNet_def_n_proc": "1",
        "nnUNet_compile": "f",
        "MPLBACKEND": "Agg",
    }
    path = home / "nnunet.log"
    say(f"nnU-Net: plans, trains and predicts; follow {home.name}/{path.name} in --work")
    with path.open("a") as log:
        command = [python, TRAINER, home / "settings.json"]
        done = subprocess.run(command, env=environment, stdout=log, stderr=log, check=False)
    if done.returncode:
        last = path.read_text(errors="replace").splitlines()[-1:]
        raise DataError(f"nnU-Net failed: {' '.join(last)}; see {home.name}/{path.name} in --work")


def _scores(
    home: Path, folder: Path, cohort: Cohort, case: Case, tolerance_mm: float
) -> list[OrganScore]:
    """Score a test scan against its reference, on the scan's own grid."""
    truth = read_reference(folder, case, cohort.scheme)
    assert truth is not None
    predicted, _ = read_label_map(home / "predicted" / f"{case.case_id}.nii.gz", cohort.scheme)
    size = json.loads((home / "settings.json").read_text())["in_plane_size"]
    if size is not None:
        with np.load(home / "predicted" / f"{case.case_id}.npz") as file:
            probability = torch.from_numpy(file["probabilities"]).permute(0, 3, 2, 1)
        grid = coarse_grid(truth.grid, truth.grid.spacing_mm, size)
        voxels = arg_max_on_scan(probability, grid).astype(cohort.scheme.label_type)
        predicted = LabelMap(voxels, truth.grid, cohort.scheme)
    require_same_grid(truth.grid, predicted.grid, f"case {case.case_id}")
    organs = [organ for organ in cohort.scheme.names if organ in case.annotated]
    return score_case(case.case_id, truth, predicted, organs, tolerance_mm)


def _result(
    known: argparse.Namespace,
    config: RunConfig,
    cohort: Cohort,
    rows: Sequence[ScoreRow],
    record: dict[str, Any],
) -> dict[str, Any]:
    """Return all that the JSON says; intervals are over subjects, as in `summary.json`."""
    scores = score_table(rows)
    parts = {"mean": scores, **dict(tuple(scores.groupby("organ", sort=False)))}
    dice = {name: subject_means(part, "dice")[RUN] for name, part in parts.items()}
    flags = {name: plain(value) for name, value in vars(known).items()}
    return {
        "script": f"python -m research benchmark nnunet_reference {known.config}",
        "settings": {"nnunet": flags, "ingest": plain(config.ingest)},
        "seed": known.seed,
        "cohort": {
            "seed": config.seed,
            "labeled_subjects": len({case.subject_id for case in cohort.labeled}),
            "labeled_scans": [case.case_id for case in cohort.labeled],
            "scored_subjects": scores["subject_id"].nunique(),
            "scored_scans": scores["case_id"].nunique(),
        },
        "changed": record["changed"],
        "nnunet": {name: part for name, part in record.items() if name != "changed"},
        "dice": {n: asdict(bootstrap_mean(d, RESAMPLES, config.seed)) for n, d in dice.items()},
        "dice_by_subject": {
            subject: {name: float(means[subject]) for name, means in dice.items()}
            for subject in dice["mean"].index
        },
        "scores": summarize(rows, config.evaluate.nsd_tolerance_mm, seed=config.seed),
        **circumstances(),
    }


if __name__ == "__main__":
    sys.exit(main())
