"""How many threads a training's steps are computed in: chosen by timing steps.

On a machine that others use, two threads may take a hundred times as long as one.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from sacl.networks.device import compute_in
from sacl.run import clock

_TRIED_STEPS = 4
"""Steps that a number of threads is tried for; the first one is not counted."""
_HOPELESS = 3.0
"""A number of threads is given up at a step that takes this many times the best one's."""
_SLOWER = 1.5
"""The choice is made again when steps take this many times the best so far,"""
_TRY_EVERY_S = 60.0
"""and this long after the last one at the earliest."""


class ThreadChoice:
    """Keeps the fastest of some numbers of threads; nothing is done where there is only one."""

    def __init__(self, choices: Sequence[int]) -> None:
        self.choices = tuple(choices)
        self._to_try: list[int] = []
        self._taken: dict[int, list[float]] = {}
        self._recent: deque[float] = deque(maxlen=5)
        self._best, self._tried_at = math.inf, clock.now()
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
        self._best, self._tried_at = math.inf, clock.now()
        self._recent.clear()
        return True

    def _try(self) -> None:
        self._to_try, self._taken = list(self.choices), {}
        compute_in(self._to_try[0])

    def _watch(self, seconds: float) -> None:
        self._recent.append(seconds)
        if len(self._recent) == self._recent.maxlen:
            mean = sum(self._recent) / len(self._recent)
            self._best = min(self._best, mean)
            if mean > _SLOWER * self._best and clock.now() - self._tried_at >= _TRY_EVERY_S:
                self._try()


def _mean(seconds: Sequence[float]) -> float:
    """Return the mean of a trial's steps but the first, which may wait for the threads' start."""
    counted = seconds[1:] or seconds
    return sum(counted) / len(counted)
