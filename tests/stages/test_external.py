"""Models on another cohort: organs matched by name, scores by loops, what is made again or not."""

import json
import math

import nibabel
import numpy as np
import pytest
import torch
from block_cohort import copy_of
from torch import nn

from sacl import external
from sacl.cli import main
from sacl.files.nifti import read_label_table, read_labels
from sacl.model import Member, Model, load_model
from sacl.networks.encoder import EncoderSpec
from sacl.networks.segmenter import SegmenterSpec
from sacl.patches.region import Placement
from sacl.patches.window import WindowRule
from sacl.prediction.volume import Predictor
from sacl.scores.summary import read_scores, read_summary
from sacl.stages.predict_folder import predict_folder

FLARE = {"liver": 1, "kidneys": 2, "spleen": 3, "pancreas": 4}
FINE = ("liver", "kidney_right", "kidney_left", "spleen", "aorta")
SHAPE, SPACING = (32, 27, 6), (2.0, 2.0, 5.0)
AFFINE = np.array([[-2.0, 0, 0, 31], [0, 2, 0, -26], [0, 0, 5, 7], [0, 0, 0, 1]])
"""Of files that are stored from right to left, as most CT is."""
STEP = 25
"""Intensities of one organ and the next are that far apart."""
WHERE = {
    "liver": np.s_[1:9, 2:9, 0:5],
    "kidney_right": np.s_[2:7, 11:15, 1:4],
    "kidney_left": np.s_[13:18, 11:15, 2:5],
    "spleen": np.s_[12:18, 2:8, 2:6],
    "aorta": np.s_[9:11, 9:11, 0:6],
    "pancreas": np.s_[10:12, 3:6, 1:3],
}


class ByIntensity(nn.Module):
    """Segments by thresholds, in the pixels' own place: the n-th organ is n steps bright."""

    def __init__(self, organs=FINE, modality="ct"):
        super().__init__()
        levels = torch.arange(len(organs) + 1.0) * STEP / 200
        self.register_buffer("levels", levels[None, :, None, None])
        self.spec = SegmenterSpec(
            encoder=EncoderSpec(),
            decoder="unet",
            head="dense",
            scheme="fine",
            organs=tuple(organs),
            image_size=32,
            window=WindowRule(modality, (0.0, 200.0)),
            placement=Placement(region="slice", min_side_mm=8.0),
        )

    def forward(self, pixels):
        return -20 * (pixels - self.levels).abs()


def model_of(network):
    return Model((Member("", Predictor(network.eval(), torch.device("cpu")), None),))


def image_of(network, seed):
    """Return an image of which a network makes a label map that errs, and that label map."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(SHAPE, np.uint8)
    for value, organ in enumerate(network.spec.organs, start=1):
        places = [o for o in WHERE if organ in (o, {"kidney": "kidneys"}.get(o[:6]))]
        for place in places:
            box = tuple(slice(s.start, s.stop - int(rng.integers(2))) for s in WHERE[place])
            labels[box] = value
    return (STEP * labels).astype(np.int16), labels


def truth(values):
    """Return a label map of the places of all organs, by the value of each organ."""
    labels = np.zeros(SHAPE, np.uint8)
    for organ, value in values.items():
        for place in (o for o in WHERE if organ in (o, {"kidney": "kidneys"}.get(o[:6]))):
            labels[WHERE[place]] = value
    return labels


def save(voxels, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, AFFINE), path)


def write_flare(root, network, scans=3, unlabeled=1):
    """Write a cohort as FLARE 2021 is laid out: merged kidneys, values and names of its own."""
    for n in range(scans):
        save(image_of(network, n)[0], root / f"TrainingImg/train_{n:03d}_0000.nii.gz")
        save(truth(FLARE), root / f"TrainingMask/train_{n:03d}.nii.gz")
    for n in range(scans, scans + unlabeled):
        save(image_of(network, n)[0], root / f"ValidationImg/validation_{n:03d}_0000.nii.gz")
    return root


def write_fine(root, network, names, scans=2):
    """Write a cohort as nnU-Net's, with label values in the order of the names."""
    for n in range(scans):
        save(image_of(network, n)[0], root / f"imagesTr/s{n}_0000.nii.gz")
        save(truth({o: v for v, o in enumerate(names, 1)}), root / f"labelsTr/s{n}.nii.gz")
    document = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0} | {name: n for n, name in enumerate(names, 1)},
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(document))
    return root


@pytest.fixture
def tested(monkeypatch, tmp_path, capsys):
    """Return a function that tests models by name on a cohort, by the command line."""
    monkeypatch.chdir(tmp_path)
    made = []

    def run(models, data, *flags, code=0):
        def segment(self, volume, name, coarse=None, plain=Model.segment):
            made.append(name)
            return plain(self, volume, name, coarse)

        made.clear()
        with monkeypatch.context() as patch:
            patch.setattr(external, "load_model", lambda path, **_: model_of(models[path.name]))
            patch.setattr(Model, "segment", segment)
            words = ["evaluate", "--model", *models, "--data", str(data), "--json", *flags]
            assert main(words) == code
        said = capsys.readouterr()
        return (json.loads(said.out) if code == 0 else None), said.err, list(made)

    return run


# -- scores by loops -----------------------------------------------------------------------------


def surface(voxels):
    """Return the voxels of a set that have a neighbor outside of it, in mm."""
    steps = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
    return [
        tuple(index * mm for index, mm in zip(voxel, SPACING, strict=True))
        for voxel in voxels
        if any(
            tuple(a + b for a, b in zip(voxel, step, strict=True)) not in voxels for step in steps
        )
    ]


def percentile(values, share):
    values = sorted(values)
    place = share * (len(values) - 1)
    low = math.floor(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (place - low) * (values[high] - values[low])


def scores_by_loops(reference, predicted, tolerance_mm=2.0):
    """Return Dice, HD95 and NSD of two sets of voxels."""
    there, here = surface(reference), surface(predicted)
    to_there = [min(math.dist(a, b) for b in there) for a in here]
    to_here = [min(math.dist(a, b) for b in here) for a in there]
    near = sum(d <= tolerance_mm + 1e-6 for d in to_there + to_here)
    return (
        2 * len(reference & predicted) / (len(reference) + len(predicted)),
        max(percentile(to_there, 0.95), percentile(to_here, 0.95)),
        near / (len(there) + len(here)),
    )


def voxels_of(labels, values):
    return {v for v in np.ndindex(*labels.shape) if labels[v] in values}


def test_merged_kidneys_of_the_data_are_scored_against_both_sides_together(tested, tmp_path):
    network = ByIntensity()
    told, said, _ = tested({"clinic": network}, write_flare(tmp_path / "FLARE", network))
    folder = tmp_path / "work/clinic-external/FLARE2021"
    assert told["report"] == "work/clinic-external/FLARE2021/8-report/report.html"
    rows = {
        (r.score.case_id, r.score.organ): r for r in read_scores(folder / "7-scores/scores.csv")
    }
    assert len(rows) == 3 * 3
    for n in range(3):
        labels = image_of(network, n)[1]
        for organ, own in (("liver", {1}), ("kidneys", {2, 3}), ("spleen", {4})):
            score = rows[f"train_{n:03d}", organ].score
            expected = scores_by_loops(
                voxels_of(truth(FLARE), {FLARE[organ]}), voxels_of(labels, own)
            )
            assert (score.dice, score.hd95_mm, score.nsd) == pytest.approx(expected, abs=1e-9)
            ml = len(voxels_of(labels, own)) * math.prod(SPACING) / 1000
            assert score.predicted_ml == pytest.approx(ml)
    assert told["parts"]["kidneys"] == {
        "clinic": ["kidney_right", "kidney_left"],
        "FLARE2021": ["kidneys"],
    }
    assert told["alone"] == {"clinic": {"aorta": ""}, "FLARE2021": {"pancreas": ""}}
    assert "1 of 4 scans have no label map, left out: validation_003" in said
    assert "kidneys  kidney_right + kidney_left  kidneys" in said
    page = (tmp_path / told["report"]).read_text()
    assert '<td class="text">kidney right + kidney left</td><td class="text">kidneys</td>' in page
    assert "Left out of clinic: aorta." in page
    assert "1 scan without a label map left out" in page
    assert "losses.csv" not in page


def test_merged_kidneys_of_the_model_are_scored_against_both_sides_together(tested, tmp_path):
    network = ByIntensity(("spleen", "kidneys", "liver"))
    names = ("kidney_left", "aorta", "liver", "kidney_right", "spleen")
    data = write_fine(tmp_path / "Dataset001_Fine", network, names)
    told, _, _ = tested({"coarse": network}, data)
    folder = tmp_path / "work/coarse-external/Dataset001_Fine"
    reference = truth({o: v for v, o in enumerate(names, 1)})
    for row in read_scores(folder / "7-scores/scores.csv"):
        labels = image_of(network, int(row.score.case_id[1:]))[1]
        own = {network.spec.organs.index(row.score.organ) + 1}
        theirs = {"liver": {3}, "spleen": {5}, "kidneys": {1, 4}}[row.score.organ]
        expected = scores_by_loops(voxels_of(reference, theirs), voxels_of(labels, own))
        assert (row.score.dice, row.score.hd95_mm, row.score.nsd) == pytest.approx(expected)
    assert set(told["parts"]) == {"spleen", "kidneys", "liver"}
    assert told["alone"]["Dataset001_Fine"] == {"aorta": ""}


def test_the_complete_label_maps_are_kept_beside_those_of_the_shared_organs(tested, tmp_path):
    network = ByIntensity()
    tested({"clinic": network}, write_flare(tmp_path / "FLARE", network))
    folder = tmp_path / "work/clinic-external/FLARE2021"
    whole = folder / "label-maps/clinic/train_000.nii.gz"
    assert read_label_table(whole) == {name: n for n, name in enumerate(FINE, 1)}
    assert np.array_equal(nibabel.load(whole).affine, AFFINE)
    assert np.array_equal(np.asarray(nibabel.load(whole).dataobj), image_of(network, 0)[1])
    shared = folder / "6-predictions/clinic/train_000.nii.gz"
    assert set(read_label_table(shared)) == {"liver", "kidneys", "spleen"}
    assert set(np.unique(read_labels(shared)[0])) == {0, 1, 2, 3}


def test_models_are_compared_pairwise_over_subjects(tested, tmp_path):
    """The other model calls the organs otherwise and has merged kidneys: these are shared."""
    network, other = ByIntensity(), ByIntensity(("LIV", "renal", "rad", "spl"))
    data = write_flare(tmp_path / "FLARE", network, scans=6)
    told, said, _ = tested({"ours": network, "theirs": other}, data)
    summary = read_summary(tmp_path / "work/ours-external/FLARE2021/7-scores/summary.json")
    assert list(summary.runs) == ["ours", "theirs"]
    found = {(d.metric, d.organ): d for d in summary.differences}
    assert {d.against for d in found.values()} == {"theirs"}
    rows = read_scores(tmp_path / "work/ours-external/FLARE2021/7-scores/scores.csv")
    dice = {(r.run, r.score.case_id, r.score.organ): r.score.dice for r in rows}
    cases = sorted({case for _, case, _ in dice})
    apart = [dice["ours", c, "kidneys"] - dice["theirs", c, "kidneys"] for c in cases]
    assert found["dice", "kidneys"].difference.mean == pytest.approx(np.mean(apart))
    assert found["dice", "kidneys"].difference.subjects == 6
    assert found["dice", "kidneys"].p == pytest.approx(2 / 2**6)
    assert found["dice", "liver"].p == 1.0
    assert told["parts"]["kidneys"]["theirs"] == ["renal"]
    page = (tmp_path / told["report"]).read_text()
    row = page[page.index("<h3>ours less theirs</h3>") :]
    row = row[row.index(">kidneys</th>") : row.index("</tr>", row.index(">kidneys</th>"))]
    assert f"{np.mean(apart):+.3f}".replace("-", "\N{MINUS SIGN}") in row
    assert f"<td>{found['dice', 'kidneys'].p_holm:.3f}</td>" in row
    assert "it cannot be below 0.031" in page
    overall = f"{found['dice', ''].difference.mean:+.3f}".replace("-", "\N{MINUS SIGN}")
    assert f"ours less theirs: Dice {overall} (" in said


# -- what is made again, and what is never overwritten -------------------------------------------


def test_a_label_map_of_the_same_model_and_scan_is_not_made_again(tested, tmp_path):
    network, other = ByIntensity(), ByIntensity(("liver", "spleen"))
    data = write_flare(tmp_path / "FLARE", network)
    every = [f"case train_{n:03d}" for n in range(3)]
    assert tested({"a": network}, data)[2] == every
    _, said, made = tested({"a": network}, data)
    assert made == []
    assert said.count("up to date") == 4
    assert (
        tested({"a": network, "b": other}, data, "--out", "work/a-external/FLARE2021")[2] == every
    )
    save(image_of(network, 9)[0], data / "TrainingImg/train_001_0000.nii.gz")
    assert tested({"a": network}, data)[2] == ["case train_001"]
    network.levels += 0.001
    assert tested({"a": network}, data)[2] == every
    assert tested({"a": network}, data, "--force")[2] == every


def test_an_interrupted_test_goes_on_where_it_stopped(tested, tmp_path, monkeypatch):
    network = ByIntensity()
    data = write_flare(tmp_path / "FLARE", network)
    with monkeypatch.context() as patch:
        plain = ByIntensity.forward

        def fails_late(self, pixels, calls=[]):  # noqa: B006 - counts
            calls.append(1)
            if len(calls) > 2:
                raise KeyboardInterrupt
            return plain(self, pixels)

        patch.setattr(ByIntensity, "forward", fails_late)
        tested({"a": network}, data, code=130)
    assert tested({"a": network}, data)[2] == ["case train_002"]


def test_nothing_of_the_users_is_overwritten(tested, tmp_path):
    network = ByIntensity()
    data = write_flare(tmp_path / "FLARE", network)
    theirs = tmp_path / "out/label-maps/a/train_001.nii.gz"
    save(truth(FLARE), theirs)
    before = theirs.read_bytes()
    _, said, made = tested({"a": network}, data, "--out", "out", code=2)
    assert "train_001.nii.gz: exists and is not as sacl wrote it" in said
    assert (theirs.read_bytes(), made) == (before, [])
    notes = tmp_path / "notes/1-cohort/notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    _, said, _ = tested({"a": network}, data, "--out", "notes", code=2)
    assert "was not written by sacl" in said
    assert notes.read_text() == "mine"


# -- a run that was trained ----------------------------------------------------------------------


def write_blocks(finished, root):
    """Write a run's own scans under other names and values, and their coarse maps."""
    cohort = finished.folder("ingest")
    for n in range(5):
        image = nibabel.load(cohort / f"images/case-{n}.nii")
        (root / "TrainingImg").mkdir(parents=True, exist_ok=True)
        (root / "TrainingMask").mkdir(exist_ok=True)
        nibabel.save(image, root / f"TrainingImg/train_{n:03d}_0000.nii.gz")
        labels = cohort / f"references/case-{n}.nii.gz"
        voxels = np.array([0, 1, 3], np.uint8)[np.asarray(nibabel.load(labels).dataobj)]
        path = root / f"TrainingMask/train_{n:03d}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(voxels, image.affine), path)
        coarse = nibabel.load(finished.folder("locate") / f"maps/case-{n}.nii.gz")
        (root.parent / "coarse").mkdir(exist_ok=True)
        nibabel.save(coarse, root.parent / f"coarse/train_{n:03d}.nii.gz")
    return root


def test_a_runs_label_maps_are_those_of_predict(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = write_blocks(finished, tmp_path / "data/FLARE")
    words = ["--data", str(data), "--coarse", "data/coarse", "--out", "out", "--device", "cpu"]
    assert main(["evaluate", "--model", str(finished.root), *words]) == 0
    model = load_model(finished.root, device="cpu")
    scans = tmp_path / "data/FLARE/TrainingImg"
    predict_folder(model, scans, tmp_path / "alone", coarse=tmp_path / "data/coarse")
    name = finished.root.name
    for path in sorted((tmp_path / "alone").glob("*.nii.gz")):
        ours = nibabel.load(tmp_path / f"out/label-maps/{name}/{path.name}")
        theirs = nibabel.load(path)
        assert np.array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))
        assert np.array_equal(ours.affine, theirs.affine)
    rows = read_scores(tmp_path / "out/7-scores/scores.csv")
    assert {row.score.organ for row in rows} == {"liver", "spleen"}
    assert {row.run for row in rows} == {name}


def test_a_pack_is_tested_like_the_run_that_it_is_of(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = write_blocks(finished, tmp_path / "data/FLARE")
    assert main(["pack", str(finished.root), "blocks.sacl"]) == 0
    words = ["--data", str(data), "--coarse", "data/coarse", "--out", "out", "--device", "cpu"]
    assert main(["evaluate", "--model", "blocks.sacl", str(finished.root), *words]) == 0
    summary = read_summary(tmp_path / "out/7-scores/summary.json")
    assert list(summary.runs) == ["blocks", finished.root.name]
    assert {(d.difference.mean, d.p) for d in summary.differences} == {(0.0, 1.0)}


def test_the_work_directory_of_a_run_is_not_written_to(finished, tmp_path, capsys):
    run, data = copy_of(finished, tmp_path / "run"), write_blocks(finished, tmp_path / "FLARE")
    before = {path: path.stat().st_mtime_ns for path in run.root.rglob("*")}
    out = ["--data", str(data), "--out", str(run.root), "--force"]
    assert main(["evaluate", "--model", str(run.root), *out]) == 2
    assert "is the work directory of a run; give another folder" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in run.root.rglob("*")}


# -- doubts and bad input ------------------------------------------------------------------------


def test_a_model_of_another_modality_is_loudly_in_doubt(tested, tmp_path):
    network = ByIntensity(modality="mr")
    told, said, _ = tested({"heart": network}, write_flare(tmp_path / "FLARE", network))
    doubt = "heart was trained on MR, and FLARE2021 is CT: its label maps cannot be trusted"
    assert f"evaluate: ATTENTION, {doubt}" in said
    assert told["doubts"] == [doubt]
    assert doubt in (tmp_path / told["report"]).read_text()


def test_scans_that_a_run_was_trained_on_are_no_external_test(finished, tmp_path, capsys):
    run = copy_of(finished, tmp_path / "run")
    record = run.folder("ingest") / "cohort.json"
    record.write_text(
        record.read_text().replace('"blocks"', '"FLARE2021"').replace("case-", "train_00")
    )
    for path in run.folder("ingest").glob("*/case-*"):
        path.rename(path.with_name(path.name.replace("case-", "train_00")))
    data = write_blocks(finished, tmp_path / "data/FLARE")
    coarse = ["--coarse", str(tmp_path / "data/coarse"), "--device", "cpu"]
    words = ["--model", str(run.root), "--data", str(data), "--out", str(tmp_path / "out")]
    assert main(["evaluate", *words, *coarse]) == 0
    assert (
        "ATTENTION, run was trained on FLARE2021, on scans named like 3 of these (train_000,"
        " train_001, train_002), so scores on them are too good"
    ) in capsys.readouterr().err


def _no_masks(data):
    for path in (data / "labelsTr").iterdir():
        path.unlink()


def _renamed(data):
    text = (data / "dataset.json").read_text()
    text = text.replace('"liver"', '"livver"').replace('"spleen"', '"splean"')
    (data / "dataset.json").write_text(text.replace("kidney", "nephro").replace('"aorta"', '"ves"'))


def _other_slices(data):
    save(truth({"liver": 3})[:, :, :5], data / "labelsTr/s1.nii.gz")


@pytest.mark.parametrize(
    ("damage", "flags", "message"),
    [
        (_no_masks, [], "none of 2 scans has a label map, so nothing can be scored"),
        (_renamed, [], "no organ in common with clinic; left out of clinic: liver"
         " (is it livver? use that name)"),
        (_other_slices, [], "case s1: image and label map lie on different grids, 32 x 27 x 6"),
        (None, ["--ingest.fold", "0"], "--ingest.fold has no effect on an external test"),
        (None, ["--ingest.organs", "liver,heart"], "no organ 'heart' in Dataset001_Fine"),
        (None, ["--model", "clinic", "clinic"], "clinic is named twice; name each model once"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(tested, tmp_path, damage, flags, message):
    network = ByIntensity()
    data = write_fine(tmp_path / "Dataset001_Fine", network, FINE)
    if damage:
        damage(data)
    said = tested({"clinic": network}, data, *flags, code=2)[1]
    error = [line for line in said.splitlines() if line.startswith("sacl: ")]
    assert len(error) == 1
    assert message in error[0]


def test_a_label_map_on_another_grid_can_be_resampled(tested, tmp_path):
    network = ByIntensity()
    data = write_fine(tmp_path / "Dataset001_Fine", network, FINE)
    _other_slices(data)
    told, said, _ = tested({"clinic": network}, data, "--repair-grid", "nearest")
    assert "case s1: label map resampled by nearest neighbor" in said
    assert told["scores"]["cases"] == {"test": 2}


@pytest.mark.parametrize("words", [["--model", "clinic"], ["--data", "FLARE"]])
def test_model_and_data_go_together(words, capsys):
    assert main(["evaluate", *words]) == 2
    assert "give CONFIG.yaml, or all of --model, --data" in capsys.readouterr().err
