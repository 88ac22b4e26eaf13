"""Threads chosen by timing passes; how the choice is made is tested with the pace of trainings."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from sacl.networks import device
from sacl.networks.device import time_passes

CPU = torch.device("cpu")


@pytest.fixture
def set_threads(monkeypatch):
    """Return the list of what the number of threads was set to; there are four cores."""
    numbers = []
    monkeypatch.setattr(device, "compute_in", numbers.append)
    monkeypatch.setattr(device, "probed_rate", lambda _: 1.0)
    monkeypatch.setattr(device, "thread_choices", lambda _: (1, 4))
    return numbers


class Pass(nn.Module):
    """Takes a while for every pixel, by the number of threads."""

    def __init__(self, monkeypatch, numbers, seconds):
        super().__init__()
        self.time = 0.0
        self.numbers, self.seconds = numbers, seconds
        monkeypatch.setattr(device.time, "perf_counter", lambda: self.time)

    def forward(self, pixels):
        self.time += self.seconds[self.numbers[-1]] * pixels.numel()
        return pixels


@pytest.mark.parametrize(("seconds", "best"), [({1: 2.0, 4: 1.0}, 4), ({1: 1.0, 4: 1.5}, 1)])
def test_passes_of_any_size_choose_the_faster_threads(monkeypatch, set_threads, seconds, best):
    network = Pass(monkeypatch, set_threads, seconds)
    time_passes(network, CPU, scans=9)
    for size in (32, 5, 32, 1, 32, 5, 32, 1):
        network(torch.zeros(size))
    assert set_threads == [4, 1, best]


def test_for_a_few_scans_threads_stay_as_they_are(monkeypatch, set_threads):
    network = Pass(monkeypatch, set_threads, {})
    time_passes(network, CPU, scans=2)
    assert set_threads == []
    assert not network._forward_hooks


@pytest.mark.parametrize(("said", "threads"), [({}, 1), ({"OMP_NUM_THREADS": "2"}, 2)])
def test_torch_computes_on_the_cores_of_a_container_unless_the_user_says(said, threads):
    code = (
        "import torch; torch.set_num_threads(2); import sacl.run.machine as machine;"
        "machine.available_cores = lambda: 1; import sacl.networks.device;"
        "print(torch.get_num_threads())"
    )
    kept = {n: v for n, v in os.environ.items() if n not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=kept | said, capture_output=True, check=True)
    assert int(done.stdout) == threads
