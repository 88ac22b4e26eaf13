"""How many threads a network computes with: chosen by timing training steps or passes.

On a machine that others use, two threads may take ten or a hundred times as long as one, since each
waits for the others after every operation. A short probe tells, before steps are risked.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sacl.networks.device import compute_in, thread_choices
from sacl.run import clock

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
