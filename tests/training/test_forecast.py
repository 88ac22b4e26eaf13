import dataclasses
import io
import json
import math
import subprocess
import sys

import pytest

from sacl.check.cohort_checks import CohortFacts
from sacl.check.scan_facts import Geometry, Intensities, OrganFacts, Reference, ScanFacts
from sacl.config import load_config
from sacl.errors import SaclError
from sacl.files.atomic import plain
from sacl.stages.finetune import plan_arms
from sacl.training import probe, step_costs
from sacl.training.forecast import arm_steps, forecast, usual_spacing_mm
from sacl.training.readiness import readiness_findings
from sacl.training.step_costs import StepCosts, measure_steps

COSTS = StepCosts(
    device="cpu",
    threads=1,
    cores=2,
    load=0.5,
    locate_s=0.1,
    pretrain_s=1.0,
    finetune_s=0.5,
    parameters={"locate": 1000, "pretrain": 2000, "finetune": 3000},
    peak_gb=0.5,
)
SMALL = {
    "locate.crop": "16,16,16",
    "locate.channels": "4",
    "extract.patch_size": "16",
    "extract.dense_size": "16",
    "pretrain.width": "4",
    "pretrain.batch": "4",
    "finetune.batch": "2",
    "device": "cpu",
}


def _scan(number, split="train", labeled=True, phase="native"):
    organ = OrganFacts(1000, 200.0, (0.0, 0.0, 0.0), 1, 1.0, 0.0, False, 7)
    return ScanFacts(
        case_id=f"c{number}",
        subject_id=f"s{number}",
        split=split,
        geometry=Geometry((48, 40, 12), (2.0, 2.0, 5.0), "RAS", (0.0, 0.0, 1.0), 0.0, 0.0),
        image=Intensities(-1000, 1000, -1000, 0, 300, 0.5, 40.0, 0.0, str(number), 2),
        reference=Reference(("liver",), {"liver": organ}) if labeled else None,
        scan_labels={"phase": phase},
        has_reference=labeled,
        read_s=0.1,
    )


def _cohort(scans, organs=("liver",)):
    return CohortFacts("toy", organs, tuple(scans), "ct")


COHORT = _cohort([*(_scan(n, labeled=n < 3) for n in range(5)), _scan(9, "test")])


@pytest.mark.parametrize("strategy", ["semantic", "none"])
@pytest.mark.parametrize("head", ["dense", "query"])
def test_the_arms_take_the_steps_that_finetune_plans(strategy, head):
    config = load_config(None, {"pretrain.strategy": strategy, "finetune.head": head})
    side = config.extract.dense_size if head == "dense" else config.extract.patch_size
    pixels = config.pretrain.steps * 2 * 100 * config.extract.patch_size**2
    pretrained = {"strategy": strategy, "encoder_pixels": pixels}
    planned = [arm.steps for arm in plan_arms(config.finetune, pretrained, side)]
    assert list(arm_steps(config, training_patches=100).values()) == planned


def test_training_takes_steps_times_seconds_per_step():
    config = load_config(None, {"locate.steps": "100", "pretrain.steps": "50"})
    expected = forecast(config, COHORT, COSTS)
    arms = arm_steps(config, expected.counts.training_patches)
    assert expected.seconds["pretrain"] == 50 * 1.0
    assert expected.seconds["finetune"] == sum(arms.values()) * 0.5
    # A network per fold, and one on all labeled scans.
    assert expected.seconds["locate"] == pytest.approx(100 * 4 * 0.1, rel=0.2)
    assert expected.memory_gb["train"] >= COSTS.peak_gb


def test_networks_on_slices_take_their_teachers_steps_too():
    flags = {"locate.network": "slices", "locate.steps": "100", "locate.teacher_steps": "200"}
    expected = forecast(load_config(None, flags), COHORT, COSTS)
    assert expected.steps["locate"] == 300 * 4
    assert expected.seconds["locate"] == pytest.approx(300 * 4 * 0.1, rel=0.2)


def test_copies_lengthen_prediction_alone():
    plain, copied = (
        forecast(load_config(None, {"predict.copies": n}), COHORT, COSTS).seconds for n in "04"
    )
    assert copied["predict"] > 2 * plain["predict"]
    assert {k for k in plain if plain[k] != copied[k]} == {"predict"}


def test_without_a_timed_step_no_time_is_told():
    expected = forecast(load_config(None), COHORT, None)
    assert expected.seconds is None
    assert "train" not in expected.memory_gb


def test_unlabeled_scans_have_as_many_patches_as_labeled_ones_on_average():
    expected = forecast(load_config(None), COHORT, None)
    assert expected.counts.patches == 6 * (7 + 2)
    assert expected.counts.labeled_patches == 3 * (7 + 2)
    assert (expected.counts.labeled_scans, expected.counts.labeled_subjects) == (3, 3)


def test_fewer_labeled_subjects_give_fewer_labeled_patches():
    config = load_config(None, {"ingest.labeled_subjects": "2"})
    assert forecast(config, COHORT, None).counts.labeled_patches == 2 * (7 + 2)


def _told(cohort, **flags):
    config = load_config(None, {name.replace("__", "."): text for name, text in flags.items()})
    expected = forecast(config, cohort, None)
    return [f.message for f in readiness_findings(config, cohort, expected, configured=True)]


def test_a_cohort_that_suits_its_settings_is_told_nothing():
    assert _told(COHORT) == []


@pytest.mark.parametrize(
    ("scans", "flags", "words"),
    [
        ([_scan(0), _scan(1, "test")], {}, "1 labeled training subjects"),
        ([_scan(0), _scan(1)], {}, "no validation or test scan"),
        (
            [_scan(n, "test" if n > 2 else "train", phase="unknown") for n in range(4)],
            {"locate__estimate_phase": "false"},
            "'phase'",
        ),
        (COHORT.scans, {"ingest__labeled_subjects": "7"}, "is 7, and there are 3"),
        (COHORT.scans, {"ingest__organs": "liver,spleen"}, "asks for spleen"),
        (COHORT.scans, {"extract__patch_size": "160000"}, "disk has"),
    ],
)
def test_what_a_run_would_stop_at_is_told_once(scans, flags, words):
    (message,) = _told(_cohort(scans), **flags)
    assert words in message


def test_a_phase_that_will_be_estimated_need_not_be_known():
    scans = [_scan(n, "test" if n > 2 else "train", phase="unknown") for n in range(4)]
    assert _told(_cohort(scans)) == []
    assert len(_told(dataclasses.replace(_cohort(scans), modality="mr"))) == 1


def test_an_organ_that_no_labeled_scan_is_annotated_for_is_told():
    (message,) = _told(_cohort(COHORT.scans, ("liver", "spleen")))
    assert message == "no labeled training scan is annotated for spleen"


def test_a_cohort_of_two_modalities_needs_a_choice():
    scans = [
        dataclasses.replace(s, modality="mr" if s.case_id == "c4" else "ct") for s in COHORT.scans
    ]
    assert "CT and MR" in _told(_cohort(scans))[0]
    assert _told(_cohort(scans), ingest__modality="ct") == []


def test_a_flip_is_refused_where_sides_differ():
    cohort = dataclasses.replace(COHORT, organs=("kidney_left", "kidney_right", "liver"))
    assert any("flip" in text for text in _told(cohort, pretrain__augment__flip="true"))


def test_what_defaults_do_not_suit_is_a_warning_and_what_somebody_wrote_an_error():
    config, cohort = load_config(None), _cohort([_scan(0), _scan(1, "test")])
    expected = forecast(config, cohort, None)
    levels = {
        configured: readiness_findings(config, cohort, expected, configured)[0].level
        for configured in (True, False)
    }
    assert levels == {True: "error", False: "warning"}


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"finetune.head": "query", "pretrain.strategy": "simclr"},
        {"locate.network": "slices", "locate.slice_size": "16", "pretrain.query": "pooled"},
    ],
)
def test_the_probe_takes_steps_of_every_training(flags, monkeypatch, capsys):
    config = load_config(None, {**SMALL, **flags})
    request = {"config": plain(config), "organs": 2, "spacing_mm": usual_spacing_mm(COHORT)}
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(request)))
    probe.main()
    costs = StepCosts(**json.loads(capsys.readouterr().out))
    seconds = (costs.locate_s, costs.pretrain_s, costs.finetune_s)
    assert all(0 < s < 10 and math.isfinite(s) for s in seconds)
    assert all(count > 0 for count in costs.parameters.values())


@pytest.mark.parametrize(
    ("returncode", "stderr", "words"),
    [(-9, "", "want of memory"), (1, "Traceback\nsacl.errors.X: no such device", "no such device")],
)
def test_a_probe_that_dies_is_told_in_one_line(monkeypatch, returncode, stderr, words):
    done = subprocess.CompletedProcess([], returncode, "", stderr)
    monkeypatch.setattr(step_costs.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(SaclError, match=words):
        measure_steps(load_config(None), 2, (1.0, 1.0, 1.0))
