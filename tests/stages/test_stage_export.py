import gzip
import json

import nibabel
import numpy as np
import pytest
from fake_work import fake_work

from sacl.cli import main
from sacl.cohort.layouts.listing import find
from sacl.cohort.layouts.nnssl import anatomy_masks
from sacl.cohort.manifest import read_cohort
from sacl.errors import ConfigError, DataError, WorkspaceError
from sacl.files.nifti import read_label_table
from sacl.stages import export as stage
from sacl.stages.export import export, export_folder


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return fake_work(tmp_path_factory.mktemp("work"))


def test_a_run_is_exported_as_it_was_predicted(work, tmp_path):
    done = export(work, tmp_path / "out")
    source = sorted((work.folder("predict") / "semantic").iterdir())
    assert (done.scans, done.written) == (len(source), len(source))
    for path in source:
        a, b = nibabel.load(path), nibabel.load(tmp_path / "out" / path.name)
        assert a.header.binaryblock == b.header.binaryblock
        assert np.array_equal(np.asarray(a.dataobj), np.asarray(b.dataobj))
    table = read_label_table(tmp_path / "out" / source[0].name)
    assert table == {"liver": 1, "spleen": 2, "gallbladder": 3}


def test_a_run_of_other_files_than_dicom_is_not_asked_for_its_key(work, tmp_path):
    for sources in ([], [tmp_path]):
        with pytest.raises(ConfigError, match=r"not ingested from DICOM.*use --form nifti"):
            export(work, tmp_path / "out", "rtstruct", sources=sources)


def test_masks_per_organ_add_up_to_the_label_map(work, tmp_path):
    export(work, tmp_path / "out", "nifti-per-organ")
    for path in (work.folder("predict") / "semantic").iterdir():
        whole = nibabel.load(path)
        masks = tmp_path / "out" / path.name.removesuffix(".nii.gz")
        assert sorted(p.name for p in masks.iterdir()) == [
            "gallbladder.nii.gz",
            "liver.nii.gz",
            "spleen.nii.gz",
        ]
        for value, organ in enumerate(("liver", "spleen", "gallbladder"), start=1):
            mask = nibabel.load(masks / f"{organ}.nii.gz")
            assert np.array_equal(np.asarray(mask.dataobj) == 1, np.asarray(whole.dataobj) == value)
            assert set(np.unique(mask.dataobj)) <= {0, 1}
            assert np.array_equal(mask.affine, whole.affine)


def test_the_splits_are_chosen(work, tmp_path):
    done = export(work, tmp_path / "out", splits=("test",))
    names = sorted(p.name for p in (tmp_path / "out").glob("*.nii.gz"))
    assert names == [f"subject-0{n}-a.nii.gz" for n in (4, 5, 6, 7)]
    assert done.scans == 4
    expected = nibabel.load(work.folder("predict") / "semantic" / names[0])
    found = nibabel.load(tmp_path / "out" / names[0])
    assert np.array_equal(np.asarray(expected.dataobj), np.asarray(found.dataobj))


def test_scans_without_a_prediction_are_counted(tmp_path, capsys):
    work = fake_work(tmp_path / "work")
    maps = sorted((work.folder("predict") / "semantic").glob("*.nii.gz"))
    maps[0].unlink()
    assert export(work, tmp_path / "out").scans == len(maps) - 1
    assert "1 scans have no prediction by semantic" in capsys.readouterr().err


def test_an_interrupted_export_goes_on_where_it_stopped(work, tmp_path):
    out = tmp_path / "out"
    export(work, out)
    kept, lost = sorted(out.glob("*.nii.gz"))[:2]
    before = kept.stat().st_mtime_ns
    lost.unlink()
    assert export(work, out).written == 1
    assert kept.stat().st_mtime_ns == before
    assert lost.is_file()
    assert export(work, out, force=True).written == len([*out.glob("*.nii.gz")])


def test_an_export_that_fails_leaves_no_half_folder(work, tmp_path, monkeypatch):
    from sacl.export import forms

    whole = forms.write_label_map

    def full_disk(path, *rest):
        if path.name == "spleen.nii.gz":
            raise OSError(28, "No space left on device")
        whole(path, *rest)

    monkeypatch.setattr(forms, "write_label_map", full_disk)
    with pytest.raises(OSError, match="No space"):
        export(work, tmp_path / "out", "nifti-per-organ")
    assert not [p for p in (tmp_path / "out").glob("*") if not p.name.startswith(".")]
    monkeypatch.undo()
    (tmp_path / "out" / ".partial-gone").mkdir(parents=True)  # of a killed process
    (tmp_path / "out" / ".partial-99-export.json").touch()
    export(work, tmp_path / "out", "nifti-per-organ")
    assert not list((tmp_path / "out").glob(".partial*"))


def test_a_folder_with_something_else_is_not_written_over(work, tmp_path):
    out = tmp_path / "out"
    export(work, out)
    with pytest.raises(ConfigError, match="holds another export, with other splits"):
        export(work, out, splits=("test",))
    export(work, out, splits=("test",), force=True)
    assert json.loads((out / "export.json").read_text())["origin"]["splits"] == ["test"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "subject-04-a.nii.gz").touch()
    for force in (False, True):
        with pytest.raises(
            ConfigError, match=r"holds subject-04-a\.nii\.gz, which no export wrote"
        ):
            export(work, tmp_path / "mine", force=force)


def test_an_export_that_wrote_nothing_leaves_nothing(work, tmp_path, monkeypatch):
    from sacl.export import forms

    def no_room(path, *rest):
        raise DataError(f"{path.name}: cannot be written")

    monkeypatch.setattr(forms, "write_label_map", no_room)
    with pytest.raises(DataError, match="cannot be written"):
        export(work, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_failed_export_does_not_refuse_the_corrected_call(work, tmp_path, monkeypatch):
    from sacl.cohort.layouts import nnssl

    out = tmp_path / "out"
    whole = nnssl.write_text

    def no_room(path, *rest):
        raise DataError(f"{path.name}: cannot be written")

    monkeypatch.setattr(nnssl, "write_text", no_room)
    with pytest.raises(DataError, match="cannot be written"):
        export(work, out, "nnssl")
    assert json.loads((out / "export.json").read_text())["state"] == "failed"
    monkeypatch.setattr(nnssl, "write_text", whole)
    (out / "notes.txt").write_text("mine")
    splits = ("train", "test")
    assert export(work, out, "nnssl", splits=splits).files == ("pretrain_data.json",)
    assert (out / "notes.txt").read_text() == "mine"
    with pytest.raises(ConfigError, match="holds another export, with other splits"):
        export(work, out, "nnssl")


def test_force_removes_what_the_other_export_wrote_and_nothing_else(work, tmp_path):
    out = tmp_path / "out"
    export(work, out)
    (out / "mine.nii.gz").write_bytes(b"a manual label map")
    export(work, out, "nifti-per-organ", splits=("test",), force=True)
    kept = sorted(path.name for path in out.iterdir())
    assert kept == [
        "export.json",
        "mine.nii.gz",
        *(f"subject-0{n}-a" for n in (4, 5, 6, 7)),
    ]
    assert (out / "mine.nii.gz").read_bytes() == b"a manual label map"


def test_a_file_that_no_export_wrote_is_not_taken_for_one(work, tmp_path):
    out = tmp_path / "out"
    export(work, out, splits=("train",))
    (out / "subject-04-a.nii.gz").write_bytes(b"a manual label map")
    for force in (False, True):
        with pytest.raises(ConfigError, match="holds"):
            export(work, out, splits=("test",), force=force)
    assert (out / "subject-04-a.nii.gz").read_bytes() == b"a manual label map"


def test_an_interrupted_export_of_something_else_is_kept(work, tmp_path, monkeypatch):
    from sacl.export import forms

    out, whole = tmp_path / "out", forms.write_label_map

    def interrupted(path, *rest):
        if path.name.startswith("subject-05"):
            raise KeyboardInterrupt
        whole(path, *rest)

    monkeypatch.setattr(forms, "write_label_map", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(work, out)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="holds another export, with other form"):
        export(work, out, "nifti-per-organ")
    done = export(work, out)
    assert 0 < done.written < done.scans


def test_a_folder_that_is_a_file_or_an_older_record_is_refused(work, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--out file: is a file; give a folder"):
        export(work, tmp_path / "file")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "export.json").write_text('{"form": "nifti", "finished": true}')
    with pytest.raises(DataError, match=r"old/export.json: damaged.*; give another folder"):
        export(work, tmp_path / "old")


def test_a_header_that_contradicts_itself_is_told(work, tmp_path, capsys):
    source = work.folder("predict") / "semantic" / "subject-04-a.nii.gz"
    image = nibabel.load(source)
    image.header["pixdim"][3] *= 2
    (tmp_path / "maps").mkdir()
    for name in ("a", "b"):
        raw = bytearray(gzip.decompress(source.read_bytes()))
        raw[88:92] = np.float32(image.header["pixdim"][3]).tobytes()
        (tmp_path / "maps" / f"{name}.nii.gz").write_bytes(gzip.compress(bytes(raw)))
    export_folder(tmp_path / "maps", tmp_path / "out")
    told = capsys.readouterr().err
    assert "case a: the spacing is 7 x 7 x 14 mm by the sform" in told
    assert "; 1 more scans likewise" in told


def test_two_files_of_one_case_are_not_merged(work, tmp_path):
    source = work.folder("predict") / "semantic" / "subject-04-a.nii.gz"
    (tmp_path / "maps").mkdir()
    for name in ("a.nii", "a.nii.gz"):
        (tmp_path / "maps" / name).write_bytes(source.read_bytes())
    with pytest.raises(DataError, match=r"maps: case a appears twice, a.nii and a.nii.gz"):
        export_folder(tmp_path / "maps", tmp_path / "out")


def test_a_folder_of_label_maps_is_exported_by_the_names_in_it(work, tmp_path):
    source = work.folder("predict") / "semantic"
    done = export_folder(source, tmp_path / "out", "nifti-per-organ")
    assert done.scans == len(list(source.iterdir()))
    assert (tmp_path / "out" / "subject-04-a" / "liver.nii.gz").is_file()
    with pytest.raises(ConfigError, match="this is the folder to export"):
        export_folder(source, source)


def test_nnunet_gets_its_files(work, tmp_path):
    out = tmp_path / "out"
    done = export(work, out, "nnunet", folds=2)
    assert done.files == ("dataset.json", "splits_final.json")
    folds = json.loads((out / "splits_final.json").read_text())
    assert sorted(folds[0]["val"] + folds[1]["val"]) == [f"subject-0{n}-a" for n in (0, 1, 2)]
    dataset = json.loads((out / "dataset.json").read_text())
    assert dataset["numTraining"] == 3


def test_the_cohort_goes_to_nnssl_and_comes_back_with_its_coarse_maps(work, tmp_path):
    out = tmp_path / "out"
    done = export(work, out, "nnssl")
    assert (done.scans, done.files) == (4, ("pretrain_data.json",))
    found, _ = find(out)
    cohort = read_cohort(work.folder("ingest"))
    assert {c.case_id: (c.subject_id, c.scan_labels) for c in found.cases} == {
        c.case_id: (c.subject_id, c.scan_labels) for c in cohort.of_split("train")
    }
    for case in found.cases:
        original = work.folder("ingest") / "images" / f"{case.case_id}.nii"
        assert case.image.read_bytes() == original.read_bytes()
    for case_id, mask in anatomy_masks(out).items():
        coarse = work.folder("locate") / "maps" / f"{case_id}.nii.gz"
        assert mask.read_bytes() == coarse.read_bytes()
    assert len(anatomy_masks(out)) == 4
    assert "subject-05-a" in {c.case_id for c in find(_with_test(work, tmp_path))[0].cases}


def _with_test(work, folder):
    export(work, folder / "more", "nnssl", splits=("train", "test"))
    return folder / "more"


def test_a_folder_of_label_maps_gets_nnunets_dataset_and_no_folds(work, tmp_path):
    source = work.folder("predict") / "semantic"
    assert export_folder(source, tmp_path / "out", "nnunet").files == ("dataset.json",)
    with pytest.raises(ConfigError, match="--form nnssl: needs a run's cohort"):
        export_folder(source, tmp_path / "no", "nnssl")


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"form": "nrrd"}, ConfigError, "--form nrrd: expected one of nifti, "),
        ({"splits": ("tset",)}, ConfigError, "--splits tset: expected one of train"),
        ({"splits": ("validation",)}, DataError, "no prediction for any of 0 scans"),
        ({"form": "nnssl", "splits": ("validation",)}, DataError, "no scan in the splits valid"),
        ({"folds": 1}, ConfigError, "--folds 1: expected 2 or more"),
    ],
)
def test_a_wrong_wish_is_refused_before_anything_is_written(
    work, tmp_path, keywords, error, message
):
    with pytest.raises(error, match=message):
        export(work, tmp_path / "out", **keywords)
    assert not (tmp_path / "out").exists()


def test_the_command_line_takes_a_work_directory_or_a_configuration(work, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["export", str(work.root), "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["form"], told["scans"], told["written"]) == ("nifti", 8, 8)
    config = tmp_path / "run.yaml"
    config.write_text(f"name: fake\nseed: 3\nwork: {work.root}\n")
    assert main(["export", str(config), "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["written"] == 0
    assert str(tmp_path) not in (out / "export.json").read_text()


@pytest.mark.parametrize("words", [[], ["--out", "x"], ["a.yaml"], ["a", "--predicted", "b"]])
def test_the_command_line_says_what_to_give(words, capsys):
    assert main(["export", *words]) == 2
    assert (
        "give --out, and either WORK|CONFIG.yaml|MODEL.sacl or --predicted"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--predicted", "p", "--splits", "test"], "--splits works only with a run"),
        (["--predicted", "p", "--folds", "3"], "--folds works only with a run"),
    ],
)
def test_a_flag_that_would_have_no_effect_is_refused(words, message, capsys):
    assert main(["export", *words, "--out", "x"]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    assert main(["export", str(tmp_path / "empty"), "--out", str(tmp_path / "out")]) == 2
    with pytest.raises(WorkspaceError):
        stage.export(stage.Workspace(tmp_path / "empty"), tmp_path / "out")
