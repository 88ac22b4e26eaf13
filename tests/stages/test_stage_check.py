import csv
import json
import shutil
import subprocess
import sys

import pytest
from toy_cohort import locate_toy_cohort

from planted import clean_files, write_files
from sacl.cli import main
from sacl.cohort.manifest import read_cohort
from sacl.errors import DataError
from sacl.run.configure import load_config
from sacl.run.workspace import Workspace
from sacl.settings import PhantomSettings
from sacl.stages.check import check
from sacl.stages.ingest import ingest
from sacl.stages.phantom import phantom


def _check(data, out, **flags):
    return check(load_config(None, {"ingest.data": str(data), **flags}), out)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_files(clean_files(), tmp_path_factory.mktemp("clean") / "data")


@pytest.fixture
def faulty(tmp_path):
    files = clean_files()
    files.scans["c2"].image[:] = 40
    files.scans["c3"].image += 1024
    return write_files(files, tmp_path / "faulty")


def test_writes_a_page_a_table_and_a_record_beside_each_other(data, tmp_path):
    out = tmp_path / "out" / "look.html"
    checked = _check(data, out)
    assert checked.findings == ()
    assert sorted(p.name for p in out.parent.iterdir()) == ["look.csv", "look.html", "look.json"]
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["splits"]["train"] == {"subjects": 6, "scans": 7, "labeled": 7, "unlabeled": 0}
    assert record["scan_labels"]["phase"]["native"] == {"train": 4, "validation": 0, "test": 1}
    assert record["annotation"]["liver"] == {"annotated": 10, "absent": 0, "not annotated": 0}


def test_the_table_has_a_row_per_scan_with_volumes_and_findings(faulty, tmp_path):
    _check(faulty, tmp_path / "check.html")
    rows = {
        row["case_id"]: row
        for row in csv.DictReader((tmp_path / "check.csv").read_text().splitlines())
    }
    assert len(rows) == 10
    assert rows["c2"]["findings"] == "constant-image"
    assert rows["c3"]["findings"] == "not-hu"
    assert (rows["c4"]["orientation"], rows["c4"]["nx"], rows["c4"]["x_mm"]) == (
        "RAS",
        "24",
        "14.0",
    )
    assert 1000 < float(rows["c4"]["liver mL"]) < 3000


def test_all_faults_are_collected_in_one_go(faulty, tmp_path):
    checked = _check(faulty, tmp_path / "check.html")
    assert {(f.code, f.case_id) for f in checked.findings} == {
        ("constant-image", "c2"),
        ("not-hu", "c3"),
    }


def test_the_page_needs_nothing_but_itself_and_holds_no_path(faulty, tmp_path):
    out = tmp_path / "check.html"
    _check(faulty, out)
    for path in (out, out.with_suffix(".csv"), out.with_suffix(".json")):
        assert str(tmp_path) not in path.read_text()
    page = out.read_text()
    assert page.count("<script>") == page.count("<script") == 1
    assert page.count("src=") == page.count('src="data:image/')
    assert "1 kind of error and 1 kind of warning" in page
    assert page.index("Constant image") < page.index("CT intensities that are not in HU")


def test_an_ingested_cohort_is_checked_by_its_work_directory_or_its_folder(tmp_path):
    workspace = locate_toy_cohort(tmp_path / "work")
    checks = [
        _check(folder, tmp_path / "check.html").as_json()
        for folder in (workspace.root, workspace.folder("ingest"))
    ]
    assert checks[0] == checks[1]
    assert checks[0]["splits"]["train"] == {
        "subjects": 4,
        "scans": 4,
        "labeled": 2,
        "unlabeled": 2,
    }
    assert checks[0]["annotation"]["aorta"] == {"annotated": 2, "absent": 0, "not annotated": 4}


def test_a_phantom_cohort_has_neither_errors_nor_warnings(tmp_path):
    settings = PhantomSettings(scans=9, shape=(48, 39, 24))
    phantom(settings, Workspace(tmp_path / "work"))
    config = load_config(
        None,
        {"work": str(tmp_path / "work"), "phantom.scans": "9"},
    )
    checked = check(config, tmp_path / "check.html")
    assert [f for f in checked.findings if f.level != "note"] == []
    rows = list(csv.DictReader((tmp_path / "check.csv").read_text().splitlines()))
    assert rows[1]["orientation"] == "LAS"


def test_several_folders_are_checked_as_one_cohort(data, tmp_path):
    again = shutil.copytree(data, tmp_path / "again")
    config = load_config(None, {"ingest.data": json.dumps([str(data), str(again)])})
    checked = check(config, tmp_path / "check.html")
    assert checked.scans == 20
    assert {f.code for f in checked.findings} >= {"duplicate"}


def test_another_grid_is_a_note_where_it_will_be_repaired(tmp_path):
    files = clean_files()
    files.scans["c2"].label_affine = files.scans["c2"].affine.copy()
    files.scans["c2"].label_affine[0, 3] += 14
    data = write_files(files, tmp_path / "data")
    assert [f.code for f in _check(data, tmp_path / "a.html").findings] == ["label-grid"]
    repaired = _check(data, tmp_path / "b.html", **{"ingest.repair_grid": "nearest"})
    assert [f.code for f in repaired.findings] == ["resampled-reference"]


def test_a_clean_cohort_exits_with_0(data, tmp_path, capsys):
    assert main(["check", str(data), "--out", str(tmp_path / "a.html")]) == 0
    told = capsys.readouterr().out
    assert "train" in told
    assert "0 errors, 0 warnings, 0 notes" in told


def test_errors_exit_with_2_and_one_line_that_names_the_page(faulty, tmp_path, capsys):
    assert main(["check", str(faulty), "--out", str(tmp_path / "a.html")]) == 2
    told = capsys.readouterr()
    assert told.err.splitlines()[-1].startswith("sacl: check: 1 kind")
    assert "a.html" in told.err.splitlines()[-1]
    assert "c2: every voxel is 40" in told.out


@pytest.mark.parametrize(("which", "code"), [("data", 0), ("faulty", 2)])
def test_json_is_alone_on_stdout(which, code, request, tmp_path, capsys):
    folder = request.getfixturevalue(which)
    out = tmp_path / "a.html"
    assert main(["check", str(folder), "--json", "--out", str(out)]) == code
    assert json.loads(capsys.readouterr().out) == json.loads(out.with_suffix(".json").read_text())


def test_a_folder_without_scans_is_one_line(tmp_path, capsys):
    assert main(["check", str(tmp_path), "--out", str(tmp_path / "a.html")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "a.html").exists()


def test_checking_for_a_settings_file_plans_nothing_and_loads_no_torch(data, tmp_path):
    (tmp_path / "run.yaml").write_text(f"ingest: {{data: {str(data)!r}}}\n")
    arguments = ["check", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "a.html")]
    code = (
        f"import sys; from sacl.cli import main; main({arguments!r});"
        " sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0


@pytest.mark.real_data
def test_the_same_images_of_two_subjects_of_acdc_are_found(real_data, tmp_path):
    checked = _check(real_data / "Dataset027_ACDC", tmp_path / "check.html")
    found = {(f.code, f.case_id) for f in checked.findings if f.code == "duplicate"}
    assert found == {("duplicate", f"patient074_frame0{n}") for n in (1, 2)}
    assert checked.kinds["error"] == 0


@pytest.mark.real_data
def test_hippocampus_has_one_note_on_its_scales_and_not_one_per_scan(real_data, tmp_path):
    checked = _check(real_data / "Dataset004_Hippocampus", tmp_path / "check.html")
    about_scans = [f for f in checked.findings if f.level != "note" and f.case_id]
    assert about_scans == []
    assert [f.case_id for f in checked.findings if f.code == "intensity-scale"] == [""]


@pytest.mark.parametrize("suffix", [".html", ".csv", ".json"])
def test_a_file_of_the_users_is_not_overwritten_and_a_check_is(data, tmp_path, suffix):
    out = tmp_path / "check.html"
    out.with_suffix(suffix).write_text("mine")
    with pytest.raises(DataError, match=rf"check\{suffix}: exists and was not written by sacl"):
        _check(data, out)
    assert [path.name for path in tmp_path.iterdir()] == [f"check{suffix}"]
    check(load_config(None, {"ingest.data": str(data)}), out, force=True)
    _check(data, out)


@pytest.mark.parametrize(
    "flags",
    [
        {"ingest.labeled_subjects": "2", "ingest.validation_subjects": "2"},
        {"ingest.labeled_values": '["native"]'},
    ],
)
def test_splits_are_those_that_ingest_makes(data, tmp_path, flags):
    record = _check(data, tmp_path / "check.html", **flags)
    flags |= {"ingest.data": str(data), "work": str(tmp_path / "work")}
    config = load_config(None, flags)
    folder = ingest(config.ingest, Workspace(config.work, seed=config.seed))
    cohort = read_cohort(folder)
    for split, counts in record.splits.items():
        cases = cohort.of_split(split)
        assert counts.scans == len(cases)
        assert counts.subjects == len({case.subject_id for case in cases})
        assert counts.labeled == sum(case.reference is not None for case in cases)
    assert record.splits["train"].labeled < 7


def test_settings_that_the_cohort_does_not_allow_are_an_error_and_missing_ones_a_warning(
    data, tmp_path
):
    record = _check(data, tmp_path / "check.html", **{"ingest.labeled_subjects": "50"})
    assert [(f.code, f.level) for f in record.findings] == [("cannot-ingest", "error")]
    assert "50 asked for" in record.findings[0].message
    nameless = clean_files()
    for scan in nameless.scans.values():
        scan.labels = None
    nameless.labels.clear()
    bare = write_files(nameless, tmp_path / "bare")
    levels = {f.code: f.level for f in _check(bare, tmp_path / "bare.html").findings}
    assert levels["needs-settings"] == "warning"


def test_a_cohort_that_holds_nobody_out_is_told_so(tmp_path):
    files = clean_files()
    for scan in files.scans.values():
        scan.split = "train"
    data = write_files(files, tmp_path / "data")
    codes = [f.code for f in _check(data, tmp_path / "check.html").findings]
    assert "nothing-to-score" in codes
    held = _check(data, tmp_path / "check.html", **{"ingest.test_subjects": "2"})
    assert "nothing-to-score" not in [f.code for f in held.findings]
    assert held.splits["test"].subjects == 2
