from __future__ import annotations

from pathlib import Path

import pytest

from sacl.cohort.annotation import (
    annotated_organs,
    choose_scheme,
    dataset_in_lines,
    keep_annotated,
    label_of_value,
    require_known_organs,
)
from sacl.cohort.dataset import Dataset, SourceCase
from sacl.errors import ConfigError, DataError
from sacl.types import LabelScheme

KIDNEYS = LabelScheme("s", ("liver", "kidneys", "spleen"))


def mapped(case_id="a", **more):
    return SourceCase(case_id, Path("a.nii"), Path("a_label.nii"), **more)


def masked(case_id, *organs, **more):
    masks = {organ: Path(f"{organ}.nii") for organ in organs}
    return SourceCase(case_id, Path("a.nii"), masks=masks, **more)


def found(*cases, organs=None):
    return Dataset("table", "mine", organs or {}, cases)


TABLE = {1: "liver", 2: "RK", 3: "left kidney", 4: "spleen", 5: "skin"}


def test_a_label_map_annotates_all_of_its_table_unless_the_case_says_less():
    data = found(mapped(), mapped("b", annotated=("Spleen", "LK")), organs=TABLE)
    assert annotated_organs(data, data.cases[0], KIDNEYS) == ("liver", "kidneys", "spleen")
    # The right kidney was not looked for: nothing is known of the kidneys together.
    assert annotated_organs(data, data.cases[1], KIDNEYS) == ("spleen",)


def test_masks_annotate_the_organs_that_have_a_file():
    data = found(masked("a", "kidney_left", "kidney_right", "gall_bladder"), masked("b", "liver"))
    assert annotated_organs(data, data.cases[0], KIDNEYS) == ("kidneys",)
    assert annotated_organs(data, data.cases[1], KIDNEYS) == ("liver",)


def test_an_unlabeled_scan_annotates_nothing():
    data = found(SourceCase("a", Path("a.nii")), organs=TABLE)
    assert annotated_organs(data, data.cases[0], KIDNEYS) == ()


def test_values_become_labels_only_of_organs_that_are_annotated():
    data = found(mapped(annotated=("liver", "LK")), organs=TABLE)
    annotated = annotated_organs(data, data.cases[0], KIDNEYS)
    assert label_of_value(data, data.cases[0], KIDNEYS, annotated) == {1: 1, 2: 0, 3: 0, 4: 0, 5: 0}
    sides = LabelScheme("s", ("spleen", "kidney_left"))
    annotated = annotated_organs(data, data.cases[0], sides)
    assert label_of_value(data, data.cases[0], sides, annotated) == {1: 0, 2: 0, 3: 2, 4: 0, 5: 0}


def test_merged_sides_tell_nothing_of_a_single_one():
    data = found(mapped(), organs={2: "kidneys", 1: "liver"})
    scheme = LabelScheme("s", ("liver", "kidney_left", "kidney_right"))
    annotated = annotated_organs(data, data.cases[0], scheme)
    assert annotated == ("liver",)
    assert label_of_value(data, data.cases[0], scheme, annotated) == {1: 1, 2: 0}


def test_the_scheme_is_all_of_the_data_in_its_order():
    assert choose_scheme(found(mapped(), organs=TABLE), ())[0].names == (
        "liver",
        "kidney_right",
        "kidney_left",
        "spleen",
        "skin",
    )


def test_two_spellings_of_an_organ_are_one():
    data = found(mapped(organs={1: "IVC", 2: "liver"}), mapped("b", organs={4: "postcava"}))
    assert choose_scheme(data, ())[0].names == ("inferior_vena_cava", "liver")


def test_sides_are_merged_where_a_part_of_the_data_has_them_in_one():
    lobes = {n: f"lung_{part}" for n, part in enumerate(("upper_lobe_left", "lower_lobe_left"), 5)}
    data = found(
        mapped(organs={1: "liver", 2: "kidney_right", 3: "kidney_left"} | lobes),
        mapped("b", organs={2: "kidneys", 4: "spleen", 7: "lung_left"}),
    )
    scheme, notes = choose_scheme(data, ())
    assert scheme.names == ("liver", "kidneys", "spleen", "lung_left")
    assert notes == (
        "kidney_right and kidney_left are merged into kidneys, which some of the data do not"
        " divide",
        "lung_upper_lobe_left and lung_lower_lobe_left are merged into lung_left, which some of"
        " the data do not divide",
    )


def test_sides_that_a_table_has_beside_their_whole_stay_apart():
    data = found(mapped(), organs={1: "kidneys", 2: "kidney_left"})
    assert choose_scheme(data, ())[0].names == ("kidneys", "kidney_left")


@pytest.mark.parametrize(
    ("wanted", "organ"), [(("liver", "colon"), "colon"), (("kidney_left", "lungs"), "lungs")]
)
def test_an_organ_that_no_part_of_the_data_has_is_refused(wanted, organ):
    with pytest.raises(ConfigError, match=f"no organ '{organ}' in mine; it has liver, RK"):
        choose_scheme(found(mapped(), organs=TABLE), wanted)


def test_half_of_a_whole_is_not_enough():
    with pytest.raises(ConfigError, match="no organ 'kidneys' in mine; it has kidney_left"):
        choose_scheme(found(mapped(), organs={1: "kidney_left"}), ("kidneys",))


def test_a_misspelled_annotated_organ_is_refused():
    require_known_organs(found(mapped(annotated=("kidneys", "LIVER")), organs=TABLE))
    with pytest.raises(DataError, match="case a: annotated for 'livr', not an organ of mine"):
        require_known_organs(found(mapped(annotated=("livr",)), organs=TABLE))


def test_a_reference_about_other_organs_makes_no_labeled_scan():
    data = found(masked("a", "brain"), masked("b", "liver"), masked("c"))
    kept = keep_annotated(data, KIDNEYS)
    assert [case.has_reference for case in kept.cases] == [False, True, False]
    assert kept.notes == (
        "1 references annotate none of the organs; these scans count as unlabeled",
    )
    assert dataset_in_lines(kept, KIDNEYS)[2] == (
        "annotated in fewer than all 1 references, and unknown in the others: kidneys 0, spleen 0"
    )
