"""nnU-Net in the time of a run without a settings file, on the same labeled scans.

`python -m research benchmark planned_nnunet --data DIR --cohort neck --labeled 4 --time 15m
--configuration 3d_fullres` lays a cohort out as `planned_runs` does, lets nnU-Net plan, preprocess
and train on its labeled scans for that time, by its own plan and in one thread, predicts the
held-out scans and scores them by the same rule. Every call adds a record to
`results/planned_nnunet.json`; `changed` says what differs from standard nnU-Net. Prediction does
not count as time, and is done without mirrored views, which would take hours on a CPU, where
nnU-Net computes in float32. Each scan counts as a subject of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from research.benchmarks.circumstances import circumstances
from research.benchmarks.nnunet_reference import NAME, run_nnunet
from research.benchmarks.planned_runs import (
    SPLITS,
    add_record,
    data_of,
    figures_of,
    lay_out,
    parser_of,
)
from sacl.files.documents import write_json
from sacl.run.clock import seconds_of
from sacl.settings import EvaluateSettings
from sacl.stages.evaluate import SUMMARY
from sacl.stages.evaluate_folders import evaluate_folders

RESULT = Path(__file__).parents[1] / "results" / "planned_nnunet.json"
_ITERATIONS = 10
"""Of an epoch, after which nnU-Net lowers its rate; its own epoch of 250 would never end here."""


def main() -> None:
    """Train once and add the record."""
    parser = parser_of(__doc__, RESULT)
    parser.add_argument("--configuration", choices=("2d", "3d_fullres"), default="3d_fullres")
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="has nnunetv2")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        record = _run(Path(folder), given)
    add_record(given.out, record)


def _run(home: Path, given: argparse.Namespace) -> dict[str, object]:
    """Hand the labeled scans over, run nnU-Net, score its maps, and return what came of it."""
    raw, truth = home / "raw" / NAME, home / "truth"
    data = data_of(given.cohort, given.data, home)
    split = SPLITS[given.cohort](data, given.labeled)
    lay_out(data / split.dataset, split, raw)
    (raw / "labelsTs").rename(truth)
    shutil.copy(raw / "dataset.json", home / "dataset.json")
    for case in set(split.train) - set(split.labeled):
        (raw / "imagesTr" / f"{case}_0000.nii.gz").unlink()
    settings = {
        "dataset": NAME,
        "images": str(raw / "imagesTs"),
        "predicted": str(home / "predicted"),
        "configuration": given.configuration,
        "seconds": seconds_of(given.time),
        "epochs": 0,
        "iterations": _ITERATIONS,
        "validation_iterations": 1,
        "batch_size": 0,
        "base_features": 0,
        "in_plane_size": None,
        "probabilities": False,
        "mirror": False,
        "device": "cpu",
        "seed": given.seed,
    }
    write_json(home / "settings.json", settings)
    run_nnunet(home, given.python)
    scores = evaluate_folders(truth, home / "predicted", home / "scores", EvaluateSettings())
    (scored,) = json.loads((scores / SUMMARY).read_text("utf-8"))["runs"].values()
    record = json.loads((home / "record.json").read_text("utf-8"))
    return {
        "cohort": given.cohort,
        "labeled_subjects": given.labeled,
        "seed": given.seed,
        "configuration": given.configuration,
        "asked": given.time,
        "iterations": record["train"]["used"]["epochs"] * _ITERATIONS,
        **figures_of(scored),
        "changed": record["changed"],
        "nnunet": {name: part for name, part in record.items() if name != "changed"},
        "threads": 1,
        **circumstances(),
    }


if __name__ == "__main__":
    main()
