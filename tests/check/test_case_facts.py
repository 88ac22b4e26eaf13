import tracemalloc

import numpy as np
import pytest

from planted import LABELS, clean_scan
from sacl.check.case_facts import all_organs, measure_case
from sacl.cohort.dataset import Dataset, SourceCase
from sacl.errors import DataError
from sacl.files.nifti import write_volume
from sacl.types import Grid, NativeFrame, Volume


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
    assert facts.has_reference


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
