"""What is chosen for which cohort and machine: facts in, settings out."""

import dataclasses

import pytest

from sacl.plan.facts import DrawnOrgans, MachineFacts, TaskFacts, Tried
from sacl.plan.rules import Situation, choose, held_out, kinds_of, on_volumes, scan_label_of

CPU = MachineFacts("cpu", 2, 16.0)
GPU = MachineFacts("cuda", 16, 128.0, 80.0)

HEART = TaskFacts(
    name="heart",
    modality="mr",
    organs=("right_ventricle", "myocardium", "left_ventricle"),
    pairs=(),
    partly_annotated=(),
    scans=140,
    subjects=70,
    labeled_scans=6,
    labeled_subjects=3,
    unlabeled_scans=134,
    held_out_scans=20,
    slices=1300,
    spacing_mm=(1.5, 1.5, 10.0),
    field_of_view_mm=(243.0, 288.0, 90.0),
    side_mm=(288.0, 234.0, 576.0),
    values={"phase": {"end_diastole": 70, "end_systole": 70}},
    drawn=DrawnOrgans(184.0, 0.638, "right_ventricle", 38.0, 111.0, 40.0, 0.12),
)
BRAIN = dataclasses.replace(
    HEART,
    organs=("anterior", "posterior"),
    scans=120,
    subjects=100,
    spacing_mm=(1.0, 1.0, 1.0),
    field_of_view_mm=(35.0, 50.0, 35.0),
    side_mm=(50.0, 40.0, 58.0),
    values={},
    drawn=DrawnOrgans(49.5, 1.0, "posterior", 8.6, 1.6, 11.5, 0.0),
)
NECK = dataclasses.replace(
    HEART,
    modality="ct",
    organs=("brainstem", "cord", "parotid_left", "parotid_right", "esophagus", "larynx"),
    pairs=(("parotid_left", "parotid_right"),),
    partly_annotated=("larynx",),
    scans=100,
    subjects=100,
    spacing_mm=(4.0, 4.0, 2.5),
    field_of_view_mm=(492.0, 281.0, 306.0),
    side_mm=(492.0, 203.0, 620.0),
    values={"contrast": {"contrast": 14, "native": 13, "unknown": 73}},
    drawn=DrawnOrgans(280.0, 0.634, "esophagus", 11.5, 24.0, 25.5, 0.008),
)
NECK_LABELED = dataclasses.replace(NECK, unlabeled_scans=0, labeled_subjects=100)
ABDOMEN = dataclasses.replace(
    NECK,
    spacing_mm=(0.8, 0.8, 5.0),
    field_of_view_mm=(400.0, 400.0, 300.0),
    side_mm=(400.0, 350.0, 500.0),
    drawn=DrawnOrgans(340.0, 0.85, "esophagus", 16.0, 15.0, 120.0, 0.0),
)
PROSTATE = dataclasses.replace(
    HEART,
    organs=("prostate",),
    spacing_mm=(0.6, 0.6, 3.6),
    field_of_view_mm=(190.0, 190.0, 72.0),
    side_mm=(190.0, 160.0, 200.0),
    drawn=DrawnOrgans(75.0, 0.39, "prostate", 45.0, 50.0, 45.0, 0.0),
)
THICK_BRAIN = dataclasses.replace(BRAIN, spacing_mm=(1.0, 1.0, 2.5))
LONG = dataclasses.replace(HEART, slices=200_000)
UNDRAWN = dataclasses.replace(HEART, drawn=None)


def chosen(facts, machine=CPU, hours=2.0, **given):
    given = {name.replace("__", "."): value for name, value in given.items()}
    choices = choose(Situation(facts, machine, hours * 3600, given))
    return {choice.setting: choice.value for choice in choices if choice.setting}


@pytest.mark.parametrize(
    ("facts", "machine", "expected"),
    [
        (HEART, CPU, {"locate.slices.size": 64, "extract.region": "organs"}),
        (HEART, CPU, {"extract.dense_size": 96, "pretrain.network": "resnet18"}),
        (HEART, GPU, {"extract.dense_size": 256, "pretrain.network": "resnet50"}),
        (HEART, GPU, {"pretrain.width": 64, "finetune.learning_rate": 1e-3}),
        (HEART, CPU, {"pretrain.method": "none", "finetune.dense.teacher_steps": 8000}),
        (BRAIN, CPU, {"locate.volume.spacing_mm": [1.0, 1.0, 1.0], "finetune.volume": None}),
        (BRAIN, CPU, {"locate.volume.crop": [40, 48, 32]}),
        (NECK, CPU, {"locate.volume": None, "finetune.volume.teacher_steps": 30_000}),
        (HEART, CPU, {"predict.copies": 4, "finetune.dense.copy_paste": 0.0}),
        (NECK, CPU, {"predict.keep_component": 1.0}),
        (HEART, CPU, {"predict.keep_component": None}),
        (LONG, CPU, {"predict.copies": 0}),
        (LONG, GPU, {"predict.copies": 4}),
        (NECK_LABELED, CPU, {"locate.volume.crop": [48, 48, 32], "locate.channels": 16}),
        (NECK_LABELED, CPU, {"locate.volume.spacing_mm": [5.1, 5.1, 5.1]}),
        (NECK_LABELED, GPU, {"locate.volume.spacing_mm": [4.0, 4.0, 4.0]}),
        (UNDRAWN, CPU, {"locate.slices.size": 64, "extract.region": "slice"}),
        (ABDOMEN, CPU, {"finetune.volume": None, "locate.volume.spacing_mm": [4.2, 4.2, 5.0]}),
        (PROSTATE, CPU, {"locate.slices.size": 64, "extract.region": "organs"}),
    ],
)
def test_facts_lead_to_settings(facts, machine, expected):
    made = chosen(facts, machine)
    assert {name: made.get(name) for name in expected} == expected


def test_one_kind_of_coarse_network_is_chosen():
    for facts, other in ((HEART, "locate.volume"), (NECK, "locate.slices")):
        assert not [name for name in chosen(facts) if name.startswith(other)]


def test_every_choice_has_a_reason():
    for facts in (HEART, BRAIN, NECK, NECK_LABELED, UNDRAWN):
        for choice in choose(Situation(facts, CPU, 7200.0)):
            assert len(choice.reason) > 15, choice


def test_the_reason_for_slices_names_both_spacings():
    choices = choose(Situation(HEART, CPU, 7200.0))
    reason = next(c.reason for c in choices if c.setting == "locate.slices")
    assert "slices, not volumes: spacing 10 mm against 1.5 mm" in reason


def test_thick_slices_are_those_that_are_thick_for_the_pixels_that_are_read():
    assert ABDOMEN.read_mm == 4.17
    assert PROSTATE.read_mm == 0.781
    for facts, volumes in ((ABDOMEN, True), (PROSTATE, False), (HEART, False)):
        assert ("finetune.volume" in chosen(facts)) == volumes
    reasons = {c.setting: c.reason for c in choose(Situation(ABDOMEN, CPU, 7200.0))}
    for setting in ("locate.volume", "finetune.volume"):
        read = "spacing 5 mm against 0.8 mm, which is read as 4.17 mm"
        assert f"volumes, not slices: {read}" in reasons[setting]


def test_what_facts_cannot_tell_is_said():
    choices = {c.setting: c for c in choose(Situation(HEART, CPU, 7200.0))}
    assert "whether strong or mild is better" in choices["finetune.augment"].because


@pytest.mark.parametrize(
    ("facts", "kinds"),
    [
        (HEART, ("slices",)),
        (NECK, ("volumes",)),
        (BRAIN, ("volumes",)),
        (ABDOMEN, ("volumes",)),
        (PROSTATE, ("slices", "volumes")),
        (THICK_BRAIN, ("volumes", "slices")),
    ],
)
def test_the_kind_of_the_rule_comes_first_and_between_what_was_measured_the_other(facts, kinds):
    situation = Situation(facts, CPU, 7200.0)
    assert kinds_of(situation) == kinds
    assert on_volumes(situation) == (kinds[0] == "volumes")
    assert kinds_of(dataclasses.replace(situation, given={"finetune.steps": 9})) == kinds[:1]


@pytest.mark.parametrize(
    ("given", "volumes"),
    [
        ({}, True),
        ({"finetune.steps": 9}, True),
        ({"finetune.dense.teacher_steps": 5}, False),
        ({"pretrain.network": "resnet34"}, False),
        ({"extract.dense_size": 64}, False),
        ({"locate.slices": {}}, False),
    ],
)
def test_thin_slices_are_segmented_as_volumes_unless_the_user_asks_for_slices(given, volumes):
    names = {c.setting for c in choose(Situation(BRAIN, CPU, 7200.0, given))}
    assert ("finetune.volume" in names) == volumes
    read = any(name.startswith(("extract.", "pretrain.", "finetune.dense")) for name in names)
    assert read != volumes
    assert "finetune.volume" not in chosen(HEART)


def test_volumes_are_pretrained_where_the_user_asks_for_it():
    for given in ({"pretrain.method": "pooled"}, {"pretrain.steps": 50}):
        made = {c.setting: c.value for c in choose(Situation(BRAIN, CPU, 7200.0, given))}
        assert "finetune.volume" in made
        assert made.get("pretrain.method", "pooled") == "pooled"
        assert made["pretrain.scan_label"] == ""
        assert not {"pretrain.network", "pretrain.width"} & made.keys()


def test_in_a_short_time_a_cpu_locates_on_volumes():
    made = chosen(HEART, hours=0.2)
    assert (made["locate.volume.in_plane_size"], made["locate.volume.crop"]) == (64, [64, 64, 16])
    assert "locate.slices" in chosen(HEART, GPU, hours=0.2)
    assert "locate.volume" not in chosen(HEART, hours=0.2, locate__slices={})


@pytest.mark.parametrize(("facts", "hearts"), [(HEART, True), (BRAIN, False), (NECK, False)])
def test_hearts_in_a_short_time_are_the_reason_for_thick_slices_alone(facts, hearts):
    choices = choose(Situation(facts, CPU, 720.0))
    reason = next(c.reason for c in choices if c.setting == "locate.volume")
    assert ("Dice on hearts" in reason) == hearts


@pytest.mark.parametrize("facts", [HEART, NECK])
@pytest.mark.parametrize("name", ["in_plane_size", "spacing_mm"])
def test_of_two_settings_that_exclude_each_other_the_users_stays_alone(facts, name):
    made = chosen(facts, **{f"locate__volume__{name}": 64})
    assert not {"locate.volume.in_plane_size", "locate.volume.spacing_mm"} & made.keys()


@pytest.mark.parametrize(("facts", "first"), [(PROSTATE, "slices"), (THICK_BRAIN, "volumes")])
@pytest.mark.parametrize("best", ["slices", "volumes"])
def test_a_trial_decides_and_its_figures_are_the_reason(facts, first, best):
    dice = {"slices": 0.2, "volumes": 0.2, best: 0.3}
    other = "volumes" if first == "slices" else "slices"
    tried = tuple(Tried(kind, dice[kind], {}, 100, 9.0) for kind in (first, other))
    made = {c.setting: c.reason for c in choose(Situation(facts, CPU, 7200.0, tried=tried))}
    kind = "finetune.volume" if best == "volumes" else "finetune.dense"
    assert f"{first} {dice[first]:.2f}, {other} {dice[other]:.2f}" in made[kind]
    assert ("finetune.volume" in made) == ("extract.region" not in made) == (best == "volumes")
    assert ("locate.slices" in made) == (facts is PROSTATE and best == "slices")


def test_a_kind_that_is_to_be_tried_is_planned_for_as_if_settled():
    for kind in ("slices", "volumes"):
        made = choose(Situation(PROSTATE, CPU, 540.0, kind=kind))
        names = {c.setting for c in made}
        assert ("finetune.volume" in names) == (kind == "volumes")
        assert "locate.volume" in names  # on slices it learns too slowly


def test_what_the_user_gave_wins_over_a_trial():
    tried = (Tried("slices", 0.2, {}, 100, 9.0), Tried("volumes", 0.3, {}, 100, 9.0))
    given = {"finetune.dense.teacher_steps": 5}
    choices = choose(Situation(PROSTATE, CPU, 7200.0, given, tried))
    assert not [c for c in choices if c.setting.startswith("finetune.volume")]


@pytest.mark.parametrize(
    ("given", "gone"),
    [
        ({"finetune.dense.teacher_steps": 5}, "finetune.dense.teacher_steps"),
        ({"locate.volume.steps": 5}, "locate.slices"),
        ({"locate.maps.source": "maps"}, "locate."),
        ({"locate.slices": {}}, "locate.slices.size"),
        ({"finetune.query": {}}, "finetune.dense"),
    ],
)
def test_what_the_user_gave_is_not_chosen(given, gone):
    names = [c.setting for c in choose(Situation(HEART, CPU, 7200.0, given))]
    assert not [name for name in names if name.startswith(gone)]


def test_settings_of_pretraining_bring_pretraining_and_its_classes():
    made = chosen(HEART, finetune__encoder_rate=0.5)
    assert (made["pretrain.method"], made["pretrain.scan_label"]) == ("pooled", "phase")
    assert "pretrain.scan_label" not in chosen(HEART, pretrain__method="simclr")


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({}, ""),
        ({"phase": {"native": 9, "unknown": 3}}, ""),
        ({"age": {str(n): 2 for n in range(40)}}, ""),
        ({"contrast": {"native": 3, "contrast": 2}}, "contrast"),
        ({"arm": {"a": 3, "b": 3}, "phase": {"native": 3, "delayed": 2}}, "phase"),
        ({"scan": {"one": 1, "two": 1}}, ""),
    ],
)
def test_a_scan_wise_label_of_several_values_makes_classes(values, name):
    assert scan_label_of(values)[0] == name


@pytest.mark.parametrize(
    ("labeled", "scored", "held"),
    [(1, 0, 0), (9, 0, 0), (10, 0, 2), (26, 0, 5), (100, 0, 10), (26, 4, 0)],
)
def test_many_labeled_subjects_are_partly_held_out(labeled, scored, held):
    assert held_out(labeled, scored).value == held


@pytest.mark.parametrize(("scans", "said"), [(0, []), (7, ["7 held-out scans"])])
def test_images_that_nothing_is_learned_from_are_said(scans, said):
    facts = dataclasses.replace(HEART, only_predicted_scans=scans)
    reasons = [c.reason for c in choose(Situation(facts, CPU, 7200.0)) if not c.setting and c.said]
    assert [r[:16] for r in reasons if "not learned from" in r] == said


def test_one_labeled_subject_and_partial_annotation_are_said():
    facts = dataclasses.replace(NECK, labeled_subjects=1)
    said = [c.reason for c in choose(Situation(facts, CPU, 7200.0)) if not c.setting and c.said]
    assert any("ONE labeled subject" in line for line in said)
    assert any("larynx" in line for line in said)


@pytest.mark.parametrize(("labeled", "said"), [(1, True), (0, False)])
def test_a_cohort_without_a_scan_left_to_segment_is_said(labeled, said):
    facts = dataclasses.replace(HEART, scans=1, subjects=1, labeled_scans=labeled)
    reasons = [c.reason for c in choose(Situation(facts, CPU, 7200.0)) if not c.setting]
    assert any(reason.startswith("every scan is labeled") for reason in reasons) == said
