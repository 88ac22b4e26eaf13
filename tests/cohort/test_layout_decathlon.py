"""Several modalities in one file, as the Medical Segmentation Decathlon has them."""

import nibabel as nib
import numpy as np
import pytest
from listed_layout import touch, write_json

from sacl.cohort.layouts.listing import find
from sacl.errors import DataError
from sacl.files.nifti import read_volume
from sacl.geometry import to_native


def test_the_first_is_taken_and_said(tmp_path):
    first = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    for suffix in ("nii.gz", "nii"):
        image = nib.Nifti1Image(np.stack([first, first - 50], axis=-1), np.eye(4))
        (tmp_path / "imagesTr").mkdir(exist_ok=True)
        nib.save(image, tmp_path / f"imagesTr/{suffix[-2:]}.{suffix}")
    touch(tmp_path, "labelsTr/gz.nii.gz", "imagesTr/c.nii.gz")
    training = [
        {"image": "imagesTr/gz.nii.gz", "label": "labelsTr/gz.nii.gz"},
        {"image": "imagesTr/ii.nii"},
    ]
    modalities = {"0": "T2", "1": "ADC"}
    labels = {"1": "prostate"}
    write_json(tmp_path, {"modality": modalities, "labels": labels, "training": training})
    found, _ = find(tmp_path)
    assert found.notes == (
        "the first of 2 channels in a file is used, T2",
        "imagesTr: not read c.nii.gz; expected the images that dataset.json lists",
    )
    for case in found.cases:
        volume, native = case.load()
        assert np.array_equal(to_native(volume.voxels, native.grid), first)


def test_several_volumes_in_a_file_are_refused_where_one_modality_is_named(tmp_path):
    image = nib.Nifti1Image(np.zeros((2, 3, 4, 2), np.int16), np.eye(4))
    (tmp_path / "imagesTr").mkdir()
    nib.save(image, tmp_path / "imagesTr/a.nii.gz")
    training = [{"image": "imagesTr/a.nii.gz", "label": None}]
    document = {"modality": {"0": "T2"}, "labels": {"1": "prostate"}, "training": training}
    write_json(tmp_path, document)
    [case] = find(tmp_path)[0].cases
    with pytest.raises(DataError, match="a 4-D image of 2 volumes, expected one"):
        read_volume(case.image)
    assert case.load is None
