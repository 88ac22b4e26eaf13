"""What is fast: a pretraining step's overhead, the loss, and the patch store, against plain ways.

    python -m research benchmark throughput --out research/results/throughput.json
    python -m research benchmark throughput --device cuda --network resnet50 --size 256

Of pretraining on random patches, of fine-tuning with a teacher on slices and on volumes, and of
prediction (both of a small generated cohort, by the stages themselves) it says how many images or
crops a second pass, what share of a step or scan is spent in networks, and what share that is of
the rate at which large matrices of the same precision are multiplied in the same run; on a GPU each
pass is waited for, which takes away what would overlap. Each figure is printed and written with the
settings, versions and machine that it was obtained on. Files are warm in the page cache on both
sides of every comparison. Takes three minutes on two cores.
"""

from __future__ import annotations

import argparse
import math
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.fabric import Fabric
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from research.benchmarks.circumstances import circumstances
from sacl.files.documents import write_json
from sacl.files.journal import Journal
from sacl.losses.contrastive import semantic_contrastive_loss
from sacl.methods import Recipe, method_named
from sacl.methods.batches import PatchViews, training_patches
from sacl.networks.device import mixed_dtype, resolve_device
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
from sacl.run.configure import load_config
from sacl.run.pipeline import run_stage
from sacl.training.loop import train
from sacl.training.pace import Pace
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


class Watch:
    """Notes at the end of every step, or scan, when it was and what networks have taken by then.

    Passes are counted from outside the outermost module, with the backward pass, which includes the
    loss's; teachers' passes too. All else is sampler, reading, views, relations, loss, clipping,
    optimizer, schedule and progress.
    """

    def __init__(self, device: torch.device, counter: FlopCounterMode | None = None) -> None:
        self.device, self.counter = device, counter
        self.network_s, self.images, self.is_within = 0.0, 0, False
        self.ends: list[tuple[float, ...]] = []

    def now(self) -> float:
        """Return the time in s, when the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def timed(self, call: Callable[..., Any], *given: Any, **options: Any) -> Any:
        """Call, and count how long that takes unless it is within another one."""
        if self.is_within:
            return call(*given, **options)
        self.is_within, begun = True, self.now()
        try:
            return call(*given, **options)
        finally:
            self.is_within = False
            self.network_s += self.now() - begun

    def end(self) -> None:
        """Note the end of a step or scan."""
        flops = self.counter.get_total_flops() if self.counter else 0
        self.ends.append((self.now(), self.network_s, self.images, flops))

    @contextmanager
    def on(self) -> Iterator[None]:
        """Note in the body, whoever trains or predicts there."""
        module, backward = nn.Module.__call__, Fabric.backward
        advance, note = Pace.advance, Journal.note

        def called(network: nn.Module, *given: Any, **options: Any) -> Any:
            is_own = not self.is_within and given and isinstance(given[0], torch.Tensor)
            self.images += len(given[0]) if is_own else 0
            return self.timed(module, network, *given, **options)

        def advanced(pace: Pace) -> None:
            advance(pace)
            self.end()

        def noted(journal: Any, case: str, event: Any, result: Any = None) -> None:
            note(journal, case, event, result)
            if event == "done":
                self.end()

        nn.Module.__call__ = called
        Fabric.backward = lambda *given, **options: self.timed(backward, *given, **options)
        Pace.advance, Journal.note = advanced, noted
        try:
            yield
        finally:
            nn.Module.__call__, Fabric.backward = module, backward
            Pace.advance, Journal.note = advance, note


def matrix_rate(device: torch.device) -> float:
    """Return how many operations a second the product of two large matrices takes."""
    side = 8192 if device.type == "cuda" else 2048
    a = torch.ones(side, side, device=device, dtype=mixed_dtype(device) or torch.float32)
    return 2 * side**3 / median_seconds(lambda: (a @ a).sum().item(), 5)


def shares(run: Callable[[], Any], device: torch.device, rate: float, skip: int) -> dict[str, Any]:
    """Run twice, timed and counted; return the medians per step or scan, but of the first ones."""
    timed, counted = Watch(device), Watch(device, FlopCounterMode(display=False))
    with timed.on():
        run()
    assert counted.counter is not None
    with counted.on(), counted.counter:
        run()
    step_s, network_s, images, _ = np.median(np.diff(timed.ends, axis=0)[skip:], axis=0)
    flops = np.median(np.diff(counted.ends, axis=0)[skip:, 3])
    return {
        "step_s": round(float(step_s), 4),
        "network_s": round(float(network_s), 4),
        "images": int(images),
        "images_per_s": round(float(images / step_s), 1),
        "network_share": round(float(network_s / step_s), 4),
        "overhead_share": round(float(1 - network_s / step_s), 4),
        "gflop": round(float(flops) / 1e9, 2),
        "share_of_matrix_rate": round(float(flops / step_s / rate), 4),
    }


def pretraining_step(given: argparse.Namespace, device: torch.device, rate: float) -> Any:
    """Measure pretraining on random patches of one size, by the real training loop."""
    batch, size = given.batch, given.size
    store, recipe = random_patches(batch, size, given.network, count=given.patches)
    pretraining = method_named("semantic").build(store, replace(recipe, device=device))
    embedder = pretraining.network.to(device, memory_format=torch.channels_last)

    def run() -> None:
        train(embedder, pretraining.loss, {embedder: 1e-3}, given.steps + 3, device, what="steps")

    measured = shares(run, device, rate, 2)
    patches = training_patches(store, recipe.scan_labels)
    sampler = BalancedSampler(patches.organ, patches.scan_label, patches.scan, batch, 4)
    views = PatchViews(store, patches.rows, sampler, recipe, attention=True)
    views_s = round(median_seconds(lambda: views.draw(0), 10), 4)
    about = {"network": given.network, "batch_patches": batch, "patch_size": size}
    return {**about, "steps": given.steps, **measured, "views_on_cpu_s": views_s}


def stage_steps(folder: Path, given: argparse.Namespace, device: torch.device, rate: float) -> Any:
    """Measure fine-tuning with a teacher, and prediction, of slices and of volumes, by the stages.

    The cohort is generated; a step's passes are the student's and the teacher's.
    """
    before = ("phantom", "ingest", "locate")
    kinds = {"slices": (*before, "extract", "pretrain"), "volumes": before}
    measured = {}
    for kind, stages in kinds.items():
        path, teacher = folder / f"{kind}.yaml", f"{{teacher_steps: {given.steps + 3}}}"
        head = f"dense: {teacher}" if kind == "slices" else f"volume: {teacher}"
        cut = "\nextract: {patch_size: 48}\npretrain: {steps: 2}" if kind == "slices" else ""
        path.write_text(f"{_SETTINGS}finetune: {{{head}, steps: 2}}{cut}\n")
        flags = {"work": str(folder / kind), "device": str(device), "seed": "0"}
        config = load_config(path, flags)
        for stage in stages:
            run_stage(config, stage)
        for stage, skip in (("finetune", 4), ("predict", 1)):
            again = partial(run_stage, config, stage, force=True)
            measured[f"{stage}, {kind}"] = shares(again, device, rate, skip)
    return measured


_SETTINGS = """
phantom: {scans: 6}
ingest: {labeled_subjects: 1}
locate: {volume: {spacing_mm: [6.0, 6.0, 6.0], crop: [40, 40, 24], steps: 2}, channels: 8}
"""


def random_patches(
    batch: int, size: int, network: str, width: int = 64, count: int = 3000
) -> tuple[PatchStore, Recipe]:
    """Return a store of random patches of 13 organs in 40 scans, and a recipe for them."""
    rng = np.random.default_rng(0)
    stored = round(size * MARGIN)
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
    disk = sum(path.stat().st_size for path in (folder / "store").iterdir() if path.is_file())
    return {
        "scan": [side, side, slices],
        "patches": len(boxes),
        "disk_against_formula": round(disk / (len(boxes) * 3 * META.stored_size**2), 3),
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
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--patches", type=int, default=3000, help="that are drawn from")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--views", type=int, default=512)
    parser.add_argument("--scan", type=int, nargs=2, default=(256, 160), metavar=("SIDE", "SLICES"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        device = resolve_device(given.device)
        rate = matrix_rate(device)
        figures = {
            "matrices": {"dtype": str(mixed_dtype(device)), "gflop_per_s": round(rate / 1e9, 1)},
            "pretraining_step": pretraining_step(given, device, rate),
            **stage_steps(Path(folder), given, device, rate),
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
    write_json(given.out, record)


if __name__ == "__main__":
    main()
