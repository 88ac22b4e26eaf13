"""Every stage on scans of 512 x 512 x 100 to 150 voxels and 13 organs, beside nibabel's reading.

`python -m research benchmark full_size --data DIR` takes generated BTCV (`python -m sacl_phantom
btcv --out DIR --scans 4 --unlabeled 1`, which it does where nothing lies there), runs each stage of
the paper's setting (`sacl run btcv`) and of ours on slices, with few training steps, and writes
`results/full_size.json`: seconds, memory and disk per scan and stage, and what they come to for 30,
361 and 2,000 scans (BTCV, FLARE 2021, a hospital).

Each stage runs in a process of its own. Seconds are the processor's, of one thread, without
starting Python and importing, and without training steps, which do not grow with the scans; so
other work on the machine falsifies them little. Memory is the largest resident set less that after
imports. The measure of all seconds is what nibabel takes to read the same images and label maps
(`get_fdata`), before the first stage and after the last one.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parents[1] / "results" / "full_size.json"
STAGES = ("ingest", "locate", "extract", "pretrain", "finetune", "predict", "evaluate", "report")
COHORTS = (30, 361, 2000)
FEW = (
    *("--ingest.validation_subjects", "1", "--locate.volume.steps", "2", "--device", "cpu"),
    *("--pretrain.steps", "2", "--pretrain.batch", "8", "--finetune.steps", "2"),
)
PAPER = (*FEW, "--finetune.batch", "4")
OURS = """
name: ours
ingest: {validation_subjects: 1}
locate: {slices: {size: 128, steps: 2, teacher_steps: 2}}
extract: {dense_size: 96}
pretrain: {steps: 2}
finetune: {dense: {teacher_steps: 2}, steps: 2}
"""
_GOAL_GB = 2.0


def main() -> None:
    """Measure all stages of both settings and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="generated BTCV, made if missing")
    parser.add_argument("--scans", type=int, default=4, help="labeled scans, and one without")
    parser.add_argument("--slices", type=int, default=150)
    parser.add_argument("--work", type=Path, default=Path("work/full-size"))
    parser.add_argument("--only", nargs="+", default=["paper", "ours"], help="settings to measure")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    known, flags = parser.parse_known_args()
    if known.child:
        print(json.dumps(_measured(known.child[0], known.child[1], known.data, known.work, flags)))
        return
    os.environ |= {"OMP_NUM_THREADS": "1"}
    _generate(known.data, known.scans, known.slices)
    scans = known.scans + 1
    reading = [_in_a_process("nibabel", "-", known)]
    stages: dict[str, dict[str, Any]] = {}
    for name in known.only:
        shutil.rmtree(known.work / name, ignore_errors=True)
        for stage in STAGES:
            stages[f"{name}: {stage}"] = _in_a_process(name, stage, known)
    reading.append(_in_a_process("nibabel", "-", known))
    read_s = sum(each["cpu_seconds"] for each in reading) / len(reading) / scans
    for name, stage in stages.items():
        stages[name] = _per_scan(stage, scans, read_s)
        print(name, json.dumps(stages[name]))
    found = {"reading": reading, "reading_s_per_scan": round(read_s, 3), "stages": stages}
    known.out.write_text(json.dumps(_circumstances(known, scans) | found, indent=1) + "\n")


def _generate(data: Path, scans: int, slices: int) -> None:
    command = [sys.executable, "-m", "sacl_phantom", "btcv", "--out", str(data)]
    command += ["--scans", str(scans), "--unlabeled", "1", "--shape", "512", "512", str(slices)]
    subprocess.run(command, check=True)


def _in_a_process(name: str, stage: str, known: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", __spec__.name, "--data", str(known.data)]
    command += ["--work", str(known.work / name), "--child", name, stage]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(name, stage, found, flush=True)
    return found


def _measured(name: str, stage: str, data: Path, work: Path, flags: list[str]) -> dict[str, Any]:
    """Return what one stage, or nibabel's reading, takes in this process."""
    import sacl.run.clock

    sacl.run.clock.now = time.process_time  # a step's seconds are the processor's
    run = _reading(data) if name == "nibabel" else _stage(name, stage, data, work, flags)
    idle = _peak_mb()
    start, cpu = time.perf_counter(), time.process_time()
    run()
    found: dict[str, Any] = {
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "wall_seconds": round(time.perf_counter() - start, 2),
        "above_idle_mb": round(_peak_mb() - idle, 1),
    }
    if name == "nibabel":
        return found
    from sacl.run.workspace import FOLDERS

    folder = work / FOLDERS[stage]
    pace = json.loads((folder / "run.json").read_text())["results"].get("pace", {})
    found["training_seconds"] = round(
        sum(p["steps"] * p["seconds_per_step"] for p in pace.values()), 2
    )
    files = [
        p for p in folder.rglob("*") if p.is_file() and p.suffix not in (".safetensors", ".pt")
    ]
    return found | {"disk_mb": round(sum(p.stat().st_size for p in files) / 1e6, 1)}


def _reading(data: Path) -> Any:
    import nibabel

    def run() -> None:
        for path in sorted(data.rglob("*.nii.gz")):
            nibabel.load(path).get_fdata()

    return run


def _stage(name: str, stage: str, data: Path, work: Path, flags: list[str]) -> Any:
    """Return what runs a stage; all that it imports is imported already."""
    from sacl import cli

    for module in (stage, "locate", "finetune"):
        importlib.import_module(f"sacl.stages.{module}")
    config = "btcv"
    if name == "ours":
        work.mkdir(parents=True, exist_ok=True)
        config = str(work / "ours.yaml")
        Path(config).write_text(OURS)
    words = [stage, config, "--work", str(work), *(PAPER if name == "paper" else ()), *flags]
    words += ["--ingest.data", str(data)]

    def run() -> None:
        with contextlib.redirect_stderr(io.StringIO()) as told:
            code = cli.main(words)
        if code:
            raise SystemExit(told.getvalue())

    return run


def _per_scan(found: dict[str, Any], scans: int, read_s: float) -> dict[str, Any]:
    """Return a stage's figures per scan, and what they come to for whole cohorts."""
    seconds = (found["cpu_seconds"] - found["training_seconds"]) / scans
    disk_mb = found["disk_mb"] / scans
    return found | {
        "seconds_per_scan": round(seconds, 2),
        "times_reading": round(seconds / read_s, 2),
        "disk_mb_per_scan": round(disk_mb, 1),
        "within_2_gb": found["above_idle_mb"] <= 1000 * _GOAL_GB,
        "hours": {n: round(n * seconds / 3600, 2) for n in COHORTS},
        "disk_gb": {n: round(n * disk_mb / 1000, 1) for n in COHORTS},
    }


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def _circumstances(known: argparse.Namespace, scans: int) -> dict[str, Any]:
    from research.benchmarks.circumstances import circumstances

    return {
        "what": "seconds, memory and disk of every stage per scan, few training steps",
        "scans": {"count": scans, "labeled": known.scans, "largest": [512, 512, known.slices]},
        "organs": 13,
        "paper": list(PAPER),
        "ours": OURS,
        "goal_gb": _GOAL_GB,
        "command": "python -m research benchmark full_size --data DIR",
        **circumstances(),
    }


if __name__ == "__main__":
    main()
