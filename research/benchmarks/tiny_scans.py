"""Whether a stage's time grows with the scans alone: few tiny scans and many.

    python -m research benchmark tiny_scans --out research/results/tiny_scans.json

Scans of 16 x 16 x 4 voxels in nnU-Net's layout, ten of them labeled, pass the stages up to the
patch store and `sacl check`, each stage in a process of its own. Seconds are the processor's,
without starting Python and importing: what a stage costs per scan beside its voxels. A stage that
is quadratic takes more per scan of many than of few.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from research.benchmarks.circumstances import circumstances
from sacl.cli import main as sacl
from sacl.cohort.layouts.nnunet import write_dataset
from sacl.files.atomic import write_text
from sacl.files.documents import write_json
from sacl.files.nifti import write_label_map, write_volume
from sacl.run.machine import peak_memory_mb
from sacl.types import Grid, LabelMap, LabelScheme, Volume

SCHEME = LabelScheme("tiny", ("liver", "spleen"))
GRID = Grid((16, 16, 4), np.diag([4.0, 4.0, 5.0, 1.0]))
LABELED = 10


def write_scans(folder: Path, count: int) -> None:
    """Write so many scans in nnU-Net's layout, with coarse maps of all beside them."""
    rng = np.random.default_rng(0)
    labels = np.zeros(GRID.shape, np.uint8)
    labels[2:9, 2:9, 1:3], labels[10:14, 4:9, 1:3] = 1, 2
    for number in range(count):
        image = rng.integers(-150, 250, GRID.shape).astype(np.int16)
        part, name = ("Tr" if number < LABELED else "Ts"), f"case{number:06d}"
        write_volume(folder / "raw" / f"images{part}" / f"{name}_0000.nii.gz", Volume(image, GRID))
        label_map = LabelMap(labels, GRID, SCHEME)
        write_label_map(folder / "coarse" / f"{name}.nii.gz", label_map)
        if number < LABELED:
            write_label_map(folder / "raw" / "labelsTr" / f"{name}.nii.gz", label_map)
    write_dataset(folder / "raw" / "dataset.json", SCHEME, "ct", LABELED)


def measure(words: list[str], answer: Any) -> None:
    """Send how long a command took, and how much memory above that after imports."""
    from sacl.run import pipeline  # noqa: F401 - imported before the clock runs

    before_mb, begun = peak_memory_mb() or 0.0, time.process_time()
    code = sacl([*words, "--quiet"])
    seconds = time.process_time() - begun
    memory_mb = (peak_memory_mb() or 0.0) - before_mb
    answer.put({"code": code, "processor_s": round(seconds, 2), "above_idle_mb": round(memory_mb)})


def stages_of(folder: Path) -> dict[str, list[str]]:
    """Return the commands whose time is taken, by name."""
    text = f"work: {folder / 'work'}\ningest:\n  data: {folder / 'raw'}\n"
    text += f"locate:\n  maps:\n    source: {folder / 'coarse'}\nextract:\n  patch_size: 16\n"
    write_text(folder / "run.yaml", text + "  dense_size: 16\n")
    stages = {name: [name, str(folder / "run.yaml")] for name in ("ingest", "locate", "extract")}
    explained = ["ingest", "--data", str(folder / "raw"), "--explain"]
    checked = ["check", str(folder / "run.yaml"), "--out", str(folder / "check.html")]
    return {"ingest --explain": explained, **stages, "check": checked}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parents[1] / "results" / "tiny_scans.json"
    )
    parser.add_argument("--scans", type=int, nargs=2, default=(500, 4000))
    given = parser.parse_args()
    figures: dict[str, dict[str, Any]] = {}
    context = multiprocessing.get_context("spawn")
    for count in given.scans:
        with tempfile.TemporaryDirectory() as named:
            folder = Path(named)
            write_scans(folder, count)
            for name, words in stages_of(folder).items():
                answer = context.Queue()
                process = context.Process(target=measure, args=(words, answer))
                process.start()
                measured = answer.get()
                process.join()
                measured["ms_per_scan"] = round(1000 * measured["processor_s"] / count, 2)
                figures.setdefault(name, {})[str(count)] = measured
                print(count, name, measured, flush=True)
    record = {
        "script": "python -m research benchmark tiny_scans",
        "settings": {"scans": list(given.scans), "labeled": LABELED, "voxels": list(GRID.shape)},
        "figures": figures,
        **circumstances(),
    }
    write_json(given.out, record)


if __name__ == "__main__":
    main()
