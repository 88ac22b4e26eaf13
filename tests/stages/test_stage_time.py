"""What the stages do with the time of a run: deadlines, what is left for later, fewer copies."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from block_cohort import copy_of, settings_of

from sacl.cohort.manifest import read_cohort
from sacl.errors import ConfigError
from sacl.prediction.volume import MapRecipe, load_predictor, read_recipe
from sacl.run import clock
from sacl.run.clock import Budget
from sacl.run.record import fingerprint, read_record
from sacl.settings import PredictSettings, PretrainSettings
from sacl.stages import locate_networks, reserve
from sacl.stages.finetune import finetune
from sacl.stages.locate_networks import CostOfMaps
from sacl.stages.predict import predict
from sacl.stages.pretrain import pretrain
from sacl.stages.reserve import Costs, measure_costs, middle_of, share_of

DAY = 86400.0


def within(workspace, seconds, copies=None, weight=60.0):
    budget = Budget(
        asked_s=seconds, ends=clock.now() + seconds, weight=weight, whole=100.0, copies=copies
    )
    return replace(workspace, budget=budget)


def test_training_in_ample_time_is_recorded_and_is_that_of_no_time(finished, pretrained, tmp_path):
    head = "dense" if "dense" in str(finished.root) else "query"
    workspace = within(copy_of(pretrained, tmp_path / "work"), DAY, copies=4)
    finetune(settings_of(head), workspace)
    results = read_record(workspace.folder("finetune")).results
    assert set(results["pace"]) == {"semantic"}
    paced = results["pace"]["semantic"]
    assert (paced["steps"], paced["steps_asked"]) == (2, 2)
    assert 0.9 * DAY < paced["seconds_allowed"] < DAY
    assert paced["seconds_per_step"] > 0
    assert fingerprint(workspace.folder("finetune")) == fingerprint(finished.folder("finetune"))
    weights = "semantic/segmenter.safetensors"
    timed, plain = (w.folder("finetune") / weights for w in (workspace, finished))
    assert timed.read_bytes() == plain.read_bytes()


def test_a_run_whose_time_is_over_before_fine_tuning_ends_late_and_says_so(
    pretrained, tmp_path, capsys
):
    workspace = within(copy_of(pretrained, tmp_path / "work"), 600.0, copies=4)
    late = replace(workspace, budget=replace(workspace.budget, ends=clock.now() - 5.0))
    finetune(settings_of("dense"), late)
    assert "time: 0 s left; training gets 54 s, so the run ends about" in capsys.readouterr().err
    assert read_record(late.folder("finetune")).results["pace"]["semantic"]["steps"] == 2


def test_a_time_that_is_over_before_fine_tuning_alone_is_one_line_and_leaves_nothing(
    pretrained, tmp_path
):
    workspace = within(copy_of(pretrained, tmp_path / "work"), 60.0)
    late = replace(workspace, budget=replace(workspace.budget, ends=clock.now() - 5.0))
    with pytest.raises(ConfigError, match=r"^time: 1 min is too short, none is left .*--time \d+m"):
        finetune(settings_of("dense"), late)
    assert [path.name for path in workspace.folder("finetune").iterdir()] == ["partial.json"]


def test_pretraining_without_a_method_needs_no_time(pretrained, tmp_path):
    workspace = within(copy_of(pretrained, tmp_path / "work"), -5.0, weight=0.0)
    pretrain(PretrainSettings(method="none", width=8), workspace)


def predicting(finished, tmp_path, monkeypatch, seconds):
    """Return a run to be predicted again, in which a pass over all scans takes 10 s."""
    monkeypatch.setattr(reserve, "measure_costs", lambda *_: Costs(5.0, 10.0, 20.0))
    workspace = copy_of(finished, tmp_path / "work")
    shutil.rmtree(workspace.folder("predict"))
    return within(workspace, seconds)


@pytest.mark.parametrize(("seconds", "copies"), [(DAY, 4), (58.0, 2), (38.0, 0), (1.0, 0)])
def test_fewer_copies_are_predicted_where_the_time_is_too_short(
    finished, tmp_path, monkeypatch, capsys, seconds, copies
):
    workspace = predicting(finished, tmp_path, monkeypatch, seconds)
    predict(PredictSettings(copies=4), workspace)
    assert read_recipe(workspace.folder("predict")).copies == copies
    assert read_record(workspace.folder("predict")).results["copies"] == copies
    said = (
        f"predict: {copies} copies instead of 4, which would take 1 min" in capsys.readouterr().err
    )
    assert said == (copies < 4)


def test_an_interrupted_prediction_goes_on_with_the_copies_it_began_with(
    finished, tmp_path, monkeypatch
):
    workspace = predicting(finished, tmp_path, monkeypatch, 58.0)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("sacl.stages.predict.write_label_map", interrupted)
        predict(PredictSettings(copies=4), workspace)
    predict(PredictSettings(copies=4), replace(workspace, budget=None))
    assert read_recipe(workspace.folder("predict")).copies == 2


def test_later_stages_are_measured_on_one_scan(finished):
    cohort = read_cohort(finished.folder("ingest"))
    predictor = load_predictor(finished.folder("finetune") / "semantic", "cpu", MapRecipe())
    costs = measure_costs(predictor, finished, cohort)
    assert min(costs.beside_s, costs.pass_s) > 0
    assert costs.scoring_s > reserve._REPORT_S
    assert costs.seconds(4) - costs.seconds(0) == pytest.approx(4 * costs.pass_s)
    assert share_of(cohort.cases, middle_of(cohort.cases)) == pytest.approx(5.0)


def test_the_report_of_many_scans_is_left_its_time_before_the_first_training(finished, monkeypatch):
    monkeypatch.setattr(reserve, "timed", lambda _: 0.5)
    cohort = read_cohort(finished.folder("ingest"))
    cases = (replace(c, case_id=f"{c.case_id}-{n}") for n in range(60) for c in cohort.cases)
    many = replace(cohort, cases=tuple(cases))
    timed = within(finished, 240.0, copies=0)
    assert locate_networks._for_the_rest(timed, cohort) == 24.0
    assert locate_networks._for_the_rest(timed, many) == pytest.approx(160.0, abs=1.0)
    assert locate_networks._for_the_rest(finished, many) == 0.0


def test_the_time_of_the_report_is_that_of_a_page_on_this_machine_now(finished, monkeypatch):
    drawn = []
    monkeypatch.setattr(reserve, "reels", lambda scan, at: drawn.append((scan, at)))
    cohort = read_cohort(finished.folder("ingest"))
    pages_s = reserve.report_seconds(finished, cohort) - reserve._REPORT_S
    ((scan, at), again) = drawn
    assert again[1] == at
    assert scan.predicted.shape == scan.image.shape
    assert set(np.unique(scan.predicted)) == set(range(len(cohort.scheme.names) + 1))
    assert 0 < pages_s < 60


def test_copies_may_take_a_third_of_the_time_that_training_has_and_a_plain_pass_what_it_needs():
    costs = Costs(beside_s=10.0, pass_s=30.0, scoring_s=20.0)
    assert costs.reserve(4, left_s=3600.0) == 180.0
    assert costs.reserve(4, left_s=400.0) == pytest.approx(120.0)
    assert costs.reserve(4, left_s=50.0) == 60.0


def test_fewer_networks_locate_where_all_take_a_fifth_of_the_time():
    cost = CostOfMaps(all_s=100.0, others_s=80.0, hasty_s=30.0, most=0.2)
    assert cost.seconds(4) == 340.0
    assert cost.networks_that_fit(4, left_s=1700.0) == 4
    assert cost.networks_that_fit(4, left_s=1690.0) == 1
    assert cost.reserve(4, left_s=1700.0) == 340.0
    assert cost.reserve(4, left_s=1000.0) == 100.0


def test_where_one_network_takes_too_long_every_part_of_a_scan_is_read_once():
    cost = CostOfMaps(all_s=100.0, others_s=80.0, hasty_s=90.0, most=0.2)
    assert not cost.is_hasty(left_s=500.0)
    assert cost.is_hasty(left_s=490.0)
    assert cost.reserve(4, left_s=490.0) == 90.0
    assert cost.reserve(4, left_s=200.0) == 80.0, "training keeps most of what is left"
    assert not CostOfMaps(100.0, 80.0, hasty_s=100.0, most=0.2).is_hasty(10.0), "of slices"
