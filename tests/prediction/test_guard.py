"""What final maps changed against coarse ones: organs lost, cut off, worse, or never there."""

import numpy as np
import pytest

from sacl.prediction.guard import (
    Change,
    Findings,
    behind_coarse,
    changes_of,
    find_doubts,
    organs_to_take_from_coarse,
    read_findings,
    with_organs_of,
    write_findings,
)
from sacl.scores.summary import ScoreRow, summarize
from sacl.types import Box, Case, Grid, LabelMap, LabelScheme, NativeFrame, OrganScore

SCHEME = LabelScheme("two", ("liver", "spleen"))
GRID = Grid((20, 20, 4), np.diag([2.0, 2.0, 5.0, 1.0]))
"""A voxel is 0.02 ml."""


def label_map(**organs):
    voxels = np.zeros(GRID.shape, np.uint8)
    for organ, region in organs.items():
        voxels[region] = SCHEME.label_of(organ)
    return LabelMap(voxels, GRID, SCHEME)


def case_of(annotated=("liver", "spleen")):
    native = NativeFrame(GRID)
    return Case("a", "s", "i", "r", "validation", native, (0, 1), annotated=annotated)


def change(number=0, organ="spleen", coarse=100.0, final=100.0, **more):
    return Change(f"case-{number}", organ, coarse, final, **more)


def kinds(findings):
    return [(doubt.organ, doubt.kind) for doubt in findings.doubts]


CUBE = np.s_[5:10, 5:10, :]


def test_counts_the_volumes_of_both_maps():
    coarse = label_map(liver=CUBE, spleen=np.s_[0, 0, :])
    liver, spleen = changes_of(case_of(), coarse, label_map(liver=np.s_[5:10, 5:7, :]))
    assert (liver.coarse_ml, liver.final_ml) == pytest.approx((2.0, 0.8))
    assert (spleen.coarse_ml, spleen.final_ml) == pytest.approx((0.08, 0.0))
    assert spleen.vanished
    assert np.isnan(liver.final_dice)


def test_scores_both_maps_where_an_organ_is_annotated():
    coarse, final = label_map(liver=CUBE), label_map(liver=np.s_[5:10, 5:10, :2])
    liver, spleen = changes_of(case_of(("liver",)), coarse, final, reference=coarse)
    assert liver.coarse_dice == 1.0
    assert liver.final_dice == pytest.approx(2 / 3)
    assert np.isnan(spleen.coarse_dice)


def test_sees_an_organ_on_the_border_of_the_square_but_not_on_that_of_the_slice():
    final = label_map(liver=CUBE)
    [touching, _] = changes_of(case_of(), final, final, [Box((5, 0, 0), (20, 20, 1))])
    [clear, _] = changes_of(case_of(), final, final, [Box((3, 3, 0), (20, 20, 1))])
    [at_slice, _] = changes_of(case_of(), final, final, [Box((-4, -4, 0), (24, 24, 1))])
    assert touching.at_border == pytest.approx(5 / 25)
    assert clear.at_border == at_slice.at_border == 0
    [upper, _] = changes_of(case_of(), final, final, [Box((0, 0, 0), (10, 10, 1))])
    assert upper.at_border == pytest.approx(9 / 25)


def test_nothing_is_doubted_where_the_maps_agree():
    assert find_doubts([change(n, organ) for n in range(4) for organ in SCHEME.names]) == Findings()


def test_an_organ_that_vanishes_in_most_scans_is_taken_from_the_coarse_map():
    gone = [change(n, final=0.0 if n < 3 else 80.0) for n in range(5)]
    assert organs_to_take_from_coarse(gone) == ("spleen",)
    findings = find_doubts(gone, ("spleen",))
    assert kinds(findings) == [("spleen", "vanished")]
    assert findings.doubts[0].scans == ("case-0", "case-1", "case-2")
    assert findings.doubts[0].text == (
        "spleen: vanished in 3 of the 5 scans whose coarse map has it; it is taken from the coarse"
        " map"
    )


def test_half_of_the_scans_or_specks_of_the_coarse_map_do_not_take_an_organ():
    assert organs_to_take_from_coarse([change(n, final=50.0 * (n % 2)) for n in range(4)]) == ()
    assert organs_to_take_from_coarse([change(n, coarse=0.01, final=0.0) for n in range(4)]) == ()


def test_an_organ_that_few_coarse_maps_have_is_not_taken_from_them():
    rows = [change(n, coarse=100.0 if n < 2 else 0.0, final=0.0) for n in range(5)]
    assert organs_to_take_from_coarse(rows) == ()


def test_an_organ_never_predicted_weighs_more_than_a_loss_of_volume():
    rows = [change(n, "liver", final=40.0) for n in range(3)]
    rows += [change(n, "spleen", final=0.0) for n in range(3)]
    assert kinds(find_doubts(rows)) == [("spleen", "never_predicted"), ("liver", "lost_volume")]
    assert find_doubts(rows).doubts[0].text.endswith("the coarse map has it in 3")


def test_a_coarse_map_that_is_too_large_where_it_was_drawn_is_no_measure_of_a_loss():
    """Drawn are 40 ml, the coarse map has 100, so that 40 is no loss and 15 is one."""
    drawn = [change(n, final=40.0, drawn_ml=40.0) for n in range(3)]
    assert find_doubts([*drawn, change(3, final=21.0)]) == Findings()
    findings = find_doubts([*drawn, change(3, final=15.0)])
    assert findings.doubts[0].text == (
        "spleen: less than 20% of the coarse map's volume (up to 2.5 times too large on labeled"
        " scans) in 1 of the 4 scans whose coarse map has it"
    )
    uneven = [change(n, coarse=v, final=40.0, drawn_ml=40.0) for n, v in enumerate([40, 40, 200])]
    assert find_doubts(uneven) == Findings(), "one of three coarse maps is five times too large"
    small = [change(n, coarse=20.0, final=40.0, drawn_ml=40.0) for n in range(3)]
    assert kinds(find_doubts([*small, change(3, coarse=20.0, final=9.0)])) == [
        ("spleen", "lost_volume")
    ]


@pytest.mark.parametrize(("unseen", "dice"), [(None, np.nan), (False, 1.0), (True, 1.0)])
def test_a_reference_that_training_saw_gives_a_volume_and_a_dice_of_which_that_is_known(
    unseen, dice
):
    coarse = label_map(liver=CUBE)
    liver, _ = changes_of(case_of(), coarse, coarse, reference=coarse, unseen=unseen)
    assert liver.drawn_ml == pytest.approx(2.0)
    assert liver.coarse_dice == pytest.approx(dice, nan_ok=True)
    assert liver.unseen == (unseen is not False)


def scored(coarse, final, unseen, number=0):
    return change(number, coarse_dice=coarse, final_dice=final, unseen=unseen)


@pytest.mark.parametrize(
    ("rows", "taken"),
    [
        ([scored(0.86, 0.63, unseen=False)], True),
        ([scored(0.66, 0.63, unseen=False)], False),
        ([scored(0.97, 0.85, unseen=False)], False),  # has learned it: says nothing about others
        ([scored(0.97, 0.85, unseen=True)], True),
        ([scored(0.86, 0.63, unseen=False), scored(0.5, 0.7, unseen=True, number=1)], False),
        ([scored(np.nan, 0.63, unseen=False)], False),
    ],
)
def test_an_organ_that_is_better_in_the_coarse_map_is_taken_from_it(rows, taken):
    assert organs_to_take_from_coarse(rows) == (("spleen",) if taken else ())
    said = [kind for _, kind in kinds(find_doubts(rows))]
    assert ("worse_than_coarse" in said) == taken


def test_what_training_has_hardly_learned_is_said_unless_the_coarse_map_takes_its_place():
    rows = [scored(0.2, 0.3, unseen=False), scored(0.1, 0.4, unseen=False, number=1)]
    [doubt] = find_doubts(rows).doubts
    assert doubt.text.startswith("spleen: Dice 0.35 on 2 labeled scans that training saw: hardly")
    assert find_doubts(rows, ("spleen",)) == Findings((), ("spleen",))


def test_an_organ_that_no_coarse_map_has_is_said():
    assert kinds(find_doubts([change(n, coarse=0.0, final=0.0) for n in range(3)])) == [
        ("spleen", "never_located")
    ]


def test_a_loss_in_few_of_many_scans_is_not_said():
    rows = [change(n, final=40.0 if n == 0 else 100.0) for n in range(20)]
    assert find_doubts(rows) == Findings()


def test_an_organ_cut_off_by_the_square_is_said():
    assert kinds(find_doubts([change(0, at_border=0.02)])) == [("spleen", "at_border")]


@pytest.mark.parametrize(("final", "said"), [(0.5, True), (0.78, False)])
def test_a_final_dice_clearly_below_the_coarse_one_is_said(final, said):
    rows = [change(n, coarse_dice=0.8, final_dice=final) for n in range(2)]
    assert kinds(find_doubts(rows)) == ([("spleen", "worse_than_coarse")] if said else [])
    if said:
        assert (
            "final Dice 0.50, coarse Dice 0.80 on 2 annotated scans"
            in find_doubts(rows).doubts[0].text
        )


def test_an_organ_is_as_the_coarse_map_has_it_unless_that_has_none():
    final = label_map(liver=CUBE, spleen=np.s_[12:20, :, :])
    coarse = label_map(spleen=np.s_[8:12, 5:10, :])
    both = with_organs_of(final, coarse, ("liver", "spleen"))
    assert np.array_equal(both.mask("spleen"), coarse.mask("spleen"))
    assert np.array_equal(both.mask("liver"), final.mask("liver") & ~coarse.mask("spleen"))
    assert np.array_equal(with_organs_of(both, coarse, ("liver", "spleen")).voxels, both.voxels)


def test_findings_are_read_as_they_were_written(tmp_path):
    findings = find_doubts([change(0, final=0.0)], ("spleen",))
    write_findings(tmp_path, findings)
    assert read_findings(tmp_path) == findings
    assert read_findings(tmp_path / "elsewhere") == Findings()


def summary_of(**dice):
    """Return the summary of runs by their Dice of liver and spleen in one scan."""
    return summarize(
        [
            ScoreRow(run, "s", "test", OrganScore("a", organ, value, 1.0, value, 5.0, 5.0))
            for run, values in dice.items()
            for organ, value in zip(SCHEME.names, values, strict=True)
        ],
        2.0,
        resamples=10,
    )


def test_scores_below_those_of_the_coarse_maps_are_said_of_all_organs_first():
    doubts = behind_coarse(summary_of(ours=(0.70, 0.80), coarse=(0.78, 0.81)), ["a"])
    assert [(d.organ, d.kind, d.scans) for d in doubts] == [
        ("", "worse_than_coarse", ("a",)),
        ("liver", "worse_than_coarse", ("a",)),
    ]
    assert doubts[0].text == (
        "all organs: mean Dice 0.750 on held-out scans (1), below the 0.795 of the coarse maps;"
        " more time or labels may help"
    )


@pytest.mark.parametrize(
    "dice",
    [
        {"ours": (0.8, 0.8), "coarse": (0.7, 0.8)},
        {"ours": (0.8, 0.8), "coarse": (0.8, 0.8)},
        {"ours": (0.8, 0.796), "coarse": (0.8, 0.8)},
        {"ours": (0.8, float("nan")), "coarse": (0.8, float("nan"))},
        {"ours": (0.8, 0.8)},
        {},
    ],
)
def test_scores_that_are_not_below_the_coarse_maps_leave_nothing_in_doubt(dice):
    assert behind_coarse(summary_of(**dice), ["a"]) == ()
