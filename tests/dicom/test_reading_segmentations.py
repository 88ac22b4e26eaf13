"""Segmentations of other programs are read, or refused in one line."""

import highdicom
import numpy as np
import pydicom
import pytest
from plain_series import Layout, make_series

from sacl.dicom.segmentation import (
    read_segmentation,
    segment_names,
    write_segmentation,
)
from sacl.errors import DataError
from sacl.types import Grid

LAYOUT = Layout(7, 5, 6)
ORGANS = ("liver", "spleen")


@pytest.fixture
def label_map():
    native = np.zeros((7, 5, 6), np.uint8)
    native[1:3, 1:4, 2:5] = 1
    native[4:6, 1:4, 2] = native[4:6, 1:4, 4] = 2
    return LAYOUT.label_map(native, ORGANS)


@pytest.fixture
def path(tmp_path, label_map):
    write_segmentation(tmp_path / "a.dcm", label_map, make_series(LAYOUT), "r")
    return tmp_path / "a.dcm"


def changed(path, change):
    result = pydicom.dcmread(path)
    change(result)
    result.save_as(path)
    return path


def test_frames_far_apart_leave_empty_slices_between_them(path, label_map):
    def keep_the_ends(result):
        keep = [0, 2]  # frames of the liver on slices 2 and 4
        frames = result.pixel_array[keep]
        result.PerFrameFunctionalGroupsSequence = [
            result.PerFrameFunctionalGroupsSequence[n] for n in keep
        ]
        result.NumberOfFrames = 2
        result.PixelData = pydicom.pixels.pack_bits(frames.ravel())

    read = read_segmentation(changed(path, keep_the_ends), label_map.grid)
    expected = np.where(label_map.voxels == 1, 1, 0)
    expected[:, :, 3] = 0
    np.testing.assert_array_equal(read.voxels, expected)


def test_a_tilted_stack_is_read_on_the_grid_of_its_scan(tmp_path):
    layout = Layout(7, 5, 6, tilt=0.3)
    label_map = layout.label_map(np.ones((7, 5, 6), np.uint8), ORGANS)
    write_segmentation(tmp_path / "a.dcm", label_map, make_series(layout), "r")
    assert segment_names(tmp_path / "a.dcm") == ORGANS
    read = read_segmentation(tmp_path / "a.dcm", label_map.grid)
    np.testing.assert_array_equal(read.voxels, label_map.voxels)


def test_lies_on_a_grid_that_reaches_further_or_less_far(path, label_map):
    affine = label_map.grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [1, -1, 1]
    read = read_segmentation(path, Grid((5, 7, 6), affine))
    expected = np.zeros((5, 7, 6), np.uint8)
    expected[:, 1:6, :5] = label_map.voxels[1:6, :, 1:]
    np.testing.assert_array_equal(read.voxels, expected)


def test_refuses_a_grid_that_cuts_an_organ(path, label_map):
    affine = label_map.grid.affine.copy()
    affine[:3, 3] += 3 * affine[:3, 2]
    with pytest.raises(DataError, match=r"a.dcm: organs reach beyond the scan"):
        read_segmentation(path, Grid((7, 5, 3), affine))


def test_refuses_a_grid_between_the_voxels(path, label_map):
    affine = label_map.grid.affine.copy()
    affine[:3, 3] += 0.5 * affine[:3, 0]
    with pytest.raises(DataError, match=r"a.dcm: a frame of .* does not lie on the scan's voxels"):
        read_segmentation(path, Grid((7, 5, 6), affine))


def test_segment_numbers_with_gaps_become_labels_in_their_order(tmp_path, label_map):
    write_segmentation(tmp_path / "a.dcm", label_map, make_series(LAYOUT), "r", "LABELMAP")

    def renumber(result):
        frames = np.array([0, 40, 7], np.uint8)[result.pixel_array]
        for segment in result.SegmentSequence:
            segment.SegmentNumber = [0, 40, 7][segment.SegmentNumber]
        result.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        result.PixelData = frames.tobytes()
        result["PixelData"].VR = "OB"
        result["PixelData"].is_undefined_length = False

    read = read_segmentation(changed(tmp_path / "a.dcm", renumber), label_map.grid)
    assert read.scheme.names == ("spleen", "liver")
    np.testing.assert_array_equal(read.voxels, np.array([0, 2, 1])[label_map.voxels])


def fractional(result):
    result.SegmentationType = "FRACTIONAL"


def twins(result):
    result.SegmentSequence[1].SegmentLabel = "liver"


def undescribed(result):
    result.SegmentSequence = result.SegmentSequence[:1]


def moved_frame(result):
    last = result.PerFrameFunctionalGroupsSequence[-1].PlanePositionSequence[0]
    last.ImagePositionPatient = [1, 2, 3]


def no_segments(result):
    del result.SegmentSequence


def cut_short(result):
    result.PixelData = result.PixelData[:4]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (fractional, "a FRACTIONAL one; give a segmentation of type BINARY or LABELMAP"),
        (twins, "an organ is named twice"),
        (undescribed, "not a readable DICOM segmentation"),
        (moved_frame, "does not lie on the scan's voxels"),
        (no_segments, "no DICOM segmentation"),
        (cut_short, "not a readable DICOM segmentation"),
    ],
)
def test_refuses_in_one_line_what_is_no_label_map(path, label_map, change, told):
    with pytest.raises(DataError, match=told) as error:
        read_segmentation(changed(path, change), label_map.grid)
    assert "\n" not in str(error.value)
    assert str(path.parent) not in str(error.value)


def test_refuses_other_files(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"no DICOM at all" * 20)
    for name in ("a.dcm", "missing.dcm"):
        with pytest.raises(DataError, match=f"^{name}"):
            read_segmentation(tmp_path / name, LAYOUT.grid)


def test_refuses_segments_that_overlap(tmp_path):
    masks = np.zeros((6, 5, 7, 2), np.uint8)
    masks[:, 1:4, 1:4, 0] = masks[:, 1:4, 3:5, 1] = 1
    algorithm = highdicom.AlgorithmIdentificationSequence(
        "other", pydicom.sr.codedict.codes.DCM.ArtificialIntelligence, "1"
    )
    tissue = pydicom.sr.codedict.codes.SCT.Tissue
    result = highdicom.seg.Segmentation(
        source_images=make_series(LAYOUT),
        pixel_array=masks,
        segmentation_type="BINARY",
        segment_descriptions=[
            highdicom.seg.SegmentDescription(n, organ, tissue, tissue, "AUTOMATIC", algorithm)
            for n, organ in enumerate(ORGANS, start=1)
        ],
        series_instance_uid=highdicom.UID(),
        series_number=1,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="other",
        manufacturer_model_name="other",
        software_versions="1",
        device_serial_number="1",
    )
    result.save_as(tmp_path / "a.dcm")
    with pytest.raises(DataError, match="3 voxels of a slice are in both liver and spleen"):
        read_segmentation(tmp_path / "a.dcm", LAYOUT.grid)
