"""Does anything break: generated broken inputs over all commands, and runs that are killed.

`python -m research benchmark hostile --cases 2000 --seed 0 --kills 300` writes each input into a
temporary folder, runs the command on it, and wants exit 0 with a result that agrees with itself and
with the sound scans beside the broken one, 1 where some scans of a folder failed, or 2 with one
line: no traceback, no minute of work or of standing still, no gigabyte of memory, no file of the
user's changed, nothing temporary left. Each case is a process forked from one that has loaded
everything; every 101st is a program of its own. A run, prediction, export or comparison that is
killed at random moments until it gets through has to leave the bytes of an undisturbed one.
`results/hostile.json` has the counts and every finding. `--again` tries what was found there again,
and adds what comes of it on the revision of now.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from research.benchmarks.circumstances import circumstances
from research.benchmarks.hostile_parts.base import TINY, make_base
from research.benchmarks.hostile_parts.cases import KINDS, kind_of, try_inputs
from research.benchmarks.hostile_parts.ended import GIGABYTE_KB, SECONDS, load_everything
from research.benchmarks.hostile_parts.kills import killed
from research.benchmarks.hostile_parts.places import in_odd_places
from sacl.files.documents import write_json

RESULT = Path(__file__).parents[1] / "results" / "hostile.json"
Run = dict[str, Any]


def main() -> None:
    """Try the inputs, the kills and the places, and write the result."""
    known = _flags()
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    load_everything()
    if not (known.again or known.append):
        known.out.unlink(missing_ok=True)
    run: Run = {"command": " ".join(["python -m research benchmark hostile", *sys.argv[1:]])}
    run["started"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    run |= {**circumstances(), "finished": False}

    def keep(part: str) -> Callable[[Any], None]:
        def written(value: Any) -> None:
            run[part] = value if isinstance(value, dict) else value.as_json()
            _write(known.out, run)

        return written

    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        scratch = Path(folder)
        base = make_base(scratch / "base")
        if known.again:
            _try_again(base, scratch, _read(known.out), keep)
        else:
            numbers = _numbers(known.first, known.cases, known.only, known.minutes)
            if known.cases:
                try_inputs(base, scratch, known.seed, numbers, keep("inputs"))
            if not known.no_places:
                keep("places")(in_odd_places(base, scratch))
            if known.kills:
                killed(base, scratch, known.seed, known.kills, itertools.count(), keep("kills"))
    run["finished"] = True
    still = _write(known.out, run)
    print(f"{len(still)} findings are open")
    sys.exit(bool(still))


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--minutes", type=float, default=600.0, help="try no further inputs then")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--again", action="store_true", help="only what is still open")
    parser.add_argument("--no-places", action="store_true", help="leave the odd places out")
    parser.add_argument("--append", action="store_true", help="keep the runs that are there")
    parser.add_argument("--out", type=Path, default=RESULT, metavar="JSON")
    return parser.parse_args()


def _numbers(first: int, cases: int, only: tuple[str, ...], minutes: float) -> Iterator[int]:
    """Give numbers of cases of some kinds, until the time is over."""
    begun = time.monotonic()
    every = (number for number in itertools.count(first) if kind_of(number) in only)
    for number in itertools.islice(every, cases):
        if time.monotonic() - begun > 60 * minutes:
            return
        yield number


def _try_again(
    base: Path, scratch: Path, runs: list[Run], keep: Callable[[str], Callable[[Any], None]]
) -> None:
    """Try what is open again: cases by their numbers, killed rounds, all places."""
    still = still_open(runs)
    for part, seed in sorted({key[:2] for key in still if key[0] == "inputs"}):
        numbers = sorted(key[2] for key in still if key[:2] == (part, seed))
        try_inputs(base, scratch, seed, numbers, keep(f"inputs of seed {seed}"))
    for part, seed in sorted({key[:2] for key in still if key[0] == "kills"}):
        rounds = sorted(key[2] for key in still if key[:2] == (part, seed))
        killed(base, scratch, seed, 10**6, rounds, keep(f"kills of seed {seed}"))
    if any(key[0] == "places" for key in still):
        keep("places")(in_odd_places(base, scratch))


def still_open(runs: list[Run]) -> dict[tuple[str, Any, Any], str]:
    """Return what was found and has not come out well when it was tried again."""
    found: dict[tuple[str, Any, Any], str] = {}
    for name, part in itertools.chain.from_iterable(run.items() for run in runs):
        kind = name.split()[0]
        if kind not in ("inputs", "kills", "places"):
            continue
        seed, number = part.get("seed"), "case" if kind == "inputs" else "round"
        for tried in part.get("numbers", part.get("rounds", ())):
            found.pop((kind, seed, tried), None)
        if kind == "places":
            found = {key: text for key, text in found.items() if key[0] != kind}
        for finding in part["findings"]:
            key = finding.get(number) if isinstance(finding, dict) else finding
            found[kind, seed, key] = str(finding)
    return found


def _read(path: Path) -> list[Run]:
    runs: list[Run] = json.loads(path.read_text())["runs"] if path.is_file() else []
    return runs


def _write(path: Path, run: Run) -> dict[tuple[str, Any, Any], str]:
    """Write a run beside those that are there, of other processes too; return what is open."""
    with FileLock(Path(tempfile.gettempdir()) / "sacl-hostile.lock"):
        runs = [other for other in _read(path) if other["started"] != run["started"]]
        runs = sorted([*runs, run], key=lambda one: one["started"])
        for one in runs:  # where it was written is nobody's concern
            one["command"] = re.sub(r" --out \S+", "", one["command"])
        still = still_open(runs)
        document = {
            "what": "exit codes, lines, memory, time and traces of commands on broken inputs",
            "limits": {
                "processor_seconds": SECONDS,
                "seconds_of_standing_still": SECONDS,
                "peak_kb": GIGABYTE_KB,
            },
            "settings": TINY,
            "open": sorted(still.values()),
            "runs": runs,
        }
        write_json(path, document)
    return still


if __name__ == "__main__":
    main()
