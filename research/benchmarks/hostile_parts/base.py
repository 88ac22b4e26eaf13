"""Sound input of every kind, and the finished runs, that broken inputs are made from."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import yaml

from research.benchmarks.hostile_parts.ended import forked

sys.path.insert(0, str(Path(__file__).parents[3] / "tests" / "dicom"))

import make_odd_series  # noqa: F401  (adds its kinds)
from dicom_kinds import MAKERS, new_patient
from make_series import make_scan, write_scan

SHAPE = (40, 36, 24)
TINY: dict[str, Any] = {
    "name": "tiny",
    "ingest": {"validation_subjects": 1},
    "locate": {"slices": {"size": 16, "steps": 2, "teacher_steps": 0}, "channels": 8},
    "extract": {"patch_size": 16, "dense_size": 32, "region": "slice"},
    "pretrain": {"width": 8, "steps": 2, "batch": 4},
    "finetune": {"steps": 2, "batch": 2, "dense": {"teacher_steps": 2}},
    "predict": {"copies": 0},
}
"""Settings of a run that takes seconds."""
PROTOCOL = {
    "version": 2,
    "name": "tiny-grid",
    "base": "tiny.yaml",
    "labeled_subjects": [2],
    "seeds": [0],
    "splits": ["validation"],
    "ours": "pooled",
    "baseline": "scratch",
    "strategies": {"pooled": {}, "scratch": {"pretrain.method": "none"}},
    "bootstrap": 100,
}
"""A comparison of the laboratory in the same time."""


def make_base(base: Path) -> Path:
    """Write sound input of every kind, a run of NIfTI scans, and one with DICOM scans among them.

    The second places its square around the organs, so that it needs coarse maps to predict.
    """
    rng = np.random.default_rng(0)
    for number in range(6):
        _write_scan(base / "nnunet", number, rng)
    names = {"background": 0, "liver": 1, "spleen": 2}
    document = {"channel_names": {"0": "CT"}, "labels": names, "numTraining": 4}
    document |= {"file_ending": ".nii.gz", "name": "hostile"}
    (base / "nnunet" / "dataset.json").write_text(json.dumps(document))
    _write_table(base / "table", base / "nnunet")
    for number in range(2):
        MAKERS["clean"](rng, base / "dicom" / f"s{number}", new_patient(rng, number))
        scan = make_scan(rng, slices=9, patient=new_patient(rng, 2 + number), modality="CT")
        write_scan(scan, base / "hospital" / f"s{number}", rng)
    (base / "protocol.yaml").write_text(yaml.safe_dump(PROTOCOL))
    (base / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    mixed = {**TINY, "extract": {**TINY["extract"], "region": "organs"}}
    _run(base, "run", "work", TINY, [base / "nnunet"])
    _run(base, "mixed", "mixed", mixed, [base / "nnunet", base / "hospital"])
    done = ["predict", "--segmenter", str(base / "work"), "--images", str(base / "nnunet/imagesTs")]
    _sacl([*done, "--out", str(base / "predicted")], base.parent)
    return base


def _run(base: Path, config: str, work: str, settings: dict[str, Any], data: list[Path]) -> None:
    own = {**settings, "ingest": {**settings["ingest"], "data": [str(path) for path in data]}}
    (base / f"{config}.yaml").write_text(yaml.safe_dump(own))
    _sacl(["run", str(base / f"{config}.yaml"), "--work", str(base / work)], base.parent)


def _sacl(words: list[str], scratch: Path) -> None:
    (scratch / "tmp").mkdir(exist_ok=True)
    _, status = os.waitpid(forked(words, scratch, scratch / "said"), 0)
    if status:
        raise SystemExit(f"sound input failed: {words}: {(scratch / 'said').read_text()[-500:]}")


def _write_table(folder: Path, dataset: Path) -> None:
    shutil.copytree(dataset, folder)
    (folder / "dataset.json").unlink()
    rows = [f"c{n},imagesTr/c{n}_0000.nii.gz,labelsTr/c{n}.nii.gz,s{n}" for n in range(4)]
    text = "\n".join(["case_id,image,label,subject_id", *rows]) + "\n"
    (folder / "cohort.csv").write_text(text)
    (folder / "labels.json").write_text(json.dumps({"liver": 1, "spleen": 2}))


def _write_scan(root: Path, number: int, rng: np.random.Generator) -> None:
    """Write a body with two organs; the last two scans have no label map."""
    i, j, k = np.indices(SHAPE) / np.array(SHAPE, float)[:, None, None, None] + 0.01 * number
    labels = np.zeros(SHAPE, np.uint8)
    labels[((i - 0.68) / 0.16) ** 2 + ((j - 0.55) / 0.22) ** 2 + ((k - 0.6) / 0.28) ** 2 < 1] = 1
    labels[((i - 0.27) / 0.09) ** 2 + ((j - 0.4) / 0.12) ** 2 + ((k - 0.7) / 0.18) ** 2 < 1] = 2
    body = ((i - 0.5) / 0.42) ** 2 + ((j - 0.5) / 0.4) ** 2 < 1
    image = np.where(body, np.array([40, 110, 140])[labels], -1000) + rng.normal(0, 10, SHAPE)
    affine = np.array([[6.0, 0, 0, -120], [0, 6, 0, -100], [0, 0, 8, -90], [0, 0, 0, 1]])
    folder, labeled = ("imagesTr", True) if number < 4 else ("imagesTs", False)
    for array, place in [(image.round().astype(np.int16), f"{folder}/c{number}_0000.nii.gz")] + (
        [(labels, f"labelsTr/c{number}.nii.gz")] if labeled else []
    ):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array, affine), root / place)
