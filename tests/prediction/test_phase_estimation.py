import csv
import dataclasses

import numpy as np
import pytest

from sacl.cohort.manifest import ScanPhase, read_image, with_phases, write_phases
from sacl.errors import DataError
from sacl.files.nifti import read_label_map, write_label_map, write_volume
from sacl.prediction.phases import can_estimate, phase_of_scan, record_phases
from sacl.run.record import recorded
from sacl.run.workspace import Workspace
from sacl.settings import IngestSettings
from sacl.types import Case, Cohort, Grid, LabelMap, LabelScheme, NativeFrame, Volume

SHAPE = (40, 24, 12)
GRID = Grid(SHAPE, np.diag([3.0, 3.0, 5.0, 1.0]))
SCHEME = LabelScheme("abdomen", ("liver", "aorta", "spleen"))
HU = {"native": (57, 41, 49), "portal_venous": (115, 165, 125), "nonsense": (1100, 1165, 1125)}


@pytest.fixture
def workspace(tmp_path):
    """Return scans whose HU are native, portal venous, native and impossible."""
    workspace = Workspace(tmp_path)
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:16, 2:22, 1:11] = 1
    labels[18:26, 2:10, 1:11] = 2
    labels[28:38, 2:16, 1:11] = 3
    with recorded(workspace, "ingest", IngestSettings(), {}) as (folder, _):
        for number, kind in enumerate(("native", "portal_venous", "native", "nonsense")):
            noise = np.random.default_rng(number).normal(0, 10, SHAPE)
            image = np.array((-100, *HU[kind]))[labels] + noise
            write_volume(folder / "images" / f"c{number}.nii", Volume(image.astype(np.int16), GRID))
            path = workspace.folder("locate") / "maps" / f"c{number}.nii.gz"
            write_label_map(path, LabelMap(labels, GRID, SCHEME))
    return workspace


def cohort_of(labels, scheme=SCHEME, modality="ct"):
    cases = tuple(
        Case(
            case_id=f"c{number}",
            subject_id=f"s{number}",
            image=f"images/c{number}.nii",
            reference=None,
            split="train",
            native=NativeFrame(GRID),
            window=(-175.0, 275.0),
            scan_labels=own,
        )
        for number, own in enumerate(labels)
    )
    return Cohort("abdomen", scheme, cases, modality)


def estimate(cohort, workspace):
    if not can_estimate(cohort):
        return {}
    home, located, scans = workspace.folder("ingest"), workspace.folder("locate"), []
    for case in cohort.cases:
        coarse, _ = read_label_map(located / "maps" / f"{case.case_id}.nii.gz", cohort.scheme)
        image = read_image(home, case)
        scans.append(phase_of_scan(case, image, coarse, cohort.phase_source, 0.7))
    return record_phases(located, scans)


def rows_of(workspace):
    with (workspace.folder("locate") / "phases.csv").open(newline="") as file:
        return list(csv.DictReader(file))


UNKNOWN = ({"phase": "unknown", "site": "a"}, {}, {"phase": "unknown"}, {})


def test_estimates_where_nobody_knows_and_says_so(workspace, capsys):
    found = estimate(cohort_of(UNKNOWN), workspace)
    rows = rows_of(workspace)
    assert [row["phase"] for row in rows] == ["native", "portal_venous", "native", "unknown"]
    assert [row["source"] for row in rows] == ["estimated"] * 3 + ["unknown"]
    assert float(rows[1]["hu_aorta"]) == pytest.approx(165, abs=3)
    assert rows[0]["hu_portal_vein"] == ""
    assert found["estimated"] == {"native": 2, "portal_venous": 1}
    said = capsys.readouterr().err
    assert "locate: contrast phases: 3 estimated (2 native, 1 portal_venous); 1 unknown" in said


def test_a_known_phase_stays_and_a_contradiction_is_told(workspace, capsys):
    labels = ({"phase": "portal_venous"}, {"phase": "portal_venous"}, {}, {"phase": "delayed"})
    found = estimate(cohort_of(labels), workspace)
    rows = rows_of(workspace)
    assert [row["phase"] for row in rows] == ["portal_venous", "portal_venous", "native", "delayed"]
    assert [row["source"] for row in rows] == ["table", "table", "estimated", "table"]
    assert [row["conflict"] for row in rows] == ["True", "False", "False", "False"]
    assert found["conflicts"] == ["c0"]
    said = capsys.readouterr().err
    assert "c0: labeled portal_venous, but its HU suggest native (1.00)" in said
    assert "the label is kept" in said


def test_phases_from_dicom_tags_are_called_so(workspace):
    cohort = cohort_of(({"phase": "native"}, {}, {}, {}))
    estimate(dataclasses.replace(cohort, phase_source="tags"), workspace)
    assert rows_of(workspace)[0]["source"] == "tags"


@pytest.mark.parametrize(
    ("cohort", "said"),
    [
        (cohort_of(UNKNOWN, modality="mr"), ""),
        (
            cohort_of(UNKNOWN, LabelScheme("thorax", ("lung_left", "heart", "trachea"))),
            "not estimated, thorax has none of the organs",
        ),
        (
            cohort_of(({"phase": "end_diastole"}, {}, {}, {})),
            "not estimated, the cohort's label 'phase' is 'end_diastole'",
        ),
    ],
)
def test_estimates_nothing_where_it_makes_no_sense(workspace, capsys, cohort, said):
    assert estimate(cohort, workspace) == {}
    assert said in capsys.readouterr().err
    assert not (workspace.folder("locate") / "phases.csv").exists()


def test_the_cohort_takes_over_estimated_phases_only(workspace):
    cohort = cohort_of(({"phase": "portal_venous"}, {}, {"phase": "unknown", "site": "b"}, {}))
    estimate(cohort, workspace)
    taken = with_phases(cohort, workspace.folder("locate"))
    assert [case.scan_label("phase") for case in taken.cases] == [
        "portal_venous",
        "portal_venous",
        "native",
        "unknown",
    ]
    assert taken.cases[2].scan_label("site") == "b"


def test_without_estimates_the_cohort_is_as_it_was(workspace):
    cohort = cohort_of(UNKNOWN)
    assert with_phases(cohort, workspace.folder("locate")) is cohort


def test_a_damaged_table_of_phases_names_the_remedy(workspace):
    path = workspace.folder("locate") / "phases.csv"
    path.write_text("case,phase\nc0,native\n")
    with pytest.raises(DataError, match=r"phases\.csv: damaged.*locate CONFIG.yaml --force"):
        with_phases(cohort_of(UNKNOWN), workspace.folder("locate"))


def test_a_name_that_a_spreadsheet_would_run_is_text_in_the_table_and_reads_back(tmp_path):
    cohort = cohort_of(UNKNOWN)
    cases = (dataclasses.replace(cohort.cases[0], case_id="=1+1"),)
    scan = ScanPhase("=1+1", "native", "estimated", "native", 0.9, False, "", {"aorta": -3.0})
    write_phases(tmp_path / "phases.csv", [scan], ["aorta"])
    row = "'=1+1,native,estimated,native,0.9,False,,-3.0"
    assert (tmp_path / "phases.csv").read_text().splitlines()[1] == row
    named = with_phases(dataclasses.replace(cohort, cases=cases), tmp_path)
    assert named.cases[0].scan_label("phase") == "native"
