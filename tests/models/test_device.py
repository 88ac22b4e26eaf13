import pytest
import torch

from sacl.errors import DeviceError
from sacl.models.device import autocast, mixed_dtype, resolve_device


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
