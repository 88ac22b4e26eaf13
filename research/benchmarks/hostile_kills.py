"""Runs, predictions and exports that are killed at random moments and started again."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

VARIES = {"run.json", "report.html", ".lock", ".written-by-sacl.json", "partial.json"}
"""What says when or for how long; compared without that, or not at all."""


def killed(base: Path, scratch: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill commands so many times in all, and compare what they leave with undisturbed ones."""
    rng, done, findings, rounds = np.random.default_rng(seed), 0, [], 0
    commands = _commands(base)
    whole = {name: _undisturbed(words, scratch / f"whole-{name}") for name, words in commands}
    counts = dict.fromkeys(whole, 0)
    while done < kills:
        name, words = commands[rounds % len(commands)]
        root = scratch / f"killed-{rounds}"
        times = _until_through(words, root, rng, whole[name][1])
        counts[name] += times
        done, rounds = done + times, rounds + 1
        if differing := _differences(whole[name][0], root):
            findings.append({"command": name, "round": rounds, "differs": differing[:5]})
            print(findings[-1], flush=True)
        shutil.rmtree(root)
    return {"kills": done, "of": counts, "rounds": rounds, "findings": findings}


def _commands(base: Path) -> list[tuple[str, list[str]]]:
    work, images = str(base / "work"), str(base / "nnunet" / "imagesTr")
    predict = ["predict", "--segmenter", work, "--images", images, "--out", "{}"]
    return [
        ("run", ["run", str(base / "run.yaml"), "--work", "{}"]),
        ("predict", predict),
        ("export", ["export", work, "--form", "nifti-per-organ", "--out", "{}"]),
    ]


def _start(words: list[str], root: Path) -> subprocess.Popen[bytes]:
    root.mkdir(parents=True, exist_ok=True)
    (root / "tmp").mkdir(exist_ok=True)
    filled = [word.replace("{}", str(root / "out")) for word in words]
    environment = {**os.environ, "TMPDIR": str(root / "tmp")}
    return subprocess.Popen(
        [sys.executable, "-m", "sacl", *filled], env=environment, stderr=(root / "said").open("w")
    )


def _undisturbed(words: list[str], root: Path) -> tuple[dict[str, str], float]:
    """Return the files of a run that nobody kills, and how long it takes."""
    begun = time.monotonic()
    if _start(words, root).wait():
        raise SystemExit(f"the undisturbed command failed: {words}")
    return dict(_files(root)), time.monotonic() - begun


def _until_through(words: list[str], root: Path, rng: np.random.Generator, whole_s: float) -> int:
    """Start a command and kill it at random moments, five times at most; return how often."""
    kills = 0
    while kills < 5:
        process = _start(words, root)
        try:
            process.wait(float(rng.uniform(0.15, 1.0)) * whole_s)
            return kills
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    _start(words, root).wait()
    return kills


def _differences(whole: dict[str, str], root: Path) -> list[str]:
    now = dict(_files(root))
    names = sorted(whole.keys() | now.keys())
    return [f"{name}: {_how(whole.get(name), now.get(name))}" for name in names
            if whole.get(name) != now.get(name)]  # fmt: skip


def _how(before: str | None, after: str | None) -> str:
    return "left over" if before is None else "missing" if after is None else "other bytes"


def _files(root: Path) -> Iterator[tuple[str, str]]:
    """Give the files below a folder with hashes; records without times."""
    for path in sorted(root.rglob("*")):
        if path.is_dir() or path.name in ("said",):
            continue
        name = str(path.relative_to(root))
        if path.name not in VARIES:
            content = re.sub(rb'"seconds": [0-9.]+', b"", path.read_bytes())
            yield name, hashlib.sha256(content).hexdigest()
        elif path.name == "run.json":
            record = json.loads(path.read_text())
            kept = {key: record[key] for key in ("stage", "run", "settings")}
            yield name, json.dumps(kept, sort_keys=True)
        else:
            yield name, "there"
