"""What is fast: a pretraining step's overhead, the loss, and the patch store, against plain ways.

    python -m research benchmark throughput --out research/results/throughput.json

Each figure is printed and written with the settings, versions and machine that it was obtained on.
Files are warm in the page cache on both sides of every comparison. Takes a minute on two cores.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.fabric import Fabric
from torch.nn import functional

from research.benchmarks.circumstances import circumstances
from sacl.files.atomic import write_text
from sacl.losses.contrastive import semantic_contrastive_loss
from sacl.methods import Recipe, method_named
from sacl.methods.batches import PatchViews, training_patches
from sacl.patches.query import coverage, cut, plan_boxes
from sacl.patches.store import (
    PatchStore,
    StoredCase,
    StoreMeta,
    StoreSize,
    case_file,
    join_cases,
    read_patches,
    writing_case,
)
from sacl.patches.views import VIEWS, ViewRanges
from sacl.patches.window import normalize
from sacl.training.loop import train
from sacl.training.sampler import BalancedSampler, StepRules
from sacl.types import Box, Grid, LabelMap, LabelScheme

ORGANS = tuple(f"organ {n}" for n in range(13))
MARGIN = 1.5
META = StoreMeta(64, 96, 128, 160, ORGANS)
Boxes = list[tuple[str, Box]]


def median_seconds(work: Callable[[], Any], repeats: int) -> float:
    """Return the median time of a call, after one that is not counted."""
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def step_overhead(steps: int, batch: int, network: str, size: int = 64) -> dict[str, Any]:
    """Measure the share of a pretraining step outside the network's forward and backward.

    The real training loop runs; the embedder's forward and `Fabric.backward` (which includes the
    loss's) are timed from within, everything else is overhead: sampler, reading, views, relations,
    loss, gradient clipping, optimizer, schedule, progress.
    """
    store, recipe = random_patches(batch, size, network)
    pretraining = method_named("semantic").build(store, recipe)
    embedder = pretraining.network
    clock: dict[str, list[float]] = {"begin": [], "forward": [], "backward": []}
    entered: list[float] = []
    embedder.register_forward_pre_hook(lambda *_: entered.append(time.perf_counter()))
    embedder.register_forward_hook(
        lambda *_: clock["forward"].append(time.perf_counter() - entered[-1])
    )
    backward = Fabric.backward

    def timed_backward(fabric: Fabric, *loss: Any, **options: Any) -> None:
        start = time.perf_counter()
        backward(fabric, *loss, **options)
        clock["backward"].append(time.perf_counter() - start)

    def loss(net: Any, step: int) -> Any:
        clock["begin"].append(time.perf_counter())
        return pretraining.loss(net, step)

    Fabric.backward = timed_backward
    try:
        train(
            embedder.to(memory_format=torch.channels_last),
            loss,
            {embedder: 1e-3},
            steps + 3,
            torch.device("cpu"),
            what="steps",
        )
    finally:
        Fabric.backward = backward
    # The first two steps warm up; the last one has no following one to end at.
    whole = np.diff(clock["begin"])[2:]
    inside = (np.array(clock["forward"]) + np.array(clock["backward"]))[2:-1]
    patches = training_patches(store, recipe.scan_labels)
    sampler = BalancedSampler(patches.organ, patches.scan_label, patches.scan, batch, 4)
    views = PatchViews(store, patches.rows, sampler, recipe, attention=True)
    views_s = median_seconds(lambda: views.draw(0), 10)
    return {
        "network": network,
        "batch_patches": batch,
        "patch_size": size,
        "steps": steps,
        "step_s": round(float(np.median(whole)), 4),
        "network_s": round(float(np.median(inside)), 4),
        "of_which_views_s": round(views_s, 4),
        "overhead_share": round(float(np.median(1 - inside / whole)), 4),
        "target_share": 0.15,
    }


def random_patches(
    batch: int, size: int, network: str, width: int = 64
) -> tuple[PatchStore, Recipe]:
    """Return a store of random patches of 13 organs in 40 scans, and a recipe for them."""
    rng = np.random.default_rng(0)
    count, stored = 3000, round(size * MARGIN)
    organ, scan = rng.integers(0, 13, count), rng.integers(0, 40, count)
    index = pd.DataFrame(
        {
            "organ": [ORGANS[n] for n in organ],
            "case_id": [f"case-{n}" for n in scan],
            "split": "train",
            "label_phase": [("native", "venous")[n % 2] for n in scan],
        }
    )
    nothing = np.zeros((0, stored, stored), np.uint8)
    arrays = (
        rng.integers(0, 65536, (count, stored, stored), dtype=np.uint16),
        rng.integers(0, 256, (count, stored, stored), dtype=np.uint8),
        *[nothing] * 4,
    )
    meta = StoreMeta(size, stored, size, stored, ORGANS, ("phase",))
    store = PatchStore(meta, index, pd.DataFrame(), *arrays)
    recipe = Recipe(
        network=network, width=width, batch=batch, scan_labels=("phase",), ranges=VIEWS["mild"]
    )
    return store, recipe


def loss_by_pairs(z: torch.Tensor, label: torch.Tensor, temperature: float) -> float:
    """Return the same loss as a Python loop over pairs, as reference implementations have it."""
    total, anchors = 0.0, 0
    for i in range(len(z)):
        denominator, terms = 0.0, []
        for a in range(len(z)):
            if a == i:
                continue
            logit = float(z[i] @ z[a]) / temperature
            denominator += math.exp(logit)
            if label[i] == label[a]:
                terms.append(logit)
        if terms:
            total -= sum(t - math.log(denominator) for t in terms) / len(terms)
            anchors += 1
    return total / max(1, anchors)


def loss_speed(views: int) -> dict[str, Any]:
    """Measure the loss (forward) against a Python pair loop, on equal values."""
    rng = torch.Generator().manual_seed(0)
    z = functional.normalize(torch.randn(views // 2, 2, 128, generator=rng), dim=-1)
    label = torch.arange(views // 2) % 26
    mine = median_seconds(lambda: semantic_contrastive_loss(z, label, 0.1), 20)
    start = time.perf_counter()
    by_pairs = loss_by_pairs(z.flatten(0, 1), label.repeat_interleave(2), 0.1)
    seconds = time.perf_counter() - start
    assert abs(by_pairs - semantic_contrastive_loss(z, label, 0.1).item()) < 1e-4
    return {
        "views": views,
        "loss_s": round(mine, 6),
        "pair_loop_s": round(seconds, 3),
        "ratio": round(seconds / mine, 1),
    }


def _ellipsoids(side: int, slices: int) -> tuple[np.ndarray, LabelMap]:
    """Return a noisy scan of 1.5 x 1.5 x 3 mm with 13 ellipsoids, and their label map."""
    rng = np.random.default_rng(0)
    image = rng.integers(-150, 250, (side, side, slices), dtype=np.int16)
    labels = np.zeros(image.shape, np.uint8)
    grid = np.ogrid[:side, :side, :slices]
    for label in range(1, len(ORGANS) + 1):
        center = rng.uniform(0.25, 0.75, 3) * image.shape
        radius = rng.uniform((0.04, 0.04, 0.15), (0.12, 0.12, 0.4)) * image.shape
        distance = sum(((g - c) / r) ** 2 for g, c, r in zip(grid, center, radius, strict=True))
        labels[np.asarray(distance) < 1] = label
    affine = np.diag([1.5, 1.5, 3.0, 1.0])
    scheme = LabelScheme("ellipsoids", ORGANS)
    return image, LabelMap(labels, Grid(image.shape, affine), scheme)


def store_speed(folder: Path, side: int, slices: int, batch: int) -> dict[str, Any]:
    """Measure patches per second, cut into and read from the store, against a file per patch.

    A batch is read from the store as it is in training.
    """
    image, coarse = _ellipsoids(side, slices)
    boxes = [(organ, box) for organ in ORGANS for box in plan_boxes(coarse, organ)]
    boxes.sort(key=lambda pair: pair[1].start[2])
    store_s = median_seconds(lambda: _cut_into_store(folder / "store", image, coarse, boxes), 3)
    files_s = median_seconds(lambda: _cut_into_files(folder / "files", image, coarse, boxes), 3)
    store = read_patches(folder / "store")
    rng = np.random.default_rng(0)
    batches = [rng.choice(len(boxes), batch, replace=False) for _ in range(20)]
    device = torch.device("cpu")
    rules = StepRules(batch=batch, ranges=ViewRanges(), seed=0, device=device)

    def read_files() -> None:
        for rows in batches:
            pixels = np.stack([np.load(folder / "files" / f"{row}.npy") for row in rows])
            _ = torch.from_numpy(pixels).float() / 65535

    def read_store() -> None:
        for rows in batches:
            for array in (store.images, store.attention):
                rules.gather(array, rows)

    read_store_s, read_files_s = median_seconds(read_store, 5), median_seconds(read_files, 5)
    read = batch * len(batches)
    return {
        "scan": [side, side, slices],
        "patches": len(boxes),
        "stored_size": META.stored_size,
        "cut_per_s": round(len(boxes) / store_s),
        "cut_per_s_file_per_patch": round(len(boxes) / files_s),
        "cut_ratio": round(files_s / store_s, 2),
        "read_per_s": round(read / read_store_s),
        "read_per_s_file_per_patch": round(read / read_files_s),
        "read_ratio": round(read_files_s / read_store_s, 2),
    }


def _cut(image: np.ndarray, coarse: LabelMap, boxes: Boxes) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield image and attention as stored, slice by slice as `sacl extract` does."""
    for k, of_slice in groupby(boxes, key=lambda pair: pair[1].start[2]):
        plane = normalize(image[:, :, k], (-175.0, 275.0))
        for organ, box in of_slice:
            label = coarse.scheme.label_of(organ)
            attention = coverage(coarse.voxels[:, :, k], label, box, META.patch_size, MARGIN)
            pixels = cut(plane, box, META.patch_size, MARGIN)
            yield np.rint(pixels * 65535), np.rint(attention * 255)


def _cut_into_store(folder: Path, image: np.ndarray, coarse: LabelMap, boxes: Boxes) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    size = StoreSize(patches=len(boxes))
    case = StoredCase(case_id="case", subject_id="subject", split="train", size=size)
    with writing_case(case_file(folder, "case"), META, size) as arrays:
        for row, (pixels, attention) in enumerate(_cut(image, coarse, boxes)):
            arrays["images"][row], arrays["attention"][row] = pixels, attention
    join_cases(folder, META, [case])


def _cut_into_files(folder: Path, image: np.ndarray, coarse: LabelMap, boxes: Boxes) -> None:
    folder.mkdir(exist_ok=True)
    for row, patch in enumerate(_cut(image, coarse, boxes)):
        np.save(folder / f"{row}.npy", np.stack(patch).astype(np.uint16))


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parents[1] / "results" / "throughput.json"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--views", type=int, default=512)
    parser.add_argument("--scan", type=int, nargs=2, default=(256, 160), metavar=("SIDE", "SLICES"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        figures = {
            "pretraining_step": step_overhead(given.steps, given.batch, given.network),
            "loss": loss_speed(given.views),
            "patch_store": store_speed(Path(folder), *given.scan, given.batch),
        }
    for name, values in figures.items():
        print(name, *(f"  {key:<26} {value}" for key, value in values.items()), sep="\n")
    record = {
        "script": "python -m research benchmark throughput",
        "settings": {k: v for k, v in vars(given).items() if k != "out"},
        "figures": figures,
        **circumstances(),
    }
    write_text(given.out, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
