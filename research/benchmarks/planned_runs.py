"""Runs without a settings file: how good they get in a given time, and whether they keep it.

`python -m research benchmark planned_runs --data DIR --cohort neck --labeled 4 --time 15m` makes a
folder as a user would have it, of a cohort of real scans: all training scans, label maps of a few
labeled subjects, and held-out scans with theirs, which `sacl run` finds by the folders' names. Then
`sacl run FOLDER --time T` runs in a process of its own. Every call puts one record into
`results/planned_runs.json`: cohort, labels, seed, time asked and taken, steps, what was chosen, and
Dice of final and coarse maps by organ on the held-out scans, which no part of the training saw.

- `heart`: ACDC, its own order of labeled subjects, 10 validation subjects held out.
- `hippocampus`: grouped by person; 20 persons or so are held out, by a seed of the split's own.
- `neck`: OpenKBP, its own order of labeled patients, 8 held out; the others count as unlabeled.
- `thick_neck`: OpenKBP again, with pixels of a third (interpolated) and every other slice: as CT is
  stored where slices are thick, 1.5 x 1.5 x 5 mm. `flat_neck`: every sixth slice, 15 mm, which is
  3.7 times what a network reads; no cohort at hand is like it.
- `phantom`: generated abdominal CT, 13 organs, 3 x 3 x 6 mm; 48 scans, the same for every seed;
  its test subjects are held out. `thick_phantom` and `fine_phantom`: the same bodies in voxels of
  1.6 x 1.6 x 8 mm and 1.6 x 1.6 x 3 mm.

With `--trial` nothing is run but `sacl plan`, and the record says what was tried. One thread, so
that two calls can run beside each other on two cores.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from research.benchmarks.circumstances import circumstances
from sacl.cohort.manifest import read_cohort, read_reference
from sacl.files.atomic import write_text
from sacl.files.documents import write_json
from sacl.files.nifti import read_label_map
from sacl.organs import side_pairs
from sacl.settings import PhantomSettings
from sacl.stages.phantom import DATASET
from sacl_phantom.cohort import plan_cohort, write_scans, write_tables

RESULT = Path(__file__).parents[1] / "results" / "planned_runs.json"
_HELD_OUT_SCANS = 40
_PHANTOM_SCANS = 48
_PHANTOMS = {
    "phantom": PhantomSettings(),
    "thick_phantom": PhantomSettings(shape=(240, 195, 30)),
    "fine_phantom": PhantomSettings(shape=(240, 195, 80)),
}
_THICKENED = {"thick_neck": (3, 2), "flat_neck": (1, 6)}
"""How much finer pixels are, and every which slice is kept."""


@dataclass(frozen=True)
class Split:
    """Cases by what a user has of them; images and labels of the held-out lie in other folders."""

    dataset: str
    train: Sequence[str]
    labeled: Sequence[str]
    held_out: Sequence[str]
    held_in: str
    table: str


def main() -> None:
    """Run once and add the record."""
    parser = parser_of(__doc__, RESULT)
    parser.add_argument("--flags", nargs="*", default=[], help="settings as NAME=VALUE")
    parser.add_argument("--trial", action="store_true", help="plan, and run nothing")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = data_of(given.cohort, given.data, Path(folder))
        split = SPLITS[given.cohort](data, given.labeled)
        cohort = Path(folder) / given.cohort
        lay_out(data / split.dataset, split, cohort)
        record = _run(cohort, Path(folder) / "work", given)
    add_record(given.out, record)


def parser_of(about: str | None, result: Path) -> argparse.ArgumentParser:
    """Return a parser of what all measurements on these cohorts ask for."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SACL_DATA", ".")))
    parser.add_argument("--cohort", choices=list(SPLITS), required=True)
    parser.add_argument("--labeled", type=int, required=True, help="labeled subjects")
    parser.add_argument("--time", default="15m", help="of all trainings together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=result)
    return parser


def add_record(path: Path, record: Mapping[str, object]) -> None:
    """Add a record to those of a results file, and print it."""
    records = json.loads(path.read_text("utf-8")) if path.is_file() else []
    write_json(path, [*records, record])
    print(json.dumps(record, indent=1))


def _run(cohort: Path, work: Path, given: argparse.Namespace) -> dict[str, object]:
    """Run the cohort in a process of its own, and return what came of it."""
    flags = [word for flag in given.flags for word in (f"--{flag}".split("=", 1))]
    command = "plan" if given.trial else "run"
    words = [command, str(cohort), "--work", str(work), "--time", given.time, "--device", "cpu"]
    begun = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "sacl", *words, "--seed", str(given.seed), *flags],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
    )
    taken = time.monotonic() - begun
    plan = json.loads((work / "plan.json").read_text("utf-8"))
    record: dict[str, object] = {
        "cohort": given.cohort,
        "labeled_subjects": given.labeled,
        "seed": given.seed,
        "flags": given.flags,
        "asked": given.time,
        "taken_s": round(taken, 1),
        "tried": plan["tried"],
        "chosen": {c["setting"]: c["value"] for c in plan["choices"] if c["setting"]},
        "threads": 1,
        **circumstances(),
    }
    if given.trial:
        return record
    scores = json.loads((work / "7-scores" / "summary.json").read_text("utf-8"))["runs"]
    scored = {run: figures_of(of) for run, of in scores.items()}
    return record | {"steps": steps_of(work), **by_part(scored), "sides": sides_of(work)}


def steps_of(work: Path) -> dict[str, int]:
    """Return how many steps a run's segmenter was trained for, by its name."""
    trained = json.loads((work / "5-segmenter" / "run.json").read_text("utf-8"))["results"]
    return dict(trained["steps"])


def sides_of(work: Path) -> dict[str, dict[str, float]]:
    """Return how much of each paired organ lies in the reference of its other side.

    Of the held-out scans that annotate both: the share of the predicted voxels, and the scans in
    which more of a predicted organ lies in the other side's reference than in its own.
    """
    (arm,) = steps_of(work)
    home, predicted = work / "1-cohort", work / "6-predictions" / arm
    cohort, shares = read_cohort(home), {}
    for pair in side_pairs(cohort.scheme.names):
        voxels, crossed, swapped = 0, 0, 0
        for case in (c for c in cohort.held_out if set(pair) <= set(c.annotated)):
            reference = read_reference(home, case, cohort.scheme)
            final = read_label_map(predicted / f"{case.case_id}.nii.gz", cohort.scheme)[0]
            assert reference is not None, "held out, so there is one"
            for own, other in (pair, pair[::-1]):
                mask = final.mask(own)
                into = np.count_nonzero(mask & reference.mask(other))
                voxels, crossed = voxels + np.count_nonzero(mask), crossed + into
                swapped += into > np.count_nonzero(mask & reference.mask(own))
        share = round(float(crossed / max(voxels, 1)), 5)
        shares[" and ".join(pair)] = {"share_in_the_other": share, "swapped": int(swapped)}
    return shares


def figures_of(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of a run in a summary of scores; without organs there is no distance."""
    distance_mm = scores["hd95_mm"]["mean"]
    organs = {name: round(part["dice"]["mean"], 3) for name, part in scores["organs"].items()}
    return {
        "dice": round(scores["dice"]["mean"], 4),
        "hd95_mm": None if distance_mm is None else round(distance_mm, 1),
        "organs": organs,
    }


def by_part(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the figures of several maps by what they say, and then by the maps."""
    parts = ("dice", "hd95_mm", "organs")
    return {part: {name: of[part] for name, of in figures.items()} for part in parts}


def lay_out(source: Path, split: Split, folder: Path) -> None:
    """Make the folder of links to the data, with nothing in it that a user would not have."""
    parts = [
        ("imagesTr", split.train, "imagesTr", "_0000"),
        ("labelsTr", split.labeled, "labelsTr", ""),
        ("imagesTs", split.held_out, f"images{split.held_in}", "_0000"),
        ("labelsTs", split.held_out, f"labels{split.held_in}", ""),
    ]
    for into, cases, of, suffix in parts:
        (folder / into).mkdir(parents=True)
        for case in cases:
            name = f"{case}{suffix}.nii.gz"
            (folder / into / name).symlink_to((source / of / name).resolve())
    document = json.loads((source / "dataset.json").read_text("utf-8"))
    document["numTraining"] = len(split.labeled)
    (folder / "dataset.json").write_text(json.dumps(document), encoding="utf-8")
    kept = {*split.train, *split.held_out}
    with (source / split.table).open(encoding="utf-8") as table:
        header, *rows = csv.reader(table)
    with (folder / split.table).open("w", encoding="utf-8", newline="") as table:
        csv.writer(table).writerows([header, *(row for row in rows if row[0] in kept)])


def _cases(folder: Path) -> list[str]:
    return sorted(path.name.removesuffix(".nii.gz") for path in folder.glob("*.nii.gz"))


def _heart(data: Path, labeled: int) -> Split:
    folder = data / "Dataset027_ACDC"
    order = json.loads((folder / "few_label_split.json").read_text())["train_subjects_in_order"]
    train, held = _cases(folder / "labelsTr"), _cases(folder / "labelsVa")
    drawn = [case for case in train if case.split("_")[0] in order[:labeled]]
    return Split(folder.name, train, drawn, held, "Va", "scan_labels.csv")


def _neck(data: Path, labeled: int) -> Split:
    folder = data / "Dataset061_OpenKBP"
    split = json.loads((folder / "few_label_split.json").read_text())
    held = split["validation_subjects"]
    train = [case for case in _cases(folder / "labelsTr") if case not in held]
    drawn = split["train_subjects_in_order"][:labeled]
    return Split(folder.name, train, drawn, held, "Tr", "scan_labels.csv")


def _hippocampus(data: Path, labeled: int) -> Split:
    folder = data / "Dataset004_Hippocampus"
    with (folder / "subjects.csv").open(encoding="utf-8") as table:
        person_of = {row["case_id"]: row["subject_id"] for row in csv.DictReader(table)}
    persons = sorted(set(person_of.values()))
    random.Random(0).shuffle(persons)
    held_out: set[str] = set()
    while sum(person in held_out for person in person_of.values()) < _HELD_OUT_SCANS:
        held_out.add(persons[len(held_out)])
    drawn = persons[len(held_out) :][:labeled]
    return Split(
        folder.name,
        [case for case, person in person_of.items() if person not in held_out],
        [case for case, person in person_of.items() if person in drawn],
        [case for case, person in person_of.items() if person in held_out],
        "Tr",
        "subjects.csv",
    )


def data_of(cohort: str, data: Path, folder: Path) -> Path:
    """Return where a cohort's dataset lies: in the folder, where it is made in it first."""
    if cohort in _THICKENED:
        return _thicken(data / "Dataset061_OpenKBP", folder / "thick", *_THICKENED[cohort])
    if cohort not in _PHANTOMS:
        return data
    data = folder / "generated"
    planned, settings = plan_cohort(_PHANTOM_SCANS, seed=0), _PHANTOMS[cohort]
    for _ in write_scans(data / DATASET, planned, settings.shape, settings.spacing_mm, seed=0):
        pass
    write_tables(data / DATASET, planned)
    return data


def _thicken(source: Path, data: Path, finer: int, kept: int) -> Path:
    """Write a dataset with finer pixels and every n-th slice, and return its parent."""
    for table in (*source.glob("*.json"), *source.glob("*.csv")):
        write_text(data / source.name / table.name, table.read_text("utf-8"))
    for path in sorted(source.rglob("*.nii.gz")):
        image = nib.load(path)
        voxels = np.asanyarray(image.dataobj)[:, :, ::kept]
        order = 0 if "labels" in path.parent.name else 1
        zoom = (finer, finer, 1)
        voxels = ndimage.zoom(voxels, zoom, order=order, mode="nearest", grid_mode=True)
        scale = np.diag([1 / finer, 1 / finer, kept, 1])
        scale[:2, 3] = (1 / finer - 1) / 2  # the first pixel's corner stays where it is
        target = data / path.relative_to(source.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(voxels, image.affine @ scale), target)
    return data


def _phantom(data: Path, labeled: int) -> Split:
    folder = data / DATASET
    with (folder / "scan_labels.csv").open(encoding="utf-8") as table:
        subject_of = {row["case_id"]: row["subject_id"] for row in csv.DictReader(table)}
    train, held = _cases(folder / "labelsTr"), _cases(folder / "labelsTs")
    subjects = sorted({subject_of[case] for case in train})[:labeled]
    drawn = [case for case in train if subject_of[case] in subjects]
    return Split(folder.name, train, drawn, held, "Ts", "scan_labels.csv")


SPLITS = {
    "heart": _heart,
    "hippocampus": _hippocampus,
    "neck": _neck,
    "thick_neck": _neck,
    "flat_neck": _neck,
    "phantom": _phantom,
    "thick_phantom": _phantom,
    "fine_phantom": _phantom,
}


if __name__ == "__main__":
    main()
