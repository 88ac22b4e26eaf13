from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sacl.cohort.references import merge_masks

SHAPE = (6, 5, 4)


def box(*spans):
    inside = np.zeros(SHAPE, np.bool_)
    inside[tuple(slice(*span) for span in spans)] = True
    return inside


LIVER = box((0, 4), (0, 5), (0, 4))  # 80 voxels
GALLBLADDER = box((3, 5), (1, 3), (1, 3))  # 8 voxels, 4 of them in the liver
DUODENUM = box((2, 4), (2, 3), (2, 3))  # 2 voxels, both in the liver, 1 in the gallbladder


def merged(rule, **masks):
    places = {name: np.flatnonzero(inside.ravel("F")) for name, inside in masks.items()}
    return merge_masks(places, range(1, len(places) + 1), SHAPE, rule)


def test_the_smaller_organ_of_the_scan_wins_whatever_the_order():
    voxels, _ = merged("smaller", liver=LIVER, gallbladder=GALLBLADDER, duodenum=DUODENUM)
    assert (voxels == 3).sum() == 2
    assert (voxels == 2).sum() == 8 - 1
    assert (voxels == 1).sum() == 80 - 4 - 2 + 1
    again, _ = merged("smaller", duodenum=DUODENUM, gallbladder=GALLBLADDER, liver=LIVER)
    np.testing.assert_array_equal(np.array([0, 3, 2, 1])[again], voxels)


def test_the_first_of_the_wanted_organs_wins():
    voxels, _ = merged("first", liver=LIVER, gallbladder=GALLBLADDER, duodenum=DUODENUM)
    assert [(voxels == n).sum() for n in (1, 2, 3)] == [80, 4, 0]


def test_organs_of_equal_size_are_decided_by_the_order():
    other = np.roll(GALLBLADDER, 1, axis=0)
    assert (merged("smaller", a=GALLBLADDER, b=other)[0] == 1).sum() == 8
    assert (merged("smaller", b=other, a=GALLBLADDER)[0] == 1).sum() == 8


def test_contested_voxels_are_counted_for_every_pair():
    _, contested = merged("smaller", liver=LIVER, gallbladder=GALLBLADDER, duodenum=DUODENUM)
    assert contested == {
        "liver and gallbladder": 4,
        "liver and duodenum": 2,
        "gallbladder and duodenum": 1,
    }


def test_masks_apart_contest_nothing_and_an_empty_one_claims_nothing():
    empty = np.zeros(SHAPE, np.bool_)
    voxels, contested = merged("smaller", empty=empty, a=GALLBLADDER)
    assert contested == {}
    assert (voxels == 2).sum() == 8
    assert not (voxels == 1).any()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(0, 4), st.sampled_from(["smaller", "first"]))
def test_every_voxel_goes_to_the_best_claim_and_every_pair_is_counted(seed, count, rule):
    generator = np.random.default_rng(seed)
    masks = [generator.random(SHAPE) < generator.random() for _ in range(count)]
    voxels, contested = merged(rule, **{str(n): mask for n, mask in enumerate(masks)})
    rank = {n: (masks[n].sum() if rule == "smaller" else 0, n) for n in range(count)}
    for at in np.ndindex(SHAPE):
        claims = [n for n in range(count) if masks[n][at]]
        assert voxels[at] == (min(claims, key=rank.__getitem__) + 1 if claims else 0)
    for a, b in itertools.combinations(range(count), 2):
        assert contested.get(f"{a} and {b}", 0) == (masks[a] & masks[b]).sum()


def test_many_organs_fit_into_the_label_map():
    masks = {str(n): np.array([0]) for n in range(300)}
    voxels, contested = merge_masks(masks, range(1, 301), SHAPE, "first")
    assert voxels[0, 0, 0] == 1
    assert len(contested) == 300 * 299 / 2
    voxels, _ = merge_masks(masks, range(300, 0, -1), SHAPE, "first")
    assert voxels[0, 0, 0] == 300


@pytest.mark.parametrize("where", [(0, 0, 0), (5, 4, 3), (2, 3, 1)])
def test_a_voxel_stays_where_it_is(where):
    inside = np.zeros(SHAPE, np.bool_, order="F")
    inside[where] = True
    voxels, _ = merged("smaller", a=inside)
    np.testing.assert_array_equal(voxels > 0, inside)
