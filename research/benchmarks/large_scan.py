"""A large scan of many organs: `sacl predict` against nnU-Net's 3d_fullres, in one run.

`python -m research benchmark large_scan` generates a scan of 512 x 512 x 300 voxels (noise with an
ellipsoid per organ, 13 organs), and has it predicted by `sacl predict` with a segmenter on volumes
of the size that a planned run trains on a CPU. nnU-Net plans for the same scan; its preprocessing
and some of its windows, without mirrored views, are timed, and times as many windows as the scan
has: a lower bound, since whole it would take hours. One thread each, weights random (a random
segmenter sees organs everywhere, so that no window is left out). Memory is that of all processes
of a command, once for this scan and once for a tiny one, which needs little beyond program and
model. Written is `results/large_scan.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from research.benchmarks.circumstances import circumstances
from research.benchmarks.workers import timed, write_untrained
from sacl.cohort.layouts.nnunet import write_dataset
from sacl.files.documents import write_json
from sacl.files.nifti import write_label_map, write_volume
from sacl.networks.segmenter import VolumeSegmenterSpec
from sacl.patches.window import WindowRule
from sacl.prediction.volume import MapRecipe
from sacl.training.coarse import spec_of_scans
from sacl.types import Grid, LabelMap, LabelScheme, Volume

RESULT = Path(__file__).parents[1] / "results" / "large_scan.json"
ORGANS = tuple(f"organ_{number:02d}" for number in range(1, 14))
NAME = "Dataset001_Large"
_TINY = (64, 64, 16)


def main() -> None:
    """Generate, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 300))
    parser.add_argument("--spacing-mm", type=float, nargs=3, default=(0.8, 0.8, 1.5))
    parser.add_argument("--windows", type=int, default=3, help="of nnU-Net's that are timed")
    parser.add_argument("--out", type=Path, default=RESULT)
    known = parser.parse_args()
    shape, scheme = tuple(known.shape), LabelScheme("thirteen", ORGANS)
    grid = Grid(shape, np.diag([*known.spacing_mm, 1.0]))
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        _write_scan(home / "raw" / NAME, grid, scheme)
        tiny = Volume(
            np.random.default_rng(0).normal(0, 9, _TINY).astype(np.int16),
            Grid(_TINY, np.diag([*known.spacing_mm, 1.0])),
        )
        write_volume(home / "tiny" / "tiny_0000.nii.gz", tiny)
        network = spec_of_scans(scheme, [grid], large=False, channels=16)
        spec = VolumeSegmenterSpec(network=network, window=WindowRule("ct", (-175.0, 275.0)))
        write_untrained(home / "model.sacl", spec, MapRecipe(0, 1.0))
        ours = _by_sacl(home, home / "raw" / NAME / "imagesTr")
        beside = _by_sacl(home, home / "tiny")
        theirs = _by_nnunet(home, known.windows)
        result = {
            "what": "a generated scan, random weights, one thread; a lower bound of nnU-Net's time",
            "scan": {"shape": shape, "spacing_mm": known.spacing_mm, "organs": len(ORGANS)},
            "sacl predict": ours,
            "sacl predict, a tiny scan": beside,
            "gb_above_program_and_model": round(ours["peak_gb"] - beside["peak_gb"], 2),
            "network": {"spacing_mm": network.spacing_mm, "crop": network.crop},
            "nnU-Net 3d_fullres": theirs,
            "share_of_its_time": round(ours["seconds"] / theirs["seconds_at_least"], 4),
            "seed": 0,
            "load_average": os.getloadavg(),
            **circumstances(),
        }
    write_json(known.out, result)
    print(json.dumps(result, indent=1))


def _write_scan(data: Path, grid: Grid, scheme: LabelScheme) -> None:
    rng, axes = np.random.default_rng(0), np.ogrid[tuple(slice(n) for n in grid.shape)]
    labels = np.zeros(grid.shape, np.uint8)
    for value in range(1, len(ORGANS) + 1):
        center, radius = np.multiply(grid.shape, rng.uniform(0.2, 0.8, 3)), rng.uniform(15, 40, 3)
        sides = zip(axes, center, radius / grid.spacing_mm, strict=True)
        labels[sum(((x - c) / r) ** 2 for x, c, r in sides) < 1] = value
    image = rng.normal(-100, 20, grid.shape).astype(np.int16) + 20 * labels.astype(np.int16)
    write_volume(data / "imagesTr" / "scan_0000.nii.gz", Volume(image, grid))
    write_label_map(data / "labelsTr" / "scan.nii.gz", LabelMap(labels, grid, scheme))
    write_dataset(data / "dataset.json", scheme, "ct", 1)


def _by_sacl(home: Path, images: Path) -> dict[str, float]:
    words = ["predict", "--model", str(home / "model.sacl"), "--device", "cpu", "--force"]
    places = ["--input", str(images), "--out", str(home / "out")]
    return timed([sys.executable, "-m", "sacl", *words, *places], {"OMP_NUM_THREADS": "1"})


def _by_nnunet(home: Path, windows: int) -> dict[str, Any]:
    folders = {f"nnUNet_{name}": str(home / name) for name in ("raw", "preprocessed", "results")}
    environment = os.environ | folders | {"OMP_NUM_THREADS": "1", "nnUNet_compile": "f"}
    words = [sys.executable, "-c", _TIMED_WINDOWS, str(windows)]
    done = subprocess.run(words, env=environment, check=True, capture_output=True, text=True)
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    whole = told["preprocessing_s"] + told["windows"] * told["seconds_per_window"]
    return {**told, "seconds_at_least": round(whole, 1)}


_TIMED_WINDOWS = """
import json, statistics, sys, time
import torch
from nnunetv2.experiment_planning import plan_and_preprocess_api as planning
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
name = "Dataset001_Large"
planning.extract_fingerprints([1], num_processes=1)
planning.plan_experiments([1])
plans = PlansManager(f"{nnUNet_preprocessed}/{name}/nnUNetPlans.json")
chosen = plans.get_configuration("3d_fullres")
dataset = json.load(open(f"{nnUNet_raw}/{name}/dataset.json"))
begun = time.monotonic()
image = f"{nnUNet_raw}/{name}/imagesTr/scan_0000.nii.gz"
data, *_ = DefaultPreprocessor(verbose=False).run_case([image], None, plans, chosen, dataset)
preprocessing_s = time.monotonic() - begun
network = get_network_from_plans(
    chosen.network_arch_class_name,
    chosen.network_arch_init_kwargs,
    chosen.network_arch_init_kwargs_req_import,
    1,
    plans.get_label_manager(dataset).num_segmentation_heads,
    deep_supervision=False,
).eval()
predictor = nnUNetPredictor(device=torch.device("cpu"), use_mirroring=False, allow_tqdm=False)
predictor.configuration_manager, predictor.verbose = chosen, False
slicers = predictor._internal_get_sliding_window_slicers(data.shape[1:])
times = []
with torch.inference_mode():
    for slicer in slicers[: int(sys.argv[1])]:
        begun = time.monotonic()
        network(torch.from_numpy(data[slicer])[None].float())
        times.append(time.monotonic() - begun)
told = {
    "patch_size": list(map(int, chosen.patch_size)),
    "spacing_mm": list(map(float, chosen.spacing)),
    "preprocessing_s": round(preprocessing_s, 1),
    "windows": len(slicers),
    "windows_timed": len(times),
    "seconds_per_window": round(statistics.median(times), 2),
    "mirrored": False,
}
print(json.dumps(told))
"""


if __name__ == "__main__":
    main()
