import pytest
import torch
from torch import nn

from sacl.errors import SaclError
from sacl.training.loop import Plan, RatedParameters, cosine, train

CPU = torch.device("cpu")


def problem():
    torch.manual_seed(0)
    return nn.Linear(4, 1)


def loss_of_step(network, step):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, 4, generator=generator)
    return (network(x).float() - x.sum(1, keepdim=True)).square().mean()


def fit(network, steps, checkpoint=None, loss=loss_of_step):
    groups = [RatedParameters(list(network.parameters()), 0.05)]
    return train(network, loss, groups, Plan(steps=steps), CPU, what="test", checkpoint=checkpoint)


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
