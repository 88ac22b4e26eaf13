"""Time and memory of ingesting a cohort, against reading the same files with nibabel's `get_fdata`.

`python -m research benchmark ingest_speed` takes 100 CT scans of 256 x 256 x 256 int16 (`.nii.gz`)
with label maps of 13 organs, nnU-Net layout, and writes `results/ingest_speed.json`. Three scans
are different; the others are further names of their files, which spares disk and leaves the work
the same: every file is decompressed, checked and written out.

Both sides take the same cases in blocks, turn and turn about, each block in a process of its own:

- nibabel: `nibabel.load(path).get_fdata()` of image and label map, nothing else;
- ingest: the stage as `sacl ingest` runs it, with everything that it checks and writes.

Time is that of the loop alone, without starting Python and importing; memory the largest resident
set less that after imports (`resource.getrusage`). Goals: a time ratio of at most 0.6, and less
memory than two scans, a scan being its int16 voxels and those of its label map. Ingest works on two
scans at a time, so on a machine with other work to do the time ratio flatters it; the ratio of CPU
times, with nothing at the same time, does not.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SHAPE = (256, 256, 256)
ORGANS = 13
DISTINCT = 3
GOAL_RATIO = 0.6
RESULT = Path(__file__).parents[1] / "results" / "ingest_speed.json"


def main() -> None:
    """Measure both sides in turn and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scans", type=int, default=100)
    parser.add_argument("--block", type=int, default=20, help="scans per block")
    parser.add_argument("--side", choices=["nibabel", "ingest"], help="measure one block")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, default=RESULT)
    known = parser.parse_args()
    if known.side:
        print(json.dumps({"nibabel": read_all, "ingest": ingest_all}[known.side](known.data)))
        return
    blocks = known.scans // known.block
    with tempfile.TemporaryDirectory() as folder:
        compressed = make_cohort(Path(folder), known.block)
        runs: dict[str, list[dict[str, float]]] = {"nibabel": [], "ingest": []}
        for block in range(blocks):
            order = ("nibabel", "ingest") if block % 2 == 0 else ("ingest", "nibabel")
            for side in order:
                runs[side].append(_in_a_process(side, Path(folder) / "Dataset001_Speed"))
                print(block, side, runs[side][-1])
    result = _summary(runs, known.block) | {"compressed_mb_per_scan": round(compressed / 1e6, 2)}
    known.out.write_text(json.dumps(_circumstances(blocks * known.block) | result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def read_all(data: Path) -> dict[str, float]:
    """Read every image and label map as nibabel's users do."""
    import nibabel

    pairs = [
        (path, data / "labelsTr" / path.name.replace("_0000", ""))
        for path in sorted((data / "imagesTr").iterdir())
    ]
    idle = _peak_mb()
    start, cpu = time.perf_counter(), time.process_time()
    for image, label in pairs:
        voxels, labels = nibabel.load(image).get_fdata(), nibabel.load(label).get_fdata()
        assert voxels.shape == labels.shape
        del voxels, labels
    return _measured(start, cpu, idle)


def ingest_all(data: Path) -> dict[str, float]:
    """Ingest the cohort as the command does."""
    from sacl.run.workspace import Workspace
    from sacl.settings import IngestSettings
    from sacl.stages.ingest import ingest

    with tempfile.TemporaryDirectory(dir=data.parent) as work:
        idle = _peak_mb()
        start, cpu = time.perf_counter(), time.process_time()
        with contextlib.redirect_stderr(io.StringIO()):
            folder = ingest(IngestSettings(data=data, modality="ct"), Workspace(Path(work)))
        found = _measured(start, cpu, idle)
        assert len(list((folder / "references").iterdir())) == len(
            list((data / "labelsTr").iterdir())
        )
    return found


def _measured(start: float, cpu: float, idle: float) -> dict[str, float]:
    return {
        "seconds": round(time.perf_counter() - start, 3),
        "cpu_seconds": round(time.process_time() - cpu, 3),
        "idle_mb": round(idle, 1),
        "above_idle_mb": round(_peak_mb() - idle, 1),
    }


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def _in_a_process(side: str, data: Path) -> dict[str, float]:
    command = [sys.executable, "-m", __spec__.name, "--side", side, "--data", str(data)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def make_cohort(root: Path, scans: int) -> int:
    """Write an nnU-Net dataset and return the mean compressed size of a scan and its label map."""
    data = root / "Dataset001_Speed"
    for name in ("imagesTr", "labelsTr"):
        (data / name).mkdir(parents=True)
    size = 0
    for number in range(scans):
        image = data / "imagesTr" / f"case{number:03d}_0000.nii.gz"
        label = data / "labelsTr" / f"case{number:03d}.nii.gz"
        if number < DISTINCT:
            # By another process: what making a scan takes is not this one's.
            make = [sys.executable, "-c", _MAKE_SCAN, str(image), str(label), str(number)]
            subprocess.run(make, check=True)
        else:
            first = f"case{number % DISTINCT:03d}"
            os.link(image.with_name(f"{first}_0000.nii.gz"), image)
            os.link(label.with_name(f"{first}.nii.gz"), label)
        size += image.stat().st_size + label.stat().st_size
    document = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **{f"organ_{n}": n for n in range(1, ORGANS + 1)}},
        "numTraining": scans,
        "file_ending": ".nii.gz",
    }
    (data / "dataset.json").write_text(json.dumps(document))
    return size // scans


_MAKE_SCAN = f"""
import sys
import nibabel
import numpy as np
from scipy.ndimage import gaussian_filter, zoom
rng = np.random.default_rng(int(sys.argv[3]))
n = {SHAPE[0]}
x, y, z = np.ogrid[-1:1:n * 1j, -1:1:n * 1j, -1:1:n * 1j]
texture = zoom(rng.normal(0, 25, (32, 32, 32)).astype(np.float32), n / 32, order=1)
inside = np.broadcast_to((x / 0.8) ** 2 + (y / 0.6) ** 2 < 1, texture.shape)
image = np.where(inside, 40 + texture, -1000).astype(np.float32)
labels = np.zeros(image.shape, np.uint8)
for label in range(1, {ORGANS} + 1):
    center, radius = rng.uniform(-0.4, 0.4, 3), rng.uniform(0.06, 0.2, 3)
    wave = 0.15 * np.sin(40 * x + 30 * y + 20 * z + label)
    place = [((a - c) / r) ** 2 for a, c, r in zip((x, y, z), center, radius)]
    organ = sum(place) + wave < 1
    labels[organ] = label
    image[organ] += rng.uniform(-60, 120)
# A reconstruction's noise is correlated in the slice, and air is noisy too.
image += 2 * gaussian_filter(rng.normal(0, 12, image.shape).astype(np.float32), (0.7, 0.7, 0))
affine = np.diag([-1.5, -1.5, 1.5, 1.0])
image = image.clip(-1024, 3071).astype(np.int16)
for path, voxels in ((sys.argv[1], image), (sys.argv[2], labels)):
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
"""


def _summary(runs: dict[str, list[dict[str, float]]], block: int) -> dict[str, object]:
    ratios = [
        b["seconds"] / a["seconds"] for a, b in zip(runs["nibabel"], runs["ingest"], strict=True)
    ]
    voxels = int(np.prod(SHAPE))
    peak = max(run["above_idle_mb"] for run in runs["ingest"])
    two = {
        "int16 voxels": 2 * voxels * 2 / 1e6,
        "int16 voxels and uint8 labels": 2 * voxels * 3 / 1e6,
        "float64 voxels, as get_fdata gives": 2 * voxels * 8 / 1e6,
    }
    return {
        "seconds_per_scan": {
            side: round(statistics.median(run["seconds"] for run in blocks) / block, 4)
            for side, blocks in runs.items()
        },
        "cpu_seconds_per_scan": {
            side: round(statistics.median(run["cpu_seconds"] for run in blocks) / block, 4)
            for side, blocks in runs.items()
        },
        "time_ratio": {
            "median_of_blocks": round(statistics.median(ratios), 3),
            "blocks": [round(ratio, 3) for ratio in ratios],
            "meets_goal": statistics.median(ratios) <= GOAL_RATIO,
        },
        "cpu_time_ratio": round(
            sum(run["cpu_seconds"] for run in runs["ingest"])
            / sum(run["cpu_seconds"] for run in runs["nibabel"]),
            3,
        ),
        "memory_above_idle_mb": {
            side: max(run["above_idle_mb"] for run in blocks) for side, blocks in runs.items()
        },
        "two_scans_mb": {
            what: {"mb": round(mb, 1), "peak_is_below": peak < mb} for what, mb in two.items()
        },
        "blocks": runs,
    }


def _circumstances(scans: int) -> dict[str, object]:
    from research.benchmarks.circumstances import circumstances

    return {
        "what": "ingest of a cohort against nibabel's get_fdata of the same files",
        "goals": {"time_ratio": GOAL_RATIO, "memory": "less than two scans"},
        "scan": {"shape": SHAPE, "image": "int16 .nii.gz", "label_map": "uint8 .nii.gz"},
        "organs": ORGANS,
        "scans": scans,
        "distinct_scans": DISTINCT,
        "scans_at_a_time": 2,
        "load_average_before": round(os.getloadavg()[0], 2),
        "free_disk_gb": round(shutil.disk_usage(tempfile.gettempdir()).free / 1e9),
        "command": "nice -n 5 python -m research benchmark ingest_speed",
        **circumstances(),
    }


if __name__ == "__main__":
    main()
