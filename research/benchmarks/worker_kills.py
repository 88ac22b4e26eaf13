"""Is every scan predicted exactly once when workers are killed again and again.

`python -m research benchmark worker_kills [--kills 50] [--scans 20] [--seed 0]` predicts a folder
of generated scans (`sacl predict --input`) by an untrained segmenter: by 2 workers, by 3, and in
two shards of 2 workers one after the other, in turn, each time into a new folder. Workers are
killed (SIGKILL) at random moments; in every third call the worker of one scan is killed each time
it has begun that scan. A call then has to end with exit code 0, or with 1 and the names of the
scans whose worker was killed twice, and the same call, now undisturbed, with 0 and all maps as
those that nobody disturbed, byte by byte. `results/worker_kills.json` says what was killed, how
many scans were done more than once, and how many maps the same call made that were there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from sacl.files.documents import write_json  # noqa: E402
from tiny_model import write_tiny_model  # noqa: E402

RESULT = Path(__file__).parents[1] / "results" / "worker_kills.json"
SHAPE = (192, 192, 80)
WAYS = (("2 workers", 2, 1), ("3 workers", 3, 1), ("2 shards of 2 workers", 2, 2))
MOST_S = 900.0
STARTING = 0.2
"""How often a worker that has not begun a scan may be killed: so many in a row end a call."""


def write_scans(folder: Path, count: int) -> None:
    """Write scans of noise."""
    folder.mkdir()
    for number in range(count):
        voxels = np.random.default_rng(number).normal(40, 60, SHAPE).astype(np.int16)
        image = nibabel.Nifti1Image(voxels, np.diag([-2.0, 2.0, 3.0, 1.0]))
        nibabel.save(image, folder / f"scan{number:02d}.nii.gz")


def workers_of(parent: int) -> list[int]:
    """Return the ids of a program's workers, which are its own or those of its fork server."""
    workers = []
    for child in children_of(parent):
        line = command_of(child)
        workers += children_of(child) if b"forkserver" in line else []
        workers += [child] if b"spawn_main" in line else []
    return workers


def children_of(pid: int) -> list[int]:
    """Return the ids of a process's children."""
    try:
        return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except OSError:
        return []


def command_of(pid: int) -> bytes:
    """Return a process's command line, empty of one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def events(out: Path, pid: int | str = "*") -> list[dict[str, Any]]:
    """Return what a worker, or all, have noted; a line that was cut off is left out."""
    lines = []
    for path in out.glob(f".journal-of-sacl/*-{pid}.jsonl"):
        for text in path.read_text().splitlines():
            if text.endswith("}"):
                lines.append(json.loads(text))
    return lines


def under_way(out: Path, pid: int) -> str | None:
    """Return the scan that a worker has begun and not ended."""
    last = events(out, pid)[-1:]
    return last[0]["case"] if last and last[0]["event"] == "begun" else None


class Killer:
    """Kills workers of a call, and counts of what."""

    def __init__(self, out: Path, rng: np.random.Generator, poison: str | None, most: int) -> None:
        self.out, self.rng, self.poison, self.most = out, rng, poison, most
        self.of: Counter[str] = Counter()
        self.kills: Counter[str] = Counter()

    def attend(self, program: subprocess.Popen[str]) -> None:
        """Kill until the program ends."""
        begun, moment_s = time.monotonic(), self._pause_s()
        while program.poll() is None:
            time.sleep(0.02)
            pids = workers_of(program.pid)
            for pid in pids if self.poison else ():
                if under_way(self.out, pid) == self.poison:
                    self._kill(pid)
            passed = time.monotonic() - begun
            if (
                passed > moment_s
                and any(events(self.out, pid) for pid in pids)
                and self.kills.total() < self.most
            ):
                may_start = self.rng.random() < STARTING
                chosen = [pid for pid in pids if may_start or events(self.out, pid)]
                self._kill(int(self.rng.choice(chosen)))
                moment_s = passed + self._pause_s()

    def _pause_s(self) -> float:
        return float(self.rng.uniform(0.5, 6.0))

    def _kill(self, pid: int) -> None:
        case = under_way(self.out, pid)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:  # it ended by itself meanwhile
            return
        while command_of(pid):
            time.sleep(0.01)
        self.kills["within a scan" if case else "starting or between scans"] += 1
        self.of.update([case] if case else [])


def called(words: list[str], killer: Killer | None) -> tuple[int, str]:
    """Run `sacl`, and return its exit code and what it said."""
    program = subprocess.Popen(
        [sys.executable, "-m", "sacl", *words], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    if killer is not None:
        killer.attend(program)
    return program.wait(MOST_S), program.stderr.read() if program.stderr else ""


def maps_of(out: Path) -> dict[str, str]:
    """Return the hashes of all files that a call is for."""
    paths = sorted([*out.glob("*.nii.gz"), *out.glob("previews/*.png"), out / "statistics.csv"])
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def states_of(out: Path) -> dict[str, tuple[int, int]]:
    """Return of the maps that are there which file each is, and when it was written."""
    states = {path.name: path.stat() for path in out.glob("*.nii.gz")}
    return {name: (state.st_ino, state.st_mtime_ns) for name, state in states.items()}


def one_round(base: Path, number: int, rng: np.random.Generator, most: int) -> dict[str, Any]:
    """Predict into a new folder, disturbed, and again until all is done."""
    name, workers, shards = WAYS[number % len(WAYS)]
    out = base / f"out-{number}"
    words = ["predict", "--model", str(base / "tiny.sacl"), "--input", str(base / "scans")]
    words += ["--out", str(out), "--workers", str(workers)]
    parts = [["--shard", f"{n}/{shards}"] if shards > 1 else [] for n in range(1, shards + 1)]
    poison = "scan03" if number % 3 == 2 else None
    killer = Killer(out, rng, poison, most)
    codes, odd = [], []
    for part in parts:
        before = Counter(killer.of)
        code, said = called(words + part, killer)
        twice = {case for case, count in (killer.of - before).items() if count > 1}
        named = {case for case in killer.of if f"case {case}: its worker died, again" in said}
        codes.append(code)
        if (code, named) != (1 if twice else 0, twice):
            odd.append({"exit_code": code, "named": sorted(named), "killed_twice": sorted(twice)})
            print(said, file=sys.stderr)
    done = Counter(line["case"] for line in events(out) if line["event"] == "done")
    made = states_of(out)
    again = [called(words + part, None)[0] for part in parts]
    now, whole = states_of(out), maps_of(base / "whole")
    return {
        "way": name,
        "kills": dict(killer.kills),
        "set_aside": sorted(case for case, count in killer.of.items() if count > 1),
        "exit_codes": codes,
        "exit_codes_of_the_same_again": again,
        "done_more_than_once": sum(1 for count in done.values() if count > 1),
        "made_again": sum(1 for name, state in made.items() if now.get(name) != state),
        "differing_files": sum(1 for key in whole if maps_of(out).get(key) != whole[key]),
        "odd": odd,
    }


def measure(base: Path, kills: int, scans: int, seed: int) -> dict[str, Any]:
    """Go through rounds until so many workers were killed."""
    rng = np.random.default_rng(seed)
    write_tiny_model(base / "tiny.sacl")
    write_scans(base / "scans", scans)
    words = ["predict", "--model", str(base / "tiny.sacl"), "--input", str(base / "scans")]
    begun = time.monotonic()
    if called([*words, "--out", str(base / "whole"), "--workers", "1"], None)[0]:
        raise SystemExit("undisturbed: it fails")
    rounds: list[dict[str, Any]] = []
    total = Counter[str]()
    while total.total() < kills:
        rounds.append(one_round(base, len(rounds), rng, kills - total.total()))
        total.update(rounds[-1]["kills"])
        print(json.dumps(rounds[-1]), flush=True)
    return {
        "scans": scans,
        "shape": SHAPE,
        "kills": total.total(),
        "killed": dict(total),
        "rounds": rounds,
        "minutes": round((time.monotonic() - begun) / 60, 1),
    }


def main() -> None:
    """Measure in a temporary folder and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--scans", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    known = parser.parse_args()
    from research.benchmarks.circumstances import circumstances

    with tempfile.TemporaryDirectory() as root:
        result = measure(Path(root), known.kills, known.scans, known.seed)
    command = f"python -m research benchmark worker_kills --kills {known.kills}"
    command += f" --scans {known.scans} --seed {known.seed}"
    record = {"command": command, **result, **circumstances()}
    write_json(RESULT, record)


if __name__ == "__main__":
    main()
