"""Where a training is in its schedule, by a clock that the tests set."""

import itertools
import json
import math

import pytest
import torch
from torch import nn

from sacl.errors import ConfigError
from sacl.networks import device
from sacl.networks.device import ThreadChoice
from sacl.run import clock
from sacl.run.clock import Deadline
from sacl.run.record import PACE
from sacl.training.loop import cosine, train
from sacl.training.pace import Pace, keep_pace

CPU = torch.device("cpu")


class Clock:
    def __init__(self):
        self.time = 0.0

    def __call__(self):
        return self.time


@pytest.fixture
def time(monkeypatch):
    fake = Clock()
    monkeypatch.setattr(clock, "now", fake)
    return fake


def walk(pace, time, steps, seconds_of_step, done=0, position=0.0):
    """Return the positions before every step of a training on a fake clock."""
    pace.begin(steps, CPU, "test", done, position)
    positions = []
    for step in pace:
        positions.append(pace.position)
        time.time += seconds_of_step(step)
        pace.advance()
    return positions


def test_without_a_deadline_the_position_is_the_number_of_steps(time):
    assert walk(Pace(), time, 30, lambda step: 1.0) == [float(n) for n in range(30)]


def test_with_time_to_spare_nothing_changes(time):
    assert walk(Pace(Deadline(1e6, 1e6)), time, 300, lambda step: 1.0) == [*map(float, range(300))]


def test_each_step_moves_by_the_rest_over_the_steps_that_still_fit(time):
    positions = walk(Pace(Deadline(100.0, 100.0)), time, 1000, lambda step: 1.0)
    assert len(positions) == 100
    assert time.time == 100.0
    # Five steps as planned, the measured ones among them; then 95 fit, which share the rest evenly.
    assert positions[:6] == [0, 1, 2, 3, 4, 5]
    strides = [b - a for a, b in zip(positions[5:], [*positions[6:], 1000], strict=True)]
    assert strides == pytest.approx([995 / 95] * 95)


@pytest.mark.parametrize("later", [0.25, 4.0])
def test_where_steps_become_faster_or_slower_the_rest_is_laid_out_again(time, later):
    pace = Pace(Deadline(400.0, 400.0))
    positions = walk(pace, time, 10_000, lambda step: 1.0 if step < 200 else later)
    assert 395 <= time.time <= 400 + later
    assert pace.position == 10_000
    assert positions == sorted(positions)
    strides = [b - a for a, b in itertools.pairwise(positions)][10:-20]
    assert max(abs(math.log(b / a)) for a, b in itertools.pairwise(strides)) < 0.2


def test_the_rate_follows_the_position_to_the_end(time):
    pace = Pace(Deadline(60.0, 60.0))
    pace.begin(600, CPU, "test")
    rates = []
    for _ in pace:
        rates.append(cosine(pace.position, 600, 0.05, pace.stride))
        time.time += 1.0
        pace.advance()
    assert len(rates) == 60
    assert max(rates) == pytest.approx(1.0, abs=0.01)
    assert rates[-1] < 0.005
    peak = rates.index(max(rates))
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def test_a_resumed_training_goes_on_from_its_position_in_its_new_time(time):
    pace = Pace(Deadline(50.0, 50.0))
    positions = walk(pace, time, 1000, lambda step: 1.0, done=40, position=400.0)
    assert positions[0] == 400.0
    assert len(positions) == 50
    assert pace.position == 1000
    assert pace.paced()["steps"] == 90


@pytest.mark.parametrize("seconds", [4.0, 400.0])
def test_a_time_in_which_fewer_than_twenty_steps_fit_is_refused(time, seconds):
    with pytest.raises(
        ConfigError, match=r"^time: 1 min is too short, test takes .* give at least --time \d+m"
    ):
        walk(Pace(Deadline(60.0, 60.0)), time, 1000, lambda step: seconds)
    assert time.time <= 60 + seconds


def test_a_time_that_is_over_is_refused(time):
    time.time = 61.0
    with pytest.raises(ConfigError, match="none is left for test"):
        walk(Pace(Deadline(60.0, 60.0)), time, 10, lambda step: 1.0)


def test_a_training_that_asks_for_fewer_steps_than_twenty_is_none_too_short(time):
    assert len(walk(Pace(Deadline(60.0, 60.0)), time, 6, lambda step: 9.0)) == 6


def test_what_is_recorded(time, tmp_path):
    pace = Pace(Deadline(100.0, 100.0))
    walk(pace, time, 1000, lambda step: 2.0)
    keep_pace(tmp_path, "first", pace)
    keep_pace(tmp_path, "second", pace)
    noted = json.loads((tmp_path / PACE).read_text())
    assert noted["first"] == noted["second"]
    assert noted["first"] == {
        "steps": 50,
        "steps_asked": 1000,
        "seconds_allowed": 100.0,
        "seconds_per_step": 2.0,
        "threads": torch.get_num_threads(),
    }


def loss_at(time, seconds):
    def loss_of_step(network, step):
        time.time += seconds
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        return (network(x).float() - x.sum(1, keepdim=True)).square().mean()

    return loss_of_step


def fit(loss, pace=None, checkpoint=None, steps=200):
    torch.manual_seed(0)
    network = nn.Linear(4, 1)
    groups = {network: 0.05}
    how = {"what": "test", "checkpoint": checkpoint, "pace": pace}
    return network, train(network, loss, groups, steps, CPU, **how)


def test_a_training_ends_at_its_deadline_with_as_many_steps_as_fit(time):
    _, losses = fit(loss_at(time, 1.0), Pace(Deadline(50.0, 50.0)))
    assert len(losses) == 50
    assert losses[-1] < 0.1 * losses[0]


def test_with_time_to_spare_a_training_is_the_one_without_a_deadline(time):
    plain, timed = fit(loss_at(time, 1.0)), fit(loss_at(time, 1.0), Pace(Deadline(1e9, 1e9)))
    assert plain[1] == timed[1]
    assert torch.equal(plain[0].weight, timed[0].weight)


def test_an_interrupted_training_goes_on_where_it_was(time, tmp_path, monkeypatch):
    monkeypatch.setattr("sacl.training.loop._SAVE_EVERY_S", 0.0)
    checkpoint, slow = tmp_path / "training.pt", loss_at(time, 1.0)

    def breaks_at_30(network, step):
        if step == 30:
            raise KeyboardInterrupt
        return slow(network, step)

    with pytest.raises(KeyboardInterrupt):
        fit(breaks_at_30, Pace(Deadline(50.0, 50.0)), checkpoint)
    saved = torch.load(checkpoint, weights_only=True)
    assert 100 < saved["position"] < 150
    time.time, pace = 0.0, Pace(Deadline(50.0, 50.0))
    _, losses = fit(slow, pace, checkpoint)
    assert len(losses) == 80
    assert losses[:30] == saved["losses"]
    assert pace.position == 200


@pytest.fixture
def set_threads(monkeypatch):
    """Return the list of what the number of threads was set to."""
    numbers = []
    monkeypatch.setattr(device, "compute_in", numbers.append)
    monkeypatch.setattr(device, "probed_rate", lambda _: 1.0)
    return numbers


def steps_of(choice, time, numbers, seconds_in, count):
    for _ in range(count):
        seconds = seconds_in[numbers[-1]]
        time.time += seconds
        choice.after_step(seconds)


@pytest.mark.parametrize(("seconds_in", "best"), [({1: 2.0, 4: 1.0}, 4), ({1: 1.0, 4: 30.0}, 1)])
def test_the_faster_number_of_threads_is_kept(time, set_threads, seconds_in, best):
    choice = ThreadChoice((1, 4))
    steps_of(choice, time, set_threads, seconds_in, 8)
    assert choice.settled
    assert set_threads == [1, 4, best]


def test_a_hopeless_number_of_threads_costs_one_step(time, set_threads):
    choice = ThreadChoice((1, 4))
    steps_of(choice, time, set_threads, {1: 1.0, 4: 30.0}, 5)
    assert choice.settled
    assert time.time == 34.0


def test_threads_that_wait_for_each_other_are_not_tried(time, set_threads, monkeypatch):
    monkeypatch.setattr(device, "probed_rate", {1: 100.0, 2: 60.0, 8: 3.0}.__getitem__)
    choice = ThreadChoice((1, 2, 8))
    steps_of(choice, time, set_threads, {1: 2.0, 2: 1.0}, 8)
    assert choice.settled
    assert set_threads == [1, 2, 2]


def test_where_all_threads_wait_one_is_used_at_once(time, set_threads, monkeypatch):
    monkeypatch.setattr(device, "probed_rate", {1: 100.0, 8: 3.0}.__getitem__)
    assert ThreadChoice((1, 8)).settled
    assert set_threads == [1]


def test_a_probe_counts_operations(monkeypatch):
    monkeypatch.setattr(device, "compute_in", lambda _: None)
    assert device.probed_rate(1) > 10


def test_the_choice_is_made_again_when_steps_become_slower_but_once_a_minute(time, set_threads):
    choice = ThreadChoice((1, 4))
    steps_of(choice, time, set_threads, {1: 2.0, 4: 1.0}, 8)
    steps_of(choice, time, set_threads, {1: 2.0, 4: 1.0}, 20)
    assert set_threads == [1, 4, 4]
    steps_of(choice, time, set_threads, {1: 2.0, 4: 5.0}, 6)  # 50 s after the last choice
    assert set_threads == [1, 4, 4]
    steps_of(choice, time, set_threads, {1: 2.0, 4: 5.0}, 10)
    assert choice.settled
    assert set_threads == [1, 4, 4, 1, 4, 1]


def test_one_number_of_threads_is_never_touched(time, set_threads):
    choice = ThreadChoice((2,))
    for _ in range(100):
        assert not choice.after_step(1.0)
    assert set_threads == []
