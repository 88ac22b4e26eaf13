"""Coarse maps of other tools: which files are a case's, and what their values are called."""

from __future__ import annotations

import json
import os

import nibabel
import numpy as np
import pandas as pd
import pytest
from blob_cohort import (
    GRID,
    SCHEME,
    blobs,
    from_folder,
    give_maps,
    give_masks,
    located,
    make_cohort,
)

from sacl.errors import DataError
from sacl.files.atomic import write_text
from sacl.files.nifti import read_label_map, write_label_map, write_volume
from sacl.geometry import canonical_grid
from sacl.prediction.given import read_given_map, survey_maps
from sacl.stages import locate as stage
from sacl.types import Grid, LabelMap, LabelScheme, Volume


def test_maps_of_another_tool_are_matched_by_name_and_not_by_value(tmp_path, capsys):
    workspace = make_cohort(tmp_path / "work")
    give_maps(tmp_path / "theirs", ("skin", "RK", "liver", "Spleen"), values=(4, 2))
    stage.locate(from_folder(tmp_path / "theirs"), workspace)
    for number in range(4):
        path = workspace.folder("locate") / "maps" / f"case{number}.nii.gz"
        assert np.array_equal(read_label_map(path, SCHEME)[0].voxels, blobs(number)[1])
    coverage = pd.read_csv(workspace.folder("locate") / "coverage.csv")
    assert coverage["found"].all()
    assert coverage["dice"].isna().all()
    assert not (workspace.folder("locate") / "networks").exists()
    assert "locate: 0 of 8 organs missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "table"),
    [
        ("labels.json", {"1": "spleen", "7": "right kidney"}),
        ("dataset.json", {"labels": {"background": 0, "spleen": 1, "kidney_right": 7}}),
    ],
)
def test_names_may_stand_in_a_json_beside_the_maps(tmp_path, file, table):
    workspace = make_cohort(tmp_path / "work")
    give_maps(tmp_path / "theirs", None, values=(1, 7))
    write_text(tmp_path / "theirs" / file, json.dumps(table))
    stage.locate(from_folder(tmp_path / "theirs"), workspace)
    path = workspace.folder("locate") / "maps" / "case1.nii.gz"
    assert np.array_equal(read_label_map(path, SCHEME)[0].voxels, blobs(1)[1])


def test_label_values_without_names_are_refused_and_the_remedy_is_told(tmp_path):
    workspace = make_cohort(tmp_path / "work")
    give_maps(tmp_path / "theirs", None)
    with pytest.raises(DataError, match=r"have no names; write them into labels\.json"):
        stage.locate(from_folder(tmp_path / "theirs"), workspace)


def test_maps_without_any_organ_of_the_cohort_are_refused(tmp_path):
    workspace = make_cohort(tmp_path / "work")
    give_maps(tmp_path / "theirs", ("heart", "lung"))
    with pytest.raises(DataError, match=r"none of its labels .* is an organ of the cohort"):
        stage.locate(from_folder(tmp_path / "theirs"), workspace)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no folder .*nowhere; check --from"):
        stage.locate(from_folder(tmp_path / "nowhere"), make_cohort(tmp_path / "work"))


def test_a_map_as_totalsegmentator_writes_it_is_named_by_its_own_table(tmp_path):
    workspace = make_cohort(tmp_path / "work")
    rows = "".join(
        f'<Label Key="{value}" Red="0.5" Green="0.5" Blue="0.0" Alpha="1"><![CDATA[{name}]]>'
        "</Label>\n"
        for value, name in ((2, "kidney_right"), (5, "liver"), (1, "spleen"))
    )
    table = (
        '<?xml version="1.0" encoding="UTF-8"?> <CaretExtension>  <Date><![CDATA[2013-07-14]]>'
        f'</Date>   <VolumeInformation Index="0">   <LabelTable>\n{rows}  </LabelTable>'
        "  <StudyMetaDataLinkSet>  </StudyMetaDataLinkSet>  <VolumeType><![CDATA[Label]]>"
        "</VolumeType>   </VolumeInformation></CaretExtension>\n              "
    )
    (tmp_path / "theirs").mkdir()
    for number in range(4):
        image = nibabel.Nifti1Image(blobs(number)[1], GRID.affine)
        image.header.extensions.append(nibabel.nifti1.Nifti1Extension(0, table.encode()))
        nibabel.save(image, tmp_path / "theirs" / f"case{number}.nii.gz")
    stage.locate(from_folder(tmp_path / "theirs"), workspace)
    assert np.array_equal(located(workspace, 3), blobs(3)[1])


def test_a_folder_of_nnunet_predictions_is_read_and_what_else_lies_in_it_is_not(tmp_path):
    workspace, theirs = make_cohort(tmp_path / "work"), tmp_path / "theirs"
    give_maps(theirs, None, values=(3, 2))
    labels = {"background": 0, "liver": 1, "kidney_right": 2, "spleen": 3}
    write_text(theirs / "dataset.json", json.dumps({"labels": labels, "file_ending": ".nii.gz"}))
    for name in ("plans.json", "predict_from_raw_data_args.json"):
        write_text(theirs / name, "{}")
    for number in range(4):
        np.savez(theirs / f"case{number}.npz", probabilities=np.zeros((4, 2, 2, 2)))
    stage.locate(from_folder(theirs), workspace)
    assert np.array_equal(located(workspace, 0), blobs(0)[1])


@pytest.mark.parametrize(
    "name",
    [
        "{0}/{0}_seg.nii.gz",
        "{0}/{0}_trans.nii.gz",
        "{0}/{0}_myword.nii",
        "{0}_seg.nii.gz",
        "{0}_0000/{0}_0000_seg.nii.gz",
        "{0}/segmentation.nii.gz",
    ],
)
def test_the_names_that_monai_gives_are_found(tmp_path, name):
    workspace, theirs = make_cohort(tmp_path / "work"), tmp_path / "theirs"
    for number in range(4):
        path = theirs / name.format(f"case{number}")
        write_volume(path, Volume(blobs(number)[1].astype(np.int16), GRID))
    write_text(theirs / "labels.json", json.dumps({"1": "spleen", "2": "kidney_right"}))
    stage.locate(from_folder(theirs), workspace)
    assert np.array_equal(located(workspace, 1), blobs(1)[1])


def test_of_monais_image_and_segmentation_the_segmentation_is_taken(tmp_path):
    workspace, theirs = make_cohort(tmp_path / "work"), tmp_path / "theirs"
    give_maps(theirs, SCHEME.names)
    for number in range(4):
        case = theirs / f"case{number}"
        case.mkdir()
        (theirs / f"case{number}.nii.gz").rename(case / f"case{number}_seg.nii.gz")
        write_volume(case / f"case{number}_trans.nii.gz", Volume(blobs(number)[0], GRID))
    stage.locate(from_folder(theirs), workspace)
    assert np.array_equal(located(workspace, 2), blobs(2)[1])


def test_two_files_that_may_be_a_cases_map_are_refused(tmp_path):
    workspace, theirs = make_cohort(tmp_path / "work"), tmp_path / "theirs"
    give_maps(theirs, SCHEME.names)
    (theirs / "case1.nii.gz").rename(theirs / "case1_pred.nii.gz")
    image = Volume(blobs(1)[0], GRID)
    write_volume(theirs / "case1" / "case1_pred.nii.gz", image)
    with pytest.raises(DataError, match=r"case case1: both .* may be its label map; keep one"):
        stage.locate(from_folder(theirs), workspace)


def test_the_anatomy_masks_of_nnssl_are_read(tmp_path):
    workspace, theirs = make_cohort(tmp_path / "work"), tmp_path / "theirs"
    give_maps(theirs / "masks", SCHEME.names)
    images = [
        {
            "name": f"case{number}.nii.gz",
            "image_path": f"images/case{number}.nii.gz",
            "associated_masks": {"anatomy_mask": f"masks/case{number}.nii.gz"},
        }
        for number in range(4)
    ]
    sessions = {"1": {"images": images}}
    document = {"datasets": {"a": {"subjects": {"s": {"sessions": sessions}}}}}
    write_text(theirs / "pretrain_data.json", json.dumps(document))
    settings = from_folder(theirs / "pretrain_data.json")
    before = stage.inputs(settings, workspace)
    stage.locate(settings, workspace)
    assert np.array_equal(located(workspace, 3), blobs(3)[1])
    os.utime(theirs / "masks" / "case2.nii.gz", (1, 1))
    assert stage.inputs(settings, workspace) != before


def test_both_sides_are_merged_where_the_cohort_has_the_whole(tmp_path):
    scheme = LabelScheme("whole", ("kidneys", "spleen"))
    voxels = np.zeros(GRID.shape, np.uint8)
    voxels[1:4, 2:6, 3:8], voxels[9:13, 2:6, 3:8], voxels[15, 15, 10] = 1, 2, 3
    theirs = LabelScheme("theirs", ("kidney_left", "kidney_right", "spleen"))
    write_label_map(tmp_path / "a.nii.gz", LabelMap(voxels, GRID, theirs))
    give_masks(tmp_path, 1, kidney_left=voxels == 1, kidney_right=voxels == 2, spleen=voxels == 3)
    survey = survey_maps(tmp_path, ["a", "case1"], scheme)
    for name in ("a", "case1"):
        found = read_given_map(survey.maps[name], scheme, GRID).label_map.voxels
        assert np.array_equal(found, np.array([0, 1, 1, 2])[voxels])


@pytest.mark.real_data
def test_a_real_totalsegmentator_output_is_read_by_its_table_and_by_its_json(real_data, tmp_path):
    data = real_data / "TotalSegmentator_CT"
    scheme = LabelScheme("some", ("liver", "kidneys", "inferior_vena_cava", "esophagus"))
    image = nibabel.load(data / "segmentation_3mm.nii.gz")
    grid = canonical_grid(Grid(image.shape, image.affine))
    values = {name: int(v) for v, name in json.loads((data / "labels.json").read_text()).items()}
    plain = nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine)
    nibabel.save(plain, tmp_path / "plain.nii.gz")
    write_text(tmp_path / "labels.json", (data / "labels.json").read_text())
    named = survey_maps(data, ["segmentation_3mm"], scheme).maps["segmentation_3mm"]
    beside = survey_maps(tmp_path, ["plain"], scheme).maps["plain"]
    expected = np.zeros(image.shape, np.uint8)
    for label, parts in enumerate(
        [["liver"], ["kidney_left", "kidney_right"], ["inferior_vena_cava"], ["esophagus"]], start=1
    ):
        expected[np.isin(np.asarray(image.dataobj), [values[name] for name in parts])] = label
    for given in (named, beside):
        found = read_given_map(given, scheme, grid).label_map
        assert np.array_equal(found.voxels, expected)
