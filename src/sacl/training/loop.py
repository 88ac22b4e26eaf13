"""The one training loop: steps, schedule, precision, interruption and exact resumption."""

from __future__ import annotations

import copy
import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from jaxtyping import Float
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import LightningEnvironment
from torch import Tensor, nn

from sacl import ranks
from sacl.errors import SaclError
from sacl.files.atomic import replacing
from sacl.networks.device import mixed_dtype
from sacl.progress import say, track
from sacl.training.pace import Pace

Loss = Callable[[nn.Module, int], Float[Tensor, ""]]
"""From a network and the number of a step to the step's loss."""
_Parts = Mapping[str, Any]
"""What a checkpoint keeps: networks and optimizer, by name."""
_WEIGHT_DECAY, _WARM_UP, _CLIP_NORM = 1e-4, 0.05, 5.0
"""Of AdamW; the share of the steps in which the rate rises; the longest gradient."""
_SAVE_EVERY_S = 120.0
_STOPS = [getattr(signal, n) for n in ("SIGTERM", "SIGUSR1") if hasattr(signal, n)]
"""Signals by which a cluster says that time is up; Windows has the first only."""

# Fabric announces its precision at every setup.
for _package in ("lightning.fabric", "lightning.pytorch"):
    logging.getLogger(_package).setLevel(logging.ERROR)


@dataclass(frozen=True, eq=False)
class Average:
    """A copy of the network that follows it slowly: an exponential moving average of its weights.

    Tarvainen and Valpola, "Mean teachers", NeurIPS 2017. Early steps are forgotten: after step n
    the decay is at most 1 - 1 / (n + 2). Batch statistics are averaged too.
    """

    network: nn.Module
    decay: float

    @torch.no_grad()
    def follow(self, network: nn.Module, step: int) -> None:
        """Move towards the network as it is after a step."""
        decay = min(self.decay, 1 - 1 / (step + 2))
        pairs = zip(self.network.state_dict().values(), network.state_dict().values(), strict=True)
        averaged: list[tuple[Tensor, Tensor]] = []
        for own, other in pairs:
            if own.dtype.is_floating_point:
                averaged.append((own, other.to(own.dtype)))
            else:
                own.copy_(other)
        # All tensors in one call: on a GPU hundreds of small ones would take as long as a pass.
        ema_of_all = torch.optim.swa_utils.get_ema_multi_avg_fn(decay)
        ema_of_all([own for own, _ in averaged], [other for _, other in averaged], None)


def cosine(step: float, steps: int, warmup: float, stride: float = 1.0) -> float:
    """Return the factor of the learning rate: a linear rise, then half a cosine down to 0.

    A step may stand for several of the schedule, which are its `stride` (`training.pace`).
    """
    rise = max(1, round(steps * warmup))
    if step < rise:
        return min(1.0, (step + stride) / rise)
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def train(  # noqa: PLR0913
    network: nn.Module,
    loss_of_step: Loss,
    rates: Mapping[nn.Module, float],
    steps: int,
    device: torch.device,
    *,
    what: str,
    checkpoint: Path | None = None,
    average: Average | None = None,
    pace: Pace | None = None,
) -> list[float]:
    """Train a network in place and return the loss of every step.

    `rates` are the peak learning rates of the network, or of its parts that are trained; the other
    parts keep the batch statistics that they have.
    `loss_of_step(network, step)` draws its batch from a generator seeded with the step, so that a
    run resumed from `checkpoint` (saved every two minutes and on SIGTERM or SIGUSR1, removed at
    the end) is the run that was never interrupted. The network ends on `device`, in eval mode, with
    the weights of its `average` where one is given. A `pace` with a deadline ends by then, after as
    many steps as fit. Ranks are where the first one is in the schedule, which alone saves; all
    stop as one is told to.

    Raises:
        SaclError: a loss is not finite, or there is time for almost no step.
    """
    fabric, pace, saved = _fabric(device), pace or Pace(), time.monotonic()
    optimizer = torch.optim.AdamW(
        [{"params": list(part.parameters()), "lr": rate} for part, rate in rates.items()],
        weight_decay=_WEIGHT_DECAY,
        fused=True,  # one pass over all weights; an eighth of a small network's step on a CPU
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda _: cosine(pace.position, steps, _WARM_UP, pace.stride)
    )
    trained, fabric_optimizer = fabric.setup(network, optimizer)
    kept = {"average": average.network} if average else {}
    parts: _Parts = {"network": network, "optimizer": optimizer, **kept}
    losses, position = _begin(checkpoint, parts, steps, what)
    schedule.last_epoch = len(losses)
    trained.eval()
    nn.ModuleList(rates).train()
    pace.begin(steps, device, what, len(losses), position)
    with _stop_signals() as stopped, ranks.same_statistics(network):
        for step in track(pace, what, pace.total):
            loss = loss_of_step(trained, step)
            if not torch.isfinite(loss):
                raise SaclError(
                    f"{what}: the loss is not finite at step {step}; lower the learning rate"
                )
            _descend(fabric, fabric_optimizer, network, loss)
            pace.advance()
            stop = _agree(pace, bool(stopped))
            schedule.step()
            losses.append(float(loss.detach()))
            if average:
                average.follow(network, step)
            if checkpoint and (stop or time.monotonic() - saved > _SAVE_EVERY_S):
                saved = time.monotonic()
                with replacing(checkpoint) as temporary:
                    torch.save(_state(parts, pace.position, losses), temporary)
            if stop:
                raise KeyboardInterrupt
    _finish(network, average, checkpoint)
    return losses


def _finish(network: nn.Module, average: Average | None, checkpoint: Path | None) -> None:
    if average:
        network.load_state_dict(average.network.state_dict())
    network.eval()
    if checkpoint:
        checkpoint.unlink(missing_ok=True)


def _descend(fabric: Fabric, optimizer: Any, network: nn.Module, loss: Float[Tensor, ""]) -> None:
    optimizer.zero_grad(set_to_none=True)
    fabric.backward(loss)
    ranks.sum_gradients(network)
    nn.utils.clip_grad_norm_(network.parameters(), _CLIP_NORM)
    optimizer.step()


def _fabric(device: torch.device) -> Fabric:
    precision: Any = "bf16-mixed" if mixed_dtype(device) == torch.bfloat16 else "32-true"
    devices: Any = 1
    if device.type == "cuda":
        devices = [torch.cuda.current_device() if device.index is None else device.index]
    # Ranks are ours (`sacl.ranks`): Fabric is not to look for a cluster.
    alone = LightningEnvironment()
    return Fabric(accelerator=device.type, devices=devices, precision=precision, plugins=alone)


def _agree(pace: Pace, stop: bool) -> bool:
    """Bring all ranks to where the first one is in the schedule; tell whether any is to stop."""
    of_first = [ranks.of_first(value) for value in (pace.position, pace.stride)]
    said = ranks.total(torch.tensor([float(stop), *of_first], dtype=torch.float64))
    stopping, pace.position, pace.stride = said.tolist()
    return stopping > 0


def _state(parts: _Parts, position: float, losses: list[float]) -> dict[str, Any]:
    state = {name: part.state_dict() for name, part in parts.items()}
    return state | {"position": position, "losses": losses}


def _begin(
    checkpoint: Path | None, parts: _Parts, steps: int, what: str
) -> tuple[list[float], float]:
    """Resume on the first rank, and bring the others to the same state."""
    losses, position = _resume(checkpoint, parts, steps, what)
    if of_first := ranks.received(_state(parts, position, losses)):
        for name, part in parts.items():
            part.load_state_dict(of_first[name])
        return of_first["losses"], of_first["position"]
    return losses, position


def _resume(
    checkpoint: Path | None, parts: _Parts, steps: int, what: str
) -> tuple[list[float], float]:
    """Put everything into the state that was saved; return the losses and the position till there.

    A file that is damaged, or of another training, is set aside, and nothing is changed.
    """
    if checkpoint is None or not checkpoint.is_file():
        return [], 0.0
    before = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        losses = [float(loss) for loss in state["losses"]]
        position = float(state["position"])
        if not len(losses) - 0.5 < position <= steps:
            raise ValueError("the schedule is at another step than the losses")
        for name, part in parts.items():
            part.load_state_dict(state[name])
        _require_moments_fit(parts["optimizer"])
    except Exception as error:  # whatever a damaged file makes of itself
        for name, part in parts.items():
            part.load_state_dict(before[name])
        aside = checkpoint.with_suffix(".damaged")
        checkpoint.replace(aside)
        say(
            f"{what}: {checkpoint.name} is damaged or of another training"
            f" ({type(error).__name__}); it was set aside as {aside.name}, training starts over"
        )
        return [], 0.0
    return losses, position


def _require_moments_fit(optimizer: Any) -> None:
    """Raise ValueError where the optimizer's moments have other shapes than its parameters."""
    for parameter, moments in optimizer.state.items():
        for name in ("exp_avg", "exp_avg_sq"):
            if moments[name].shape != parameter.shape:
                raise ValueError(f"{name} is of another network")


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Yield a list that a SIGTERM or SIGUSR1 makes non-empty."""
    received: list[int] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        received.append(number)

    before = {}
    for number in _STOPS:
        try:
            before[number] = signal.signal(number, remember)
        except ValueError:  # not the main thread: a test or a notebook
            break
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
