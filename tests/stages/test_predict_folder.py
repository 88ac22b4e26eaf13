"""Prediction of scans that were never ingested: names, ways, doubts, and nothing overwritten."""

import pickle
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from block_cohort import NATIVE, SHAPE, copy_of

from sacl import model
from sacl.cohort.manifest import read_cohort
from sacl.errors import ConfigError, DataError
from sacl.model import load_model
from sacl.prediction.volume import USUAL_RECIPE, MapRecipe, Predictor, write_recipe
from sacl.run.engine import Engine, Shard
from sacl.settings import PredictSettings
from sacl.stages.predict_folder import predict_folder
from sacl.types import LabelMap
from tiny_model import write_scan, write_tiny_model


def write_scans(finished, folder):
    """Write the held-out scans as they lay in their own files."""
    folder.mkdir(parents=True)
    cohort = read_cohort(finished.folder("ingest"))
    for case in cohort.of_split("test"):
        voxels = np.asarray(nibabel.load(finished.folder("ingest") / case.image).dataobj)
        nibabel.save(
            nibabel.Nifti1Image(np.ascontiguousarray(voxels[::-1]), NATIVE),
            folder / f"{case.case_id}.nii",
        )
    return folder


def test_a_folder_gets_what_the_stage_predicts(finished, tmp_path):
    scans = write_scans(finished, tmp_path / "scans")
    predicted = predict_to(finished, scans, tmp_path / "out")
    assert [p.name for p in predicted.written] == ["case-3.nii.gz", "case-4.nii.gz"]
    for path in predicted.written:
        ours = nibabel.load(path)
        stage = nibabel.load(finished.folder("predict") / "semantic" / path.name)
        assert np.array_equal(np.asarray(ours.dataobj), np.asarray(stage.dataobj))
        assert np.array_equal(ours.affine, stage.affine)


@pytest.fixture
def segmented(monkeypatch):
    """The names of the scans that are segmented from now on."""
    names, segment = [], model.Model.segment
    monkeypatch.setattr(
        model.Model,
        "segment",
        lambda m, v, name, c=None: names.append(name) or segment(m, v, name, c),
    )
    return names


def test_an_interrupted_folder_goes_on_and_ends_as_if_it_had_not_been(
    finished, tmp_path, segmented
):
    scans, whole, out = (
        write_scans(finished, tmp_path / "scans"),
        tmp_path / "whole",
        tmp_path / "out",
    )
    expected = predict_to(finished, scans, whole)
    (scans / "case-4.nii").rename(tmp_path / "case-4.nii")
    predict_to(finished, scans, out)
    (tmp_path / "case-4.nii").rename(scans / "case-4.nii")
    for note in (out / ".journal-of-sacl").glob("*.jsonl"):
        note.write_bytes(note.read_bytes() + b'\n{"case": "case-4", "e')
    (out / "statistics.csv").unlink()
    segmented.clear()
    again = predict_to(finished, scans, out)
    assert segmented == ["case-4.nii"]
    assert again.doubts == expected.doubts
    for name in ("case-3.nii.gz", "case-4.nii.gz", "statistics.csv", "previews/case-3.png"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    segmented.clear()
    predict_to(finished, scans, out)
    assert segmented == []


def contents(folder):
    """Return what lies in a folder for others, by name."""
    paths = (path for path in folder.glob("**/*") if path.is_file())
    by_name = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    return {name: content for name, content in by_name.items() if "/." not in f"/{name}"}


def many_scans(folder):
    """Write small scans of many names, and one that is bad."""
    folder.mkdir()
    for n in range(5):
        (folder / f"scan-{n}.nii").write_bytes(write_scan(folder / "x.nii", n).read_bytes())
    nibabel.save(nibabel.Nifti1Image(np.zeros((9, 9, 4), np.int16), np.eye(4)), folder / "bad.nii")
    (folder / "x.nii").unlink()
    return folder


def test_all_workers_and_shards_make_the_same_folder(tmp_path, capsys):
    scans = many_scans(tmp_path / "scans")
    model = load_model(write_tiny_model(tmp_path / "tiny.sacl"), device="cpu")
    whole = predict_folder(model, scans, tmp_path / "1", engine=Engine(workers=1))
    assert len(whole.written) == 5
    assert list(whole.failures) == ["bad.nii"]
    expected = contents(tmp_path / "1")
    assert expected["statistics.csv"].count(b"\n") == 11
    predict_folder(model, scans, tmp_path / "2", engine=Engine(workers=2))
    assert contents(tmp_path / "2") == expected
    for count in 2, 3, 7:
        out = tmp_path / f"of-{count}"
        for number in range(count, 0, -1):
            predict_folder(model, scans, out, engine=Engine(shard=Shard(number, count)))
        assert contents(out) == expected
    assert "has none of 6 scans" in capsys.readouterr().err


def test_a_worker_loads_its_own_model(tmp_path):
    path = write_tiny_model(tmp_path / "tiny.sacl")
    model = load_model(path, device="cpu", copies=2)
    pickled = pickle.dumps(model)
    assert len(pickled) < 1000
    again = pickle.loads(pickled)
    assert again.fingerprint == model.fingerprint != load_model(path, device="cpu").fingerprint


def test_what_is_made_of_something_else_is_made_again(finished, tmp_path, segmented):
    scans, out = write_scans(finished, tmp_path / "scans"), tmp_path / "out"
    predict_to(finished, scans, out)
    segmented.clear()
    image = nibabel.load(scans / "case-3.nii")
    voxels = np.asarray(image.dataobj).copy()
    voxels[0, 0, 0] += 1
    nibabel.save(nibabel.Nifti1Image(voxels, image.affine), scans / "case-3.nii")
    predict_to(finished, scans, out)
    assert segmented == ["case-3.nii"]
    (out / "previews" / "case-4.png").unlink()
    predict_to(finished, scans, out)
    assert segmented == ["case-3.nii", "case-4.nii"]
    predict_to(finished, scans, out, copies=1)
    predict_to(finished, scans, out, copies=1, force=True)
    assert segmented[2:] == ["case-3.nii", "case-4.nii"] * 2


def test_one_scan_can_be_chosen(finished, tmp_path):
    scans = write_scans(finished, tmp_path / "scans")
    predicted = predict_to(finished, scans / "case-4.nii", tmp_path / "out")
    assert [path.name for path in predicted.written] == ["case-4.nii.gz"]


def test_a_scan_is_never_overwritten(finished, tmp_path):
    scans = write_scans(finished, tmp_path / "scans")
    volume = nibabel.load(scans / "case-3.nii")
    nibabel.save(volume, scans / "packed.nii.gz")
    with pytest.raises(ConfigError, match=r"packed\.nii\.gz would overwrite the scan"):
        predict_to(finished, scans, scans)


def test_an_empty_folder_is_one_line(finished, tmp_path):
    with pytest.raises(DataError, match="no scan; expected NIfTI"):
        predict_to(finished, tmp_path, tmp_path / "out")


def test_two_scans_of_one_name_are_one_line(finished, tmp_path):
    scans = write_scans(finished, tmp_path / "scans")
    nibabel.save(nibabel.load(scans / "case-3.nii"), scans / "case-3.nii.gz")
    with pytest.raises(DataError, match=r"case-3\.nii and case-3\.nii\.gz differ only"):
        predict_to(finished, scans, tmp_path / "out")


def test_a_damaged_header_is_said_first_and_the_others_are_done(finished, tmp_path, capsys):
    scans = write_scans(finished, tmp_path / "scans")
    (scans / "damaged.nii").write_bytes(b"not a scan")
    predicted = predict_to(finished, scans, tmp_path / "out")
    assert len(predicted.written) == 2
    assert list(predicted.failures) == ["damaged.nii"]
    assert capsys.readouterr().err.startswith("  left out: damaged.nii: not a readable NIfTI")
    with pytest.raises(DataError, match=r"no label map of 1 of 3 scans: damaged\.nii: .*are done"):
        predicted.require_all()
    for path in scans.glob("case*"):
        path.unlink()
    with pytest.raises(DataError, match=r"^damaged"):
        predict_to(finished, scans, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_scan_with_bad_voxels_is_left_out_and_told(finished, tmp_path, capsys):
    scans = write_scans(finished, tmp_path / "scans")
    constant = nibabel.Nifti1Image(np.zeros(SHAPE, np.int16), NATIVE)
    nibabel.save(constant, scans / "case-0.nii")
    predicted = predict_to(finished, scans, tmp_path / "out")
    assert "constant image" in predicted.failures["case-0.nii"]
    err = capsys.readouterr().err
    assert "left out: case-0.nii: constant image" in err
    assert "predict: 2 label maps written to " in err
    assert "; 1 left out" in err
    written = sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz"))
    assert written == ["case-3.nii.gz", "case-4.nii.gz"]


def predict_to(finished, scans, out, maps=None, force=False, extras=None, **more):
    """Predict with the run's coarse maps."""
    maps = maps or finished.folder("locate") / "maps"
    model = load_model(finished.root, device="cpu", **more)
    return predict_folder(model, scans, out, coarse=maps, force=force, extras=extras)


def test_copies_and_cleaning_are_those_of_the_run_unless_told_otherwise(
    finished, tmp_path, monkeypatch
):
    workspace, used = copy_of(finished, tmp_path / "work"), []
    write_recipe(workspace.folder("predict"), MapRecipe(2, 0.3, ("spleen",)))
    real = model.predict_volume

    def remember(predictor, *rest):
        used.append(predictor.recipe)
        return real(predictor, *rest)

    monkeypatch.setattr(model, "predict_volume", remember)
    scan = write_scans(finished, tmp_path / "scans") / "case-4.nii"
    predict_to(workspace, scan, tmp_path / "a")
    predict_to(workspace, scan, tmp_path / "b", copies=0)
    assert used == [MapRecipe(2, 0.3, ("spleen",)), MapRecipe(0, 0.3, ("spleen",))]


def test_the_channel_suffix_of_nnunet_is_no_part_of_a_case(finished, tmp_path):
    scans = write_scans(finished, tmp_path / "scans")
    for name in ("case-3", "case-4"):
        (scans / f"{name}.nii").rename(scans / f"{name}_0000.nii")
    predicted = predict_to(finished, scans, tmp_path / "out")
    assert [path.name for path in predicted.written] == ["case-3.nii.gz", "case-4.nii.gz"]
    one = predict_to(finished, scans / "case-4_0000.nii", tmp_path / "one")
    assert [path.name for path in one.written] == ["case-4.nii.gz"]


def test_label_maps_of_others_are_not_overwritten(finished, tmp_path):
    scans, out = write_scans(finished, tmp_path / "scans"), tmp_path / "out"
    out.mkdir()
    (out / "case-4.nii.gz").write_bytes(b"by hand")
    with pytest.raises(ConfigError, match=r"case-4\.nii\.gz.*--force"):
        predict_to(finished, scans, out)
    assert (out / "case-4.nii.gz").read_bytes() == b"by hand"
    assert not (out / "case-3.nii.gz").exists()
    assert len(predict_to(finished, scans, out, force=True).written) == 2
    (out / ".partial-99-case-4.nii.gz").write_bytes(b"of a killed process")
    (out / ".partial-99-other.nii.gz").write_bytes(b"of nobody")
    assert len(predict_to(finished, scans, out).written) == 2, "our own maps are replaced"
    assert [path.name for path in out.glob(".partial-*")] == [".partial-99-other.nii.gz"]


def test_a_link_that_leads_to_itself_is_one_line(finished, tmp_path):
    scans = write_scans(finished, tmp_path / "scans")
    (scans / "loop.nii.gz").symlink_to(scans / "loop.nii.gz")
    assert list(predict_to(finished, scans, tmp_path / "out").failures) == ["loop.nii.gz"]


def test_a_scan_unlike_those_of_the_training_is_in_doubt(finished, tmp_path, capsys):
    scans = write_scans(finished, tmp_path / "scans")
    image = nibabel.load(scans / "case-4.nii")
    coarser = np.asarray(image.dataobj)
    nibabel.save(
        nibabel.Nifti1Image(coarser + np.int16(3000), image.affine @ np.diag([5, 5, 1, 1])),
        scans / "odd.nii",
    )
    (scans / "case-4.nii").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Predictor, "needs_coarse", False)
        patch.setattr(model.Member, "see", lambda _, volume, *scan: (volume, (0, 1), None))
        patch.setattr(model, "predict_volume", filled)
        predicted = predict_to(finished, scans, tmp_path / "out")
    assert list(predicted.doubts) == ["case-3.nii", "odd.nii"]
    assert predicted.doubts["case-3.nii"] == ("organs fill 100% of the scan, expected at most 60%",)
    words = "; ".join(predicted.doubts["odd.nii"])
    assert "is it a CT?" in words
    assert "pixels of 10 mm, trained on 2 mm" in words
    err = capsys.readouterr().err
    assert "in doubt: odd.nii: " in err
    assert "predict: 2 label maps written to " in err
    assert "; 2 in doubt" in err


def test_what_is_odd_in_a_coarse_map_or_its_header_is_said(finished, tmp_path, capsys):
    scans = write_scans(finished, tmp_path / "scans")
    maps = Path(shutil.copytree(finished.folder("locate") / "maps", tmp_path / "maps"))
    image = nibabel.load(maps / "case-4.nii.gz")
    labels = np.asarray(image.dataobj).copy()
    labels[0, 0, 0] = 9
    odd = nibabel.Nifti1Image(labels, image.affine, image.header)
    odd.set_qform(image.affine @ np.diag([1, 1, 2, 1]), code=1)
    nibabel.save(odd, maps / "case-4.nii.gz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "doubts_about", lambda *_: [])
        patch.setattr(Predictor, "needs_coarse", True)
        predicted = predict_to(finished, scans, tmp_path / "out", maps)
    first, second = predicted.doubts["case-4.nii"][:2]
    assert first.startswith("coarse map: ")
    assert "by the sform, which is used" in first
    assert second == "coarse map: label values without a name became background: 9"
    assert f"in doubt: case-4.nii: {first}; {second}" in capsys.readouterr().err
    assert not any("coarse map" in word for word in predicted.doubts.get("case-3.nii", ()))


def filled(predictor, volume, window, coarse):
    """Return a map that is all liver."""
    ones = np.ones(volume.grid.shape, np.uint8)
    return LabelMap(ones, volume.grid, predictor.spec.label_scheme)


def test_the_usual_recipe_is_that_of_the_settings():
    usual = PredictSettings()
    assert MapRecipe(usual.copies, usual.keep_component) == USUAL_RECIPE
