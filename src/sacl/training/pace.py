"""Where a training is in its schedule, how many steps still fit into its time, and its record.

Time is measured, not forecast. Of a schedule of N steps a training without a deadline does all, and
its position is the number of steps done. With one, each step moves the position by

    (N - position) / steps that still fit,

so that the rest is laid out again after every step, and its end is reached as the time is over.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from sacl.files.atomic import write_text
from sacl.files.documents import write_table
from sacl.networks.device import ThreadChoice, thread_choices
from sacl.progress import duration, say
from sacl.run import clock
from sacl.run.clock import Deadline
from sacl.run.record import PACE, paces_in

LEAST_STEPS = 20
"""Fewer are no training: a time in which fewer fit is refused."""
_WARM_UP_STEPS = 3
"""The first steps, which take longer than the others."""
_MEASURED_STEPS = 2
"""So many steps are timed before any forecast."""
_MEAN_OF = 50
"""The seconds per step are a mean over about so many steps."""
_WORTH_A_TRIAL = 50
"""Shorter trainings try no other number of threads."""
_ROUNDING = 1e-6


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how fast a network is trained, on what views, and from which seed.

    `steps` are on labeled scans alone; in the `teacher_steps` after them unlabeled ones take part.
    `augment` is a name of `views.VIEWS`, `copy_paste` a share of the slices.
    """

    steps: int
    learning_rate: float
    seed: int
    teacher_steps: int = 0
    batch: int = 1
    augment: str | None = None
    copy_paste: float = 0.0


class Pace:
    """The position of a training in its schedule, in planned steps, from 0 to `steps`."""

    def __init__(self, deadline: Deadline | None = None) -> None:
        self.deadline, self.what = deadline, ""
        self.steps = self.done = self._done_before = 0
        self.position, self.stride = 0.0, 1.0
        self._begun = self._last = clock.now()
        self._allowed_s = deadline.left_s if deadline else None
        self._seconds_per_step, self._timed, self._measured = 0.0, 0, False
        self._threads = ThreadChoice((1,))

    def begin(
        self, steps: int, device: torch.device, what: str, done: int = 0, position: float = 0.0
    ) -> None:
        """Start with the first step, or with the one that an interrupted training is at."""
        self.steps, self.what = steps, what
        self.done, self._done_before, self.position = done, done, position
        self.stride = (steps - position) / max(1, steps - done)
        choices = thread_choices(device)
        self._threads = ThreadChoice(choices if steps - done >= _WORTH_A_TRIAL else choices[:1])
        self._begun = self._last = clock.now()
        if self.deadline and self.deadline.left_s <= 0 and not self.finished:
            raise self.deadline.too_short(f"none is left for {what}", -self.deadline.left_s)

    @property
    def finished(self) -> bool:
        """Tell whether the schedule's end is reached."""
        return self.position >= self.steps

    @property
    def to_do(self) -> int:
        """Steps still to be done: one at least, unless the end is reached."""
        if self.finished:
            return 0
        planned = self.steps - self.done
        if self.deadline is None or not self._measured:
            return planned
        return max(1, min(planned, int(self.deadline.left_s / self._seconds_per_step)))

    def total(self) -> int:
        """Return how many steps there are in this call, as far as is known now."""
        return self.done - self._done_before + self.to_do

    def __iter__(self) -> Iterator[int]:
        """Yield the number of each step, in which `advance` is to be called."""
        while not self.finished:
            yield self.done

    def advance(self) -> None:
        """Go on by a step; a time into which fewer than `LEAST_STEPS` fit is refused."""
        before, self._last = self._last, clock.now()
        self._note(self._last - before)
        self.done += 1
        self.position += self.stride
        if self.done == self.steps or self.position > self.steps - _ROUNDING:
            self.position = float(self.steps)
            return
        if self.deadline and self.done < LEAST_STEPS:
            self._require_enough(self.deadline, self._last - before)
        self.stride = (self.steps - self.position) / self.to_do

    def paced(self) -> dict[str, float | None]:
        """Return what is recorded; `seconds_allowed` is None where the training had no end.

        All but `steps` are of the last call, where a training was interrupted.
        """
        taken, steps = self._last - self._begun, self.done - self._done_before
        return {
            "steps": self.done,
            "steps_asked": self.steps,
            "seconds_allowed": None if self._allowed_s is None else round(self._allowed_s, 1),
            "seconds_per_step": round(taken / max(1, steps), 4),
            "threads": torch.get_num_threads(),
        }

    def _note(self, seconds: float) -> None:
        """Keep the mean time of a step; those of a trial of threads are unlike those to come."""
        if self._threads.after_step(seconds):
            self._timed = 0
        elif self._threads.settled and self.done - self._done_before >= _WARM_UP_STEPS:
            self._timed = min(self._timed + 1, _MEAN_OF)
            self._seconds_per_step += (seconds - self._seconds_per_step) / self._timed
            if self._timed == _MEASURED_STEPS and not self._measured:
                self._measured = True
                self._say()

    def _say(self) -> None:
        if self.deadline:
            fit = min(self.steps, self.done + 1 + self.to_do)
            left = duration(max(0.0, self.deadline.left_s))
            each = f"{self._seconds_per_step:.2g} s each"
            say(f"  {self.what}: {fit} of {self.steps} steps, {each}; {left} left")

    def _require_enough(self, deadline: Deadline, last_s: float) -> None:
        missing = min(LEAST_STEPS, self.steps) - self.done
        each = self._seconds_per_step if self._measured else last_s
        if missing * each > deadline.left_s and (self._measured or deadline.left_s <= 0):
            steps = f"{self.what} takes {each:.2g} s a step and needs {LEAST_STEPS} steps"
            raise deadline.too_short(steps, missing * each - deadline.left_s)


def keep_pace(folder: Path, name: str, pace: Pace) -> None:
    """Write the time of a training beside those that the stage has done before."""
    write_text(folder / PACE, json.dumps({**paces_in(folder), name: pace.paced()}))


def write_losses(path: Path, losses: Sequence[float], network: str | None = None) -> None:
    """Write a table of steps and losses; of several networks, beside those of the others."""
    rows = pd.DataFrame({"step": range(len(losses)), "loss": list(losses)})
    if network is not None:
        rows.insert(0, "network", network)
        before = pd.read_csv(path) if path.is_file() else rows[:0]
        rows = pd.concat([before[before["network"] != network], rows])
    write_table(path, rows, float_format="%.6g")
