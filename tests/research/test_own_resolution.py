import numpy as np
import pandas as pd
import pytest

from research.benchmarks.damaged_maps import Damage, displaced
from research.benchmarks.own_resolution import put_in, summary_of, through_grid
from sacl.patches.coarse_grid import coarse_grid
from sacl.scores.organs_of_case import dice
from sacl.types import Grid, LabelMap, LabelScheme

SCHEME = LabelScheme("two", ("wide", "thin"))
GRID = Grid((24, 24, 12), np.diag([1.0, 1.0, 2.0, 1.0]))


def label_map():
    voxels = np.zeros(GRID.shape, np.uint8)
    voxels[4:16, 4:16, 2:10] = 1
    voxels[20, 4:16, 2:10] = 2
    return LabelMap(voxels, GRID, SCHEME)


@pytest.mark.parametrize("soft", [False, True])
def test_a_reference_comes_back_unchanged_through_its_own_grid(soft):
    back = through_grid(label_map(), coarse_grid(GRID, GRID.spacing_mm), soft)
    assert np.array_equal(back.voxels, label_map().voxels)


@pytest.mark.parametrize("soft", [False, True])
def test_a_coarse_grid_loses_a_thin_organ_and_hardly_a_wide_one(soft):
    back = through_grid(label_map(), coarse_grid(GRID, (4.0, 4.0, 2.0)), soft)
    lost = {o: 1 - dice(label_map().mask(o), back.mask(o)) for o in SCHEME.names}
    assert lost["wide"] < 0.1
    assert lost["thin"] > 0.5


def test_some_organs_of_a_map_are_replaced_and_win_against_the_others():
    dense, refined = label_map(), label_map()
    refined.voxels[:] = 0
    refined.voxels[10:19, 4:6, 2:4] = 2
    refined.voxels[0:2, 0:2, 0:2] = 1
    both = put_in(dense, refined, ["thin"])
    assert np.array_equal(both.voxels == 2, refined.voxels == 2)
    assert np.array_equal(both.voxels == 1, (dense.voxels == 1) & (refined.voxels != 2))


def test_damage_moves_every_organ_and_loses_none():
    wrong = displaced(label_map(), Damage(2.0, 1.0), np.random.default_rng(1))
    for organ in SCHEME.names:
        assert wrong.mask(organ).any()
        assert dice(label_map().mask(organ), wrong.mask(organ)) < 1


def test_rows_are_compared_with_the_dense_one_over_subjects():
    rows = []
    for subject, dense in (("a", 0.5), ("b", 0.6), ("c", 0.7)):
        who = {"case_id": subject, "subject_id": subject, "hd95_mm": 1.0}
        for organ in SCHEME.names:
            values = {"organ": organ, "nsd": dense, "dice": dense}
            rows.append({**who, **values, "row": "dense", "seed": 0})
            gain = 0.1 if organ == "thin" else 0.0
            for seed in (0, 1):
                better = {"dice": dense + gain * (1 + seed)}
                rows.append({**who, **values, **better, "row": "small", "seed": seed})
    summary = summary_of(pd.DataFrame(rows), ["thin"])
    every, small = (c for c in summary["comparisons"] if c["metric"] == "dice")
    assert (small["difference"], small["won"], small["lost"]) == (0.15, 3, 0)
    assert every["difference"] == pytest.approx(0.075)
    assert small["p"] == pytest.approx(0.25)
    assert small["p_holm"] == pytest.approx(0.5)
    assert summary["organs"]["thin"]["small"]["dice"] == pytest.approx(0.75)
