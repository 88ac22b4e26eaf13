"""Slices, volumes, or the mean of both: which segments best in equal time.

`python -m research benchmark both_kinds --data DIR --cohort hippocampus --labeled 3 --time 30m`
lays a cohort out as `planned_runs` does and gives half of the time to a run on slices and half to
one on volumes, each planned but for that. The held-out scans, which no training saw, are segmented
by either and by both together (`sacl predict --model RUN RUN`: the mean of their class
probabilities on the scan's own grid), and scored by one rule; these predictions are not part of the
time. What either kind alone reaches in the whole time is what `planned_runs` says. Every call adds
a record to `results/both_kinds.json`, with paired tests over subjects. One thread.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from research.benchmarks.circumstances import circumstances
from research.benchmarks.planned_runs import (
    SPLITS,
    add_record,
    by_part,
    data_of,
    figures_of,
    lay_out,
    parser_of,
    sides_of,
    steps_of,
)
from research.paired_tests import compare
from sacl.run.clock import seconds_of
from sacl.scores.summary import read_scores, score_table
from sacl.settings import EvaluateSettings
from sacl.stages.evaluate import SCORES, SUMMARY
from sacl.stages.evaluate_folders import evaluate_folders

RESULT = Path(__file__).parents[1] / "results" / "both_kinds.json"
_FLAGS = {
    "slices": ("--finetune.dense.teacher_steps", "8000"),
    "volumes": ("--finetune.volume.teacher_steps", "30000"),
}
"""What asks for a kind of segmenter; the number is the plan's own."""
_BOTH = "both"
_RESAMPLES = 5000


def main() -> None:
    """Run both kinds once and add the record."""
    parser = parser_of(__doc__, RESULT)
    parser.set_defaults(time="30m")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        record = _run(Path(folder), given)
    add_record(given.out, record)


def _run(home: Path, given: argparse.Namespace) -> dict[str, object]:
    """Train both kinds, predict by each and by both, and return what came of it."""
    data = data_of(given.cohort, given.data, home)
    split = SPLITS[given.cohort](data, given.labeled)
    cohort, half_s = home / given.cohort, round(seconds_of(given.time) / 2)
    lay_out(data / split.dataset, split, cohort)
    for kind, flags in _FLAGS.items():
        asked = ("--time", f"{half_s}s", "--seed", str(given.seed), *flags)
        _sacl("run", str(cohort), "--work", str(home / kind), *asked)
    models = {**{kind: (kind,) for kind in _FLAGS}, _BOTH: tuple(_FLAGS)}
    figures, dice = {}, {}
    for name, kinds in models.items():
        words = ("--model", *(str(home / kind) for kind in kinds))
        predicted, scores = home / "predicted" / name, home / "scores" / name
        _sacl("predict", "--input", str(cohort / "imagesTs"), *words, "--out", str(predicted))
        evaluate_folders(cohort / "labelsTs", predicted, scores, EvaluateSettings())
        (scored,) = json.loads((scores / SUMMARY).read_text("utf-8"))["runs"].values()
        figures[name], dice[name] = figures_of(scored), _dice_by_case(scores / SCORES)
    persons = _subjects(cohort / split.table)
    return {
        "cohort": given.cohort,
        "labeled_subjects": given.labeled,
        "seed": given.seed,
        "asked": given.time,
        "steps": {kind: sum(steps_of(home / kind).values()) for kind in _FLAGS},
        **by_part(figures),
        "both_against": {k: _against(dice[_BOTH], dice[k], persons, given.seed) for k in _FLAGS},
        "volumes_against_slices": _against(dice["volumes"], dice["slices"], persons, given.seed),
        "sides": {kind: sides_of(home / kind) for kind in _FLAGS},
        "threads": 1,
        **circumstances(),
    }


def _sacl(*words: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "sacl", *words, "--device", "cpu"]
    subprocess.run(command, env=environment, check=True)


def _subjects(table: Path) -> dict[str, str]:
    """Return the subject of every case, the case itself where the table has none."""
    with table.open(encoding="utf-8") as rows:
        return {r["case_id"]: r.get("subject_id") or r["case_id"] for r in csv.DictReader(rows)}


def _dice_by_case(path: Path) -> dict[str, float]:
    """Return the mean Dice over the organs of every case."""
    scores = score_table(read_scores(path))
    return {str(case): float(of.mean()) for case, of in scores.groupby("case_id")["dice"]}


def _against(
    ours: Mapping[str, float], other: Mapping[str, float], person_of: Mapping[str, str], seed: int
) -> dict[str, float]:
    """Return the difference of two means over subjects, its interval and the test's p."""
    persons = sorted({person_of.get(case, case) for case in ours})
    pairs = [
        [np.mean([of[c] for c in ours if person_of.get(c, c) == person]) for of in (ours, other)]
        for person in persons
    ]
    of_ours, of_other = np.transpose(pairs)
    compared = compare(of_ours, of_other, _RESAMPLES, seed)
    difference = compared.difference
    return {
        "difference": round(difference.mean, 4),
        "low": round(difference.low, 4),
        "high": round(difference.high, 4),
        "p": float(f"{compared.p:.2g}"),
        "subjects": len(persons),
    }


if __name__ == "__main__":
    main()
