"""How much quicker two workers are than one, stage by stage; and nnU-Net's predictor on one folder.

`python -m research benchmark workers` generates scans and label maps (ellipsoids in noise), writes
a model of the default architecture with random weights (time does not depend on them), and times
whole commands, in turn: `sacl predict --model` of a folder, `evaluate --predicted` and `ingest`,
with one worker in one thread, two workers, and, once, one worker with the threads that torch takes.
`sacl --version` and the prediction of one scan tell how long a command takes to start, in turn with
those of another checkout where `--against SRC` is given. Then ten of the scans are predicted by
`sacl predict` and by `nnUNetv2_predict`, whose network is the one that nnU-Net plans for three of
the scans, untrained. Written is `results/workers.json`: all times, the ratios of the medians, and
the largest memory of a command's processes, summed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.benchmarks.circumstances import circumstances, watched
from sacl.cohort.layouts.nnunet import write_dataset
from sacl.files.documents import write_json
from sacl.files.nifti import write_label_map, write_volume
from sacl.networks.device import seeded
from sacl.networks.encoder import EncoderSpec
from sacl.networks.segmenter import (
    SegmenterSpec,
    TrainedModel,
    VolumeSegmenter,
    VolumeSegmenterSpec,
    build_segmenter,
)
from sacl.pack import FORMAT, NO_LICENSE, Manifest, PackedOrgan, Parts, write_pack
from sacl.patches.region import Placement
from sacl.patches.window import WindowRule
from sacl.prediction.volume import MapRecipe
from sacl.settings import ExtractSettings, FinetuneSettings, PredictSettings
from sacl.types import Grid, LabelMap, LabelScheme, Volume

RESULT = Path(__file__).parents[1] / "results" / "workers.json"
ORGANS = ("liver", "spleen", "kidney_left", "kidney_right", "pancreas")
SPACING_MM = (1.5, 1.5, 5.0)
GOAL = 1.7
LARGE, SMALL = "Dataset002_Large", "Dataset001_Generated"
_WAYS = {
    "one worker, one thread": (1, "1"),
    "two workers": (2, None),
    "one worker": (1, None),
}


_ALL = ["predict", "evaluate", "ingest", "start", "nnunet"]


def main() -> None:
    """Generate, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scans", type=int, default=40)
    parser.add_argument("--side", type=int, default=192)
    parser.add_argument("--slices", type=int, default=16)
    parser.add_argument("--large", type=int, default=64, help="slices where nothing is predicted")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", type=Path, help="folder for all files; a temporary one if unset")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--only", nargs="+", default=_ALL)
    parser.add_argument("--against", type=Path, help="`src` of another version, which starts too")
    parser.add_argument("--ways", nargs="+", default=list(_WAYS), choices=_WAYS)
    known = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        home = (known.work or Path(temporary)).resolve()
        if {"evaluate", "ingest"} & {*known.only}:
            generate(home / LARGE, known.scans, (2 * known.side, 2 * known.side, known.large))
        generate(home / SMALL, known.scans, (known.side, known.side, known.slices))
        write_model(home / "model.sacl")
        result = json.loads(known.out.read_text()) if known.out.is_file() else {}
        result |= {
            "what": "wall time of whole commands, in s; generated scans, random weights",
            "scans": {
                "number": known.scans,
                "predicted": [known.side, known.side, known.slices],
                "evaluated and ingested": [2 * known.side, 2 * known.side, known.large],
            },
            "seed": 0,
            "goal": GOAL,
            "load_average_before": os.getloadavg(),
            **circumstances(),
        }
        commands = commands_of(home)
        for stage in (stage for stage in commands if stage in known.only):
            result[stage] = in_turn(home, commands[stage], known.repeats, known.ways)
            write_json(known.out, result)
        if "start" in known.only:
            result["start"] = started(home, known.against, known.repeats)
        if "nnunet" in known.only:
            result["ten_scans"] = against_nnunet(home)
    write_json(known.out, result)


def generate(data: Path, scans: int, shape: tuple[int, int, int]) -> None:
    """Write a dataset of scans, two label maps of each, and ten of the scans in a folder."""
    grid, scheme = Grid(shape, np.diag([*SPACING_MM, 1.0])), LabelScheme("five", ORGANS)
    for number in range(scans):
        rng, name = np.random.default_rng(number), f"scan-{number:02d}.nii.gz"
        labels = ellipsoids(rng, shape)
        image = (rng.normal(0, 20, shape) + 60 * labels - 100).astype(np.int16)
        others = np.roll(labels, 2, axis=0)
        for folder, voxels in (("labelsTr", labels), ("other", others)):
            write_label_map(data / folder / name, LabelMap(voxels, grid, scheme))
        image_name = name.replace(".nii.gz", "_0000.nii.gz")
        write_volume(data / "imagesTr" / image_name, Volume(image, grid))
        if number < 10:
            (data / "ten").mkdir(exist_ok=True)
            shutil.copy(data / "imagesTr" / image_name, data / "ten" / image_name)
    write_dataset(data / "dataset.json", scheme, "ct", scans)


def ellipsoids(rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    """Return a label map with an ellipsoid per organ."""
    labels, axes = np.zeros(shape, np.uint8), np.ogrid[tuple(slice(n) for n in shape)]
    for value in range(1, len(ORGANS) + 1):
        center, radius = np.multiply(shape, rng.uniform(0.3, 0.7, 3)), np.multiply(shape, 0.15)
        sides = zip(axes, center, radius, strict=True)
        labels[sum(((x - c) / r) ** 2 for x, c, r in sides) < 1] = value
    return labels


def write_model(path: Path) -> None:
    """Write a pack of the default architecture on whole slices, its weights random."""
    spec = SegmenterSpec(
        encoder=EncoderSpec(in_channels=1),
        decoder=FinetuneSettings().decoder,
        head="dense",
        scheme="five",
        organs=ORGANS,
        image_size=ExtractSettings().dense_size,
        window=WindowRule("ct", (-175.0, 275.0)),
        placement=Placement(region="slice"),
    )
    usual = PredictSettings()
    write_untrained(path, spec, MapRecipe(usual.copies, usual.keep_component))


def write_untrained(
    path: Path, spec: SegmenterSpec | VolumeSegmenterSpec, recipe: MapRecipe
) -> None:
    """Write a pack of a segmenter with random weights."""
    text = dict(TrainedModel(spec=spec, method="none", steps=0, seconds=0.0).to_json())
    with seeded(0):
        built = build_segmenter(spec, 0) if spec.head != "volume" else VolumeSegmenter(spec)
    manifest = Manifest(
        sacl_pack=FORMAT,
        title="Random",
        license=NO_LICENSE,
        organs=tuple(PackedOrgan(label=n, name=o) for n, o in enumerate(spec.organs, start=1)),
        recipe=recipe,
        segmenter=text,
        coarse=(),
        trained_on={},
        scores=None,
        settings={},
        plan=None,
        versions={},
    )
    write_pack(path, manifest, Parts(built.state_dict(), text, recipe, ()))


def commands_of(home: Path) -> dict[str, list[str]]:
    """Return the commands that are timed; each writes into `home/out`, a new folder."""
    data, small = home / LARGE, home / SMALL
    out = ["--out", str(home / "out")]
    maps = ["--reference", str(data / "labelsTr"), "--predicted", str(data / "other")]
    return {
        "evaluate": ["evaluate", *maps, *out],
        "ingest": ["ingest", "--data", str(data), "--work", str(home / "out")],
        "predict": [
            *("predict", "--model", str(home / "model.sacl"), "--device", "cpu"),
            *("--input", str(small / "imagesTr"), *out),
        ],
    }


def in_turn(home: Path, words: Sequence[str], repeats: int, ways: Sequence[str]) -> dict[str, Any]:
    """Time a command in some ways, the ways in turn, and return all times and their ratios."""
    times: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for number in range(repeats):
        for way in ways:
            workers, threads = _WAYS[way]
            if way == "one worker" and number < repeats - 1:
                continue  # in the threads that torch takes it may be slow: once is enough
            shutil.rmtree(home / "out", ignore_errors=True)
            sacl = [sys.executable, "-m", "sacl", *words, "--workers", str(workers)]
            times[way].append(timed(sacl, {"OMP_NUM_THREADS": threads}))
            print(words[0], way, times[way][-1], flush=True)
    median = {way: statistics.median(of["seconds"] for of in each) for way, each in times.items()}
    ratios = {f"two workers against {way}": median[way] / median["two workers"] for way in ways}
    return {"times": times, "ratios_of_medians": {k: round(v, 2) for k, v in ratios.items()}}


def started(home: Path, other: Path | None, repeats: int) -> dict[str, Any]:
    """Time the shortest commands of this version, and of another one in turn, in one thread."""
    scan, out = home / SMALL / "ten" / "scan-00_0000.nii.gz", home / "out"
    one = ["predict", "--model", str(home / "model.sacl"), "--device", "cpu", "--quiet"]
    one += ["--input", str(scan), "--out", str(out), "--workers", "1"]
    sources = {"this": Path(__file__).parents[2] / "src"} | ({"other": other} if other else {})
    times: dict[str, list[dict[str, float]]] = {}
    for _ in range(repeats):
        for name, source in sources.items():
            variables = {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
            for what, words in (("version", ["--version"]), ("one scan", one)):
                shutil.rmtree(out, ignore_errors=True)
                taken = timed([sys.executable, "-m", "sacl", *words], variables)
                times.setdefault(f"{what}, {name}", []).append(taken)
    return times


def timed(words: Sequence[str], variables: Mapping[str, str | None]) -> dict[str, float]:
    """Return how long a command took, its processors' time, and its processes' largest memory.

    The processors' time of forked workers is not in it: the process that they are forked of is not
    waited for.
    """
    environment = {**os.environ, **{name: of for name, of in variables.items() if of is not None}}
    for name in (name for name, of in variables.items() if of is None):
        environment.pop(name, None)
    begun, before = time.monotonic(), os.times()
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    process = subprocess.Popen(words, env=environment, text=True, **pipes)
    with watched(lambda: sum(map(_memory_gb, _tree(process.pid))), 0.2) as memory_gb:
        said = process.communicate()[1]
        seconds = time.monotonic() - begun
    if process.returncode:
        raise SystemExit(f"{' '.join(words)}: {said}")
    now = os.times()
    cpu_s = now.children_user + now.children_system - before.children_user - before.children_system
    times = {"seconds": round(seconds, 2), "cpu_seconds": round(cpu_s, 2)}
    return {**times, "peak_gb": round(memory_gb[-1], 2)}


def _tree(pid: int) -> list[int]:
    below: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            below += [int(child) for child in path.read_text().split()]
        except OSError:
            continue
    return [pid, *(other for child in below for other in _tree(child))]


def _memory_gb(pid: int) -> float:
    """Return what a process has of memory, shared pages in parts (PSS)."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1e6


def against_nnunet(home: Path) -> dict[str, Any]:
    """Predict ten scans by `sacl predict` and by `nnUNetv2_predict`, in turn, with two cores."""
    variables: dict[str, str | None] = {"OMP_NUM_THREADS": None}
    for name in ("raw", "preprocessed", "results"):
        variables[f"nnUNet_{name}"] = str(home / f"nnunet-{name}")
    raw = home / "nnunet-raw" / SMALL
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True, exist_ok=True)
        for path in sorted((home / SMALL / folder).iterdir())[:3]:
            shutil.copy(path, raw / folder / path.name)
    write_dataset(raw / "dataset.json", LabelScheme("five", ORGANS), "ct", 3)
    if not [*(home / "nnunet-results").glob("**/checkpoint_final.pth")]:
        timed([sys.executable, "-c", _NNUNET_UNTRAINED], variables)
    ten, times = str(home / SMALL / "ten"), {}
    model = str(home / "model.sacl")
    sacl = [sys.executable, "-m", "sacl", "predict", "--model", model, "--device", "cpu"]
    nnunet = ["nnUNetv2_predict", "-d", "1", "-f", "0", "-device", "cpu", "-npp", "1", "-nps", "1"]
    ways = {
        "sacl, one worker": [*sacl, "--input", ten, "--out", str(home / "out"), "--workers", "1"],
        "sacl, two workers": [*sacl, "--input", ten, "--out", str(home / "out"), "--workers", "2"],
        "nnU-Net 2d": [*nnunet, "-c", "2d", "-i", ten, "-o", str(home / "out")],
        "nnU-Net 2d, not mirrored": [
            *(*nnunet, "--disable_tta", "-c", "2d", "-i", ten, "-o", str(home / "out"))
        ],
    }
    for way, words in ways.items():
        shutil.rmtree(home / "out", ignore_errors=True)
        times[way] = timed(words, variables)
        print(way, times[way], flush=True)
    return {
        "times": times,
        "told": "both networks have random weights; sacl's is its default of the dense head with"
        f" {PredictSettings().copies} turned copies, nnU-Net's the 2d one that it plans, one fold,"
        " with mirrored views unless said; one run of each",
    }


_NNUNET_UNTRAINED = """
import torch
from nnunetv2.experiment_planning import plan_and_preprocess_api as planning
from nnunetv2.run.run_training import get_trainer_from_args
planning.extract_fingerprints([1], num_processes=1)
planning.plan_experiments([1])
planning.preprocess([1], configurations=("2d",), num_processes=(1,))
trainer = get_trainer_from_args("1", "2d", 0, device=torch.device("cpu"))
trainer.initialize()
trainer.on_train_start = lambda: None
from pathlib import Path
import json, shutil
from nnunetv2.paths import nnUNet_preprocessed
from os.path import join
home = Path(trainer.output_folder)
home.mkdir(parents=True, exist_ok=True)
trainer.disable_checkpointing = False
trainer.inference_allowed_mirroring_axes = (0, 1)
trainer.save_checkpoint(str(home / "checkpoint_final.pth"))
source = Path(nnUNet_preprocessed) / trainer.plans_manager.dataset_name
shutil.copy(source / "nnUNetPlans.json", home.parent / "plans.json")
shutil.copy(source / "dataset.json", home.parent / "dataset.json")
"""

if __name__ == "__main__":
    main()
