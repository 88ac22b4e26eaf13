"""Which device computes, in which precision, from which seed, and on a CPU in how many threads.

Threads are chosen by timing training steps or passes. On a machine that others use, two may take
ten or a hundred times as long as one, since each waits for the others after every operation. A
short probe tells, before steps are risked.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sacl import ranks
from sacl.errors import DeviceError
from sacl.run import clock
from sacl.run.machine import available_cores

_LONG = 3000
"""Steps of a training that wins back the minute or two that compiling its networks takes."""
_AT_FIRST = torch.get_num_threads()
_THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_chosen = {_AT_FIRST}
_TRIED_STEPS = 4
"""Steps that a number of threads is tried for; the first one is not counted."""
_HOPELESS = 3.0
"""A number of threads is given up at a step that takes this many times the best one's."""
_PROBE_S = 0.1
_PROBE_SIZE = 200_000
"""Numbers that one short operation of the probe adds to: enough to be shared among threads."""
_SLOWER = 1.5
"""The choice is made again when steps take this many times the best so far,"""
_TRY_EVERY_S = 60.0
"""and this long after the last one at the earliest."""
_WORTH_A_TRIAL = 5
"""Scans of a prediction for which threads are tried."""


def resolve_device(name: str) -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda`, `cuda:N` or `mps`, if this machine has it."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"device '{name}': expected auto, cpu, cuda, cuda:N or mps") from None
    if ranks.started() > 1 and device.index is not None:
        raise DeviceError(f"device '{name}': each rank has its own GPU; give --device cuda or auto")
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(device.type, False):
        raise DeviceError(
            f"device '{name}' is not there (this machine has {torch.cuda.device_count()} CUDA"
            " devices); use --device auto"
        )
    return device


def mixed_dtype(device: torch.device) -> torch.dtype | None:
    """Return bfloat16 where the device computes in it fast, None (float32) elsewhere."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else None
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return None


def autocast(device: torch.device) -> torch.autocast:
    """Return the mixed-precision context of a device; it does nothing where there is none."""
    dtype = mixed_dtype(device)
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def compile_for(steps: int, networks: Iterable[nn.Module], device: torch.device) -> None:
    """Compile networks in place for a long training on a GPU; elsewhere leave them as they are.

    Weights and their names stay. Where compiling fails, as it does without a C compiler, they run
    uncompiled.
    """
    if device.type == "cuda" and steps >= _LONG and find_spec("triton") is not None:
        torch._dynamo.config.suppress_errors = True
        logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
        for network in networks:
            network.compile(dynamic=False)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let networks that are built in the body start from weights that the seed decides."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def thread_choices(device: torch.device) -> tuple[int, ...]:
    """Return the numbers of threads that a training on the device may choose from, rising.

    They are 1 and as many as there are cores; on a GPU, on one core, or where the user has said how
    many (`OMP_NUM_THREADS`, `torch.set_num_threads`), there is only the number that is set.
    """
    set_now = torch.get_num_threads()
    said = set_now not in _chosen or _said_threads()
    if said or device.type != "cpu":
        return (set_now,)
    return tuple(sorted({1, _AT_FIRST}))


def _said_threads() -> bool:
    return any(name in os.environ for name in _THREAD_SETTINGS)


def compute_in(threads: int) -> None:
    """Compute in so many threads from now on."""
    _chosen.add(threads)
    torch.set_num_threads(threads)


if available_cores() < _AT_FIRST and not _said_threads():
    # torch counts the cores that it sees, which in a container may be more than it has.
    _AT_FIRST = available_cores()
    compute_in(_AT_FIRST)


class ThreadChoice:
    """Keeps the fastest of some numbers of threads, tried in the order in which they are given.

    Nothing is done where there is only one.
    """

    def __init__(self, choices: Sequence[int]) -> None:
        self.choices = tuple(choices)
        self._to_try: list[int] = []
        self._taken: dict[int, list[float]] = {}
        self._recent: deque[float] = deque(maxlen=5)
        self._best, self._tried_at = math.inf, 0.0
        if len(self.choices) > 1:
            self._try()

    @property
    def settled(self) -> bool:
        """Tell whether no trial is going on."""
        return not self._to_try

    def after_step(self, seconds: float) -> bool:
        """Note what a step took, and tell whether the choice has just been made."""
        if len(self.choices) < 2:
            return False
        if self.settled:
            self._watch(seconds)
            return False
        number, best = self._to_try[0], min(map(_mean, self._taken.values()), default=math.inf)
        taken = self._taken.setdefault(number, [])
        taken.append(seconds)
        if len(taken) < _TRIED_STEPS and seconds < _HOPELESS * best:
            return False
        self._to_try.pop(0)
        if self._to_try:
            compute_in(self._to_try[0])
            return False
        compute_in(min(self._taken, key=lambda number: _mean(self._taken[number])))
        self._tried_at = clock.now()
        return True

    def _try(self) -> None:
        self._taken, self._best, self._tried_at = {}, math.inf, clock.now()
        self._recent.clear()
        rates = {n: probed_rate(n) for n in sorted(self.choices)}
        busy = [n for n, rate in rates.items() if _HOPELESS * rate < rates[min(rates)]]
        self._to_try = [n for n in self.choices if n not in busy]
        compute_in(self._to_try[0])
        if len(self._to_try) == 1:
            self._to_try = []

    def _watch(self, seconds: float) -> None:
        self._recent.append(seconds)
        if len(self._recent) == self._recent.maxlen:
            mean = sum(self._recent) / len(self._recent)
            self._best = min(self._best, mean)
            if mean > _SLOWER * self._best and clock.now() - self._tried_at >= _TRY_EVERY_S:
                self._try()


def time_passes(network: object, device: torch.device, scans: int) -> None:
    """Let the passes of many scans through a network choose in how many threads they are computed.

    They begin in as many as there are cores. Label maps do not depend on it, but for a voxel whose
    two likeliest classes are equal within rounding.
    """
    choices = thread_choices(device)
    if len(choices) < 2 or scans < _WORTH_A_TRIAL:
        return
    choice, begun = ThreadChoice(choices[::-1]), [0.0]

    def before(_network: nn.Module, _inputs: tuple[Tensor, ...]) -> None:
        begun[0] = time.perf_counter()

    def after(_network: nn.Module, inputs: tuple[Tensor, ...], _logits: object) -> None:
        choice.after_step((time.perf_counter() - begun[0]) / inputs[0].numel())

    assert isinstance(network, nn.Module)
    network.register_forward_pre_hook(before)
    network.register_forward_hook(after)


def probed_rate(threads: int) -> float:
    """Return how many short operations a second are done in some threads, over a tenth of one."""
    compute_in(threads)
    numbers, done, begun = torch.zeros(_PROBE_SIZE), 0, time.perf_counter()
    while (taken := time.perf_counter() - begun) < _PROBE_S or not done:
        numbers.add_(1.0)
        done += 1
    return done / taken


def _mean(seconds: Sequence[float]) -> float:
    """Return the mean of a trial's steps but the first, which may wait for the threads' start."""
    counted = seconds[1:] or seconds
    return sum(counted) / len(counted)


def in_own_order(pixels: Float[Tensor, "n channel ..."]) -> bool:
    """Tell whether networks choose the memory order: on a CPU, but not for an export to ONNX."""
    return pixels.device.type == "cpu" and not torch.compiler.is_compiling()


def channels_last(pixels: Float[Tensor, "n channel ..."]) -> Float[Tensor, "n channel ..."]:
    """Return images in the memory order that convolutions are fastest in.

    Volumes stay as they are on a GPU, and in inference mode: a norm in that order depends on the
    number of threads in its last digit, which label maps must not. Of one channel both orders are
    the same but for the strides, by which torch tells them apart.
    """
    if pixels.ndim == 4:
        return pixels.contiguous(memory_format=torch.channels_last)
    if not in_own_order(pixels) or torch.is_inference_mode_enabled():
        return pixels
    if pixels.shape[1] > 1:
        return pixels.contiguous(memory_format=torch.channels_last_3d)
    _, _, i, j, k = pixels.shape
    return pixels.contiguous().as_strided(pixels.shape, (i * j * k, 1, j * k, k, 1))
