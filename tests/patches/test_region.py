"""The square around all organs: where it lies, how large it is, and what does not count."""

import os
from pathlib import Path

import numpy as np
import pytest

from sacl.errors import DataError
from sacl.files.nifti import read_labels
from sacl.patches.region import Placement, dense_boxes, region_boxes, slice_boxes
from sacl.types import Grid, LabelMap, LabelScheme

SCHEME = LabelScheme("two", ("liver", "spleen"))


def label_map(*blocks, shape=(60, 50, 6), spacing=(2.0, 2.0, 5.0)):
    labels = np.zeros(shape, np.uint8)
    for label, region in blocks:
        labels[region] = label
    return LabelMap(labels, grid_of(shape, spacing), SCHEME)


def grid_of(shape, spacing=(2.0, 2.0, 5.0)):
    return Grid(shape, np.diag([*spacing, 1.0]))


def block(i, j, k=(1, 5)):
    return tuple(slice(*ends) for ends in (i, j, k))


def test_every_slice_gets_the_same_square_around_all_organs():
    boxes = region_boxes(
        label_map((1, block((10, 20), (20, 30))), (2, block((20, 30), (20, 30)))),
        context=1.5,
        min_side_mm=10,
    )
    assert [box.start[2] for box in boxes] == list(range(6))
    assert {box.start[:2] for box in boxes} == {(5, 10)}
    assert {box.shape for box in boxes} == {(30, 30, 1)}


def test_the_square_is_square_in_mm():
    wide = label_map((1, block((10, 20), (10, 30))), spacing=(2.0, 1.0, 5.0))
    box = region_boxes(wide, context=2.0, min_side_mm=1)[0]
    assert box.shape[:2] == (20, 40)


def test_an_island_far_from_its_organ_does_not_count():
    organ = (1, block((10, 26), (20, 36)))
    island = (1, block((50, 56), (2, 8)))
    assert region_boxes(label_map(organ, island), 1.5, 10) == region_boxes(
        label_map(organ), 1.5, 10
    )


def holds(box, i, j):
    """Tell whether a box holds a range of voxels along i and along j."""
    return box.start[0] <= i[0] < i[1] <= box.stop[0] and box.start[1] <= j[0] < j[1] <= box.stop[1]


def test_no_organ_is_an_island_beside_a_larger_one():
    """Liver, spleen and two kidneys: the smaller ones are a tenth of the liver, and far off."""
    scheme = LabelScheme("abdomen", ("liver", "spleen", "kidney_right", "kidney_left"))
    places = (
        ((110, 160), (60, 100)),
        ((50, 60), (60, 74)),
        ((120, 130), (40, 50)),
        ((70, 80), (40, 50)),
    )
    voxels = np.zeros((200, 200, 10), np.uint8)
    for label, place in enumerate(places, 1):
        voxels[block(*place, (1, 9))] = label
    boxes = region_boxes(LabelMap(voxels, grid_of(voxels.shape), scheme), 1.75, 10)
    assert all(holds(boxes[0], *place) for place in places)
    assert boxes[0].shape[0] < 200


def test_both_of_two_small_organs_that_lie_apart_are_in_the_square():
    right, left = ((20, 24), (20, 26)), ((42, 45), (20, 26))
    box = region_boxes(label_map((1, block(*right)), (2, block(*left))), 1.5, 10)[0]
    assert holds(box, *right)
    assert holds(box, *left)


def test_a_shrunken_kidney_of_a_pair_that_has_one_label_counts():
    healthy, shrunken = ((15, 25), (20, 30)), ((40, 44), (20, 30))
    box = region_boxes(label_map((1, block(*healthy)), (1, block(*shrunken))), 1.5, 10)[0]
    assert holds(box, *healthy)
    assert holds(box, *shrunken)


def test_a_thin_spur_does_not_widen_the_square():
    organ = (1, block((20, 40), (20, 40)))
    spur = (1, block((40, 58), (30, 31), (2, 3)))
    wide, plain = (region_boxes(m, 1.5, 10)[0] for m in (label_map(organ, spur), label_map(organ)))
    assert wide.shape == plain.shape
    assert abs(wide.start[0] - plain.start[0]) <= 1


def test_a_map_without_organs_gives_the_whole_slices():
    empty = label_map()
    assert region_boxes(empty, 1.5, 10) == slice_boxes(empty.grid)
    assert slice_boxes(empty.grid)[3].shape == (60, 60, 1)


@pytest.mark.parametrize(("least", "side"), [(10, 15), (80, 40)])
def test_the_square_has_a_smallest_side(least, side):
    assert region_boxes(label_map((1, block((20, 30), (20, 30)))), 1.5, least)[0].shape[0] == side


def test_a_placement_says_whether_slices_are_whole():
    organs = label_map((1, block((20, 30), (20, 30))))
    square, whole = Placement(min_side_mm=10), Placement(region="slice")
    assert dense_boxes(square, organs.grid, organs) == region_boxes(organs, 1.75, 10)
    assert dense_boxes(whole, organs.grid, organs) == slice_boxes(organs.grid)
    assert dense_boxes(square, organs.grid, None) == slice_boxes(organs.grid)


def test_the_placement_of_an_older_version_is_refused_with_the_remedy():
    with pytest.raises(
        DataError, match=r"placed by rule 1.*rule 2.*sacl extract CONFIG.yaml --force"
    ):
        Placement(rule=1)


def test_a_square_is_never_wider_than_the_slice():
    organs = label_map((1, block((10, 50), (10, 40))))
    assert region_boxes(organs, 1.75, 10) == slice_boxes(organs.grid)


@pytest.mark.real_data
@pytest.mark.parametrize(
    "name", ["Dataset061_OpenKBP", "Dataset027_ACDC", "Dataset004_Hippocampus"]
)
def test_nothing_of_an_organ_lies_outside_with_perfect_maps(name):
    if "SACL_DATA" not in os.environ:
        pytest.skip("needs SACL_DATA")
    folder = Path(os.environ["SACL_DATA"]) / name
    scheme = LabelScheme(name, tuple("abcdefg"))
    for path in sorted((folder / "labelsTr").glob("*.nii.gz"))[::5]:
        voxels, grid, _ = read_labels(path)
        box = region_boxes(LabelMap(voxels, grid, scheme), 1.75, 24)[0]
        inner = voxels[max(box.start[0], 0) : box.stop[0], max(box.start[1], 0) : box.stop[1]]
        assert np.count_nonzero(inner) == np.count_nonzero(voxels), path.name
