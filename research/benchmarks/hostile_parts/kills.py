"""Runs, predictions, exports and comparisons that are killed and go on.

They are killed at random moments, or before one of the times at which they make, rename or delete
a file: what goes wrong goes wrong between two of these, where a random moment seldom is.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from research.benchmarks.hostile_parts.ended import forked, program_of
from research.compare import LOG
from sacl.run.workspace import KEY

OF_ONE_TIME = ("started", "date", "duration_s", "seconds", "pace", "shared", "peak_memory_mb")
"""What a record says of when, or for how long; never compared."""
_OF_ONE_CALL = re.compile(rb"[0-9.]+ ?(s|min|h|GB)\b|(?<=[0-9] \+ [0-9]</td>)(<td>[0-9]+</td>)+")
"""What a page says of that: numbers with their unit, and a comparison's costs in whole seconds,
which follow the steps, with their unit in the head."""
_TURNS = (
    *("run", "predict", "compare", "export", "redo", "compare at once", "ingest"),
    *("export onto DICOM", "predict", "redo", "compare at once", "locate and predict"),
    *("run", "export"),
)
"""Commands in the order of the rounds."""
_MOST, _OWN_EVERY = 5, 13
"""Kills of one command before it is let through; each so many-th round has programs of its own."""
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
"""What Python says of a process that makes, renames or deletes."""


@dataclass(frozen=True)
class Command:
    """A command that is killed, what it is begun again with, and what lies in its folder before."""

    words: tuple[str, ...]
    again: tuple[str, ...] | None = None
    onto: Path | None = None


@dataclass(frozen=True)
class Whole:
    """What an undisturbed command leaves, which of it differs each time, and how long it takes.

    `changes` says how often it makes, renames or deletes a file.
    """

    files: dict[str, str]
    varies: tuple[str, ...]
    seconds: float
    changes: int = 0


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
    begun = time.monotonic()
    commands = _commands(base, scratch / "onto")
    whole: dict[str, Whole] = {}
    counts, tried, within = Counter[str](), Counter[str](), Counter[str]()
    findings, numbers = [], []
    for number in rounds:
        name = _TURNS[number % len(_TURNS)]
        if name not in whole:
            whole[name] = _undisturbed(commands[name], scratch / f"whole-{name}")
        root, rng = scratch / f"killed-{number}", np.random.default_rng([seed, number])
        own = number % _OWN_EVERY == _OWN_EVERY - 1
        interrupted = _until_through(commands[name], root, rng, whole[name], own)
        counts[name] += len(interrupted)
        within.update(interrupted)
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
                "kills_within": dict(sorted(within.items())),
                "rounds_of": dict(tried),
                **({"rounds": numbers} if len(numbers) <= 30 else {"first": numbers[0]}),
                "only_looked_for": {name: one.varies for name, one in whole.items()},
                "files_compared": {n: len(w.files) - len(w.varies) for n, w in whole.items()},
                "changes_undisturbed": {name: one.changes for name, one in whole.items()},
                "seconds_undisturbed": {name: round(w.seconds, 1) for name, w in whole.items()},
                "findings": findings,
                "minutes": round((time.monotonic() - begun) / 60, 1),
            }
        )
        if counts.total() >= kills:
            return


def _commands(base: Path, onto: Path) -> dict[str, Command]:
    """Return the commands by name; `onto` is a folder for what two of them start from.

    A redo sets finished stages aside, and is asked for again without `--force`. The run of DICOM
    knows all pseudonyms but one, since those that are drawn are others each time.
    """
    work, mixed, images = str(base / "work"), str(base / "mixed"), str(base / "nnunet" / "imagesTr")
    run = ("run", str(base / "run.yaml"), "--work", "{}")
    finished, known = onto / "finished", onto / "known"
    shutil.copytree(base / "work", finished)
    known.mkdir()
    key = (base / "mixed" / KEY).read_text().splitlines(keepends=True)
    (known / KEY).write_text("".join(key[:-1]))
    grid = ("research", "compare", str(base / "protocol.yaml"), "--data", str(base / "nnunet"))
    predict = ("predict", "--images", images, "--out", "{}", "--segmenter")
    source = ("--form", "dicom-seg", "--source", str(base / "hospital"))
    return {
        "run": Command(run),
        "redo": Command((*run, "--force"), run, finished),
        "ingest": Command(("run", str(base / "mixed.yaml"), "--work", "{}"), onto=known),
        "predict": Command((*predict, work)),
        "locate and predict": Command((*predict, mixed)),
        "export": Command(("export", work, "--form", "nifti-per-organ", "--out", "{}")),
        "export onto DICOM": Command(("export", mixed, *source, "--out", "{}")),
        "compare": Command((*grid, "--work", "{}")),
        "compare at once": Command((*grid, "--work", "{}", "--workers", "2")),
    }


def _start(words: Iterable[str], root: Path, own: bool, first: Callable[[], None]) -> int:
    """Start a command as leader of a group of processes, and return its id."""
    (root / "tmp").mkdir(parents=True, exist_ok=True)
    filled = [word.replace("{}", str(root / "out")) for word in words]
    if not own:
        return forked(filled, root, root / "said", first)
    environment = {**os.environ, "TMPDIR": str(root / "tmp")}
    with (root / "said").open("wb") as said:
        null = subprocess.DEVNULL
        return subprocess.Popen(
            program_of(filled), env=environment, stdout=null, stderr=said, start_new_session=True
        ).pid


def _counting(counter: mmap.mmap, last: int) -> Callable[[], None]:
    """Return what makes a process count its changes of files, and kill its group before the last.

    Where `last` is 0 it counts alone.
    """

    def noticed(event: str, _arguments: object) -> None:
        if event in _CHANGES:
            now = int.from_bytes(counter[:8], "little") + 1
            counter[:8] = now.to_bytes(8, "little")
            if now == last:
                os.killpg(0, signal.SIGKILL)

    return lambda: sys.addaudithook(noticed)


def _ended(child: int, seconds: float) -> int | None:
    """Return the exit code of a process, None where it has not ended within a time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def _undisturbed(command: Command, root: Path) -> Whole:
    """Run a command twice in the same place, which nobody kills."""
    found = []
    counter = mmap.mmap(-1, 8)
    for _ in range(2):
        shutil.rmtree(root, ignore_errors=True)
        _prepare(command, root)
        counter[:8] = bytes(8)
        begun = time.monotonic()
        if _ended(_start(command.words, root, False, _counting(counter, 0)), 600.0) != 0:
            said = (root / "said").read_text()[-500:]
            raise SystemExit(f"undisturbed: {command.words}: {said}")
        seconds = time.monotonic() - begun
        found.append(dict(_files(root)))
    first, second = found
    if first.keys() != second.keys():
        odd = sorted(first.keys() ^ second.keys())
        raise SystemExit(f"undisturbed: {command.words}: other files each time, {odd}")
    varies = tuple(name for name in first if first[name] != second[name])
    return Whole(first, varies, seconds, int.from_bytes(counter[:8], "little"))


def _prepare(command: Command, root: Path) -> None:
    if command.onto is not None:
        shutil.copytree(command.onto, root / "out")


def _until_through(
    command: Command, root: Path, rng: np.random.Generator, whole: Whole, own: bool
) -> list[str]:
    """Start a command and kill it, a few times at most; return what each kill was within.

    A program of its own, and one that starts such programs, is killed at random moments; any other
    in half of the rounds.
    """
    _prepare(command, root)
    starting_s, words, within = 3.0 if own else 0.0, command.words, []
    at_changes = not own and "--workers" not in words and bool(rng.integers(2))
    for _ in range(_MOST):
        last = int(rng.integers(1, whole.changes + 1)) if at_changes else 0
        child = _start(words, root, own, _counting(mmap.mmap(-1, 8), last))
        moment_s = float(rng.uniform(0.02, 1.0)) * (whole.seconds + starting_s)
        code = _ended(child, 600.0 if at_changes else moment_s)
        if code is None:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
        elif code != -signal.SIGKILL:
            return within
        _wait_for_group(child)
        within.append(_under_way(root / "out") or command.words[0])
        words = command.again or words
    if _ended(_start(words, root, own, lambda: None), 600.0) is None:
        raise SystemExit(f"no end after kills: {words}")
    return within


def _under_way(out: Path) -> str:
    """Name the stages whose notes say that they have begun and not ended; none where none has."""
    return " and ".join(sorted({path.parent.name for path in out.rglob("partial.json")}))


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

    What a comparison's processes said is only looked for. Entries of the laboratory's store are
    named by what they were made of, never by when.
    """
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_dir() or name == "said":
            continue
        content = path.read_bytes() if path.name != LOG else b""
        if path.suffix == ".json" and not path.name.startswith(".partial-"):
            content = json.dumps(_timeless(json.loads(content)), sort_keys=True).encode()
        elif path.suffix == ".html":
            content = _OF_ONE_CALL.sub(b"", content)
        yield name, hashlib.sha256(content).hexdigest()


def _timeless(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _timeless(value) for key, value in node.items() if key not in OF_ONE_TIME}
    return [_timeless(value) for value in node] if isinstance(node, list) else node
