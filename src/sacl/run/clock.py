"""The time that a run may take: how it is written, and which part of it each training gets."""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass

from sacl.checked import shown
from sacl.errors import ConfigError
from sacl.progress import duration, say

now = time.monotonic
"""The clock in seconds, by which everything is timed."""
_UNMEASURED = 0.1
_AT_LEAST = 0.15
"""A training gets this part of its share of a run's time, however late it is."""
_UNITS_S = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_FORM = re.compile("".join(rf"(?:(\d{{1,7}}){unit})?" for unit in _UNITS_S))
_LEAST_S, _MOST_S = 60, 30 * 86400


def seconds_of(text: str) -> int:
    """Return a time such as `30m`, `2h`, `1h30m` or `90s` in seconds, from 1 minute to 30 days.

    All else is refused with a ConfigError.

    Example:
        >>> seconds_of("1h30m")
        5400
    """
    form = _FORM.fullmatch(text)
    numbers = form.groups("0") if form else ()
    seconds = sum(int(n) * unit for n, unit in zip(numbers, _UNITS_S.values(), strict=False))
    if not _LEAST_S <= seconds <= _MOST_S:
        raise ConfigError(
            f"time: expected 1 minute to 30 days with units, such as 30m, 2h or 1h30m, got"
            f" {shown(text)}"
        )
    return seconds


class TooShort(ConfigError):
    """A time in which a training cannot do the fewest steps that are worth it."""


@dataclass(frozen=True)
class Deadline:
    """When a training has to end, on the clock `now`.

    Of each second more for the whole run, whose time is `asked_s`, it would get `share` seconds.
    """

    at: float
    asked_s: float
    share: float = 1.0

    @property
    def left_s(self) -> float:
        """Seconds until then, negative when it is over."""
        return self.at - now()

    def too_short(self, what: str, missing_s: float) -> TooShort:
        """Return the error of a training that would need `missing_s` more than it has."""
        minutes = math.ceil((self.asked_s + missing_s / self.share) / 60)
        return TooShort(
            f"time: {duration(self.asked_s)} is too short, {what}; give at least --time {minutes}m,"
            " or fewer steps"
        )


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a stage may take of the time of its command.

    `ends` is the command's end on the clock `now`. What is left by then, but for a reserve, is
    shared out by the `weight` of this stage and the weights `later` of those to come; `whole` are
    those of all. `copies` are those of the prediction that follows, None where none does. Locating
    by all coarse networks may take `most_for_maps` of the time left.
    """

    asked_s: float
    ends: float
    weight: float = 0.0
    later: float = 0.0
    whole: float = 0.0
    copies: int | None = None
    most_for_maps: float = 0.2

    @property
    def left_s(self) -> float:
        """Seconds until the command has to end."""
        return self.ends - now()

    @property
    def unmeasured_s(self) -> float:
        """Seconds to leave to what no training is, as long as that is not measured."""
        return 0.0 if self.copies is None else _UNMEASURED * self.asked_s

    def deadline(self, part: int = 0, parts: int = 1, reserve_s: float | None = None) -> Deadline:
        """Return when the n-th of a stage's trainings has to end.

        `reserve_s` is what is to be left, after all trainings, for everything else. Where what came
        before has used the time up, a run rather ends late, which is said, than without a result.
        """
        reserve_s = self.unmeasured_s if reserve_s is None else reserve_s
        each = self.weight / parts
        to_come = self.weight - part * each + self.later
        seconds = (self.left_s - reserve_s) * each / to_come
        least = 0.0 if self.copies is None else _AT_LEAST * self.asked_s * each / self.whole
        if seconds < least:
            late_s, left = max(0.0, least + reserve_s - self.left_s), max(0.0, self.left_s)
            ends = f"so the run ends about {duration(late_s)} late" if late_s else "which is little"
            say(f"time: {duration(left)} left; training gets {duration(least)}, {ends}")
            seconds = least
        return Deadline(now() + seconds, self.asked_s, each / self.whole)
