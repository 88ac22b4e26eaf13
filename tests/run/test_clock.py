"""The time of a run: how it is written, and which part of it each training gets."""

import pytest

from sacl.errors import ConfigError
from sacl.progress import duration
from sacl.run import clock
from sacl.run.clock import Budget, seconds_of
from sacl.run.configure import load_config
from sacl.run.pipeline import STAGES, budgets_of

HOUR = 3600


@pytest.fixture
def at(monkeypatch):
    """Return a function that sets the clock."""
    monkeypatch.setattr(clock, "now", lambda: 0.0)
    return lambda seconds: monkeypatch.setattr(clock, "now", lambda: seconds)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("90s", 90), ("1m", 60), ("30d", 30 * 86400)],
)
def test_a_time_is_a_number_with_its_unit(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    "text", ["30", "", "0m", "59s", "31d", "1.5h", "-5m", "30m1h", "2 h", "2H"]
)
def test_another_time_is_one_line(text):
    with pytest.raises(ConfigError) as error:
        load_config(None, {"time": text})
    assert str(error.value).startswith("time: expected 1 minute to 30 days with units")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (61, "1 min"), (3600, "1 h 0 min")]
)
def test_durations_are_in_seconds_minutes_or_hours(seconds, text):
    assert duration(seconds) == text


def budgets(**flags):
    return budgets_of(load_config(None, {"time": "1h", **flags}), STAGES)


def test_trainings_share_what_is_left_by_their_weights_and_unused_time_flows_on(at):
    of = budgets()
    assert of["locate"].deadline(reserve_s=600).at == pytest.approx(0.3 * 3000)
    at(100.0)  # coarse maps were quick
    assert of["pretrain"].deadline(reserve_s=500).at == pytest.approx(100 + 3000 / 7)
    at(1000.0)
    assert of["finetune"].deadline(reserve_s=600).at == pytest.approx(3000)


def test_the_networks_of_a_stage_share_its_part(at):
    of = budgets()["locate"]
    ends = []
    for network in range(4):
        ends.append(of.deadline(network, 4, reserve_s=0.0).at)
        at(ends[-1])
    assert ends == pytest.approx([270, 540, 810, 1080])


def test_before_anything_is_measured_a_tenth_is_left_to_all_else(at):
    assert budgets()["finetune"].deadline().at == pytest.approx(0.9 * HOUR)


def test_a_training_that_comes_too_late_gets_some_time_all_the_same(at, capsys):
    of = budgets()
    at(1.1 * HOUR)
    assert of["finetune"].deadline(reserve_s=60.0).at == pytest.approx((1.1 + 0.15 * 0.6) * HOUR)
    said = capsys.readouterr().err
    assert said == "time: 0 s left; training gets 5 min, so the run ends about 12 min late\n"
    at(0.0)
    assert of["finetune"].deadline(reserve_s=60.0).at == pytest.approx(HOUR - 60)


def test_a_stage_that_trains_nothing_gets_nothing(at):
    of = budgets(**{"pretrain.method": "none", "locate.maps.source": "maps"})
    assert of["finetune"].deadline(reserve_s=0.0).at == pytest.approx(HOUR)
    assert (of["locate"].weight, of["pretrain"].weight) == (0.0, 0.0)


def test_for_a_segmenter_on_volumes_less_is_spent_on_coarse_maps():
    slices, volumes = (
        budgets()["locate"],
        budgets(**{"finetune.volume.teacher_steps": "9"})["locate"],
    )
    assert volumes.weight == slices.weight / 2
    assert volumes.most_for_maps == slices.most_for_maps / 4


def test_a_stage_alone_has_all_the_time(at):
    [alone] = budgets_of(load_config(None, {"time": "1h"}), ("finetune",)).values()
    assert alone.deadline().at == pytest.approx(HOUR)
    assert alone.copies is None


def test_without_a_time_there_is_no_budget():
    assert budgets_of(load_config(None), STAGES) == {}


def test_a_time_that_is_too_short_is_told_with_how_long_is_needed(at):
    budget = Budget(asked_s=600, ends=600, weight=60, later=0, whole=100, copies=4)
    text = str(budget.deadline().too_short("nothing fits", missing_s=60))
    # A minute more for fine-tuning, which gets 60 % of any minute more, takes 100 s.
    assert text == (
        "time: 10 min is too short, nothing fits; give at least --time 12m, or fewer steps"
    )


def test_the_time_of_a_planned_run_counts_since_it_was_planned(monkeypatch):
    monkeypatch.setattr(clock, "now", lambda: 1000.0)
    budgets = budgets_of(load_config(None, {"time": "1h"}), STAGES, since=400.0)
    assert {budget.left_s for budget in budgets.values()} == {3000.0}
