"""A comparison on a tiny phantom, by the command line, as a user would do it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from sacl.cli import main

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(600)]

BASE = """
phantom: {scans: 12, shape: [64, 52, 20], spacing_mm: [6.0, 6.0, 12.0]}
locate: {spacing_mm: [8.0, 8.0, 12.0], crop: [48, 40, 16], channels: 8, steps: 10}
extract: {patch_size: 32, dense_size: 64, min_side_mm: 60.0}
pretrain: {steps: 2, batch: 16, width: 16, projector: [32, 16]}
finetune: {steps: 6, batch: 4}
"""
PROTOCOL = """
version: 1
name: tiny
base: tiny.yaml
labeled_subjects: [2]
seeds: [0, 1]
strategies: [semantic, scratch]
bootstrap: 200
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Return a folder with a finished comparison, half of it run as processes of their own."""
    root = tmp_path_factory.mktemp("comparison")
    (root / "tiny.yaml").write_text(BASE)
    (root / "compare.yaml").write_text(PROTOCOL)
    assert run(root, "--seeds", "0") == 0
    assert run(root, "--jobs", "2") == 0
    return root


def run(root: Path, *more: str) -> int:
    return main(["compare", str(root / "compare.yaml"), "--work", str(root / "work"), *more])


def test_every_cell_is_scored_on_the_same_scans_and_organs(finished):
    table = pd.read_csv(finished / "work" / "results.csv")
    cells = table.groupby(["strategy", "seed"])
    assert len(cells) == 4
    pairs = [frozenset(zip(c["case_id"], c["organ"], strict=True)) for _, c in cells]
    assert len(set(pairs)) == 1
    assert set(table["split"]) == {"test"}


def test_what_is_shared_was_done_once_and_no_twin_was_trained(finished):
    work = finished / "work"
    assert len(list(work.glob("shared*/2-coarse/run.json"))) == 1
    assert len(list(work.glob("cells/*/7-scores/run.json"))) == 4
    for record in work.glob("cells/*/5-segmenter/run.json"):
        assert len(json.loads(record.read_text())["results"]["arms"]) == 1
    assert not list(work.rglob("*.lock"))


def test_nothing_tells_where_it_was_made(finished):
    for path in (finished / "work").rglob("*"):
        if path.suffix in (".json", ".html", ".csv", ".txt"):
            assert str(finished) not in path.read_text(errors="replace"), path.name


def test_a_stopped_comparison_goes_on_where_it_was(finished):
    redo = ["--only", "scratch", "--finetune.steps", "100000"]
    program = "import sys; from sacl.cli import main; sys.exit(main())"
    arguments = ["compare", str(finished / "compare.yaml"), "--work", str(finished / "work")]
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments, *redo],
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    folder = finished / "work" / "cells" / "n2-scratch-s0" / "5-segmenter"
    while not (folder / "partial.json").is_file():
        assert process.poll() is None
        time.sleep(0.2)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"the same command goes on" in error
    assert not list((finished / "work").rglob("*.lock"))
    assert run(finished) == 0
    document = json.loads((finished / "work" / "results.json").read_text())
    assert {cell["state"] for cell in document["cells"]} == {"done"}
