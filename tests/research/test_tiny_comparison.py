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

from research.__main__ import main

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
BASE = """
phantom: {scans: 12, shape: [64, 52, 20]}
locate: {volume: {spacing_mm: [8.0, 8.0, 12.0], crop: [48, 40, 16], steps: 10}, channels: 8}
extract: {patch_size: 32, dense_size: 64}
pretrain: {steps: 2, batch: 16, width: 16}
finetune: {steps: 6, batch: 4, dense: {teacher_steps: 0}}
predict: {copies: 0}
"""
PROTOCOL = """
version: 2
name: tiny
base: tiny.yaml
labeled_subjects: [2]
seeds: [0, 1]
ours: linear-parts
baseline: scratch
strategies:
  linear-parts: {pretrain.method: parts, finetune.decoder: linear, finetune.encoder_rate: 0}
  scratch: {pretrain.method: none}
  again: {pretrain.method: none}
after: {again: scratch}
bootstrap: 200
"""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """Return a folder with a comparison that was stopped while it trained."""
    root = tmp_path_factory.mktemp("comparison")
    (root / "tiny.yaml").write_text(BASE)
    (root / "compare.yaml").write_text(PROTOCOL)
    command = [
        "compare",
        str(root / "compare.yaml"),
        "--work",
        str(root / "work"),
        "--workers",
        "2",
    ]
    with (root / "log.txt").open("wb") as log:
        words = [sys.executable, "-m", "research", *command, "--workers", "2"]
        words += ["--finetune.steps", "100000"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(words, stderr=log, cwd=ROOT, env=environment)
        unfinished = root / "work" / "store" / ".unfinished"
        while not list(unfinished.glob("finetune-*/5-segmenter")):
            assert process.poll() is None, (root / "log.txt").read_text()
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) != 0
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert str(root) not in left.stdout
    return root


@pytest.fixture(scope="module")
def finished(stopped) -> Path:
    """Return the same folder after the comparison was run to its end, in two calls."""
    command = ["compare", str(stopped / "compare.yaml"), "--work", str(stopped / "work")]
    assert main([*command, "--only", "scratch", "--seeds", "0"]) == 0
    assert main([*command, "--workers", "2"]) == 0
    return stopped


def test_a_stopped_comparison_leaves_no_half_entry(stopped):
    entries = [path for path in (stopped / "work" / "store").iterdir() if path.name[0] != "."]
    assert {path.name.split("-")[0] for path in entries} >= {"phantom", "ingest", "locate"}
    for entry in entries:
        assert (entry / "key.json").is_file()
        assert len(list(entry.glob("*/run.json"))) == 1


def test_every_cell_is_scored_on_the_same_scans_and_organs(finished):
    table = pd.read_csv(finished / "work" / "results.csv")
    cells = table.groupby(["strategy", "seed"])
    assert len(cells) == 6
    pairs = [frozenset(zip(c["case_id"], c["organ"], strict=True)) for _, c in cells]
    assert len(set(pairs)) == 1
    assert set(table["split"]) == {"test"}


def test_what_is_equal_was_done_once_and_every_cell_trained_one_segmenter(finished):
    store = finished / "work" / "store"
    done = {s: len(list(store.glob(f"{s}-*"))) for s in ("phantom", "ingest", "evaluate")}
    assert done == {"phantom": 1, "ingest": 1, "evaluate": 6}
    assert len(list(store.glob("locate-*"))) == len(list(store.glob("extract-*"))) == 3
    assert len(list(store.glob("maps-*"))) == 2  # one per seed of what comes before
    for record in store.glob("finetune-*/5-segmenter/run.json"):
        assert len(json.loads(record.read_text())["results"]["arms"]) == 1


def test_nothing_tells_where_it_was_made(finished):
    for path in (finished / "work").rglob("*"):
        if path.suffix in (".json", ".html", ".csv"):
            assert str(finished) not in path.read_text(errors="replace"), path.name


def test_the_page_is_written(finished):
    page = (finished / "work" / "comparison.html").read_text()
    assert "With 2 labeled subjects, linear-parts" in page
    assert "Not finished" not in page
