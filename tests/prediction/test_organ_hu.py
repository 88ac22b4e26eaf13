import numpy as np
import pytest

from sacl.prediction.phases import organ_hu
from sacl.types import Grid, LabelMap, LabelScheme, Volume


def scan(names, boxes, hu, background=-100.0, spacing_mm=(2.0, 2.0, 4.0), shape=(40, 40, 20)):
    """Return an image of boxes in fat, and their label map."""
    labels = np.zeros(shape, np.uint8)
    image = np.full(shape, background)
    for value, box in enumerate(boxes, start=1):
        labels[box] = value
        image[box] = hu[value - 1]
    grid = Grid(shape, np.diag([*spacing_mm, 1.0]))
    scheme = LabelScheme("some", names)
    return Volume(image.astype(np.float32), grid), LabelMap(labels, grid, scheme)


LIVER = np.s_[2:22, 2:22, 2:18]
AORTA = np.s_[30:38, 30:38, 2:18]


def test_is_the_median_inside_each_organ():
    image, labels = scan(("liver", "aorta"), (LIVER, AORTA), (60, 150))
    assert organ_hu(image, labels) == {"aorta": 150.0, "liver": 60.0}


def test_leaves_out_the_edge_where_a_coarse_mask_errs():
    image, labels = scan(("liver", "aorta"), (LIVER, AORTA), (60, 150))
    # The outer voxel ring of the aorta is really fat: 28 of the 64 voxels of a slice.
    image.voxels[30:38, 30:38] = -100
    image.voxels[32:36, 32:36] = 150
    ring = labels.voxels == 2
    assert np.median(image.voxels[ring]) == -100
    assert organ_hu(image, labels)["aorta"] == 150.0


def test_ignores_outliers_such_as_calcifications_and_clips():
    image, labels = scan(("aorta",), (AORTA,), (150,))
    image.voxels[33:35, 33:35, 2:10] = 2000
    assert organ_hu(image, labels)["aorta"] == 150.0


def test_a_thin_organ_keeps_its_middle():
    vein = np.s_[10:30, 20:22, 6:10]
    image, labels = scan(("portal_vein_and_splenic_vein",), (vein,), (120,))
    assert organ_hu(image, labels) == {"portal_vein": 120.0}


def test_both_kidneys_count_as_one_under_any_name():
    left, right = np.s_[2:10, 2:12, 2:12], np.s_[28:36, 2:12, 2:12]
    two = scan(("left kidney", "RK"), (left, right), (170, 170))
    one = scan(("kidneys",), (left,), (170,))
    assert organ_hu(*two) == organ_hu(*one) == {"kidneys": 170.0}


def test_does_not_measure_what_is_too_small_or_tells_nothing():
    speck, bowel = np.s_[5:7, 5:7, 5:6], np.s_[20:30, 20:30, 5:15]
    image, labels = scan(("spleen", "stomach"), (speck, bowel), (100, 40))
    assert organ_hu(image, labels) == {}


@pytest.mark.parametrize("factor", [2, 4])
def test_fine_voxels_give_what_coarse_ones_give(factor):
    rng = np.random.default_rng(3)
    image, labels = scan(("liver", "aorta"), (LIVER, AORTA), (60, 150))
    fine = [np.repeat(np.repeat(a.voxels, factor, 0), factor, 1) for a in (image, labels)]
    fine[0] = fine[0] + rng.normal(0, 15, fine[0].shape)
    grid = Grid(fine[0].shape, np.diag([2.0 / factor, 2.0 / factor, 4.0, 1.0]))
    measured = organ_hu(Volume(fine[0], grid), LabelMap(fine[1], grid, labels.scheme))
    assert measured == pytest.approx(organ_hu(image, labels), abs=2.0)


def test_fat_and_bone_in_a_displaced_mask_are_no_part_of_the_organ():
    image, labels = scan(("aorta",), (AORTA,), (150,))
    # The mask lies beside the aorta by more than half: fat on one side, a vertebra on the other.
    image.voxels[30:38, 30:36] = -100
    image.voxels[30:32, 36:38] = 900
    image.voxels[32:36, 33:36] = 150
    assert organ_hu(image, labels)["aorta"] == 150.0


@pytest.mark.parametrize("offset", [-1024, 1024])
def test_a_scan_without_its_rescale_intercept_is_measured_as_it_is(offset):
    image, labels = scan(("liver",), (LIVER,), (60 + offset,), background=-100.0 + offset)
    assert organ_hu(image, labels) == {"liver": 60.0 + offset}
