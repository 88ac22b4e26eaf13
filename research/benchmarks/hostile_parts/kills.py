"""Runs, predictions, exports and comparisons that are killed at random moments and go on."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from research.benchmarks.hostile_parts.ended import forked, program_of

OF_ONE_TIME = ("started", "date", "duration_s", "seconds", "pace", "shared", "peak_memory_mb")
"""What a record says of when, or for how long; never compared."""
_OF_ONE_CALL = re.compile(rb"[0-9.]+ ?(s|min|h|GB)\b|(?<=[0-9] \+ [0-9]</td>)(<td>[0-9]+</td>)+")
"""What a page says of that: numbers with their unit, and a comparison's costs in whole seconds,
which follow the steps, with their unit in the head."""
_TURNS = (
    *("run", "predict", "export", "compare", "predict", "export"),
    *("run", "predict", "export", "predict", "run", "export", "predict"),
    *("run", "predict", "export", "compare", "predict", "export"),
    *("run", "predict", "export", "predict", "run", "export"),
)
"""Commands in the order of the rounds: those that take seconds less often."""
_MOST, _OWN_EVERY = 5, 16
"""Kills of one command before it is let through; each so many-th round has programs of its own."""


@dataclass(frozen=True)
class Whole:
    """What an undisturbed command leaves, which of it differs each time, and how long it takes."""

    files: dict[str, str]
    varies: tuple[str, ...]
    seconds: float


def killed(
    base: Path,
    scratch: Path,
    seed: int,
    kills: int,
    rounds: Iterable[int],
    keep: Callable[[dict[str, Any]], object],
) -> None:
    """Kill commands so many times in all, and compare what they leave with undisturbed ones.

    All processes of a command are killed at once, as by the system. Files that differ between two
    undisturbed commands are only looked for.
    """
    commands, begun = _commands(base), time.monotonic()
    whole = {
        name: _undisturbed(words, scratch / f"whole-{name}") for name, words in commands.items()
    }
    counts, tried, findings = Counter[str](), Counter[str](), []
    numbers = []
    for number in rounds:
        name = _TURNS[number % len(_TURNS)]
        words = commands[name]
        root, rng = scratch / f"killed-{number}", np.random.default_rng([seed, number])
        own = number % _OWN_EVERY == _OWN_EVERY - 1
        counts[name] += _until_through(words, root, rng, whole[name].seconds, own)
        tried[name] += 1
        numbers.append(number)
        if differing := _differences(whole[name], root):
            findings.append({"round": number, "command": name, "differs": differing[:5]})
            print(findings[-1], (root / "said").read_text()[-1500:], flush=True)
        shutil.rmtree(root)
        keep(
            {
                "seed": seed,
                "kills": counts.total(),
                "kills_of": dict(counts),
                "rounds_of": dict(tried),
                **({"rounds": numbers} if len(numbers) <= 30 else {"first": numbers[0]}),
                "only_looked_for": {name: one.varies for name, one in whole.items()},
                "files_compared": {n: len(w.files) - len(w.varies) for n, w in whole.items()},
                "seconds_undisturbed": {name: round(w.seconds, 1) for name, w in whole.items()},
                "findings": findings,
                "minutes": round((time.monotonic() - begun) / 60, 1),
            }
        )
        if counts.total() >= kills:
            return


def _commands(base: Path) -> dict[str, list[str]]:
    work, images = str(base / "work"), str(base / "nnunet" / "imagesTr")
    grid = ["research", "compare", str(base / "protocol.yaml"), "--data", str(base / "nnunet")]
    return {
        "run": ["run", str(base / "run.yaml"), "--work", "{}"],
        "predict": ["predict", "--segmenter", work, "--images", images, "--out", "{}"],
        "export": ["export", work, "--form", "nifti-per-organ", "--out", "{}"],
        "compare": [*grid, "--work", "{}"],
    }


def _start(words: list[str], root: Path, own: bool) -> int:
    """Start a command as leader of a group of processes, and return its id."""
    (root / "tmp").mkdir(parents=True, exist_ok=True)
    filled = [word.replace("{}", str(root / "out")) for word in words]
    if not own:
        return forked(filled, root, root / "said")
    environment = {**os.environ, "TMPDIR": str(root / "tmp")}
    with (root / "said").open("wb") as said:
        null = subprocess.DEVNULL
        return subprocess.Popen(
            program_of(filled), env=environment, stdout=null, stderr=said, start_new_session=True
        ).pid


def _ended(child: int, seconds: float) -> int | None:
    """Return the exit code of a process, None where it has not ended within a time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def _undisturbed(words: list[str], root: Path) -> Whole:
    """Run a command twice in the same place, which nobody kills."""
    found = []
    for _ in range(2):
        shutil.rmtree(root, ignore_errors=True)
        begun = time.monotonic()
        if _ended(_start(words, root, own=False), 600.0) != 0:
            raise SystemExit(f"undisturbed: {words}: {(root / 'said').read_text()[-500:]}")
        seconds = time.monotonic() - begun
        found.append(dict(_files(root)))
    first, second = found
    if first.keys() != second.keys():
        raise SystemExit(f"undisturbed: {words}: other files each time")
    varies = tuple(name for name in first if first[name] != second[name])
    return Whole(first, varies, seconds)


def _until_through(
    words: list[str], root: Path, rng: np.random.Generator, whole_s: float, own: bool
) -> int:
    """Start a command and kill it at random moments, a few times at most; return how often."""
    starting_s = 3.0 if own else 0.0
    for kills in range(_MOST):
        child = _start(words, root, own)
        if _ended(child, float(rng.uniform(0.02, 1.0)) * (whole_s + starting_s)) is not None:
            return kills
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        _wait_for_group(child)
    if _ended(_start(words, root, own), 600.0) is None:
        raise SystemExit(f"no end after kills: {words}")
    return _MOST


def _wait_for_group(leader: int) -> None:
    """Wait until no process of a killed group is left."""
    for _ in range(1000):
        try:
            os.killpg(leader, 0)
        except ProcessLookupError:
            return
        time.sleep(0.005)


def _differences(whole: Whole, root: Path) -> list[str]:
    now, before = dict(_files(root)), whole.files
    names = sorted(before.keys() | now.keys())
    odd = [name for name in names if before.get(name) != now.get(name)]
    odd = [name for name in odd if name not in whole.varies or name not in now]
    return [f"{name}: {_how(before.get(name), now.get(name))}" for name in odd]


def _how(before: str | None, after: str | None) -> str:
    return "left over" if before is None else "missing" if after is None else "other bytes"


def _files(root: Path) -> Iterator[tuple[str, str]]:
    """Give the files below a folder with hashes; records and pages without what is of one time.

    Entries of the laboratory's store are named by what they were made of, never by when.
    """
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_dir() or name == "said":
            continue
        content = path.read_bytes()
        if path.suffix == ".json" and not path.name.startswith(".partial-"):
            content = json.dumps(_timeless(json.loads(content)), sort_keys=True).encode()
        elif path.suffix == ".html":
            content = _OF_ONE_CALL.sub(b"", content)
        yield name, hashlib.sha256(content).hexdigest()


def _timeless(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _timeless(value) for key, value in node.items() if key not in OF_ONE_TIME}
    return [_timeless(value) for value in node] if isinstance(node, list) else node
