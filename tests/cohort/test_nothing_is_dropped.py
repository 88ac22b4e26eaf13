"""A file that is not read is named or refused; what is read twice or in a circle is not hung on."""

from __future__ import annotations

import os
import zipfile

import nibabel
import numpy as np
import pytest
from listed_layout import summary, touch, write_json

from sacl.cohort.label_names import pair_maps
from sacl.cohort.layouts.listing import Sources, find, list_sources, read_source
from sacl.errors import DataError

CT = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}}


def nnunet(root, *names):
    write_json(root, CT)
    touch(root, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz", *names)
    return root


def listed(root):
    return list_sources(Sources((root,)))[0]


def test_endings_in_capitals_are_read(tmp_path):
    root = nnunet(tmp_path, "imagesTr/b_0000.NII.GZ", "labelsTr/b.NII")
    assert summary(find(root)[0])["b"] == ("b_0000.NII.GZ", "b.NII", "train")


@pytest.mark.parametrize("name", ["b.nii.gzip", "b", "b.npy", "b.seg.h5", "b.img", "b.dcm"])
def test_a_label_map_that_is_not_read_is_refused(tmp_path, name):
    root = nnunet(tmp_path, "imagesTr/b_0000.nii.gz", f"labelsTr/{name}")
    with pytest.raises(DataError, match=f"^labelsTr: cannot read {name}, so annotation would"):
        find(root)


def test_a_text_among_label_maps_is_named_and_a_hidden_file_is_not(tmp_path):
    root = nnunet(tmp_path, "labelsTr/README.txt", "labelsTr/.DS_Store", "labelsTr/._a.nii.gz")
    assert find(root)[0].notes == ("labelsTr: not read README.txt",)


def test_images_that_are_not_read_are_named(tmp_path):
    root = nnunet(tmp_path, "imagesTr/b.nii.gz", "imagesTr/c_0000.npy", "imagesTr/a_0001.nii.gz")
    expected = "imagesTr: not read b.nii.gz, c_0000.npy; expected CASE_0000.nii.gz"
    assert find(root)[0].notes == (expected,)


@pytest.mark.parametrize("layout", ["btcv", "flare2021", "amos", "totalsegmentator"])
def test_every_layout_refuses_a_lost_annotation(tmp_path, layout):
    files = {
        "btcv": ("img/img1.nii.gz", "label/label1.nii.gz", "label/label2.npy"),
        "flare2021": ("TrainingImg/a_0000.nii.gz", "TrainingMask/a.nii.gz", "TrainingMask/b.npz"),
        "amos": ("imagesTr/amos_0001.nii.gz", "labelsTr/amos_0001.nii.gz", "labelsTr/amos_2.npy"),
        "totalsegmentator": ("s1/ct.nii.gz", "s1/segmentations/liver.npy"),
    }
    touch(tmp_path, *files[layout])
    with pytest.raises(DataError, match="so annotation would be lost"):
        find(tmp_path, layout)


def test_scans_without_a_label_map_are_named_where_others_have_one(tmp_path):
    root = nnunet(tmp_path, "imagesTr/b_0000.nii.gz", "imagesTr/c_0000.nii.gz")
    assert listed(root).notes[-1] == (
        "2 of 3 training scans have no label map and count as unlabeled: b, c"
    )


def test_a_misspelt_label_map_is_named(tmp_path):
    root = nnunet(tmp_path, "imagesTr/b_0000.nii.gz", "labelsTr/bb.nii.gz")
    with pytest.raises(DataError, match=r"imagesTr: bb.nii.gz has no image"):
        find(root)


def test_a_named_pipe_is_named_and_never_opened(tmp_path):
    root = nnunet(tmp_path)
    os.mkfifo(root / "imagesTr" / "b_0000.nii.gz")
    assert find(root)[0].notes == ("imagesTr: not read b_0000.nii.gz; expected CASE_0000.nii.gz",)
    with pytest.raises(DataError, match="a pipe or device, expected a folder or a file"):
        find(root / "imagesTr" / "b_0000.nii.gz")


def test_a_zip_beside_scans_is_named_and_segmentations_are_no_scans(tmp_path):
    touch(tmp_path, "ct_1.nii.gz", "mask_2.nii.gz", "ct_3_seg.nii.gz", "pelvis.nii.gz")
    zipfile.ZipFile(tmp_path / "series.zip", "w").close()
    dataset, _ = find(tmp_path)
    assert set(summary(dataset)) == {"ct_1", "pelvis"}
    assert "not read series.zip" in dataset.notes[0]
    assert dataset.notes[1].startswith("ct_3_seg.nii.gz, mask_2.nii.gz left out: named like labe")


def test_loose_label_maps_whose_values_have_names_are_paired_by_name(tmp_path):
    touch(tmp_path, "ct_1.nii.gz", "segmentation_1.nii.gz", "ct_2.nii.gz", "seg_3.nii.gz")
    write_json(tmp_path, {"1": "liver"}, "labels.json")
    dataset, _ = find(tmp_path)
    assert summary(dataset) == {
        "ct_1": ("ct_1.nii.gz", "segmentation_1.nii.gz", "train"),
        "ct_2": ("ct_2.nii.gz", None, "train"),
    }
    assert dataset.notes[0].startswith("seg_3.nii.gz left out: named like label maps, but of no")


def test_the_images_of_a_dataset_alone_are_refused(tmp_path):
    root = nnunet(tmp_path)
    with pytest.raises(DataError, match="has a dataset's images but not its label maps"):
        find(root / "imagesTr")
    assert list(summary(find(root / "imagesTr", "folder")[0])) == ["a_0000"]


def test_paths_that_lead_nowhere_are_refused_in_one_line(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(DataError, match="too many levels of symbolic links"):
        find(tmp_path / "loop")
    with pytest.raises(DataError, match="file name too long") as error:
        find(tmp_path / ("n" * 300))
    assert len(str(error.value)) < 200
    with pytest.raises(DataError, match="null"):
        find(tmp_path / "a\0b")


def test_names_that_are_no_text_or_too_long_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / os.fsdecode(b"ct\xff.nii")).touch()
    with pytest.raises(DataError, match=r"the name 'ct\\udcff' is not UTF-8") as error:
        find(tmp_path / "a")
    str(error.value).encode()
    (tmp_path / "cohort.csv").write_text(f"case_id,image\n{'n' * 300},a/x.nii\n")
    (tmp_path / "a" / "x.nii").touch()
    with pytest.raises(DataError, match="has 300 letters, expected 200 at most"):
        find(tmp_path)
    (tmp_path / "cohort.csv").write_text(f"case_id,image\na,{'n' * 300}.nii\n")
    with pytest.raises(DataError, match=r"case a names n{40}\.\.\., but there is no such file"):
        find(tmp_path)


def test_a_zip_of_many_empty_members_is_refused_soon(tmp_path):
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for n in range(20_000):
            archive.writestr(f"{n}.dcm", b"")
    with pytest.raises(DataError):
        find(tmp_path / "many.zip")


def test_maps_of_two_folders_are_paired_by_name_and_none_is_left_out(tmp_path):
    touch(tmp_path, "r/a.nii.gz", "r/b.nii.gz", "p/a_0000.nii.gz", "p/c.nii.gz")
    with pytest.raises(DataError, match=r"p: no label map for 1 references, b; .*--allow-missing"):
        pair_maps(tmp_path / "r", tmp_path / "p")
    (tmp_path / "r" / "b.nii.gz").unlink()
    with pytest.raises(DataError, match="r: no label map for 1 predicted maps, c;"):
        pair_maps(tmp_path / "r", tmp_path / "p")
    pairs = pair_maps(tmp_path / "r", tmp_path / "p", allow_missing=True)
    assert {name: path.name for name, (_, path) in pairs.items()} == {"a": "a_0000.nii.gz"}


@pytest.mark.parametrize("change", ["image", "label", "time", "table", "added", "moved", "labels"])
def test_a_change_of_anything_that_is_read_changes_the_fingerprint(tmp_path, change):
    root = tmp_path / "data"
    touch(root, "ct/a.nii", "ct/b.nii", "maps/a.nii")
    save = nibabel.Nifti1Image(np.ones((2, 2, 2), np.uint8), np.eye(4))
    nibabel.save(save, root / "maps/a.nii")
    (root / "cohort.csv").write_text("case_id,image,label\na,ct/a.nii,maps/a.nii\n")
    (root / "labels.json").write_text('{"liver": 1}')
    before = fingerprint(root)
    assert fingerprint(root) == before
    os.utime(root / "cohort.csv", ns=(1, 1))
    assert fingerprint(root) == before
    (root / "unrelated.txt").write_text("read by nobody")
    assert fingerprint(root) == before
    if change == "image":
        (root / "ct/a.nii").write_text("changed")
    elif change == "label":
        (root / "maps/a.nii").write_bytes((root / "maps/a.nii").read_bytes() + b"1")
    elif change == "time":
        os.utime(root / "ct/a.nii", ns=(1, 1))
    elif change == "labels":
        (root / "labels.json").write_text('{"spleen": 1}')
    else:
        image = {"moved": "ct2/a.nii"}.get(change, "ct/a.nii")
        phase = {"table": ",phase"}.get(change, "")
        (root / "ct").rename(root / image.split("/")[0])
        rows = f"case_id,image,label{phase}\na,{image},maps/a.nii{phase and ',native'}\n"
        rows += "b,ct/b.nii,\n" if change == "added" else ""
        (root / "cohort.csv").write_text(rows)
    assert fingerprint(root) != before


def test_symlinked_folders_are_followed_and_folders_count(tmp_path):
    root = nnunet(tmp_path / "data", "imagesTs/t_0000.nii.gz")
    (root / "imagesTr").rename(tmp_path / "elsewhere")
    (root / "imagesTr").symlink_to(tmp_path / "elsewhere")
    before = fingerprint(root)
    touch(tmp_path, "elsewhere/new_0000.nii.gz")
    added = fingerprint(root)
    (root / "imagesTs").rename(root / "imagesVa")
    assert len({before, added, fingerprint(root)}) == 3


def fingerprint(root):
    sources = Sources((root,))
    return read_source(root, sources)[0].fingerprint(root)
