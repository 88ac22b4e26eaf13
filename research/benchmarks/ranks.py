"""Training over ranks: is it that of one process, how fast is it, and what does one rank pay.

`python -m research benchmark ranks` pretrains a ResNet-18 of width 32 on 32 random patches of 64²
a step: with 1, 2 and 3 ranks on this machine's CPU, by gloo, in float32 and in the machine's own
precision, and writes the losses' largest differences to `results/ranks.json`. With `--against SRC`,
the `src` of another revision, one process of either takes turns; their ratio is of CPU time, which
other processes disturb less than the time on the wall.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from research.benchmarks.circumstances import circumstances
from research.benchmarks.throughput import random_patches
from sacl.files.documents import write_json
from sacl.methods import method_named
from sacl.training import loop

STEPS, BATCH, SIZE, WIDTH = 20, 32, 64, 32
METHOD, RATE = "semantic", 1e-3
PORT = 29640
RESULT = Path(__file__).parents[1] / "results" / "ranks.json"


def main() -> None:
    """Measure and write the result, or be one of the processes that are measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path, help="src of another revision")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", choices=["float32", "own"], help="train, and print what it took")
    known = parser.parse_args()
    if known.one:
        be_one(known.one)
        return
    result = {**circumstances(), "method": METHOD, "steps": STEPS, "batch_patches": BATCH}
    result |= {"patch_size": SIZE, "width": WIDTH, "threads_per_rank": 1}
    result["ranks"] = {kind: of_ranks(kind) for kind in ("float32", "own")}
    if known.against:
        result["one_rank"] = against(known.against, known.rounds)
    write_json(RESULT, result)
    print(json.dumps(result, indent=1))


def train(kind: str) -> dict[str, Any]:
    """Train, and return losses and seconds per step: of this process's CPU, and on the wall."""
    if kind == "float32":
        loop.mixed_dtype = lambda device: None
    store, recipe = random_patches(BATCH, SIZE, "resnet18", WIDTH)
    made = method_named(METHOD).build(store, recipe)
    network = made.network.to(memory_format=torch.channels_last)
    wall, cpu = time.perf_counter(), time.process_time()
    losses = loop.train(network, made.loss, {network: RATE}, STEPS, recipe.device, what="steps")
    return {
        "losses": losses,
        "wall_s": (time.perf_counter() - wall) / STEPS,
        "cpu_s": (time.process_time() - cpu) / STEPS,
    }


def be_one(kind: str) -> None:
    """Train as one of the ranks that were started, or alone; the first one prints the result."""
    if "WORLD_SIZE" not in os.environ:
        print(json.dumps(train(kind)))
        return
    from sacl import ranks

    def command() -> int:
        with ranks.shared(train, kind):
            print(json.dumps(train(kind)))
        return 0

    ranks.join_and_run(command)


def done(kind: str, count: int = 1, source: Path | None = None) -> dict[str, Any]:
    """Return what a training on some ranks took, by this revision or another one's source."""
    path = os.pathsep.join([*([str(source)] if source else []), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", __spec__.name, "--one", kind]
    started = []
    for rank in range(count):
        given = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        if count > 1:  # what torchrun tells a rank; in a session of its own it has no priority
            given |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(PORT + count)}
            given |= {name: str(count) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
            given |= {name: str(rank) for name in ("RANK", "LOCAL_RANK")}
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=given))
    said = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise RuntimeError(f"a rank of {count} failed")
    return json.loads(said[0].splitlines()[-1])


def of_ranks(kind: str) -> dict[str, Any]:
    """Return how far the losses on 2 and 3 ranks are from those of one, and the time of a step."""
    one = done(kind)
    rows: dict[str, Any] = {
        "1": {"last_loss": one["losses"][-1], "step_s": round(one["wall_s"], 3)}
    }
    for count in (2, 3):
        several = done(kind, count)
        apart = [abs(a - b) for a, b in zip(one["losses"], several["losses"], strict=True)]
        rows[str(count)] = {
            "first_step_apart": apart[0],
            "most_apart": max(apart),
            "last_loss": several["losses"][-1],
            "step_s": round(several["wall_s"], 3),
        }
        print(kind, count, rows[str(count)])
    return rows


def against(source: Path, rounds: int) -> dict[str, Any]:
    """Return the CPU time of a step by this revision relative to another one's, in turns."""
    here, there = [], []
    for _ in range(rounds):
        there.append(done("own", source=source)["cpu_s"])
        here.append(done("own")["cpu_s"])
    return {
        "cpu_s_per_step": [round(x, 4) for x in here],
        "cpu_s_per_step_before": [round(x, 4) for x in there],
        "ratio_of_medians": round(statistics.median(here) / statistics.median(there), 3),
        "ratio_of_least": round(min(here) / min(there), 3),
    }


if __name__ == "__main__":
    main()
