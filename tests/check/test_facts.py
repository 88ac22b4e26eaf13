import io
import itertools
import tracemalloc

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from planted import LABELS, clean_scan
from sacl.check.cohort_checks import adult_range_ml
from sacl.check.facts import (
    all_organs,
    digest_of,
    measure_case,
    measure_geometry,
    measure_image,
    measure_labels,
    measure_organ,
)
from sacl.check.scan_checks import robust_outliers
from sacl.cohort.dataset import Dataset, SourceCase
from sacl.errors import DataError
from sacl.files.nifti import write_volume
from sacl.geometry import to_canonical
from sacl.types import Grid, NativeFrame, Volume

SPACING_MM = (2.0, 3.0, 5.0)
GRID = Grid((10, 8, 6), np.diag([*SPACING_MM, 1.0]))
PERMUTED = [
    (axes, signs)
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


@given(st.sampled_from(PERMUTED), st.floats(-0.3, 0.3))
def test_orientation_is_that_of_nibabel_and_sizes_are_along_the_body(permuted, turn):
    axes, signs = permuted
    spacing_mm = np.array(SPACING_MM)
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for column, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[axis, column] = sign * spacing_mm[axis]
    rotation = np.eye(4)
    rotation[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    shape = tuple((10, 8, 6)[axis] for axis in axes)
    measured = measure_geometry(NativeFrame(Grid(shape, rotation @ affine)))
    assert measured.orientation == "".join(nibabel.aff2axcodes(rotation @ affine))
    assert measured.shape == (10, 8, 6)
    assert measured.spacing_mm == pytest.approx(SPACING_MM)
    assert measured.tilt_deg == pytest.approx(np.degrees(abs(turn)), abs=1e-5)
    assert measured.shear == pytest.approx(0, abs=1e-12)


def test_shear_is_the_cosine_between_two_axes():
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[1, 2] = 1.0
    measured = measure_geometry(NativeFrame(Grid((4, 4, 4), affine)))
    assert measured.shear == pytest.approx(np.cos(np.arctan2(2, 1)))


def test_the_digest_is_of_values_in_canonical_order_whatever_the_file_stores():
    voxels = np.random.default_rng(0).integers(-1000, 1000, (10, 8, 6)).astype(np.int16)
    backward = np.flip(voxels, (0, 1))
    flip = np.diag([-2.0, -3.0, 5.0, 1.0])
    flip[:2, 3] = (18, 21)
    restored, _ = to_canonical(backward, Grid((10, 8, 6), flip))
    assert digest_of(restored) == digest_of(voxels) == digest_of(voxels.astype(np.float32))
    changed = voxels.copy()
    changed[9, 7, 5] += 1
    assert digest_of(changed) != digest_of(voxels)
    assert digest_of(voxels.reshape(8, 10, 6)) != digest_of(voxels)


def test_an_image_is_measured_by_its_percentiles_and_its_soft_tissue():
    voxels = np.full((20, 20, 20), -1000, np.int16)
    voxels[:10] = 50
    voxels[0, 0, 0] = 3000
    measured = measure_image(voxels)
    assert (measured.low, measured.high) == (-1000, 3000)
    assert (measured.p005, measured.p995) == (-1000, 50)
    assert measured.soft_share == pytest.approx(0.5, abs=1e-3)
    assert measured.soft_median == 50
    assert measured.unshifted_share == 0


def test_an_organ_is_measured_in_its_box():
    labels = np.zeros(GRID.shape, np.uint8)
    labels[2:4, 3:5, 1:4] = 7
    labels[8, 3:5, 1:4] = 7
    labels[9, 7, 5] = 3
    found, strange = measure_labels(labels, GRID, {7: "spleen"})
    spleen = found["spleen"]
    assert strange == [3]
    assert spleen.volume_ml == pytest.approx(18 * 30 / 1000)
    assert spleen.center_mm == pytest.approx(((2.5 * 12 + 8 * 6) / 18 * 2, 3.5 * 3, 2 * 5))
    assert (spleen.pieces, spleen.at_border) == (2, False)
    assert spleen.main_share == pytest.approx(12 / 18)
    assert spleen.second_share == pytest.approx(6 / 18)


@pytest.mark.parametrize(
    "voxel", [(0, 3, 3), (9, 3, 3), (4, 0, 3), (4, 7, 3), (4, 3, 0), (4, 3, 5)]
)
def test_an_organ_at_any_face_of_the_image_is_cut_off(voxel):
    facts = measure_organ(np.ones((1, 1, 1), np.bool_), voxel, GRID)
    assert facts.at_border
    assert not measure_organ(np.ones((1, 1, 1), np.bool_), (4, 3, 3), GRID).at_border


def test_voxels_that_touch_at_a_corner_are_one_piece():
    mask = np.zeros((2, 2, 2), np.bool_)
    mask[0, 0, 0] = mask[1, 1, 1] = True
    assert measure_organ(mask, (1, 1, 1), GRID).pieces == 1


def test_robust_outliers_are_far_from_the_median_in_units_of_the_deviation():
    values = {str(n): float(n) for n in range(9)} | {"far": 60.0, "unknown": float("nan")}
    deviation = 1.4826 * np.median(np.abs(np.array([*range(9), 60]) - 4.5))
    assert robust_outliers(values, 0.1) == {"far": pytest.approx((60 - 4.5) / deviation)}
    assert robust_outliers(values, 20.0) == {}
    assert robust_outliers({"a": 0.0, "b": 0.0, "c": 1e9}, 0.1) == {}


def test_only_organs_of_published_size_have_a_range_and_hollow_ones_no_lower_end():
    low, high = adult_range_ml("LK")
    assert (low < 100, high > 300) == (True, True)
    assert adult_range_ml("gall bladder")[0] == 0
    assert adult_range_ml("aorta") is None


# -- a case and its files ----------------------------------------------------------------------


@pytest.fixture
def scan():
    return clean_scan(0)


def _image(scan, folder):
    path = folder / "scan.nii"
    write_volume(path, Volume(scan.image, Grid(scan.image.shape, scan.affine)))
    return path


def _masks(scan, folder, *organs, shift=0.0):
    """Write one binary mask per organ, as TotalSegmentator does."""
    affine = scan.affine.copy()
    affine[0, 3] += shift
    files = {}
    for organ in organs:
        mask = (scan.labels == LABELS[organ]).astype(np.uint8)
        files[organ] = folder / f"{organ}.nii"
        write_volume(files[organ], Volume(mask, Grid(mask.shape, affine)))
    return files


def _measured(case, organs=None):
    found = Dataset("test", "test", organs or {}, (case,))
    return measure_case(case, found), all_organs(found)


def test_masks_are_measured_like_a_label_map(scan, tmp_path):
    image = _image(scan, tmp_path)
    label = tmp_path / "label.nii"
    write_volume(label, Volume(scan.labels, Grid(scan.labels.shape, scan.affine)))
    masked = SourceCase("a", image, masks=_masks(scan, tmp_path, *LABELS))
    mapped = SourceCase("a", image, label)
    by_masks, organs = _measured(masked)
    by_map, _ = _measured(mapped, {value: name for name, value in LABELS.items()})
    assert by_masks.reference.present == by_map.reference.present
    assert set(organs) == set(by_masks.reference.annotated) == set(LABELS)
    assert by_masks.picture == by_map.picture, "masks are drawn like a label map"


def test_a_scan_is_pictured_with_its_reference_or_alone_where_that_is_unusable(scan, tmp_path):
    image, label = _image(scan, tmp_path), tmp_path / "label.nii"
    write_volume(label, Volume(scan.labels, Grid(scan.labels.shape, scan.affine)))
    names = {value: name for name, value in LABELS.items()}
    drawn, alone = (_measured(SourceCase("a", image, path), names)[0] for path in (label, None))
    write_volume(label, Volume(scan.labels[1:], Grid(scan.labels[1:].shape, scan.affine)))
    other_grid, _ = _measured(SourceCase("a", image, label), names)
    pictures = [
        np.asarray(Image.open(io.BytesIO(one.picture))) for one in (drawn, alone, other_grid)
    ]
    assert {picture.shape for picture in pictures} == {(96, 288, 3)}
    colored = [int((np.ptp(picture.astype(int), axis=2) > 60).sum()) for picture in pictures]
    assert colored[0] > 200
    assert colored[1:] == [0, 0]
    missing, _ = _measured(SourceCase("a", tmp_path / "nothing.nii", label), names)
    assert missing.picture == b""


def test_an_organ_nobody_looked_for_is_not_annotated_and_one_not_found_absent(scan, tmp_path):
    masks = _masks(scan, tmp_path, "liver", "spleen")
    empty = np.zeros(scan.labels.shape, np.uint8)
    write_volume(masks["spleen"], Volume(empty, Grid(empty.shape, scan.affine)))
    facts, _ = _measured(
        SourceCase("a", _image(scan, tmp_path), masks=masks), {1: "liver", 2: "spleen", 3: "aorta"}
    )
    states = {organ: facts.state_of(organ) for organ in ("liver", "spleen", "aorta")}
    assert states == {"liver": "annotated", "spleen": "absent", "aorta": "not annotated"}


def test_a_mask_on_another_grid_is_a_finding(scan, tmp_path):
    masks = _masks(scan, tmp_path, "liver", shift=28.0)
    facts, _ = _measured(SourceCase("a", _image(scan, tmp_path), masks=masks))
    assert [problem.code for problem in facts.problems] == ["label-grid"]
    assert facts.reference is None
    assert facts.labeled


def test_a_mask_of_several_values_is_a_finding(scan, tmp_path):
    path = tmp_path / "liver.nii"
    write_volume(path, Volume(scan.labels, Grid(scan.labels.shape, scan.affine)))
    facts, _ = _measured(SourceCase("a", _image(scan, tmp_path), masks={"liver": path}))
    assert [problem.code for problem in facts.problems] == ["label-values"]


def test_a_case_is_read_by_its_own_reader(scan, tmp_path):
    grid = Grid(scan.image.shape, scan.affine)

    def load():
        return Volume(scan.image, grid), NativeFrame(grid)

    facts, _ = _measured(SourceCase("a", tmp_path / "series", load=load))
    assert facts.problems == ()
    assert facts.image.low == scan.image.min()


def test_a_reader_that_fails_is_a_finding_without_a_path(tmp_path):
    def load():
        raise OSError(2, "No such file", str(tmp_path))

    facts, _ = _measured(SourceCase("a", tmp_path / "series", load=load))
    (problem,) = facts.problems
    assert problem.code == "unreadable"
    assert str(tmp_path) not in problem.message


def test_the_reason_of_a_damaged_file_is_kept(tmp_path):
    def load():
        raise DataError("series 3: slice 7 is missing")

    facts, _ = _measured(SourceCase("a", tmp_path / "series", load=load))
    assert facts.problems[0].message == "series 3: slice 7 is missing"


def test_a_scan_with_bad_voxels_keeps_its_header(scan, tmp_path):
    scan.image = np.where(scan.image > 0, np.nan, scan.image).astype(np.float32)
    facts, _ = _measured(SourceCase("a", _image(scan, tmp_path)))
    assert facts.geometry.shape == scan.image.shape
    assert "NaN" in facts.problems[0].message


def test_no_more_than_one_scan_is_held_at_a_time(tmp_path):
    shape = (96, 96, 96)
    grid = Grid(shape, np.eye(4) * 2 + np.diag([0, 0, 0, -1]))
    rng = np.random.default_rng(0)
    image = rng.integers(-1000, 1000, shape).astype(np.int16)
    labels = np.zeros(shape, np.uint8)
    labels[20:70, 20:70, 20:70] = 1
    write_volume(tmp_path / "image.nii", Volume(image, grid))
    write_volume(tmp_path / "label.nii", Volume(labels, grid))
    case = SourceCase("a", tmp_path / "image.nii", tmp_path / "label.nii")
    size = image.nbytes
    del image, labels
    tracemalloc.start()
    _measured(case, {1: "liver"})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The regular sample of at most 1e6 voxels is kept in float32 beside the scan.
    assert peak < 2 * size + 8e6
