"""Does anything break: generated broken inputs over all commands, and runs that are killed.

`python -m research benchmark hostile --cases 2000 --seed 0 --kills 40` writes each input into a
temporary folder, runs the command on it, and wants exit 0 with a result that agrees with itself,
1 where some scans of a folder failed, or 2 with one line: no traceback, no minute without an end,
no gigabyte of memory, no file of the user's changed, nothing temporary left. Each case is a process
forked from one that has loaded everything; every twentieth is a program of its own. A run, a
prediction or an export that is killed at random moments until it gets through has to leave the
bytes of an undisturbed one. `results/hostile.json` has the counts and every finding.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import pkgutil
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import yaml

from research.benchmarks.hostile_inputs import (
    MAKERS,
    MAKERS_OF,
    SHAPE,
    TINY,
    Room,
    new_patient,
)
from research.benchmarks.hostile_kills import killed
from research.benchmarks.hostile_places import in_odd_places
from sacl.files.atomic import write_text

RESULT = Path(__file__).parents[1] / "results" / "hostile.json"
SECONDS, GIGABYTE, PROGRAM_EVERY = 60, 1024**2, 20


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, last words, time, and largest memory in KB."""

    code: int | None
    errors: str
    seconds: float
    peak_kb: int


def main() -> None:
    """Try the inputs and the kills, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--only", nargs="+", choices=list(MAKERS_OF), default=list(MAKERS_OF))
    parser.add_argument("--minutes", type=float, default=60.0, help="try no further inputs then")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    known = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory(prefix="hostile-") as scratch:
        base = make_base(Path(scratch) / "base")
        numbers = range(known.first, known.first + known.cases)
        tried = try_inputs(base, Path(scratch), numbers, known)
        kills = killed(base, Path(scratch), known.kills, known.seed)
        places = in_odd_places(base, Path(scratch))
    from research.benchmarks.circumstances import circumstances

    command = f"python -m research benchmark hostile --cases {known.cases} --seed {known.seed}"
    result = {
        "what": "exit codes, lines, memory, time and traces of commands on broken inputs",
        "command": f"{command} --kills {known.kills}"
        + (f" --first {known.first}" if known.first else ""),
        "seed": known.seed,
        "limits": {"seconds": SECONDS, "peak_kb": GIGABYTE},
        "settings": TINY,
        "inputs": tried,
        "kills": kills,
        **places,
        **circumstances(),
    }
    write_text(RESULT, json.dumps(result, indent=1) + "\n")
    print(f"{tried['cases']} inputs, {len(tried['findings'])} findings; {kills['kills']} kills")
    sys.exit(bool(tried["findings"] or kills["findings"] or places["findings"]))


def make_base(base: Path) -> Path:
    """Write sound input of every kind, and a finished run."""
    rng = np.random.default_rng(0)
    for number in range(6):
        _write_scan(base / "nnunet", number, rng)
    names = {"background": 0, "liver": 1, "spleen": 2}
    document = {"channel_names": {"0": "CT"}, "labels": names, "numTraining": 4}
    document |= {"file_ending": ".nii.gz", "name": "hostile"}
    (base / "nnunet" / "dataset.json").write_text(json.dumps(document))
    shutil.copytree(base / "nnunet", base / "table")
    (base / "table" / "dataset.json").unlink()
    rows = [f"c{n},imagesTr/c{n}_0000.nii.gz,labelsTr/c{n}.nii.gz,s{n}" for n in range(4)]
    text = "\n".join(["case_id,image,label,subject_id", *rows]) + "\n"
    (base / "table" / "cohort.csv").write_text(text)
    (base / "table" / "labels.json").write_text(json.dumps({"liver": 1, "spleen": 2}))
    for number in range(2):
        MAKERS["clean"](rng, base / "dicom" / f"s{number}", new_patient(rng, number))
    (base / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    own = {**TINY, "ingest": {**TINY["ingest"], "data": str(base / "nnunet")}}
    (base / "run.yaml").write_text(yaml.safe_dump(own))
    run = [sys.executable, "-m", "sacl", "run", str(base / "run.yaml")]
    subprocess.run([*run, "--work", str(base / "work")], check=True, stderr=subprocess.DEVNULL)
    return base


def _write_scan(root: Path, number: int, rng: np.random.Generator) -> None:
    """Write a body with two organs; the last two scans have no label map."""
    i, j, k = np.indices(SHAPE) / np.array(SHAPE, float)[:, None, None, None] + 0.01 * number
    labels = np.zeros(SHAPE, np.uint8)
    labels[((i - 0.68) / 0.16) ** 2 + ((j - 0.55) / 0.22) ** 2 + ((k - 0.6) / 0.28) ** 2 < 1] = 1
    labels[((i - 0.27) / 0.09) ** 2 + ((j - 0.4) / 0.12) ** 2 + ((k - 0.7) / 0.18) ** 2 < 1] = 2
    body = ((i - 0.5) / 0.42) ** 2 + ((j - 0.5) / 0.4) ** 2 < 1
    image = np.where(body, np.array([40, 110, 140])[labels], -1000) + rng.normal(0, 10, SHAPE)
    affine = np.array([[6.0, 0, 0, -120], [0, 6, 0, -100], [0, 0, 8, -90], [0, 0, 0, 1]])
    folder, labeled = ("imagesTr", True) if number < 4 else ("imagesTs", False)
    for array, place in [(image.round().astype(np.int16), f"{folder}/c{number}_0000.nii.gz")] + (
        [(labels, f"labelsTr/c{number}.nii.gz")] if labeled else []
    ):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array, affine), root / place)


def try_inputs(
    base: Path, scratch: Path, numbers: Sequence[int], known: argparse.Namespace
) -> dict[str, Any]:
    """Run the cases of these numbers, kind after kind in turn, and return what came of them."""
    _load_everything()
    kinds, seed, tried = known.only, known.seed, 0
    codes: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    findings, longest, largest, begun = [], 0.0, 0, time.monotonic()
    spent = dict.fromkeys(kinds, 0.0)
    before = state(base)
    for number in numbers:
        if time.monotonic() - begun > 60 * known.minutes:
            break
        kind, tried = kinds[number % len(kinds)], tried + 1
        root = scratch / f"c{number}"
        words, ended, faults = _one(Room(base, root, np.random.default_rng([seed, number])), kind)
        codes[kind][str(ended.code)] += 1
        spent[kind] += ended.seconds
        longest, largest = max(longest, ended.seconds), max(largest, ended.peak_kb)
        if state(base) != before:
            raise SystemExit(f"case {number} changed the sound inputs: {words}")
        if faults:
            said = [w.replace(str(root), "ROOT").replace(str(base), "BASE") for w in words]
            finding = {"case": number, "kind": kind, "words": said, "faults": faults}
            findings.append(finding)
            logs = [path.read_text()[-1500:] for path in (root / "tmp").glob("*.log")]
            print(finding, ended.errors[-600:], *logs, sep="\n", flush=True)
        shutil.rmtree(root)
    return {
        "cases": tried,
        "first": numbers[0] if numbers else 0,
        "exit_codes": {kind: dict(sorted(count.items())) for kind, count in codes.items()},
        "findings": findings,
        "seconds": {kind: round(seconds) for kind, seconds in spent.items()},
        "longest_s": round(longest, 1),
        "largest_mb": round(largest / 1024),
        "minutes": round((time.monotonic() - begun) / 60, 1),
        "programs_of_their_own": sum(n % PROGRAM_EVERY == 0 for n in numbers[:tried]),
    }


def _load_everything() -> None:
    """Import all modules, so that forked processes need not."""
    import sacl

    for module in pkgutil.walk_packages(sacl.__path__, "sacl."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def _one(room: Room, kind: str) -> tuple[list[str], Ended, list[str]]:
    """Make a case, run it, and return its words, its end and what is wrong."""
    (room.root / "tmp").mkdir(parents=True)
    words = MAKERS_OF[kind](room)
    before = state(room.user)
    own = int(room.root.name[1:]) % PROGRAM_EVERY == 0
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
        faults += disagreements(room, words)
    return words, ended, faults


def run_forked(words: Sequence[str], root: Path) -> Ended:
    """Run the command line in a fork of this process."""
    begun, errors = time.monotonic(), root / "stderr"
    child = os.fork()
    if child == 0:
        _be_the_program(words, root, errors)
    status, usage = None, None
    while status is None:
        done, code, usage = os.wait4(child, os.WNOHANG)
        if done:
            status = code
        elif time.monotonic() - begun > SECONDS:
            os.kill(child, signal.SIGKILL)
            os.wait4(child, 0)
            return Ended(None, _text(errors), SECONDS, 0)
        else:
            time.sleep(0.005)
    assert usage is not None
    ended = os.waitstatus_to_exitcode(status)
    return Ended(ended, _text(errors), time.monotonic() - begun, usage.ru_maxrss)


def _be_the_program(words: Sequence[str], root: Path, errors: Path) -> None:
    code = 70
    try:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.dup2(os.open(errors, os.O_CREAT | os.O_WRONLY, 0o644), 2)
        os.chdir(root)
        tempfile.tempdir = str(root / "tmp")
        resource.setrlimit(resource.RLIMIT_AS, (12 * 1024**3,) * 2)
        cli = importlib.import_module("sacl.cli")
        try:
            code = cli.main(list(words))
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else 0
        sys.stderr.flush()
    finally:
        os._exit(code)


def run_program(words: Sequence[str], root: Path) -> Ended:
    """Run the command line as a program of its own."""
    begun = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    environment = {**os.environ, "TMPDIR": str(root / "tmp")}
    command = [sys.executable, "-m", "sacl", *map(os.fsencode, words)]
    try:
        done = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired as late:
        return Ended(None, (late.stderr or b"").decode(errors="replace"), SECONDS, 0)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    errors = done.stderr.decode(errors="replace")
    return Ended(done.returncode, errors, time.monotonic() - begun, peak if peak > before else 0)


def judged(ended: Ended) -> list[str]:
    """Return what is wrong with the way a command ended; nothing where it ended as it should."""
    if ended.code is None:
        return [f"no end after {SECONDS} s"]
    lines = [line for line in ended.errors.splitlines() if line.startswith("sacl: ")]
    faults = []
    if ended.code not in (0, 1, 2):
        faults.append(f"exit {ended.code}")
    if ended.code == 2 and len(lines) != 1:
        faults.append(f"exit 2 with {len(lines)} lines")
    if "Traceback" in ended.errors or "unexpected " in ended.errors:
        faults.append(f"unexpected: {(lines or ['?'])[-1][:200]}")
    elif ended.code == 1 and "failed" not in ended.errors:
        faults.append("exit 1 without a scan that failed")
    if "Warning" in ended.errors:
        faults.append("a library warns")
    if ended.peak_kb > GIGABYTE:
        faults.append(f"{ended.peak_kb // 1024} MB")
    return faults


def disagreements(room: Room, words: Sequence[str]) -> list[str]:
    """Return where results that were called good contradict themselves."""
    from sacl.cohort.manifest import read_cohort, read_image, read_reference

    faults = []
    cohort = Path(room.work) / "1-cohort"
    if words[0] in ("ingest", "run") and (cohort / "run.json").is_file():
        manifest = read_cohort(cohort)
        for case in manifest.cases:
            image = read_image(cohort, case)
            reference = read_reference(cohort, case, manifest.scheme)
            if not np.isfinite(image.voxels).all():
                faults.append(f"{case.case_id}: not finite")
            if reference is not None and reference.voxels.shape != image.voxels.shape:
                faults.append(f"{case.case_id}: shapes differ")
    for path in sorted(Path(room.out).rglob("*.nii.gz")) if Path(room.out).is_dir() else ():
        try:
            array: Any = np.asarray(nibabel.load(path).dataobj)  # type: ignore[attr-defined]
        except (OSError, EOFError, nibabel.filebasedimages.ImageFileError) as error:
            faults.append(f"{path.name}: written, and cannot be read, {type(error).__name__}")
            continue
        images = "images" in path.parts[-2] or words[-1] == "nnssl"
        if not images and (array.size == 0 or array.max() > 2 or array.min() < 0):
            faults.append(f"{path.name}: labels from {array.min()} to {array.max()}")
    return faults


def state(folder: Path) -> str:
    """Return a hash of names, kinds and contents below a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        stat = path.lstat()
        digest.update(f"{os.fsencode(path)!r} {stat.st_mode} {stat.st_mtime_ns}".encode())
        if path.is_symlink():
            digest.update(os.fsencode(path.readlink()))
        elif path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""


if __name__ == "__main__":
    main()
