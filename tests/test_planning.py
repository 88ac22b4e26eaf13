"""Planning a run on a folder: what is written, read again, said and refused."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from tests.planted import clean_files, write_files

from sacl import planning
from sacl.cli import main
from sacl.errors import DataError
from sacl.plan.document import PLAN_FILE, YOURS, read_plan
from sacl.plan.facts import Tried
from sacl.run.clock import TooShort
from sacl.run.configure import load_config
from sacl.stages import ingest


@pytest.fixture
def planted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_files(clean_files(), tmp_path / "clinic")


@pytest.fixture(autouse=True)
def tried(monkeypatch):
    """Try nothing in earnest: volumes win, and what was to be tried is returned."""
    asked = []

    def try_segmenters(candidates, workspace, train):
        asked.append(candidates)
        return tuple(Tried(n, 0.3 + 0.1 * (n == "volumes"), {}, 9, 1.0) for n in candidates)

    monkeypatch.setattr(planning, "try_segmenters", try_segmenters)
    return asked


def planned(capsys, *arguments):
    assert main(["plan", "clinic", "--device", "cpu", *arguments]) == 0
    return capsys.readouterr()


def many_labeled():
    """Return ten labeled scans of ten subjects."""
    files = clean_files()
    for number in range(10):
        case = files.scans[f"c{number}"]
        files.scans[f"c{number}"] = replace(case, split="train", subject=f"p{number}")
    return files


def settings_of(text, tmp_path):
    (tmp_path / "cohort.yaml").write_text(text)
    return load_config(tmp_path / "cohort.yaml")


def test_a_plan_is_yaml_of_the_chosen_settings(planted, tmp_path, capsys):
    told = planned(capsys, "--time", "1h")
    config = settings_of(told.out, tmp_path)
    plan = read_plan(tmp_path / "work" / "clinic")
    assert config == load_config(
        None,
        {"ingest.data": "clinic", "name": "clinic", "work": "work/clinic", "device": "cpu"},
        base={**plan.settings, "time": "1h"},
    )
    assert (config.time, config.ingest.validation_subjects) == ("1h", 0)
    assert config.finetune.volume is not None
    assert "# volumes, not slices: spacing 14 mm against 14 mm" in told.out
    assert "(research/log.md, 2026-11-30)" in " ".join(told.out.replace("#", "").split())


def test_facts_are_measured_on_the_ingested_cohort(planted, tmp_path, capsys):
    planned(capsys)
    facts = read_plan(tmp_path / "work" / "clinic").facts
    assert (facts.scans, facts.subjects, facts.labeled_scans, facts.labeled_subjects) == (
        10,
        9,
        7,
        6,
    )
    assert (facts.unlabeled_scans, facts.held_out_scans, facts.slices) == (0, 3, 160)
    assert facts.side_mm == (336.0, 336.0, 336.0)
    assert facts.pairs == (("kidney_left", "kidney_right"),)
    assert facts.values == {"phase": {"native": 4, "portal_venous": 3}}
    # Organs lie from voxel 3 to 21 along x, which is 18 x 14 mm; with 1.75 of that, all is shown.
    assert (facts.drawn.square_mm, facts.drawn.square_share) == (336.0, 1.0)
    assert (facts.drawn.narrowest, facts.drawn.narrowest_mm) == ("aorta", 28.0)
    assert facts.drawn.second_piece == 0.0


def test_the_same_command_reads_its_plan_and_its_cohort_again(planted, tmp_path, capsys):
    first = planned(capsys)
    path = tmp_path / "work" / "clinic" / PLAN_FILE
    text = path.read_bytes()
    second = planned(capsys)
    assert second.out == first.out
    assert "ingest: up to date" in second.err
    path.unlink()  # as if killed before it was written
    assert planned(capsys).out == first.out
    assert path.read_bytes() == text


def test_the_data_are_listed_once(planted, monkeypatch, capsys):
    listings, list_sources = [], ingest.list_sources

    def counted(sources):
        listings.append(sources)
        return list_sources(sources)

    monkeypatch.setattr(ingest, "list_sources", counted)
    planned(capsys)
    assert len(listings) == 1


def test_a_plan_is_not_changed_by_what_is_measured_later(planted, tmp_path, capsys):
    first = planned(capsys)
    path = tmp_path / "work" / "clinic" / PLAN_FILE
    document = json.loads(path.read_text())
    next(c for c in document["choices"] if c["setting"] == "locate.channels")["value"] = 24
    path.write_text(json.dumps(document))
    assert planned(capsys).out == first.out.replace("channels: 16", "channels: 24")


def test_flags_win_and_are_said_as_yours(planted, tmp_path, capsys):
    text = planned(capsys, "--finetune.steps", "100", "--locate.volume.steps", "7").out
    config = settings_of(text, tmp_path)
    assert (config.finetune.steps, config.locate.volume.steps) == (100, 7)
    lines = text.splitlines()
    assert lines[lines.index("  steps: 100") - 1].strip() == f"# {YOURS}"
    # Without them the rules choose again, on the facts as they were measured.
    config = settings_of(planned(capsys).out, tmp_path)
    assert (config.finetune.steps, config.locate.volume.steps) == (500, 600)


def test_another_time_is_planned_for_until_something_was_trained(planted, tmp_path, capsys):
    planned(capsys, "--time", "1h")
    assert settings_of(planned(capsys, "--time", "3h").out, tmp_path).time == "3h"
    assert settings_of(planned(capsys).out, tmp_path).time == "3h"
    located = tmp_path / "work" / "clinic" / "2-coarse"
    located.mkdir()
    (located / "pace.json").write_text('{"fold1": {"steps": 600}}')
    assert main(["plan", "clinic", "--time", "1h"]) == 2
    told = capsys.readouterr()
    assert "was planned for 3h, and --time is 1h" in told.err
    assert told.out == ""
    assert settings_of(planned(capsys, "--time", "1h", "--force").out, tmp_path).time == "1h"


def test_changed_data_are_measured_and_planned_for_again(planted, tmp_path, capsys):
    planned(capsys, "--time", "1h")
    for case in ("c1", "c2"):
        (planted / "labelsTr" / f"{case}.nii").unlink()
    again = planned(capsys)
    assert "the data have changed, so they are planned for again" in again.err
    plan = read_plan(tmp_path / "work" / "clinic")
    assert (plan.time, plan.facts.labeled_scans) == ("1h", 5)


def test_who_is_held_out_is_chosen_again_where_labels_were_removed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files = many_labeled()
    write_files(files, tmp_path / "clinic")
    planned(capsys)
    for number in range(1, 10):
        (tmp_path / "clinic" / "labelsTr" / f"c{number}.nii").unlink()
    assert settings_of(planned(capsys).out, tmp_path).ingest.validation_subjects == 0


def test_other_data_from_another_folder_of_that_name_are_refused(planted, tmp_path, capsys):
    planned(capsys)
    ingested = (tmp_path / "work" / "clinic" / "1-cohort" / "run.json").read_bytes()
    moved = tmp_path / "moved" / "clinic"
    moved.parent.mkdir()
    planted.rename(moved)
    assert main(["plan", str(moved)]) == 0  # the same data, elsewhere
    (moved / "labelsTr" / "c1.nii").unlink()
    capsys.readouterr()
    assert main(["plan", str(moved)]) == 2
    told = capsys.readouterr().err
    assert "holds a run on other data, from another folder; take another --work" in told
    assert (tmp_path / "work" / "clinic" / "1-cohort" / "run.json").read_bytes() == ingested
    assert main(["plan", str(moved), "--force"]) == 0


@pytest.mark.parametrize("folders", [("labelsTr", "labelsTs"), ("labelsTr",)])
def test_without_a_label_it_says_what_to_label_first(planted, tmp_path, capsys, folders):
    for folder in folders:
        shutil.rmtree(planted / folder)
    assert main(["plan", "clinic"]) == 2
    told = capsys.readouterr()
    assert "planted: none of 7 training scans is labeled" in told.err
    assert "draw all organs in c" in told.err
    assert told.err.count("\n") == 1
    assert not (tmp_path / "work").exists()


def test_many_labeled_subjects_hold_some_out(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_files(many_labeled(), tmp_path / "clinic")
    config = settings_of(planned(capsys).out, tmp_path)
    assert config.ingest.validation_subjects == 2
    assert read_plan(tmp_path / "work" / "clinic").facts.held_out_scans == 2
    assert planned(capsys, "--ingest.validation_subjects", "0", "--force").out
    assert read_plan(tmp_path / "work" / "clinic").facts.held_out_scans == 0


def test_held_out_scans_without_a_label_map_are_learned_from_where_a_table_says_so(
    planted, tmp_path, capsys
):
    label = min((planted / "labelsTs").iterdir())
    label.unlink()
    case = label.name.removesuffix(".nii")
    assert "1 held-out scan without a label map" in planned(capsys).out
    (tmp_path / "splits.csv").write_text(f"case_id,split\n{case},train\n")
    told = planned(capsys, "--force", "--ingest.scan_labels", str(tmp_path / "splits.csv")).out
    assert "held-out scan without" not in told
    assert read_plan(tmp_path / "work" / "clinic").facts.unlabeled_scans == 1


def test_a_plan_of_settings_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "demo"]) == 2
    assert "expected only a folder of scans" in capsys.readouterr().err


@pytest.fixture
def thick(planted):
    files = clean_files()
    for name, scan in files.scans.items():
        files.scans[name] = replace(scan, affine=scan.affine @ np.diag([1.0, 1.0, 4.0, 1.0]))
    shutil.rmtree(planted)
    return write_files(files, planted)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TooShort("time: too short"), "nothing was tried, since this machine is too slow"),
        (DataError("no organ"), "the trial failed, so the rule decides: no organ"),
    ],
)
def test_a_trial_that_cannot_be_is_said_and_planned_for(thick, capsys, monkeypatch, error, said):
    def fails(*_):
        raise error

    monkeypatch.setattr(planning, "try_segmenters", fails)
    told = planned(capsys, "--time", "2h")
    assert said in told.err
    assert "slices, not volumes" in told.out


def test_a_trial_decides_the_kind_of_segmenter_once(thick, capsys, tried, tmp_path):
    told = planned(capsys, "--time", "2h")
    [candidates] = tried
    assert list(candidates) == ["slices", "volumes"]
    slices, volumes = candidates.values()
    assert (volumes.finetune.volume is None, slices.finetune.dense is None) == (False, False)
    assert slices.time == volumes.time == "540s"
    assert volumes.locate.volume is not None
    assert "slices 0.30, volumes 0.40" in " ".join(told.out.replace("#", "").split())
    assert settings_of(told.out, tmp_path).finetune.volume is not None
    assert planned(capsys, "--time", "2h").out == told.out
    assert len(tried) == 1


def test_nothing_is_tried_in_too_short_a_time_nor_of_what_the_user_gave(thick, capsys, tried):
    planned(capsys, "--time", "1h", "--work", "short")
    for setting in ("locate.slices.size", "finetune.steps"):
        planned(capsys, "--time", "2h", "--work", setting, f"--{setting}", "64")
    assert not tried


def test_nothing_is_tried_where_the_facts_tell(planted, capsys, tried):
    planned(capsys, "--time", "2h")
    assert not tried


def test_a_candidate_is_trained_up_to_its_segmenter_within_its_time(thick, monkeypatch):
    done = []

    def run_stage(config, stage, workspace, label):
        done.append((stage, workspace.budget.asked_s))

    monkeypatch.setattr(planning, "run_stage", run_stage)
    flags = {"ingest.data": "clinic", "time": "540s"}
    volume = {"finetune.volume": None}
    for base, stages in ((volume, "locate finetune"), ({}, "locate extract pretrain finetune")):
        config = load_config(None, flags, base=base)
        planning._train(config, planning.workspace_of(config))
        assert done == [(stage, 540) for stage in stages.split()]
        done.clear()


def test_check_shows_the_plan_and_the_splits_of_the_run(planted, tmp_path, capsys):
    flags = ("--finetune.steps", "9", "--locate.slices.steps", "50")
    planned(capsys, *flags)
    assert main(["check", "clinic", "--device", "cpu", *flags]) == 0
    told = capsys.readouterr().out
    lines = list(read_plan(tmp_path / "work" / "clinic").lines())
    assert lines == [line.strip() for line in told.splitlines() if line.strip() in lines]
    assert "finetune.steps 9: yours" in lines
    assert "What a run would do" in (tmp_path / "check.html").read_text()
    assert json.loads((tmp_path / "check.json").read_text())["plan"] == lines


@pytest.mark.parametrize(("time", "said"), [("2h", True), ("1h", False)])
def test_check_announces_a_trial_where_there_will_be_one(thick, capsys, tried, time, said):
    main(["check", "clinic", "--device", "cpu", "--time", time])
    announced = "a trial decides between slices and volumes" in capsys.readouterr().out
    assert announced == said
    planned(capsys, "--time", time)
    assert bool(tried) == said


def test_check_says_what_stops_the_plan(planted, capsys):
    shutil.rmtree(planted / "labelsTr")
    main(["check", "clinic"])
    assert "nothing: planted: none of 7 training scans is labeled" in capsys.readouterr().out


def test_check_of_a_settings_file_plans_nothing(planted, tmp_path, capsys):
    (tmp_path / "cohort.yaml").write_text("ingest: {data: clinic}\n")
    assert main(["check", "cohort.yaml"]) == 0
    assert "would do" not in capsys.readouterr().out
