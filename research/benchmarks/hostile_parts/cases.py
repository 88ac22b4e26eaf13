"""Try broken inputs, a seed and a number for each, and count what comes of them."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from research.benchmarks.hostile_parts.damage import Room
from research.benchmarks.hostile_parts.ended import Ended, judged, run_forked, run_program
from research.benchmarks.hostile_parts.inputs_of_runs import MAKERS_OF
from research.benchmarks.hostile_parts.right import disagreements

KINDS = tuple(MAKERS_OF)
PROGRAM_EVERY = 101
"""Each so many-th case is a program of its own; prime to the number of kinds, to meet them all."""


@dataclass
class Tally:
    """What came of the inputs of one seed."""

    seed: int
    numbers: list[int] = field(default_factory=list)
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    findings: list[dict[str, Any]] = field(default_factory=list)
    seconds: Counter[str] = field(default_factory=Counter)
    longest_s: float = 0.0
    largest_kb: int = 0
    begun: float = field(default_factory=time.monotonic)

    def note(self, number: int, kind: str, ended: Ended, faults: Sequence[str]) -> None:
        """Count one case."""
        outcome = "wrong" if faults else f"exit {ended.code}"
        self.numbers.append(number)
        self.outcomes.setdefault(kind, Counter())[outcome] += 1
        self.seconds[kind] += ended.seconds
        self.longest_s = max(self.longest_s, ended.seconds)
        self.largest_kb = max(self.largest_kb, ended.peak_kb)

    def as_json(self) -> dict[str, Any]:
        """Return what came of them; the numbers only where they are few."""
        few = len(self.numbers) <= 100
        total = sum(self.outcomes.values(), Counter())
        return {
            "seed": self.seed,
            "cases": len(self.numbers),
            **({"numbers": self.numbers} if few else {"first": self.numbers[0]}),
            "outcomes": dict(sorted(total.items())),
            "outcomes_of": {kind: dict(sorted(n.items())) for kind, n in self.outcomes.items()},
            "findings": self.findings,
            "processor_seconds_of": {
                kind: round(seconds, 1) for kind, seconds in self.seconds.items()
            },
            "longest_processor_s": round(self.longest_s, 1),
            "largest_mb": round(self.largest_kb / 1024),
            "minutes": round((time.monotonic() - self.begun) / 60, 1),
            "programs_of_their_own": sum(n % PROGRAM_EVERY == 0 for n in self.numbers),
        }


def kind_of(number: int) -> str:
    """Return the kind of the case of a number."""
    return KINDS[number % len(KINDS)]


def try_inputs(
    base: Path, scratch: Path, seed: int, numbers: Iterable[int], keep: Callable[[Tally], object]
) -> Tally:
    """Run the cases of these numbers, keep what came of them now and then, and return it."""
    tally, before = Tally(seed), state(base, contents=False)
    for number in numbers:
        kind, root = kind_of(number), scratch / f"c{number}"
        rng = np.random.default_rng([seed, number])
        words, ended, faults = _one(Room(base, root, rng), kind, number % PROGRAM_EVERY == 0)
        if state(base, contents=False) != before:
            raise SystemExit(f"case {number} changed the sound inputs: {words}")
        tally.note(number, kind, ended, faults)
        if faults:
            said = [w.replace(str(root), "ROOT").replace(str(base), "BASE") for w in words]
            own = [text.replace(str(root), "ROOT").replace(str(base), "BASE") for text in faults]
            finding = {"case": number, "kind": kind, "words": said, "faults": own}
            tally.findings.append(finding)
            logs = [path.read_text()[-2500:] for path in (root / "tmp").glob("*.log")]
            print(finding, ended.errors[-1500:], *logs, sep="\n", flush=True)
        shutil.rmtree(root)
        if len(tally.numbers) % 50 == 0:
            keep(tally)
    keep(tally)
    return tally


def _one(room: Room, kind: str, own: bool) -> tuple[list[str], Ended, list[str]]:
    """Make a case, run it, and return its words, its end and what is wrong."""
    (room.root / "tmp").mkdir(parents=True)
    words = MAKERS_OF[kind](room)
    before = state(room.user)
    try:
        ended = run_program(words, room.root) if own else run_forked(words, room.root)
    except ValueError:  # a zero byte cannot be a word of a program
        ended = run_forked(words, room.root)
    faults = judged(ended)
    if state(room.user) != before:
        faults.append("files of the user were changed")
    left = [p.name for p in room.root.rglob("*") if p.name.startswith(".partial-")]
    left += [p.name for p in (room.root / "tmp").iterdir()]
    if left:
        faults.append(f"left over: {', '.join(sorted(left)[:3])}")
    if ended.code == 0:
        faults += disagreements(room, words, ended)
    return words, ended, faults


def state(folder: Path, contents: bool = True) -> str:
    """Return a hash of names, kinds, times, sizes and contents below a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        stat = path.lstat()
        digest.update(
            f"{os.fsencode(path)!r} {stat.st_mode} {stat.st_mtime_ns} {stat.st_size}".encode()
        )
        if path.is_symlink():
            digest.update(os.fsencode(path.readlink()))
        elif contents and path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()
