import json
import math

import numpy as np
import pytest
from fake_work import fake_work

from sacl.cohort.manifest import read_cohort, read_reference, write_cohort
from sacl.errors import ConfigError, DataError, WorkspaceError
from sacl.files.nifti import read_label_map, write_label_map
from sacl.run.record import read_record
from sacl.run.workspace import Workspace
from sacl.scores.organs_of_case import dice
from sacl.scores.summary import read_scores
from sacl.settings import EvaluateSettings
from sacl.stages.evaluate import evaluate, inputs
from sacl.stages.evaluate_folders import evaluate_folders
from sacl.types import Cohort, Grid, LabelMap, LabelScheme

SETTINGS = EvaluateSettings()


@pytest.fixture
def work(tmp_path):
    return fake_work(tmp_path / "work", arms=("semantic", "scratch", "scratch-long"))


def _summary(folder):
    return json.loads((folder / "summary.json").read_text())


def test_scores_every_run_on_the_held_out_scans_main_run_first(work, capsys):
    folder = evaluate(SETTINGS, work)
    rows = read_scores(folder / "scores.csv")
    runs = list(dict.fromkeys(row.run for row in rows))
    assert runs == ["semantic", "scratch", "scratch-long", "coarse"]
    assert {row.split for row in rows} == {"test"}
    assert len(rows) == 4 * 4 * 3
    record = read_record(folder)
    assert record.results == {
        "runs": runs,
        "cases": 4,
        "subjects": {"test": 4},
        "doubts": [],
    }
    assert record.inputs == inputs(SETTINGS, work)
    assert "semantic" in capsys.readouterr().err


def test_a_main_run_that_scores_below_its_coarse_maps_is_doubted_aloud(work, capsys):
    home, cohort = work.folder("ingest"), read_cohort(work.folder("ingest"))
    for case in cohort.held_out:
        reference = read_reference(home, case, cohort.scheme)
        write_label_map(
            work.folder("locate") / f"maps/{case.case_id}.nii.gz", reference, case.native
        )
    doubts = read_record(evaluate(SETTINGS, work)).results["doubts"]
    assert doubts[0].startswith("all organs: mean Dice 0.")
    assert "on held-out scans (4), below the 1.000 of the coarse maps" in doubts[0]
    assert f"evaluate: in doubt: {doubts[0]}" in capsys.readouterr().err


def test_scores_are_those_of_the_files_in_the_native_frame(work):
    row = read_scores(evaluate(SETTINGS, work) / "scores.csv")[0]
    home = work.folder("ingest")
    cohort = read_cohort(home)
    case = next(c for c in cohort.cases if c.case_id == row.score.case_id)
    reference = read_reference(home, case, cohort.scheme)
    path = work.folder("predict") / row.run / f"{case.case_id}.nii.gz"
    predicted, frame = read_label_map(path, cohort.scheme)
    assert frame.grid.affine[0, 0] < 0, "the file is stored flipped"
    organ = row.score.organ
    assert row.score.dice == dice(reference.mask(organ), predicted.mask(organ))


def test_other_runs_stand_beside_the_main_run(work):
    summary = _summary(evaluate(SETTINGS, work))
    assert list(summary["runs"]) == ["semantic", "scratch", "scratch-long", "coarse"]
    assert summary["nsd_tolerance_mm"] == 2.0
    assert "undefined" in summary["rule_for_empty_organs"]


def test_does_not_score_organs_that_nobody_annotated(work):
    home = work.folder("ingest")
    cohort = read_cohort(home)
    cases = list(cohort.cases)
    object.__setattr__(cases[-1], "annotated", ("liver",))
    write_cohort(home, Cohort(cohort.name, cohort.scheme, tuple(cases)))
    rows = read_scores(evaluate(SETTINGS, work) / "scores.csv")
    own = {row.score.organ for row in rows if row.score.case_id == cases[-1].case_id}
    assert own == {"liver"}


def test_missing_prediction_is_one_line_and_leaves_no_scores(work):
    next((work.folder("predict") / "scratch").glob("subject-05*")).unlink()
    with pytest.raises(DataError, match="scratch: no label map of case subject-05-a") as error:
        evaluate(SETTINGS, work)
    assert "\n" not in str(error.value)
    assert not (work.folder("evaluate") / "scores.csv").exists()
    assert read_record(work.folder("evaluate")) is None


def test_prediction_on_another_grid_is_refused(work):
    path = next((work.folder("predict") / "semantic").glob("subject-04*"))
    scheme = read_cohort(work.folder("ingest")).scheme
    predicted, _ = read_label_map(path, scheme)
    shorter = Grid((*predicted.grid.shape[:2], 10), predicted.grid.affine)
    write_label_map(path, LabelMap(predicted.voxels[:, :, :10], shorter, scheme))
    with pytest.raises(DataError, match=r"case subject-04-a, run semantic: .* different grids"):
        evaluate(SETTINGS, work)


def test_without_held_out_references_nothing_is_scored_and_it_says_so(tmp_path, capsys):
    folder = evaluate(SETTINGS, fake_work(tmp_path / "work", test_subjects=0))
    assert read_scores(folder / "scores.csv") == []
    assert _summary(folder)["runs"] == {}
    assert "no validation or test scan has a reference" in capsys.readouterr().err


def test_needs_the_earlier_stages(tmp_path):
    with pytest.raises(WorkspaceError, match="stage 'ingest' has no result"):
        evaluate(SETTINGS, Workspace(tmp_path))


# -- any two folders ---------------------------------------------------------------------------


def _folders(tmp_path, names=("liver", "spleen"), cases=("a", "b")):
    scheme = LabelScheme("x", names)
    grid = Grid((8, 8, 8), np.diag([1.0, 1.0, 2.0, 1.0]))
    voxels = np.zeros(grid.shape, np.uint8)
    voxels[1:4, 1:4, 1:4], voxels[5:7, 5:7, 5:7] = 1, 2
    for case in cases:
        write_label_map(tmp_path / "reference" / f"{case}.nii.gz", LabelMap(voxels, grid, scheme))
        moved = LabelMap(np.roll(voxels, 1, axis=0), grid, scheme)
        write_label_map(tmp_path / "predicted" / f"{case}.nii", moved)
    return tmp_path / "reference", tmp_path / "predicted"


def _without_names(folder):
    # what most tools write: no label table
    import nibabel

    for path in folder.iterdir():
        image = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine), path)


def test_folders_are_matched_by_stem_and_named_by_the_label_table(tmp_path):
    out = evaluate_folders(*_folders(tmp_path), tmp_path / "out", SETTINGS)
    rows = read_scores(out / "scores.csv")
    assert [(r.score.case_id, r.score.organ) for r in rows] == [
        *(("a", "liver"), ("a", "spleen"), ("b", "liver"), ("b", "spleen"))
    ]
    assert rows[0].score.dice == pytest.approx(2 / 3)
    assert _summary(out)["runs"]["predicted"]["dice"]["subjects"] == 2


@pytest.mark.parametrize(
    "labels",
    [{"background": 0, "liver": 1, "spleen": 2}, {"0": "background", "1": "liver", "2": "spleen"}],
)
@pytest.mark.parametrize("beside", [False, True])
def test_folders_are_named_by_dataset_json(tmp_path, labels, beside):
    reference, predicted = _folders(tmp_path)
    _without_names(reference)
    _without_names(predicted)
    home = tmp_path if beside else reference
    (home / "dataset.json").write_text(json.dumps({"labels": labels}))
    out = evaluate_folders(reference, predicted, tmp_path / "out", SETTINGS)
    assert _summary(out)["organs"] == ["liver", "spleen"]


def test_folders_without_names_number_their_labels(tmp_path):
    reference, predicted = _folders(tmp_path)
    _without_names(reference)
    _without_names(predicted)
    out = evaluate_folders(reference, predicted, tmp_path / "out", SETTINGS)
    assert _summary(out)["organs"] == ["label_1", "label_2"]


def _scored(out):
    return {row.score.case_id for row in read_scores(out / "scores.csv")}


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ("predicted/b.nii", "predicted: no label map for 1 references, b;"),
        ("reference/b.nii.gz", "reference: no label map for 1 predicted maps, b;"),
    ],
)
def test_a_map_without_counterpart_is_refused_by_name_or_said(tmp_path, capsys, gone, words):
    folders = _folders(tmp_path)
    (tmp_path / gone).unlink()
    with pytest.raises(DataError, match=words) as error:
        evaluate_folders(*folders, tmp_path / "out", SETTINGS)
    assert "--allow-missing" in str(error.value)
    assert not (tmp_path / "out").exists()
    evaluate_folders(*folders, tmp_path / "out", SETTINGS, allow_missing=True)
    other = {
        "predicted": "reference: not scored b.nii.gz",
        "reference": "predicted: not scored b.nii",
    }
    assert other[gone.split("/")[0]] in capsys.readouterr().err
    assert _scored(tmp_path / "out") == {"a"}


@pytest.mark.parametrize("name", ["b.nii.gzip", "b", "b.npy", "b.img"])
def test_a_reference_that_is_not_read_is_refused_by_name_and_never_averaged_away(tmp_path, name):
    reference, predicted = _folders(tmp_path)
    (reference / "b.nii.gz").rename(reference / name)
    (predicted / "b.nii").unlink()
    with pytest.raises(DataError, match=f"reference: cannot read {name}"):
        evaluate_folders(reference, predicted, tmp_path / "out", SETTINGS)


def test_tables_beside_label_maps_are_no_label_maps(tmp_path):
    reference, predicted = _folders(tmp_path)
    for folder in (reference, predicted):
        (folder / "plans.json").write_text("{}")
        (folder / ".DS_Store").write_text("")
    evaluate_folders(reference, predicted, tmp_path / "out", SETTINGS)
    assert _scored(tmp_path / "out") == {"a", "b"}


@pytest.mark.parametrize("folder", ["reference", "predicted"])
def test_maps_named_after_a_channel_match(tmp_path, folder):
    folders = _folders(tmp_path)
    for path in list((tmp_path / folder).iterdir()):
        path.rename(path.with_name(path.name.replace(".nii", "_0000.nii")))
    evaluate_folders(*folders, tmp_path / "out", SETTINGS)
    assert _scored(tmp_path / "out") == {"a", "b"}


def test_headers_that_contradict_themselves_are_said_once(tmp_path, capsys):
    reference, predicted = _folders(tmp_path)
    for name in ("a.nii", "b.nii"):
        raw = bytearray((predicted / name).read_bytes())
        raw[88:92] = np.float32(4.0).tobytes()  # pixdim[3], beside an sform of 2 mm
        (predicted / name).write_bytes(raw)
    evaluate_folders(reference, predicted, tmp_path / "out", SETTINGS)
    lines = [line for line in capsys.readouterr().err.splitlines() if "pixdim" in line]
    assert len(lines) == 1
    assert lines[0].startswith(
        "evaluate: predicted/a.nii: the spacing is 1 x 1 x 2 mm by the sform"
    )
    assert "1 x 1 x 4 mm by pixdim" in lines[0]
    assert lines[0].endswith("; 1 more maps likewise")


def test_two_maps_of_one_case_are_refused(tmp_path):
    reference, predicted = _folders(tmp_path)
    (predicted / "a_0000.nii").write_bytes((predicted / "a.nii").read_bytes())
    with pytest.raises(DataError, match=r"case a appears twice, a\.nii and a_0000\.nii"):
        evaluate_folders(reference, predicted, tmp_path / "out", SETTINGS)


@pytest.mark.parametrize("name", ["scores.csv", "summary.json"])
def test_a_file_of_the_users_is_not_overwritten_and_our_own_is(tmp_path, name):
    folders, out = _folders(tmp_path), tmp_path / "out"
    out.mkdir()
    (out / name).write_text("case,grade\na,5\n")
    with pytest.raises(DataError, match=f"{name}: exists and was not written by sacl"):
        evaluate_folders(*folders, out, SETTINGS)
    assert (out / name).read_text() == "case,grade\na,5\n"
    evaluate_folders(*folders, out, SETTINGS, force=True)
    evaluate_folders(*folders, out, SETTINGS)
    assert _scored(out) == {"a", "b"}


@pytest.mark.parametrize("tolerance", [-1.0, math.nan, math.inf])
def test_an_impossible_tolerance_is_refused(tmp_path, work, tolerance):
    with pytest.raises((ConfigError, ValueError), match="nsd_tolerance_mm"):
        evaluate_folders(
            *_folders(tmp_path), tmp_path / "out", EvaluateSettings(nsd_tolerance_mm=tolerance)
        )


def test_folders_on_other_grids_are_refused(tmp_path):
    reference, predicted = _folders(tmp_path)
    grid = Grid((8, 8, 8), np.diag([1.0, 1.0, 3.0, 1.0]))
    scheme = LabelScheme("x", ("liver", "spleen"))
    other = LabelMap(np.ones((8, 8, 8), np.uint8), grid, scheme)
    write_label_map(predicted / "a.nii", other)
    with pytest.raises(DataError, match=r"case a: .* different grids.*resample the map onto that"):
        evaluate_folders(reference, predicted, tmp_path / "out", SETTINGS)


def test_folders_that_name_a_label_differently_are_refused(tmp_path):
    reference, _ = _folders(tmp_path)
    _, predicted = _folders(tmp_path / "other", names=("spleen", "liver"))
    with pytest.raises(DataError, match="label 1 is 'spleen' here and 'liver' in another file"):
        evaluate_folders(reference, predicted, tmp_path / "out", SETTINGS)


def test_a_table_beside_the_references_that_names_a_label_differently_is_refused(tmp_path):
    reference, predicted = _folders(tmp_path)
    (reference / "labels.json").write_text('{"spleen": 1, "liver": 2}')
    with pytest.raises(DataError, match="label 1 is 'spleen' in its table and 'liver' in that of"):
        evaluate_folders(reference, predicted, tmp_path / "out", SETTINGS)


@pytest.mark.parametrize(
    ("labels", "message"),
    [({"kidneys": [1, 2]}, "regions are not supported"), ({"a": 1, "ignore": 2}, "'ignore' label")],
)
def test_dataset_json_with_regions_or_ignore_is_refused(tmp_path, labels, message):
    reference, predicted = _folders(tmp_path)
    _without_names(reference)
    _without_names(predicted)
    (reference / "dataset.json").write_text(json.dumps({"labels": labels}))
    with pytest.raises(DataError, match=message):
        evaluate_folders(reference, predicted, tmp_path / "out", SETTINGS)


def test_empty_folder_is_refused(tmp_path):
    (tmp_path / "reference").mkdir()
    with pytest.raises(DataError, match="reference: no label map"):
        evaluate_folders(tmp_path / "reference", tmp_path, tmp_path / "out", SETTINGS)


def test_missed_organ_is_zero_and_infinitely_far_in_the_table(tmp_path):
    reference, predicted = _folders(tmp_path, cases=("a",))
    scheme = LabelScheme("x", ("liver", "spleen"))
    found, frame = read_label_map(predicted / "a.nii", scheme)
    voxels = np.where(found.voxels == 2, 0, found.voxels)
    write_label_map(predicted / "a.nii", LabelMap(voxels, found.grid, scheme), frame)
    rows = read_scores(
        evaluate_folders(reference, predicted, tmp_path / "out", SETTINGS) / "scores.csv"
    )
    assert (rows[1].score.dice, rows[1].score.hd95_mm) == (0, math.inf)
