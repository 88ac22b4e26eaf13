"""A label map goes out as DICOM SEG and reopens to the same voxels, for us and for others."""

from typing import get_args

import highdicom
import numpy as np
import pydicom
import pytest
from highdicom._standard_utils import check_required_attributes
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_series import AXIAL, SAGITTAL, Layout, make_enhanced, make_series, turned
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from sacl.dicom.segmentation import Kind, read_segmentation, write_segmentation
from sacl.errors import DataError
from sacl.files.label_table import label_color

ORGANS = ("liver", "kidney_left", "the left one of the things")
STORAGE = {
    "BINARY": ("1.2.840.10008.5.1.4.1.1.66.4", ExplicitVRLittleEndian),
    "LABELMAP": ("1.2.840.10008.5.1.4.1.1.66.7", RLELossless),
}
both_kinds = pytest.mark.parametrize("kind", get_args(Kind))


@st.composite
def layouts(draw):
    """Draw how a series lies: any direction, flips, anisotropy, tilted gantry.

    highdicom 0.28 packs single bits wrongly where a frame has fewer than eight pixels.
    """
    angles = draw(st.tuples(*[st.floats(-180, 180)] * 3))
    return Layout(
        *draw(st.tuples(st.integers(3, 6), st.integers(3, 6), st.integers(1, 5))),
        spacing_mm=draw(st.tuples(*[st.floats(0.3, 3)] * 2)),
        axes=turned(angles, draw(st.sampled_from([AXIAL, SAGITTAL]))),
        distance_mm=draw(st.floats(0.5, 8)),
        tilt=draw(st.sampled_from([0.0, 0.3])),
        origin_mm=draw(st.tuples(*[st.floats(-500, 500)] * 3)),
    )


def voxels_of(layout, seed, density=0.5):
    """Return random labels `[column, row, slice]`, some slices and perhaps an organ empty."""
    rng = np.random.default_rng(seed)
    shape = (layout.columns, layout.rows, layout.slices)
    labels = rng.integers(1, len(ORGANS) + 1, shape) * (rng.random(shape) < density)
    return (labels * (rng.random(layout.slices) < 0.7)).astype(np.uint8)


@settings(max_examples=20, deadline=None)
@given(layouts(), st.integers(0, 99), st.sampled_from(get_args(Kind)), st.randoms())
def test_reopens_to_the_same_voxels(tmp_path_factory, layout, seed, kind, random):
    native = voxels_of(layout, seed)
    label_map = layout.label_map(native, ORGANS)
    source = make_series(layout)
    shuffled = random.sample(source, len(source))
    path = tmp_path_factory.mktemp("seg") / "a.dcm"
    write_segmentation(path, label_map, shuffled, "run", kind)

    read = read_segmentation(path, label_map.grid)
    np.testing.assert_array_equal(read.voxels, label_map.voxels)
    assert read.scheme.names == ORGANS

    other = highdicom.seg.segread(path)
    seen = other.get_pixels_by_source_instance(
        [image.SOPInstanceUID for image in source],
        combine_segments=True,
        assert_missing_frames_are_empty=True,
    )
    np.testing.assert_array_equal(seen, native.transpose(2, 1, 0))


@both_kinds
@pytest.mark.parametrize("axes", [AXIAL, SAGITTAL], ids=["axial", "sagittal"])
def test_another_library_sees_each_voxel_at_its_place(tmp_path, kind, axes):
    layout = Layout(6, 5, 4, axes=turned((12, -7, 31), axes))
    native = voxels_of(layout, 1, density=0.9)
    native[:, :, [0, -1]] = 1
    write_segmentation(
        tmp_path / "a.dcm", layout.label_map(native, ORGANS), make_series(layout), "r", kind
    )
    volume = highdicom.seg.segread(tmp_path / "a.dcm").get_volume(combine_segments=True)
    ijk = np.argwhere(native)
    world = (layout.grid.affine @ np.c_[ijk, np.ones(len(ijk))].T)[:3]
    lps = np.diag([-1, -1, 1]) @ world
    index = np.rint(volume.map_reference_to_indices(lps.T)).astype(int)
    np.testing.assert_array_equal(volume.array[tuple(index.T)], native[tuple(ijk.T)])
    assert np.count_nonzero(volume.array) == len(ijk)


@both_kinds
def test_every_frame_refers_to_the_image_at_its_place(tmp_path, kind):
    layout = Layout(slices=5)
    native = voxels_of(layout, 3)
    source = make_series(layout)
    write_segmentation(
        tmp_path / "a.dcm", layout.label_map(native, ORGANS), source[::-1], "r", kind
    )
    result = pydicom.dcmread(tmp_path / "a.dcm")
    image_at = {tuple(image.ImagePositionPatient): image.SOPInstanceUID for image in source}
    for frame in result.PerFrameFunctionalGroupsSequence:
        (drawn_on,) = frame.DerivationImageSequence[0].SourceImageSequence
        place = tuple(frame.PlanePositionSequence[0].ImagePositionPatient)
        assert drawn_on.ReferencedSOPInstanceUID == image_at[place]
    (series,) = result.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == source[0].SeriesInstanceUID
    assert {i.ReferencedSOPInstanceUID for i in series.ReferencedInstanceSequence} == set(
        image_at.values()
    )


@both_kinds
def test_is_a_conforming_object_of_its_class(tmp_path, kind):
    layout = Layout()
    label_map = layout.label_map(voxels_of(layout, 0), ORGANS)
    write_segmentation(tmp_path / "a.dcm", label_map, make_series(layout), "first try", kind)
    result = pydicom.dcmread(tmp_path / "a.dcm")
    storage, syntax = STORAGE[kind]
    assert result.SOPClassUID == result.file_meta.MediaStorageSOPClassUID == storage
    assert result.file_meta.TransferSyntaxUID == syntax
    assert result.ContentDescription == "sacl first try"
    assert result.SeriesDescription == "sacl: liver, left kidney, the left one of the things"
    # Frames of several segments at one place are no plain stack.
    is_stack = kind == "LABELMAP"
    assert result.get("DimensionOrganizationType") == ("3D" if is_stack else None)
    pointers = [item.DimensionIndexPointer for item in result.DimensionIndexSequence]
    assert pointers == [0x0020_0032] if is_stack else [0x0062_000B, 0x0020_0032]
    for module in ("patient", "general-study", "general-series", "enhanced-general-equipment"):
        check_required_attributes(result, module)
    for module in ("segmentation-image", "multi-frame-dimension", "sop-common"):
        check_required_attributes(result, module)


@both_kinds
def test_patient_and_study_are_the_sources_and_nothing_else_is(tmp_path, kind):
    layout = Layout()
    source = make_series(
        layout, PatientName="Müller^Jörg", SpecificCharacterSet="ISO_IR 100", StationName="CT3"
    )
    label_map = layout.label_map(voxels_of(layout, 0), ORGANS)
    write_segmentation(tmp_path / "a.dcm", label_map, source, "r", kind)
    result = pydicom.dcmread(tmp_path / "a.dcm")
    assert result.PatientName == "Müller^Jörg"
    for name in ("PatientID", "PatientBirthDate", "StudyInstanceUID", "StudyDate", "StudyID"):
        assert result[name].value == source[0][name].value
    assert result.FrameOfReferenceUID == source[0].FrameOfReferenceUID
    raw = (tmp_path / "a.dcm").read_bytes()
    assert not any(word in raw for word in (b"CT3", b"Maker", b"Clinic"))
    assert str(tmp_path).encode() not in raw


def test_uids_are_new_in_every_file(tmp_path):
    layout = Layout()
    label_map = layout.label_map(voxels_of(layout, 0), ORGANS)
    source = make_series(layout)
    seen = {source[0].SeriesInstanceUID, *(image.SOPInstanceUID for image in source)}
    for name in ("a.dcm", "b.dcm"):
        np.random.seed(0)  # noqa: NPY002
        write_segmentation(tmp_path / name, label_map, source, "r")
        result = pydicom.dcmread(tmp_path / name)
        assert not seen & {result.SOPInstanceUID, result.SeriesInstanceUID}
        seen |= {result.SOPInstanceUID, result.SeriesInstanceUID}


def test_a_cyst_is_filed_as_an_abnormal_structure(tmp_path):
    layout = Layout()
    label_map = layout.label_map(voxels_of(layout, 0), ("liver", "kidney_cyst_left", "spleen"))
    write_segmentation(tmp_path / "a.dcm", label_map, make_series(layout), "r")
    segments = pydicom.dcmread(tmp_path / "a.dcm").SegmentSequence
    categories = [s.SegmentedPropertyCategoryCodeSequence[0].CodeValue for s in segments]
    assert categories == ["91723000", "49755003", "91723000"]


@both_kinds
def test_organs_are_coded_colored_and_sided(tmp_path, kind):
    layout = Layout()
    label_map = layout.label_map(voxels_of(layout, 0), ORGANS)
    write_segmentation(tmp_path / "a.dcm", label_map, make_series(layout), "r", kind)
    segments = [s for s in pydicom.dcmread(tmp_path / "a.dcm").SegmentSequence if s.SegmentNumber]
    assert [s.SegmentLabel for s in segments] == [
        "Liver",
        "Left kidney",
        "The left one of the things",
    ]
    assert [s.SegmentDescription for s in segments] == list(ORGANS)
    liver, kidney, unknown = (s.SegmentedPropertyTypeCodeSequence[0] for s in segments)
    assert (liver.CodeValue, liver.CodingSchemeDesignator) == ("10200004", "SCT")
    assert "SegmentedPropertyTypeModifierCodeSequence" not in liver
    assert (kidney.CodeValue, kidney.CodeMeaning) == ("64033007", "Kidney")
    assert kidney.SegmentedPropertyTypeModifierCodeSequence[0].CodeValue == "7771000"
    assert (unknown.LongCodeValue, unknown.CodingSchemeDesignator) == (ORGANS[2], "99SACL")
    for number, segment in enumerate(segments, start=1):
        color = highdicom.color.CIELabColor.from_dicom_value(segment.RecommendedDisplayCIELabValue)
        assert color.to_rgb(clip=True) == pytest.approx(
            [255 * part for part in label_color(number)], abs=1.5
        )
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
        assert segment.SegmentAlgorithmName == "sacl"


@both_kinds
def test_an_organ_without_voxels_is_described(tmp_path, kind):
    layout = Layout()
    label_map = layout.label_map(voxels_of(layout, 0) // 3, ORGANS)
    write_segmentation(tmp_path / "a.dcm", label_map, make_series(layout), "r", kind)
    read = read_segmentation(tmp_path / "a.dcm", label_map.grid)
    assert read.scheme.names == ORGANS
    np.testing.assert_array_equal(read.voxels, label_map.voxels)


@both_kinds
@pytest.mark.parametrize("is_multiframe", [False, True])
def test_a_map_without_any_voxel_is_written_and_read(tmp_path, kind, is_multiframe):
    layout = Layout(slices=4)
    label_map = layout.label_map(np.zeros((5, 4, 4), np.uint8), ORGANS)
    source = [make_enhanced(layout, [2, 0, 3, 1])] if is_multiframe else make_series(layout)
    write_segmentation(tmp_path / "a.dcm", label_map, source, "r", kind)
    frames = pydicom.dcmread(tmp_path / "a.dcm").NumberOfFrames
    assert frames == (4 if kind == "LABELMAP" else len(ORGANS))
    read = read_segmentation(tmp_path / "a.dcm", label_map.grid)
    assert read.voxels.shape == label_map.voxels.shape
    assert not read.voxels.any()
    described = pydicom.dcmread(tmp_path / "a.dcm", stop_before_pixels=True).SeriesDescription
    assert described == "sacl: no organ found"


@both_kinds
def test_a_multi_frame_source_is_referred_to_by_frame(tmp_path, kind):
    layout = Layout(slices=4, axes=turned((5, 6, 7)))
    native = voxels_of(layout, 1)
    order = [2, 0, 3, 1]
    source = make_enhanced(layout, order)
    label_map = layout.label_map(native, ORGANS)
    write_segmentation(tmp_path / "a.dcm", label_map, [source], "r", kind)
    np.testing.assert_array_equal(
        read_segmentation(tmp_path / "a.dcm", label_map.grid).voxels, label_map.voxels
    )
    seen = highdicom.seg.segread(tmp_path / "a.dcm").get_pixels_by_source_frame(
        source.SOPInstanceUID,
        [1, 2, 3, 4],
        combine_segments=True,
        assert_missing_frames_are_empty=True,
    )
    np.testing.assert_array_equal(seen, native.transpose(2, 1, 0)[order])


def test_more_than_255_organs_fit(tmp_path):
    layout = Layout(20, 15, 1)
    names = tuple(f"organ_{n}" for n in range(300))
    native = np.arange(1, 301, dtype=np.uint16).reshape(20, 15, 1)
    label_map = layout.label_map(native, names)
    source = make_series(layout)
    write_segmentation(tmp_path / "a.dcm", label_map, source, "r", "LABELMAP")
    read = read_segmentation(tmp_path / "a.dcm", label_map.grid)
    np.testing.assert_array_equal(read.voxels, label_map.voxels)
    assert read.scheme.names == names


def test_organs_named_in_other_scripts_come_back(tmp_path):
    layout = Layout()
    source = make_series(layout, PatientName="Müller^Jörg", SpecificCharacterSet="ISO_IR 100")
    names = ("ήπαρ", "腎臓", "rein gauche")
    write_segmentation(
        tmp_path / "a.dcm", layout.label_map(voxels_of(layout, 0), names), source, "r"
    )
    assert read_segmentation(tmp_path / "a.dcm", layout.grid).scheme.names == names
    assert pydicom.dcmread(tmp_path / "a.dcm").PatientName == "Müller^Jörg"


def test_uids_that_an_anonymizer_emptied_are_made_up_and_told(tmp_path):
    layout = Layout()
    source = make_series(layout, StudyInstanceUID="", SeriesInstanceUID="")
    for image in source:
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
        image.SOPInstanceUID = image.SOPClassUID = ""
    label_map = layout.label_map(voxels_of(layout, 0), ORGANS)
    uids = []
    for name in ("a.dcm", "b.dcm"):
        told = write_segmentation(tmp_path / name, label_map, source, "r")
        assert told == ("StudyInstanceUID", "SeriesInstanceUID")
        result = pydicom.dcmread(tmp_path / name)
        (series,) = result.ReferencedSeriesSequence
        uids.append((result.StudyInstanceUID, series.SeriesInstanceUID))
        assert {i.ReferencedSOPInstanceUID for i in series.ReferencedInstanceSequence} == {
            image.file_meta.MediaStorageSOPInstanceUID for image in source
        }
    assert uids[0] == uids[1]
    assert all(uid.is_valid for uid in uids[0])


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_headers_that_hospitals_leave_odd_are_copied_as_they_are(tmp_path):
    layout = Layout()
    source = make_series(layout, PatientSex="W", StudyTime="7 o'clock", AccessionNumber="")
    for image in source:
        del image.PatientID
        del image.SliceThickness
    write_segmentation(
        tmp_path / "a.dcm", layout.label_map(voxels_of(layout, 0), ORGANS), source, "r"
    )
    result = pydicom.dcmread(tmp_path / "a.dcm")
    assert (result.PatientSex, result.PatientID, result.AccessionNumber) == ("W", "", "")


def test_refuses_a_map_on_another_grid_and_prints_both(tmp_path):
    layout = Layout()
    moved = Layout(origin_mm=(-120.5, 34.25, -701.75)).label_map(voxels_of(layout, 0), ORGANS)
    with pytest.raises(
        DataError, match=r"\(117.7, -35.95.*\(117.7, -36.95.*give the map that was predicted"
    ):
        write_segmentation(tmp_path / "a.dcm", moved, make_series(layout), "r")
    assert not (tmp_path / "a.dcm").exists()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda s: s.pop(1), "slices are missing|uneven"),
        (lambda s: s.append(s[0]), "several images of a place"),
        (lambda s: s.clear(), "it has no image"),
        (lambda s: setattr(s[1], "SeriesInstanceUID", "1.2.3"), "2 different values of Series"),
        (lambda s: setattr(s[1], "Rows", 9), "4 slices of several matrices"),
        (
            lambda s: setattr(s[1], "ImageOrientationPatient", [0, 1, 0, 1, 0, 0]),
            "in 2 directions",
        ),
        (lambda s: s[1].pop("PixelSpacing"), "lacks its position"),
        (lambda s: setattr(s[1], "SOPInstanceUID", ""), "an image has no SOPInstanceUID"),
        (lambda s: [setattr(i, "SOPClassUID", "1.2.3") for i in s], "no segmentation can refer"),
    ],
)
def test_refuses_images_that_are_no_stack_of_one_series(tmp_path, spoil, told):
    layout = Layout(slices=4)
    source = make_series(layout)
    spoil(source)
    label_map = layout.label_map(voxels_of(layout, 0), ORGANS)
    with pytest.raises(DataError, match=told):
        write_segmentation(tmp_path / "a.dcm", label_map, source, "r")


@pytest.mark.parametrize("name", ["a\\b", "x" * 65])
def test_refuses_organ_names_that_dicom_cannot_hold(tmp_path, name):
    layout = Layout()
    label_map = layout.label_map(np.zeros((5, 4, 3), np.uint8), (name,))
    with pytest.raises(DataError, match="rename the organ"):
        write_segmentation(tmp_path / "a.dcm", label_map, make_series(layout), "r")


def test_a_scan_at_45_degrees_gets_its_own_order_of_axes_back(tmp_path):
    """Found by chance: of two equally canonical orders the file's rounding chose the other."""
    half = 2**-0.5
    layout = Layout(
        columns=3,
        rows=3,
        slices=2,
        spacing_mm=(1.0, 1.0),
        axes=((0.0, 1.0, 0.0), (-half, 0.0, half), (half, 0.0, half)),
        distance_mm=1.0,
        tilt=0.0,
        origin_mm=(0.0, 0.0, 0.0),
    )
    label_map = layout.label_map(voxels_of(layout, 1), ORGANS)
    write_segmentation(tmp_path / "a.dcm", label_map, make_series(layout), "run", "BINARY")
    reopened = read_segmentation(tmp_path / "a.dcm", label_map.grid)
    np.testing.assert_array_equal(reopened.voxels, label_map.voxels)
