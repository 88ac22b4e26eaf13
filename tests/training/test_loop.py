import pytest
import torch
from torch import nn

from sacl.errors import SaclError
from sacl.training.loop import cosine, train
from sacl.training.pace import write_losses

CPU = torch.device("cpu")


def problem():
    torch.manual_seed(0)
    return nn.Linear(4, 1)


def loss_of_step(network, step):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, 4, generator=generator)
    return (network(x).float() - x.sum(1, keepdim=True)).square().mean()


def fit(network, steps, checkpoint=None, loss=loss_of_step):
    groups = {network: 0.05}
    return train(network, loss, groups, steps, CPU, what="test", checkpoint=checkpoint)


def test_the_loss_falls():
    losses = fit(problem(), 60)
    assert losses[-1] < 0.1 * losses[0]


def test_a_resumed_run_is_the_run_that_was_never_interrupted(tmp_path, monkeypatch):
    whole = problem()
    expected = fit(whole, 30)
    monkeypatch.setattr("sacl.training.loop._SAVE_EVERY_S", 0.0)

    def breaks_at_20(network, step):
        if step == 20:
            raise KeyboardInterrupt
        return loss_of_step(network, step)

    checkpoint = tmp_path / "partial.pt"
    with pytest.raises(KeyboardInterrupt):
        fit(problem(), 30, checkpoint, breaks_at_20)
    assert checkpoint.exists()
    resumed = problem()
    assert fit(resumed, 30, checkpoint) == expected
    assert torch.equal(resumed.weight, whole.weight)
    assert not checkpoint.exists()


def test_a_loss_that_is_not_finite_stops_the_training():
    with pytest.raises(SaclError, match="not finite at step 0"):
        fit(problem(), 5, loss=lambda network, step: network(torch.ones(1, 4)).sum() * torch.nan)


def test_the_rate_rises_then_falls_to_zero():
    rates = [cosine(step, 100, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] < 0.01
    assert rates[10:] == sorted(rates[10:], reverse=True)


def interrupted(checkpoint, monkeypatch, network, steps=30):
    """Leave the checkpoint of a training that was interrupted at step 20."""
    monkeypatch.setattr("sacl.training.loop._SAVE_EVERY_S", 0.0)

    def breaks_at_20(network, step):
        if step == 20:
            raise KeyboardInterrupt
        return loss_of_step(network, step)

    with pytest.raises(KeyboardInterrupt):
        fit(network, steps, checkpoint, breaks_at_20)
    monkeypatch.undo()


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x):
        return self.out(self.hidden(x))


def changed(checkpoint, **entries):
    state = torch.load(checkpoint, weights_only=True)
    torch.save({**state, **entries}, checkpoint)


def other_moments(checkpoint):
    state = torch.load(checkpoint, weights_only=True)
    for moments in state["optimizer"]["state"].values():
        moments["exp_avg"] = torch.zeros(7)
    torch.save(state, checkpoint)


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "text": lambda path: path.write_text("step,loss"),
    "another record": lambda path: torch.save({"weights": torch.ones(3)}, path),
    "a list": lambda path: torch.save([1, 2, 3], path),
    "no optimizer": lambda path: changed(path, optimizer={}),
    "other moments": other_moments,
    "another step": lambda path: changed(path, position=3.0),
    "no losses": lambda path: changed(path, losses=None),
    "a longer training": lambda path: changed(path, losses=[0.0] * 99, position=99.0),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_training_starts_over(
    damage, tmp_path, monkeypatch, capsys
):
    checkpoint = tmp_path / "training.pt"
    interrupted(checkpoint, monkeypatch, problem())
    DAMAGES[damage](checkpoint)
    spoiled = checkpoint.read_bytes()
    whole, again = problem(), problem()

    expected = fit(whole, 30)

    assert fit(again, 30, checkpoint) == expected
    assert torch.equal(again.weight, whole.weight)
    assert not checkpoint.exists()
    assert (tmp_path / "training.damaged").read_bytes() == spoiled
    said = capsys.readouterr()
    [line] = [n for n in (said.out + said.err).splitlines() if "set aside" in n]
    assert "training.pt is damaged" in line


def test_a_checkpoint_of_another_network_is_set_aside(tmp_path, monkeypatch):
    checkpoint = tmp_path / "training.pt"
    torch.manual_seed(0)
    interrupted(checkpoint, monkeypatch, Wide())
    again = problem()
    assert fit(again, 30, checkpoint) == fit(problem(), 30)
    assert (tmp_path / "training.damaged").is_file()


def test_losses_are_a_table_of_steps(tmp_path):
    write_losses(tmp_path / "losses.csv", [0.5, 0.25])
    assert (tmp_path / "losses.csv").read_text().split() == ["step,loss", "0,0.5", "1,0.25"]
