"""Ranks: processes that `torchrun` starts, on one machine or several, and that train together.

The first rank does the whole command. Where it trains (`shared`), the others do the same steps,
each with its own samples of the batch that one process would have drawn. Every rank's loss is that
of the whole batch, its gradient the share of its own samples, and the sum of these is what one
process computes. With one rank, and where the first one works alone, nothing is exchanged.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sacl.errors import ConfigError, DeviceError, LostRankError
from sacl.progress import say, silent

ANSWER_WITHIN = timedelta(minutes=10)
"""A rank that does not answer for so long while training is given up, and with it the training."""
_WAIT_AT_MOST = timedelta(days=30)
"""The others wait so long for the first rank's next training."""
_FIRST_SPEAKS_S = 5.0
"""The others keep an error for so long: if it is the first rank's too, they are ended meanwhile."""


@dataclass
class _Joined:
    """The ranks that were started together; they share the work at hand where it is `shared`."""

    rank: int = 0
    count: int = 1
    waiting: Any = None
    shared: bool = False


_joined = _Joined()


def started() -> int:
    """Return how many ranks were started together; 1 where the program runs by itself."""
    return _joined.count


def count() -> int:
    """Return how many ranks share the work at hand."""
    return _joined.count if _joined.shared else 1


def join_and_run(command: Callable[[], int]) -> int:
    """Run a command on the first rank, and its trainings on all; return its exit code.

    Raises:
        LostRankError: another rank ended, or did not answer.
        DeviceError: a machine has fewer GPUs than ranks.
    """
    _join()
    try:
        if _joined.rank:
            with silent():
                _take_part()
            code = 0
        else:
            say(f"{_joined.count} ranks share pretraining and fine-tuning; the first does all else")
            code = command()
            _told(None)
    except BaseException:
        time.sleep(_FIRST_SPEAKS_S if _joined.rank else 0)
        raise
    # A group's threads end with the last reference to it. One that outlives the interpreter aborts.
    _joined.rank, _joined.count, _joined.waiting = 0, 1, None
    distributed.destroy_process_group()
    return code


def _join() -> None:
    """Join the other ranks, as the launcher's environment says."""
    on_machine, gpus = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if 0 < gpus < on_machine:
        raise DeviceError(
            f"device: {on_machine} ranks and {gpus} GPUs on a machine; start"
            f" --nproc-per-node {gpus}"
        )
    if gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    with _or_lost():
        # What is agreed on goes by gloo: it notices at once where a rank has ended.
        kinds = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        distributed.init_process_group(kinds, timeout=ANSWER_WITHIN)
        _joined.waiting = distributed.new_group(backend="gloo", timeout=_WAIT_AT_MOST)
    _joined.rank, _joined.count = distributed.get_rank(), distributed.get_world_size()


@contextlib.contextmanager
def shared(work: Callable[..., Any], *arguments: Any) -> Iterator[None]:
    """Share the body's training: the others call `work(*arguments)`, which has the same steps.

    The work is a function of a module, the arguments what can be pickled.
    """
    if started() == 1:
        yield
        return
    _told((work, arguments))
    with _sharing():
        yield


def _take_part() -> None:
    """Do what the first rank tells, until it has nothing more to be done."""
    while (told := _told(None)) is not None:
        work, arguments = told
        with _sharing():
            work(*arguments)


@contextlib.contextmanager
def _sharing() -> Iterator[None]:
    _joined.shared = True
    try:
        yield
    finally:
        _joined.shared = False


def _told(what: Any) -> Any:
    """Return what the first rank tells, on all of them."""
    message = [what]
    with _or_lost():
        distributed.broadcast_object_list(message, src=0, group=_joined.waiting)
    return message[0]


@contextlib.contextmanager
def _or_lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # gloo says where in its source, then what, then what it makes of it.
        reason = str(error).strip().splitlines()[0].rpartition("] ")[2].partition(". ")[0][:200]
        raise LostRankError(
            f"another rank has ended or does not answer ({reason}), so this one ends as well; run"
            " the same command again to continue"
        ) from error


def received(state: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the first rank's state, tensors on the CPU, where this is another rank."""
    if count() == 1:
        return None
    packed = io.BytesIO()
    if _joined.rank == 0:
        torch.save(dict(state), packed)
    sent = _told(packed.getvalue())
    if _joined.rank == 0:
        return None
    return torch.load(io.BytesIO(sent), map_location="cpu", weights_only=True)


def require_samples(samples: int, setting: str, each: int = 1) -> None:
    """Refuse a batch that has fewer samples than `each` of the ranks that were started needs."""
    if samples < each * started():
        raise ConfigError(
            f"{setting}: {started()} ranks cannot share a step of {samples}; give --{setting}"
            f" {each * started()} at least, or start fewer ranks"
        )


def own(samples: int) -> Int[np.ndarray, " own"]:
    """Return which samples of a batch are this rank's: as many as any other's, or one more."""
    if count() > samples:
        raise ConfigError(f"{count()} ranks cannot share a step of {samples}; start fewer ranks")
    rank = _joined.rank if count() > 1 else 0
    return np.arange(samples * rank // count(), samples * (rank + 1) // count())


def of_first(value: float) -> float:
    """Return a number where this is the first rank and 0 elsewhere, so that the total is its."""
    return 0.0 if count() > 1 and _joined.rank else value


def total(value: Shaped[Tensor, ...]) -> Shaped[Tensor, ...]:
    """Return the sum over all ranks, with the gradient of this rank's own value."""
    if count() == 1:
        return value
    own_value = value.detach()
    return value + (_sum(own_value.clone()) - own_value)


def gathered(
    rows: Shaped[Tensor, "own ..."],
) -> tuple[Shaped[Tensor, "everyone ..."], slice]:
    """Return the rows of all ranks one after the other, and which of them are this rank's.

    The gradient of a row is what all ranks make of it. Each rank may have any number of rows.
    """
    if count() == 1:
        return rows, slice(0, len(rows))
    every_length = _all(torch.tensor([len(rows)]))
    lengths = [int(length) for length in every_length]
    before = sum(lengths[: _joined.rank])
    return _Gather.apply(rows, lengths, before), slice(before, before + len(rows))


class _Gather(torch.autograd.Function):
    """Rows of all ranks; the gradient is summed over ranks before it is cut to the own rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, lengths: list[int], before: int) -> Tensor:
        ctx.before, ctx.own = before, len(rows)
        padded = rows.new_zeros(max(lengths), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = zip(_all(padded), lengths, strict=True)
        return torch.cat([part[:length] for part, length in parts])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        whole = _sum(gradient.clone(memory_format=torch.contiguous_format))
        return whole[ctx.before : ctx.before + ctx.own], None, None


def sum_gradients(network: nn.Module) -> None:
    """Give every rank the sum of all ranks' gradients."""
    if count() == 1:
        return
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    whole = _sum(torch.cat([gradient.flatten() for gradient in gradients]))
    parts = whole.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view(gradient.shape))


@contextlib.contextmanager
def same_statistics(network: nn.Module) -> Iterator[None]:
    """Let batch norms in the body normalize by the whole batch, not by this rank's part of it."""
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm)] if count() > 1 else []
    for norm in norms:
        norm.forward = partial(_normalized, norm)
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _normalized(norm: _BatchNorm, x: Float[Tensor, "n c *space"]) -> Float[Tensor, "n c *space"]:
    if not norm.training:
        return type(norm).forward(norm, x)
    y, mean, variance, counted = _Normalize.apply(x, norm.weight, norm.bias, norm.eps)
    norm.num_batches_tracked.add_(1)
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(variance * (counted / (counted - 1).clamp_min(1)), norm.momentum)
    return y


class _Normalize(torch.autograd.Function):
    """Batch norm (Ioffe and Szegedy, ICML 2015) by mean and variance over all ranks, in float32.

    torch's own `SyncBatchNorm` is for GPUs alone.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Any:
        wide = x if x.dtype == torch.float64 else x.float()
        axes = [0, *range(2, x.ndim)]
        number = wide.new_tensor([x.numel() / x.shape[1]])
        mean = wide.sum(axes) / number.clamp_min(1)
        spread = (wide - _along(mean, x)).square_().sum(axes)
        # Mean and spread of every rank, by which none loses digits (Chan et al. 1979).
        parts = torch.stack(_all(torch.cat([number, mean, spread])))
        numbers, means, spreads = parts.split([1, len(mean), len(mean)], dim=1)
        counted = numbers.sum()
        mean = (numbers / counted * means).sum(dim=0)
        variance = (spreads + numbers * (means - mean).square()).sum(dim=0) / counted
        inverse = (variance + eps).rsqrt()
        scale = weight * inverse
        y = torch.addcmul(_along(bias - mean * scale, x), wide, _along(scale, x))
        ctx.save_for_backward(x, mean, inverse, weight, counted)
        ctx.mark_non_differentiable(mean, variance, counted)
        return y.to(x.dtype), mean, variance, counted

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> Any:
        x, mean, inverse, weight, counted = ctx.saved_tensors
        axes = [0, *range(2, x.ndim)]
        gradient = gradient.to(mean.dtype)
        centered = x.to(mean.dtype) - _along(mean, x)
        of_bias, of_weight = gradient.sum(axes), (gradient * centered).sum(axes) * inverse
        of_all = _sum(torch.cat([of_bias, of_weight])) / counted
        mean_bias, mean_weight = of_all.chunk(2)
        scale = weight * inverse
        of_x = gradient * _along(scale, x) - _along(scale * mean_bias, x)
        of_x.addcmul_(centered, _along(-scale * inverse * mean_weight, x))
        return of_x.to(x.dtype), of_weight, of_bias, None


def _along(per_channel: Float[Tensor, " c"], x: Float[Tensor, "n c *space"]) -> Tensor:
    return per_channel.view(1, -1, *[1] * (x.ndim - 2))


def _sum(value: Shaped[Tensor, ...]) -> Shaped[Tensor, ...]:
    """Sum a tensor over all ranks in place, and return it."""
    with _or_lost():
        distributed.all_reduce(value)
    return value


def _all(value: Shaped[Tensor, ...]) -> list[Tensor]:
    """Return the tensors of all ranks, which have one shape."""
    parts = [torch.empty_like(value) for _ in range(count())]
    with _or_lost():
        distributed.all_gather(parts, value.contiguous())
    return parts
