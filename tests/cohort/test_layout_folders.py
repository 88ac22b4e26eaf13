"""Scans and label maps in folders of any names, and label values that nobody names."""

import nibabel as nib
import numpy as np
import pytest
from listed_layout import summary, touch, write_json

from sacl.cohort.annotation import label_of_value
from sacl.cohort.dataset import Dataset, SourceCase
from sacl.cohort.label_names import with_label_names
from sacl.cohort.layouts.listing import find
from sacl.errors import DataError
from sacl.files.label_table import label_table
from sacl.types import LabelScheme


def drawn(root, *names, values=(1,), table=()):
    """Make label maps that hold some values, with a table of names for the values from 1 on."""
    for name in names:
        voxels = np.zeros((4, 4, 4), np.uint8)
        voxels[0, 0, : len(values)] = values
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image = nib.Nifti1Image(voxels, np.eye(4))
        if table:
            image.header.extensions.append(nib.nifti1.Nifti1Extension(0, label_table(table)))
        nib.save(image, root / name)


@pytest.mark.parametrize(
    ("scan", "label", "case_id"),
    [
        ("images/{}.nii.gz", "labels/{}.nii.gz", "{}"),
        ("imagesTr/{}.nii.gz", "labelsTr/{}.nii.gz", "{}"),
        ("img/{}.nii", "mask/{}_mask.nii.gz", "{}"),
        ("scans/{}_0000.nii.gz", "segmentations/{}_seg.nii.gz", "{}"),
        ("case_{}/imaging.nii.gz", "case_{}/segmentation.nii.gz", "case_{}"),
        ("{}/ct.nii.gz", "{}/label.nii.gz", "{}"),
        ("training/p{}/p{}_frame01.nii.gz", "training/p{}/p{}_frame01_gt.nii.gz", "p{}_frame01"),
    ],
)
def test_a_label_map_belongs_to_the_scan_that_is_called_and_lies_alike(
    tmp_path, scan, label, case_id
):
    a, b = scan.replace("{}", "a"), scan.replace("{}", "b")
    touch(tmp_path, a, b)
    drawn(tmp_path, label.replace("{}", "a"), values=(2, 4))
    found, reason = find(tmp_path)
    assert (found.layout, reason) == ("folders", "3 NIfTI files in folders, 1 label map")
    name = label.replace("{}", "a").rpartition("/")[2]
    assert summary(found) == {
        case_id.replace("{}", "a"): (a.rpartition("/")[2], name, "train"),
        case_id.replace("{}", "b"): (b.rpartition("/")[2], None, "train"),
    }
    assert found.organs == {2: "label_2", 4: "label_4"}
    [note] = found.notes
    assert note.startswith("the label values have no names and are called label_2, label_4; write")


def test_names_are_those_of_labels_json_in_the_folder(tmp_path):
    touch(tmp_path, "images/a.nii.gz", "labels/a.nii.gz")
    write_json(tmp_path, {"liver": 1, "spleen": 2}, "labels.json")
    found, _ = find(tmp_path)
    assert (found.organs, found.notes) == ({1: "liver", 2: "spleen"}, ())


def test_a_value_that_only_the_last_of_many_maps_holds_has_a_name(tmp_path):
    for number in range(10):
        touch(tmp_path, f"images/{number}.nii.gz")
        drawn(tmp_path, f"labels/{number}.nii.gz", values=(1, 7) if number == 9 else (1,))
    assert find(tmp_path)[0].organs == {1: "label_1", 7: "label_7"}


def test_tables_in_label_maps_that_agree_are_one(tmp_path):
    touch(tmp_path, "images/a.nii.gz", "images/b.nii.gz", "images/c.nii.gz")
    drawn(tmp_path, "labels/a.nii.gz", table=("liver",))
    drawn(tmp_path, "labels/b.nii.gz", table=("liver", "left kidney"))
    drawn(tmp_path, "labels/c.nii.gz")
    found, _ = find(tmp_path)
    assert (found.organs, found.notes) == ({1: "liver", 2: "left kidney"}, ())
    assert [found.table_of(case) for case in found.cases] == [found.organs] * 3


def test_where_tables_in_label_maps_differ_each_map_is_read_by_its_own(tmp_path):
    touch(tmp_path, "images/a.nii.gz", "images/b.nii.gz", "images/c.nii.gz")
    drawn(tmp_path, "labels/a.nii.gz", table=("liver", "spleen"))
    drawn(tmp_path, "labels/b.nii.gz", table=("spleen", "liver"))
    found, _ = find(tmp_path)
    a, b, _ = found.cases
    assert found.table_of(a) == {1: "liver", 2: "spleen"}
    assert found.table_of(b) == {1: "spleen", 2: "liver"}
    assert a.annotated == b.annotated == ("liver", "spleen")
    assert found.notes[-1].endswith("differ; each map is read by its own")
    scheme = LabelScheme("x", ("liver", "spleen"))
    assert label_of_value(found, b, scheme, ("liver", "spleen")) == {1: 2, 2: 1}
    drawn(tmp_path, "labels/c.nii.gz")
    with pytest.raises(DataError, match=r"^c\.nii\.gz: has no table of label names, and those of"):
        find(tmp_path)


def test_a_name_is_the_same_however_its_letters_are_composed(tmp_path):
    touch(tmp_path, "images/J\u00fcrgen.nii.gz")
    drawn(tmp_path, "labels/Ju\u0308rgen.nii.gz")
    assert [case.has_reference for case in find(tmp_path)[0].cases] == [True]


def test_numbers_in_another_order_are_another_scan(tmp_path):
    touch(tmp_path, "1_2.nii.gz", "2_1.nii.gz")
    drawn(tmp_path, "1_2_seg.nii.gz", "2_1_seg.nii.gz")
    pairs = summary(find(tmp_path)[0])
    assert pairs == {
        "1_2": ("1_2.nii.gz", "1_2_seg.nii.gz", "train"),
        "2_1": ("2_1.nii.gz", "2_1_seg.nii.gz", "train"),
    }


def test_label_maps_below_a_plain_folder_of_scans_are_named_as_not_read(tmp_path):
    touch(tmp_path, "a.nii.gz", "b.nii.gz", "subjects.csv")
    drawn(tmp_path, "labels/a.nii.gz")
    with pytest.raises(DataError, match=r"not read 1 label map .* images, else move these away"):
        find(tmp_path)
    drawn(tmp_path, "b_seg.nii.gz")
    found, _ = find(tmp_path)
    assert found.layout == "folder"
    assert found.notes[0] == (
        "not read 1 label map in folders below, such as labels/a.nii.gz; to read them, move the"
        " scans into a folder images"
    )


def test_folders_say_what_is_held_out(tmp_path):
    touch(tmp_path, "imagesTr/a.nii.gz", "imagesVa/b.nii.gz", "test/images/c.nii.gz")
    drawn(tmp_path, "labelsTr/a.nii.gz", "labelsVa/b.nii.gz")
    splits = {case: split for case, (_, _, split) in summary(find(tmp_path)[0]).items()}
    assert splits == {"a": "train", "b": "validation", "c": "test"}


def test_a_scan_over_time_is_named_and_not_read(tmp_path):
    touch(tmp_path, "p1/p1_4d.nii.gz", "p1/p1_frame01.nii.gz")
    drawn(tmp_path, "p1/p1_frame01_gt.nii.gz")
    found, _ = find(tmp_path)
    assert list(summary(found)) == ["p1_frame01"]
    assert found.notes[0] == "not read p1_4d.nii.gz, a scan over time"


def test_what_a_run_has_left_is_no_data(tmp_path):
    touch(tmp_path, "images/a.nii.gz", "work/1-cohort/images/a.nii", ".hidden/b.nii.gz")
    assert list(summary(find(tmp_path)[0])) == ["a"]


@pytest.mark.parametrize(
    ("scans", "maps", "message"),
    [
        (["p/p_t1.nii.gz", "p/p_t2.nii.gz"], ["p/p_seg.nii.gz"], "no scan is called alike; list"),
        (["images/a.nii.gz"], ["labels/b.nii.gz"], r"labels/b\.nii\.gz: no scan is called alike"),
        (["images/a.nii.gz"], ["gt/a.nii.gz", "seg/a.nii.gz"], "1 scan and 2 label maps are"),
        (["ct/a.nii.gz", "mr/a.nii.gz"], ["labels/a.nii.gz"], "2 scans and 1 label map are"),
    ],
)
def test_what_cannot_be_paired_is_refused(tmp_path, scans, maps, message):
    touch(tmp_path, *scans)
    drawn(tmp_path, *maps)
    with pytest.raises(DataError, match=message):
        find(tmp_path)


def test_label_maps_without_a_label_are_refused(tmp_path):
    drawn(tmp_path, "a.nii.gz", values=())
    case = SourceCase("a", tmp_path / "ct.nii.gz", tmp_path / "a.nii.gz")
    empty = Dataset("table", "t", {}, (case,))
    with pytest.raises(DataError, match="all label maps are empty; draw organs in one"):
        with_label_names(empty, tmp_path / "cohort.csv")


def test_a_split_is_a_word_of_folders_not_of_a_files_name(tmp_path):
    touch(tmp_path, "images/VA_003.nii.gz", "images/test_1.nii.gz")
    assert {split for _, _, split in summary(find(tmp_path)[0]).values()} == {"train"}


def test_a_label_map_that_is_not_read_is_refused_and_an_image_is_named(tmp_path):
    touch(tmp_path, "images/a.nii.gz", "images/b.npy", "images/c.mhd", "images/c.raw")
    drawn(tmp_path, "labels/a.nii.gz")
    assert find(tmp_path)[0].notes[0] == "images: not read b.npy; expected scans and label maps"
    touch(tmp_path, "labels/b.npy")
    with pytest.raises(DataError, match=r"labels: cannot read b\.npy, so annotation would be lost"):
        find(tmp_path)
