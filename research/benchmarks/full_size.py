"""Every stage on scans of 512 x 512 x 100 to 150 voxels and 13 organs, beside nibabel's reading.

`python -m research benchmark full_size --data DIR` takes generated BTCV (`python -m sacl_phantom
btcv --out DIR --scans 4 --unlabeled 0`, which it does where nothing lies there) and writes
`results/full_size.json`: seconds, memory and disk per scan of each stage, what they come to for 30,
361 and 2,000 scans (BTCV, FLARE 2021, a hospital), and single operations on the largest scan. The
stages are those of the paper's setting (`sacl run btcv`) on given coarse maps, of ours on slices
(2-D coarse networks, dense head, four copies) and of ours on volumes (3-D networks; the segmenter
looks where organs were located, so these are trained until they locate some); with few training
steps.

With `--runs DIR` it runs `sacl run btcv`, `flare21` and `hospital` whole, on such cohorts in DIR,
with few steps and a coarse network for a CPU, and writes `results/full_size_runs.json` instead.
With `--external DIR` it tests that run of btcv, which goes on where it stopped, on the scans of
`flare21`, and writes `results/full_size_external.json`.

Each stage runs in a process of its own. Seconds are the processor's, of one thread, without
starting Python and importing, and without training steps, which do not grow with the scans; so
other work on the machine falsifies them little. Memory is the largest resident set less that after
imports; of it, what is mapped from files can be taken back, and `private_mb` is the rest. The
measure of all seconds is what nibabel takes to read the same images and label maps (`get_fdata`),
before the first stage and after the last one.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from research.benchmarks.circumstances import circumstances, watched

RESULT = Path(__file__).parents[1] / "results" / "full_size.json"
COHORTS = (30, 361, 2000)
ORGANS = 13
GOAL_GB = 2.0
STAGES = ("ingest", "locate", "extract", "pretrain", "finetune", "predict", "evaluate", "report")
_LEFT_OUT = {"volume": ("extract", "pretrain")}
SETTINGS = {
    "paper": "",
    "ours": "locate: {slices: {size: 128, steps: 2, teacher_steps: 2}}\n"
    "pretrain: {steps: 2}\nfinetune: {dense: {teacher_steps: 2}, steps: 2}\n",
    "volume": "locate: {volume: {steps: 200, spacing_mm: [3, 3, 3], crop: [64, 64, 48]},"
    " channels: 16}\nfinetune: {volume: {teacher_steps: 2}, steps: 20}\npredict: {copies: 0}\n",
}
"""What is measured, as settings beside `ingest.validation_subjects: 1`; the paper's are shipped."""
RUNS = {"btcv": (4, 0), "flare21": (3, 1), "hospital": (4, 1)}
"""Labeled and other scans of the runs that are whole."""
PAPER_FLAGS = (
    *("--pretrain.steps", "2", "--pretrain.batch", "8"),
    *("--finetune.steps", "2", "--finetune.batch", "4"),
)

RUN_FLAGS = (
    *PAPER_FLAGS,
    *("--ingest.validation_subjects", "1", "--device", "cpu", "--locate.volume.steps", "2"),
    *("--locate.volume.spacing_mm", "4,4,6", "--locate.volume.crop", "64,64,32"),
    *("--locate.channels", "16"),
)


def main() -> None:
    """Measure all stages and operations and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="generated BTCV, made if missing")
    parser.add_argument("--runs", type=Path, help="generated cohorts to run whole, made if missing")
    parser.add_argument("--external", type=Path, help="the same cohorts, for an external test")
    parser.add_argument("--scans", type=int, default=4)
    parser.add_argument("--slices", type=int, default=150)
    parser.add_argument("--work", type=Path, default=Path("work/full-size"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    known = parser.parse_args()
    if known.child:
        print(json.dumps(_measured(*known.child, known.data, known.work)))
        return
    os.environ |= {"OMP_NUM_THREADS": "1"}
    if known.runs:
        result = _circumstances(known) | {"runs": _runs(known.runs, known.work, known.slices)}
        out = known.out or RESULT.with_name("full_size_runs.json")
    elif known.external:
        tested = _external_test(known.external, known.work, known.slices)
        result = _circumstances(known) | tested
        out = known.out or RESULT.with_name("full_size_external.json")
    else:
        result, out = _circumstances(known) | _stages_and_operations(known), known.out or RESULT
    out.write_text(json.dumps(result, indent=1) + "\n")


def _stages_and_operations(known: argparse.Namespace) -> dict[str, Any]:
    _generate("btcv", known.data, (known.scans, 0), known.slices)
    reading = [_in_a_process("nibabel", "-", known)]
    stages: dict[str, dict[str, Any]] = {}
    for name in SETTINGS:
        shutil.rmtree(known.work / name, ignore_errors=True)
        for stage in STAGES:
            if stage not in _LEFT_OUT.get(name, ()):
                stages[f"{name}: {stage}"] = _in_a_process(name, stage, known)
    operations = _in_a_process("operations", "-", known)
    reading.append(_in_a_process("nibabel", "-", known))
    read_s = sum(each["cpu_seconds"] for each in reading) / len(reading) / known.scans
    for name, stage in stages.items():
        done = 1 if "evaluate" in name else known.scans  # one is held out, and so scored
        stages[name] = _per_scan(stage, done, read_s)
    found = {"reading": reading, "reading_s_per_scan": round(read_s, 3), "stages": stages}
    return found | {"operations": operations}


def _generate(layout: str, data: Path, scans: tuple[int, int], slices: int) -> None:
    command = [sys.executable, "-m", "sacl_phantom", layout, "--out", str(data)]
    command += ["--scans", str(scans[0]), "--unlabeled", str(scans[1])]
    subprocess.run([*command, "--shape", "512", "512", str(slices)], check=True)


def _runs(root: Path, work: Path, slices: int) -> dict[str, Any]:
    """Run the three cohorts whole, and return what their stages say of themselves."""
    found = {}
    for name, scans in RUNS.items():
        shutil.rmtree(work / name, ignore_errors=True)
        summary = _run(name, root, work, slices)
        records = {
            p.parent.name: json.loads(p.read_text()) for p in work.glob(f"{name}/*/run.json")
        }
        found[name] = {
            "labeled_and_other_scans": scans,
            "seconds": summary["duration_s"],
            "peak_mb": {stage: record["peak_memory_mb"] for stage, record in records.items()},
            "scored": {key: summary["scores"][key] for key in ("subjects", "cases", "organs")},
        }
        print(name, found[name], flush=True)
    return found


def _run(name: str, root: Path, work: Path, slices: int) -> dict[str, Any]:
    """Run a cohort, which is made if missing, as far as that has not been done."""
    _generate(name, root / name, RUNS[name], slices)
    command = [sys.executable, "-m", "sacl", "run", name, "--data", str(root / name)]
    command += ["--work", str(work / name), "--json", *RUN_FLAGS]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _external_test(root: Path, work: Path, slices: int) -> dict[str, Any]:
    """Test a run of BTCV on scans as FLARE 2021 has them; return what it took, and its scores."""
    _run("btcv", root, work, slices)
    _generate("flare21", root / "flare21", RUNS["flare21"], slices)
    out = work / "external"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "sacl", "evaluate", "--model", str(work / "btcv")]
    command += ["--data", str(root / "flare21"), "--out", str(out), "--json"]
    begun = time.perf_counter()
    done = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert done.stdout is not None
    said = done.stdout.read()
    _, status, usage = os.wait4(done.pid, 0)
    if status:
        raise SystemExit("the external test failed")
    tested = json.loads(said.splitlines()[-1])
    return {
        "what": "the external test of a run of BTCV on scans as FLARE 2021 has them",
        "command": "python -m research benchmark full_size --external DIR",
        "trained_on": {"cohort": "btcv", "labeled_and_other_scans": RUNS["btcv"]},
        "tested_on": {"cohort": "flare21", "labeled_and_other_scans": RUNS["flare21"]},
        "seconds": round(time.perf_counter() - begun, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_mb": round(usage.ru_maxrss / 1024, 1),
        "result": {key: value for key, value in tested.items() if key not in ("work", "report")},
    }


def _in_a_process(name: str, stage: str, known: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", __spec__.name, "--data", str(known.data)]
    command += ["--work", str(known.work / name), "--child", name, stage]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(name, stage, found, flush=True)
    return found


def _measured(name: str, stage: str, data: Path, work: Path) -> dict[str, Any]:
    """Return what a stage, nibabel's reading or the single operations take in this process."""
    if name == "operations":
        return _operations(data, work)
    if name == "nibabel":
        return _cost(_reading(sorted(data.rglob("*.nii.gz"))))
    import sacl.run.clock
    from sacl.run.workspace import FOLDERS

    sacl.run.clock.now = time.process_time  # a step's seconds are the processor's
    found = _cost(_stage(name, stage, data, work))
    folder = work / FOLDERS[stage]
    record = json.loads((folder / "run.json").read_text())
    paces = record["results"].get("pace", {}).values()
    found["training_seconds"] = round(sum(p["steps"] * p["seconds_per_step"] for p in paces), 2)
    weights = (".safetensors", ".pt")
    files = [p for p in folder.rglob("*") if p.is_file() and p.suffix not in weights]
    return found | {"disk_mb": round(sum(p.stat().st_size for p in files) / 1e6, 1)}


def _cost(run: Callable[[], object]) -> dict[str, Any]:
    """Return what a call takes; all that it imports should be imported."""
    idle, start, cpu = _peak_mb(), time.perf_counter(), time.process_time()
    with watched(_private_mb, 0.02) as private:
        run()
    return {
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "wall_seconds": round(time.perf_counter() - start, 2),
        "above_idle_mb": round(_peak_mb() - idle, 1),
        "private_mb": round(private[-1] - private[0], 1),
    }


def _private_mb() -> float:
    """Return the memory of this process's own."""
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(x for x in lines if x.startswith("RssAnon"))
    return int(line.split()[1]) / 1000


def _reading(paths: list[Path]) -> Callable[[], None]:
    import nibabel

    def run() -> None:
        for path in paths:
            nibabel.load(path).get_fdata()

    return run


def _stage(name: str, stage: str, data: Path, work: Path) -> Callable[[], None]:
    """Return what runs a stage; what it imports is imported already."""
    from sacl import cli

    for module in (stage, "locate", "finetune"):
        importlib.import_module(f"sacl.stages.{module}")
    words = [stage, "--work", str(work), "--device", "cpu", "--ingest.data", str(data)]
    words += ["--ingest.validation_subjects", "1"]
    if name == "paper":
        given = {"source": str(work / "1-cohort" / "references")}  # as another tool would draw them
        words += ["btcv", *PAPER_FLAGS, "--locate.maps", json.dumps(given)]
    else:
        work.mkdir(parents=True, exist_ok=True)
        (work / f"{name}.yaml").write_text(SETTINGS[name])
        words.append(str(work / f"{name}.yaml"))

    def run() -> None:
        with contextlib.redirect_stderr(io.StringIO()) as told:
            code = cli.main(words)
        if code:
            raise SystemExit(told.getvalue())

    return run


def _operations(data: Path, work: Path) -> dict[str, Any]:
    """Return what single operations take on the largest scan: they are where stages spend time."""
    work.mkdir(parents=True, exist_ok=True)
    image = max(data.rglob("img*.nii.gz"), key=lambda path: path.stat().st_size)
    label = Path(str(image).replace("img", "label"))
    of = {"nibabel: image and label map": _reading([image, label])}
    of |= _calls(image, label, work)
    costs = {name: _cost(run) for name, run in of.items()}
    read_s = costs["nibabel: image and label map"]["cpu_seconds"]
    for cost in costs.values():
        cost["times_reading"] = round(cost["cpu_seconds"] / read_s, 2)
    return {"scan": image.name, "of": costs}


def _calls(image: Path, label: Path, work: Path) -> dict[str, Callable[[], object]]:
    import numpy as np
    import torch

    from sacl.files.nifti import map_volume, read_label_map, read_volume, write_volume
    from sacl.networks.coarse import CoarseNetwork
    from sacl.organs import BTCV_ORGANS
    from sacl.patches import coarse_grid as grids
    from sacl.prediction.coarse import Ensemble, cleaned
    from sacl.run.configure import load_config
    from sacl.scores.organs_of_case import score_case
    from sacl.training.coarse import volume_spec
    from sacl.types import LabelMap, LabelScheme

    scheme, window, cpu = LabelScheme("btcv", BTCV_ORGANS), (-175.0, 275.0), torch.device("cpu")
    volume, drawn = read_volume(image)[0], read_label_map(label, scheme)[0]
    write_volume(work / "scan.nii", volume)
    mapped = map_volume(work / "scan.nii")
    voxels = np.asfortranarray(np.roll(drawn.voxels, 3, axis=0))
    moved = LabelMap(voxels, drawn.grid, scheme)
    settings = load_config("btcv").locate.volume
    assert settings is not None
    grid = grids.coarse_grid(volume.grid, settings.spacing_mm)
    coarse = grids.labels_to_coarse(drawn.voxels, ORGANS, grid, cpu)
    sharp = torch.nn.functional.one_hot(coarse.long(), ORGANS + 1).permute(3, 0, 1, 2)
    sharp = (0.8 * sharp + 0.2 / (ORGANS + 1)).contiguous()
    spec = volume_spec(scheme, [settings.spacing_mm], settings.crop, None, 32)
    network = Ensemble(spec, (CoarseNetwork(spec).eval(),), cpu)
    return {
        "read image": lambda: read_volume(image),
        "read label map": lambda: read_label_map(label, scheme),
        "write canonical image": lambda: write_volume(work / "again.nii", volume),
        "image onto 2 x 2 x 6 mm": lambda: grids.image_to_coarse(mapped.voxels, window, grid, cpu),
        "13 labels onto 2 x 2 x 6 mm": lambda: grids.labels_to_coarse(
            drawn.voxels, ORGANS, grid, cpu
        ),
        "14 probabilities onto the scan": lambda: grids.arg_max_on_scan(sharp, grid),
        "remove islands": lambda: cleaned(moved.voxels, moved.grid, scheme),
        "Dice, HD95, NSD of 13 organs": lambda: score_case("a", drawn, moved, BTCV_ORGANS, 2.0),
        "the paper's coarse network": lambda: network.locate(mapped, window),
    }


def _per_scan(found: dict[str, Any], scans: int, read_s: float) -> dict[str, Any]:
    """Return a stage's figures per scan, and what they come to for whole cohorts."""
    seconds = (found["cpu_seconds"] - found["training_seconds"]) / scans
    disk_mb = found["disk_mb"] / scans
    return found | {
        "seconds_per_scan": round(seconds, 2),
        "times_reading": round(seconds / read_s, 2),
        "disk_mb_per_scan": round(disk_mb, 1),
        "within_2_gb": found["above_idle_mb"] <= 1000 * GOAL_GB,
        "hours": {n: round(n * seconds / 3600, 2) for n in COHORTS},
        "disk_gb": {n: round(n * disk_mb / 1000, 1) for n in COHORTS},
    }


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def _circumstances(known: argparse.Namespace) -> dict[str, Any]:
    return {
        "what": "seconds, memory and disk of every stage per scan, few training steps",
        "scans": {"count": known.scans, "largest": [512, 512, known.slices]},
        "organs": ORGANS,
        "settings": SETTINGS | {"paper": [*PAPER_FLAGS, "given coarse maps"], "runs": RUN_FLAGS},
        "goal_gb": GOAL_GB,
        "command": "python -m research benchmark full_size --data DIR",
        **circumstances(),
    }


if __name__ == "__main__":
    main()
