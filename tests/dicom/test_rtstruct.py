"""A label map goes out as RTSTRUCT; its contours, filled, give the same voxels."""

import numpy as np
import pydicom
import pytest
from highdicom._standard_utils import check_required_attributes
from matplotlib.path import Path as Polygon
from plain_series import AXIAL, SAGITTAL, Layout, make_enhanced, make_series, turned

from sacl.dicom.rtstruct import write_rtstruct
from sacl.errors import DataError
from sacl.files.label_table import label_color

ORGANS = ("liver", "kidney_right", "spleen", "nothing of the kind")


def voxels_of(layout, seed=0):
    """Return labels `[column, row, slice]`: noise with rings, and no voxel of the last organ."""
    rng = np.random.default_rng(seed)
    shape = (layout.columns, layout.rows, layout.slices)
    labels = rng.integers(0, 4, shape).astype(np.uint8)
    labels[1:6, 1:6] = 1
    labels[2:5, 2:5] = 2
    labels[3, 3, ::2] = 0
    labels[:, :, 1] = 0
    return labels


def filled(path, layout):
    """Return the labels `[column, row, slice]` that the contours enclose, by matplotlib's rule."""
    result = pydicom.dcmread(path)
    labels = np.zeros(layout.grid.shape, np.uint8)
    to_index = np.linalg.inv(layout.grid.affine) @ np.diag([-1, -1, 1, 1])
    centers = np.argwhere(np.ones(labels.shape[:2], bool))
    for organ in result.ROIContourSequence:
        for contour in organ.get("ContourSequence", []):
            points = np.reshape(np.array(contour.ContourData, float), (-1, 3))
            assert len(points) == contour.NumberOfContourPoints
            i, j, k = (to_index @ np.c_[points, np.ones(len(points))].T)[:3]
            assert np.ptp(k) < 1e-4, "a contour lies in the plane of its image"
            assert np.abs(2 * i - np.rint(2 * i)).max() < 1e-3, "along pixel edges"
            inside = Polygon(np.c_[i, j]).contains_points(centers)
            found = labels[:, :, int(np.rint(k[0]))]
            assert not found[tuple(centers[inside].T)].any(), "no pixel is in two contours"
            found[tuple(centers[inside].T)] = organ.ReferencedROINumber
    return labels


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("tilt", [0.0, 0.3])
@pytest.mark.parametrize("axes", [AXIAL, SAGITTAL, -SAGITTAL[[1, 0, 2]]])
def test_filling_the_contours_gives_the_voxels(tmp_path, seed, tilt, axes):
    angles = np.random.default_rng(seed).uniform(-180, 180, 3)
    layout = Layout(9, 8, 4, axes=turned(tuple(angles), axes), tilt=tilt)
    native = voxels_of(layout, seed)
    source = make_series(layout)
    write_rtstruct(tmp_path / "a.dcm", layout.label_map(native, ORGANS), source[::-1], "r")
    np.testing.assert_array_equal(filled(tmp_path / "a.dcm", layout), native)


def test_contours_refer_to_the_image_in_whose_plane_they_lie(tmp_path):
    layout = Layout(9, 8, 4, axes=turned((5, 6, 7)))
    source = make_series(layout)
    write_rtstruct(tmp_path / "a.dcm", layout.label_map(voxels_of(layout), ORGANS), source, "r")
    result = pydicom.dcmread(tmp_path / "a.dcm")
    place = {image.SOPInstanceUID: np.array(image.ImagePositionPatient) for image in source}
    normal = np.array(layout.axes[2])
    for organ in result.ROIContourSequence:
        for contour in organ.get("ContourSequence", []):
            (image,) = contour.ContourImageSequence
            points = np.reshape(np.array(contour.ContourData, float), (-1, 3))
            off = (points - place[image.ReferencedSOPInstanceUID]) @ normal
            assert np.abs(off).max() < 1e-4
    (frame,) = result.ReferencedFrameOfReferenceSequence
    assert frame.FrameOfReferenceUID == source[0].FrameOfReferenceUID
    (study,) = frame.RTReferencedStudySequence
    assert study.ReferencedSOPInstanceUID == source[0].StudyInstanceUID
    (series,) = study.RTReferencedSeriesSequence
    assert series.SeriesInstanceUID == source[0].SeriesInstanceUID
    assert {i.ReferencedSOPInstanceUID for i in series.ContourImageSequence} == set(place)


def test_is_a_conforming_structure_set(tmp_path):
    layout = Layout(9, 8, 4)
    source = make_series(layout)
    told = write_rtstruct(
        tmp_path / "a.dcm", layout.label_map(voxels_of(layout), ORGANS), source, "first try"
    )
    result = pydicom.dcmread(tmp_path / "a.dcm")
    assert told == ()
    assert result.SOPClassUID == "1.2.840.10008.5.1.4.1.1.481.3"
    assert result.file_meta.MediaStorageSOPInstanceUID == result.SOPInstanceUID
    assert (result.Modality, result.StructureSetName) == ("RTSTRUCT", "sacl first try")
    assert result.SeriesDescription == "sacl: liver, right kidney, spleen"
    for module in ("patient", "general-study", "rt-series", "general-equipment", "sop-common"):
        check_required_attributes(result, module)
    for module in ("structure-set", "roi-contour", "rt-roi-observations", "approval"):
        check_required_attributes(result, module)
    assert (result.PatientName, result.StudyDate) == ("Doe^Jane", "20240506")
    raw = (tmp_path / "a.dcm").read_bytes()
    assert not any(word in raw for word in (b"Maker", b"Clinic", str(tmp_path).encode()))
    assert result.SeriesInstanceUID != source[0].SeriesInstanceUID


def test_organs_are_named_coded_and_colored(tmp_path):
    layout = Layout(9, 8, 4)
    organs = ("liver", "kidney_right", "nothing_of_the_kind", "odd thing")
    native = voxels_of(layout)
    label_map = layout.label_map(np.where(native == 3, 4, native), organs)
    write_rtstruct(tmp_path / "a.dcm", label_map, make_series(layout), "r")
    result = pydicom.dcmread(tmp_path / "a.dcm")
    structures = result.StructureSetROISequence
    assert [item.ROIName for item in structures] == ["Liver", "Right kidney", "Odd thing"]
    assert [item.ROIDescription for item in structures] == ["liver", "kidney_right", "odd thing"]
    assert [item.ROINumber for item in structures] == [1, 2, 4], "no structure without a contour"
    told = result.StructureSetDescription
    assert told == "1 of 4 organs not found: Nothing of the kind"
    for n, item in zip((1, 2, 4), result.ROIContourSequence, strict=True):
        assert item.ReferencedROINumber == n
        assert list(item.ROIDisplayColor) == [round(255 * part) for part in label_color(n)]
        assert len(item.ContourSequence) > 0
    kidney = result.RTROIObservationsSequence[1].RTROIIdentificationCodeSequence[0]
    assert kidney.CodeMeaning == "Kidney"
    assert kidney.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Right"
    unknown = result.RTROIObservationsSequence[2].RTROIIdentificationCodeSequence[0]
    assert unknown.CodingSchemeDesignator == "99SACL"


def test_long_contours_fit(tmp_path):
    layout = Layout(200, 200, 1)
    native = np.zeros((200, 200, 1), np.uint8)
    native[::2] = native[:, 100] = 1
    write_rtstruct(
        tmp_path / "a.dcm", layout.label_map(native, ("comb",)), make_series(layout), "r"
    )
    (contour,) = pydicom.dcmread(tmp_path / "a.dcm").ROIContourSequence[0].ContourSequence
    assert contour.NumberOfContourPoints > 400
    np.testing.assert_array_equal(filled(tmp_path / "a.dcm", layout), native)


def test_a_multi_frame_source_is_referred_to_by_frame(tmp_path):
    layout = Layout(9, 8, 4)
    order = [2, 0, 3, 1]
    native = voxels_of(layout)
    source = make_enhanced(layout, order)
    write_rtstruct(tmp_path / "a.dcm", layout.label_map(native, ORGANS), [source], "r")
    np.testing.assert_array_equal(filled(tmp_path / "a.dcm", layout), native)
    for contour in pydicom.dcmread(tmp_path / "a.dcm").ROIContourSequence[0].ContourSequence:
        (image,) = contour.ContourImageSequence
        k = round((float(contour.ContourData[2]) - layout.origin_mm[2]) / layout.distance_mm)
        assert order[image.ReferencedFrameNumber - 1] == k


def test_a_map_without_any_voxel_lists_its_organs(tmp_path):
    layout = Layout(9, 8, 4)
    empty = layout.label_map(np.zeros((9, 8, 4), np.uint8), ORGANS)
    write_rtstruct(tmp_path / "a.dcm", empty, make_series(layout), "r")
    result = pydicom.dcmread(tmp_path / "a.dcm")
    assert len(result.StructureSetROISequence) == 4
    assert result.StructureSetDescription.startswith("4 of 4 organs not found: Liver, Right kid")
    assert not any("ContourSequence" in item for item in result.ROIContourSequence)


def test_refuses_a_map_on_another_grid(tmp_path):
    layout = Layout(9, 8, 4)
    other = Layout(9, 8, 4, distance_mm=2.6).label_map(voxels_of(layout), ORGANS)
    with pytest.raises(DataError, match="give the map that was predicted from this series"):
        write_rtstruct(tmp_path / "a.dcm", other, make_series(layout), "r")
    assert not (tmp_path / "a.dcm").exists()
