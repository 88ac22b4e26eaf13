import json
import pickle
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from sacl.errors import DataError
from sacl.files.weights import read_weights, save_weights


@dataclass(frozen=True)
class Spec:
    width: int = 4


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4))


def test_reads_the_weights_and_the_description_that_were_saved(tmp_path, network):
    save_weights(tmp_path, "encoder", network, {"spec": Spec(), "strategy": "semantic"})

    state, meta = read_weights(tmp_path, "encoder")

    assert meta == {"spec": {"width": 4}, "strategy": "semantic"}
    assert state.keys() == network.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["encoder.json", "encoder.safetensors"]


def test_saves_weights_in_any_memory_order(tmp_path, network):
    save_weights(tmp_path, "encoder", network.to(memory_format=torch.channels_last), {})

    state, _ = read_weights(tmp_path, "encoder")

    assert torch.equal(state["0.weight"], network[0].weight)
    assert state["0.weight"].is_contiguous()


@pytest.mark.parametrize("name", ["encoder.json", "encoder.safetensors"])
def test_names_the_file_that_is_missing(tmp_path, network, name):
    save_weights(tmp_path, "encoder", network, {})
    (tmp_path / name).unlink()

    with pytest.raises(DataError, match=name):
        read_weights(tmp_path, "encoder")


def test_refuses_truncated_weights(tmp_path, network):
    save_weights(tmp_path, "encoder", network, {})
    path = tmp_path / "encoder.safetensors"
    path.write_bytes(path.read_bytes()[:-20])

    with pytest.raises(DataError, match="broken"):
        read_weights(tmp_path, "encoder")


def test_never_unpickles(tmp_path):
    (tmp_path / "encoder.json").write_text(json.dumps({}))
    (tmp_path / "encoder.safetensors").write_bytes(pickle.dumps({"weight": torch.ones(2)}))

    with pytest.raises(DataError, match="broken"):
        read_weights(tmp_path, "encoder")
