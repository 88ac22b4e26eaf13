"""Predict a real abdominal CT with a segmenter that saw phantoms only.

`python -m research benchmark phantom_on_real_ct --work work/demo --data DIR/TotalSegmentator_CT`
predicts `ct_3mm.nii.gz` from NIfTI, as a user would, and compares with `segmentation_3mm.nii.gz`,
which is another model's output and not manual. One scan: it shows that the whole way works on real
data and how far a phantom carries, not how good the segmenter is.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from research.benchmarks.circumstances import circumstances
from sacl.files.documents import write_json
from sacl.files.nifti import read_label_table, read_labels, read_volume
from sacl.geometry import require_same_grid
from sacl.model import load_model
from sacl.run.record import read_record
from sacl.run.workspace import Workspace
from sacl.scores.organs_of_case import dice
from sacl.stages.predict_folder import predict_folder

RESULT = Path(__file__).parents[1] / "results" / "phantom_on_real_ct.json"


def main() -> None:
    """Predict, compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="work directory of `sacl demo`")
    parser.add_argument("--data", type=Path, required=True, help="folder with ct_3mm.nii.gz")
    known = parser.parse_args()
    scan = known.data / "ct_3mm.nii.gz"
    values = json.loads((known.data / "labels.json").read_text())
    reference, grid, _ = read_labels(known.data / "segmentation_3mm.nii.gz")
    scores = {}
    with tempfile.TemporaryDirectory() as out:
        start = time.monotonic()
        (written,) = predict_folder(load_model(known.work), scan, Path(out)).written
        seconds = time.monotonic() - start
        predicted, predicted_grid, frame = read_labels(written)
        require_same_grid(grid, predicted_grid, scan.name)
        table = read_label_table(written) or {}
    same = np.array_equal(frame.grid.affine, read_volume(scan)[1].grid.affine)
    for value, organ in values.items():
        if organ in table:
            scores[organ] = round(dice(reference == int(value), predicted == table[organ]), 3)
    record = read_record(Workspace(known.work).require("finetune"))
    result = {
        "script": "python -m research benchmark phantom_on_real_ct",
        "trained_on": "phantom",
        "scored_on": "one real CT against another model's segmentation",
        "steps": record.results["steps"],
        "affine_kept_to_the_bit": bool(same),
        "seconds": round(seconds, 1),
        "dice": {o: None if np.isnan(d) else d for o, d in scores.items()},
        **circumstances(),
    }
    write_json(RESULT, result)
    print(json.dumps(result["dice"]))


if __name__ == "__main__":
    main()
