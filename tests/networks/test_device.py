import pytest
import torch

from sacl.errors import DeviceError
from sacl.networks.device import autocast, compile_for, mixed_dtype, resolve_device


def test_auto_is_a_device_of_this_machine():
    torch.zeros(1, device=resolve_device("auto"))


@pytest.mark.parametrize("name", ["cuda:63", "tpu", "gpu", ""])
def test_a_device_that_is_not_there_is_named(name):
    with pytest.raises(DeviceError, match=f"device '{name}'"):
        resolve_device(name)


def test_autocast_follows_the_mixed_dtype():
    cpu = torch.device("cpu")
    with autocast(cpu):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (mixed_dtype(cpu) or torch.float32)


class Compiled(torch.nn.Linear):
    """A network that counts how often it was compiled."""

    times = 0

    def compile(self, **options):
        self.times += 1


@pytest.mark.parametrize(
    ("device", "steps", "times"), [("cuda", 3000, 1), ("cuda", 2999, 0), ("cpu", 3000, 0)]
)
def test_long_trainings_on_a_gpu_are_compiled(monkeypatch, device, steps, times):
    monkeypatch.setattr("sacl.networks.device.find_spec", lambda name: name)
    networks = [Compiled(1, 1), Compiled(1, 1)]
    compile_for(steps, networks, torch.device(device))
    assert [network.times for network in networks] == [times, times]


class Doubling(torch.nn.Module):
    """Twice its input."""

    def forward(self, pixels):
        return 2 * pixels


def test_a_network_that_cannot_be_compiled_runs_all_the_same(monkeypatch, capfd):
    asked = []

    def fail(*_args, **_options):
        asked.append(True)
        raise RuntimeError("no compiler")

    monkeypatch.setattr("sacl.networks.device.find_spec", lambda name: name)
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", fail)
    network = Doubling()
    compile_for(3000, [network], torch.device("cuda"))
    assert network(torch.ones(2)).tolist() == [2, 2]
    assert asked
    assert capfd.readouterr().err == ""


def test_nothing_is_compiled_without_a_compiler(monkeypatch):
    monkeypatch.setattr("sacl.networks.device.find_spec", lambda name: None)
    network = Compiled(1, 1)
    compile_for(3000, [network], torch.device("cuda"))
    assert network.times == 0
