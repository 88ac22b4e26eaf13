"""Left taken for right: what a planned run's record says of paired organs."""

import json

import numpy as np

from research.benchmarks.planned_runs import sides_of
from sacl.cohort.manifest import write_cohort
from sacl.files.nifti import write_label_map
from sacl.types import Case, Cohort, Grid, LabelMap, LabelScheme, NativeFrame

GRID = Grid((8, 4, 4), np.diag([1.0, 1.0, 1.0, 1.0]))
SCHEME = LabelScheme("two", ("kidney_left", "kidney_right", "liver"))


def write_scan(work, number, predicted, annotated=SCHEME.names):
    labels = np.zeros(GRID.shape, np.uint8)
    labels[:4], labels[4:] = 1, 2
    name = f"c{number}"
    home, maps = work / "1-cohort", work / "6-predictions/volume"
    write_label_map(home / f"{name}.nii.gz", LabelMap(labels, GRID, SCHEME))
    write_label_map(maps / f"{name}.nii.gz", LabelMap(predicted(labels), GRID, SCHEME))
    frame = NativeFrame(GRID)
    return Case(
        case_id=name,
        subject_id=name,
        image=f"{name}.nii",
        reference=f"{name}.nii.gz",
        split="test",
        native=frame,
        window=(0.0, 1.0),
        annotated=annotated,
    )


def test_what_lies_on_the_other_side_is_counted(tmp_path):
    cases = (
        write_scan(tmp_path, 0, lambda labels: labels),
        write_scan(tmp_path, 1, lambda labels: 3 - labels),
        write_scan(tmp_path, 2, lambda labels: 3 - labels, annotated=("kidney_left", "liver")),
    )
    write_cohort(tmp_path / "1-cohort", Cohort("two", SCHEME, cases))
    record = tmp_path / "5-segmenter/run.json"
    record.parent.mkdir()
    record.write_text(json.dumps({"results": {"steps": {"volume": 3}}}))
    assert json.loads(json.dumps(sides_of(tmp_path))) == {
        "kidney_left and kidney_right": {"share_in_the_other": 0.5, "swapped": 2}
    }
