"""A mask per organ: overlaps, organs that nobody looked for, masks on another grid."""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest

from sacl.cohort.manifest import read_cohort, read_image, read_reference
from sacl.errors import ConfigError, DataError, SaclError
from sacl.run.workspace import Workspace
from sacl.settings import IngestSettings
from sacl.stages.ingest import ingest

LPS = np.diag([-1.5, -1.5, 5.0, 1.0])
LPS[:3, 3] = (90.0, 60.0, -300.0)
SHAPE = (10, 9, 6)


def box(*spans):
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[tuple(slice(*span) for span in spans)] = 1
    return voxels


LIVER = box((0, 6), (0, 6), (0, 6))
GALLBLADDER = box((5, 8), (2, 4), (1, 4))  # 18 voxels, 6 of them in the liver
LEFT, RIGHT = box((8, 10), (0, 2), (0, 3)), box((8, 10), (7, 9), (0, 3))
NOTHING = box((0, 0))
TRUTH = {
    "liver": LIVER,
    "gall_bladder": GALLBLADDER,
    "kidney_left": LEFT,
    "kidney_right": RIGHT,
}


def save(path, voxels, affine=LPS):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)


def atlas(root, masks):
    """Write a scan per case, and the named masks of each."""
    for n, (case, organs) in enumerate(masks.items()):
        voxels = np.random.default_rng(n).normal(40, 200, SHAPE).astype(np.int16)
        save(root / case / "ct.nii.gz", voxels)
        for organ, mask in organs.items():
            save(root / case / "segmentations" / f"{organ}.nii.gz", mask)
    return root


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "work", seed=1)


def ingested(root, workspace, **settings):
    folder = ingest(IngestSettings(data=root, **settings), workspace)
    cohort = read_cohort(folder)
    maps = {c.case_id: read_reference(folder, c, cohort.scheme) for c in cohort.cases}
    results = json.loads((folder / "run.json").read_text())["results"]
    return cohort, maps, results


def test_masks_become_one_label_map_on_the_images_grid(tmp_path, workspace):
    root = atlas(tmp_path / "atlas", {"BDMAP_1": TRUTH})
    cohort, maps, results = ingested(root, workspace)
    case = cohort.cases[0]
    assert cohort.modality == "ct"
    assert cohort.scheme.names == ("gallbladder", "kidney_left", "kidney_right", "liver")
    assert case.annotated == cohort.scheme.names
    volume = read_image(workspace.folder("ingest"), case)
    assert maps["BDMAP_1"].voxels.shape == volume.voxels.shape
    expected = np.select([GALLBLADDER > 0, LEFT > 0, RIGHT > 0, LIVER > 0], [1, 2, 3, 4])
    np.testing.assert_array_equal(maps["BDMAP_1"].voxels, expected[::-1, ::-1])
    assert results["overlaps"] == {"BDMAP_1": {"gallbladder and liver": 6}}


def test_the_rule_of_overlaps_is_a_setting(tmp_path, workspace, capsys):
    root = atlas(tmp_path / "atlas", {"a": TRUTH, "b": {"liver": LIVER}})
    organs = ("liver", "gallbladder")
    _, maps, _ = ingested(root, workspace, organs=organs)
    assert maps["a"].mask("gallbladder").sum() == 18
    assert "masks overlap in 1 scans by 6 voxels, most of all liver and gallbladder by 6; the" in (
        capsys.readouterr().err
    )
    work = Workspace(workspace.root / "first")
    _, maps, results = ingested(root, work, organs=organs, overlap="first")
    assert maps["a"].mask("gallbladder").sum() == 12
    assert maps["a"].mask("liver").sum() == LIVER.sum()
    assert results["overlaps"] == {"a": {"liver and gallbladder": 6}}
    with pytest.raises(DataError, match="case a, the masks of liver and gallbladder overlap in 6"):
        ingested(root, Workspace(workspace.root / "error"), organs=organs, overlap="error")


def test_masks_that_are_not_wanted_are_not_read(tmp_path, workspace):
    root = atlas(tmp_path / "atlas", {"a": TRUTH})
    (root / "a/segmentations/liver.nii.gz").write_text("broken")
    cohort, _, results = ingested(root, workspace, organs=("gallbladder", "kidneys"))
    assert cohort.scheme.names == ("gallbladder", "kidneys")
    assert results["overlaps"] == {}


def test_a_missing_mask_is_not_annotated_and_an_empty_one_is_absent(tmp_path, workspace, capsys):
    root = atlas(
        tmp_path / "atlas",
        {"a": {"liver": LIVER, "spleen": NOTHING}, "b": {"spleen": LEFT}, "c": {}},
    )
    cohort, maps, _ = ingested(root, workspace)
    assert cohort.scheme.names == ("liver", "spleen")
    a, b, c = cohort.cases
    assert (a.annotated, b.annotated, c.annotated) == (("liver", "spleen"), ("spleen",), ())
    assert not maps["a"].mask("spleen").any()
    assert maps["b"].mask("spleen").sum() == LEFT.sum()
    assert c.reference is None
    told = capsys.readouterr().err
    assert "annotated in fewer than all 2 references, and unknown in the others: liver 1" in told


def test_a_kidney_without_the_other_is_neither_trained_nor_background(tmp_path, workspace):
    root = atlas(tmp_path / "atlas", {"a": TRUTH, "b": {"kidney_left": LEFT, "liver": LIVER}})
    cohort, maps, _ = ingested(root, workspace, organs=("liver", "kidneys"))
    assert [case.annotated for case in cohort.cases] == [("liver", "kidneys"), ("liver",)]
    assert maps["a"].mask("kidneys").sum() == LEFT.sum() + RIGHT.sum()
    assert not maps["b"].mask("kidneys").any()


def test_a_scan_in_which_all_masks_are_empty_is_a_labeled_scan(tmp_path, workspace):
    root = atlas(tmp_path / "atlas", {"a": {"liver": LIVER}, "legs": {"liver": NOTHING}})
    cohort, maps, _ = ingested(root, workspace)
    assert [case.case_id for case in cohort.labeled] == ["a", "legs"]
    assert not maps["legs"].voxels.any()


def test_a_scan_without_the_wanted_organs_masks_is_unlabeled(tmp_path, workspace, capsys):
    root = atlas(tmp_path / "atlas", {"a": {"liver": LIVER}, "b": {"spleen": LEFT}})
    cohort, _, results = ingested(root, workspace, organs=("liver",))
    assert [case.case_id for case in cohort.labeled] == ["a"]
    assert results["labeled_subjects"] == ["a"]
    assert "1 references annotate none of the organs" in capsys.readouterr().err


def test_an_organ_that_no_labeled_scan_annotates_is_refused(tmp_path, workspace):
    root = atlas(tmp_path / "atlas", {"a": {"liver": LIVER}, "b": {"spleen": LEFT}})
    order = tmp_path / "order.txt"
    order.write_text("b\na\n")
    with pytest.raises(ConfigError, match="no labeled training scan is annotated for liver"):
        ingested(root, workspace, labeled_order=order, labeled_subjects=1)


def test_a_mask_of_several_values_is_refused(tmp_path, workspace):
    root = atlas(tmp_path / "atlas", {"a": {"liver": LIVER + 2 * GALLBLADDER}})
    with pytest.raises(DataError) as error:
        ingested(root, workspace)
    assert str(error.value) == (
        "case a, mask liver: values [0, 1, 2, 3], expected 0 and one other; this is not a binary"
        " mask"
    )


@pytest.mark.parametrize("name", ["ct.nii.gz", "segmentations/liver.nii.gz"])
def test_a_damaged_file_is_named_with_its_case(tmp_path, workspace, name):
    root = atlas(tmp_path / "atlas", {"s0": {"liver": LIVER}, "s1": {"liver": LIVER}})
    (root / "s1" / name).write_text("broken")
    with pytest.raises(DataError) as error:
        ingested(root, workspace)
    file = name.rpartition("/")[2]
    assert str(error.value).startswith(f"case s1, {file}: not a readable NIfTI file")


def test_a_mask_of_255_is_binary(tmp_path, workspace):
    root = atlas(tmp_path / "atlas", {"a": {"liver": LIVER * 255}})
    _, maps, _ = ingested(root, workspace)
    assert maps["a"].mask("liver").sum() == LIVER.sum()


SHIFTED = LPS.copy()
SHIFTED[0, 3] -= 3.0  # two voxels further to the left


def test_a_mask_on_another_grid_is_refused_with_both_grids_and_the_repair(tmp_path, workspace):
    root = atlas(tmp_path / "atlas", {"a": {"liver": LIVER}})
    save(root / "a/segmentations/liver.nii.gz", LIVER, SHIFTED)
    with pytest.raises(SaclError) as error:
        ingested(root, workspace)
    message = str(error.value)
    assert message.startswith("case a, mask liver: image and label map lie on different grids")
    assert message.count("10 x 9 x 6 voxels of 1.5 x 1.5 x 5 mm at") == 2
    assert "repair_grid nearest" in message
    assert "\n" not in message


def test_a_mask_on_another_grid_is_resampled_aloud_where_it_may_be(tmp_path, workspace, capsys):
    root = atlas(tmp_path / "atlas", {"a": {"liver": LIVER, "spleen": LEFT}})
    save(root / "a/segmentations/liver.nii.gz", LIVER, SHIFTED)
    _, maps, results = ingested(root, workspace, repair_grid="nearest")
    # Voxel i of the mask lies where voxel i + 2 of the image does.
    expected = np.zeros(SHAPE, np.bool_)
    expected[2:8] = LIVER[:6] > 0
    expected &= LEFT == 0
    np.testing.assert_array_equal(maps["a"].mask("liver"), expected[::-1, ::-1])
    told = capsys.readouterr().err
    assert "case a: label map resampled by nearest neighbor onto the image's grid (liver:" in told
    assert "first voxels 3 mm apart" in results["repaired_grids"]["a"]
    assert "2.43 ml became 2.43 ml" in results["repaired_grids"]["a"]
    assert "20.0% of the image lie outside of it" in results["repaired_grids"]["a"]
    assert "spleen" not in results["repaired_grids"]["a"]


def test_a_label_map_that_lies_elsewhere_is_not_repaired(tmp_path, workspace):
    root = atlas(tmp_path / "atlas", {"a": {"liver": LIVER}})
    away = LPS.copy()
    away[2, 3] = 900.0
    save(root / "a/segmentations/liver.nii.gz", LIVER, away)
    with pytest.raises(DataError, match="the label map lies outside of the image"):
        ingested(root, workspace, repair_grid="nearest")


def test_ct_and_mr_in_one_folder_need_a_choice(tmp_path, workspace, capsys):
    root = atlas(tmp_path / "atlas", {"a": {"liver": LIVER}, "b": {"liver": LIVER}})
    save(root / "m/mri.nii.gz", np.random.default_rng(5).integers(0, 99, SHAPE).astype(np.int16))
    save(root / "m/segmentations/liver.nii.gz", LIVER)
    with pytest.raises(ConfigError, match="atlas has 2 CT and 1 MR scans"):
        ingested(root, workspace)
    cohort, _, _ = ingested(root, workspace, modality="mr")
    assert (cohort.modality, [case.case_id for case in cohort.cases]) == ("mr", ["m"])
    assert "1 MR scans are kept, 2 left out" in capsys.readouterr().err


@pytest.mark.real_data
def test_masks_of_a_real_ct_give_the_label_map_they_were_cut_from(real_data, tmp_path):
    source = real_data / "TotalSegmentator_CT"
    named = json.loads((source / "labels.json").read_text())
    values = {name: int(value) for value, name in named.items()}
    organs = ("spleen", "kidney_right", "kidney_left", "liver", "aorta", "vertebrae_L1")
    whole = nibabel.load(source / "segmentation_3mm.nii.gz")
    labels = np.asarray(whole.dataobj)
    folder = tmp_path / "atlas" / "s0000"
    for organ in organs:
        save(
            folder / f"segmentations/{organ}.nii.gz",
            np.uint8(labels == values[organ]),
            whole.affine,
        )
    (folder / "ct.nii.gz").symlink_to(source / "ct_3mm.nii.gz")
    rows = f"case_id,image,label\ns0000,{source}/ct_3mm.nii.gz,{source}/segmentation_3mm.nii.gz\n"
    (tmp_path / "cohort.csv").write_text(rows)
    (tmp_path / "labels.json").write_text(json.dumps(values))
    read = [
        ingested(data, Workspace(tmp_path / f"work-{data.stem}"), organs=organs)[1]["s0000"]
        for data in (tmp_path / "atlas", tmp_path / "cohort.csv")
    ]
    assert read[0].scheme.names[-1] == "vertebrae_l1"
    assert set(np.unique(read[0].voxels)) == set(range(7))
    np.testing.assert_array_equal(read[0].voxels, read[1].voxels)
