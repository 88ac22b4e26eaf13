"""Ordinary commands in odd places: little memory, read-only folders, no home, an ASCII terminal."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

SACL = (sys.executable, "-m", "sacl")
MEMORY_KB = {"enough": 2_500_000, "too_little": 1_000_000, "not_for_loading": 600_000}


def in_odd_places(base: Path, scratch: Path) -> dict[str, Any]:
    """Run a command in every odd place; return exit codes, and what is wrong with them."""
    root = scratch / "a place with spaces, ä"
    root.mkdir()
    shutil.copytree(base / "nnunet", root / "my scans")
    data, work = str(root / "my scans"), str(root / "my work")
    tiny, done = str(base / "tiny.yaml"), str(base / "work")
    images, ascii_only = str(base / "nnunet" / "imagesTs"), {"LC_ALL": "C", "PYTHONUTF8": "0"}
    predict = [*SACL, "predict", "--segmenter", done, "--images"]
    homeless = {name: text for name, text in os.environ.items() if name != "HOME"}
    outs = [str(root / f"out {number}") for number in range(4)]
    tried = {
        "spaces": _said([*SACL, "run", tiny, "--data", data, "--work", work], (0,)),
        "python_O": _said([SACL[0], "-O", *predict[1:], images, "--out", outs[0]], (0,)),
        "no_home": _said([*SACL, "export", done, "--out", outs[3]], (0,), homeless),
        "ascii_terminal": _said(
            [*predict, images, "--out", outs[1]], (0,), os.environ | ascii_only
        ),
        "read_only_data": _read_only(data, [*SACL, "ingest", data, "--work", outs[2]], (0,)),
        "read_only_out": _read_only(data, [*predict, images, "--out", data + "/out"], (2,)),
        "read_only_work": _read_only(data, [*SACL, "ingest", data, "--work", data + "/w"], (2,)),
    }
    scan = _large_scan(root / "large.nii.gz")
    for name, memory_kb in MEMORY_KB.items():
        limited = f'ulimit -v {memory_kb}; exec "$@"'
        words = ["bash", "-c", limited, "bash", *predict, scan, "--out", f"{outs[3]} {name}"]
        tried[f"memory_{name}"] = _said(words, (0,) if name == "enough" else (0, 2))
    left = [str(path.relative_to(root)) for path in root.rglob(".partial-*")]
    findings = [f"{name}: {said}" for name, said in tried.items() if said.startswith("wrong")]
    return {
        "read_only_by": "a bind mount, read-only for root too, in a namespace of its own",
        "places": tried,
        "findings": findings + [f"left over: {name}" for name in left],
    }


def _said(
    words: list[str], expected: tuple[int, ...], environment: dict[str, str] | Any = None
) -> str:
    """Run a command; return its exit code, with `wrong` and its last words where that is due."""
    done = subprocess.run(
        words, env=environment, capture_output=True, timeout=300, check=False, cwd="/"
    )
    errors = done.stderr.decode(errors="replace")
    lines = [line for line in errors.splitlines() if line.startswith("sacl: ")]
    bad = "Traceback" in errors or "unexpected " in errors or "Warning" in errors
    if done.returncode not in expected or bad or len(lines) != (done.returncode == 2):
        return f"wrong, exit {done.returncode}: {errors[-300:]}"
    return f"exit {done.returncode}"


def _read_only(folder: str, words: list[str], expected: tuple[int, ...]) -> str:
    """Run a command while a folder is mounted read-only; root may write anywhere else."""
    mount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" || exit 99; exec "$@"'
    if shutil.which("unshare") is None:
        return "skipped, no unshare"
    if subprocess.run(
        ["unshare", "-m", "bash", "-c", mount, folder, "true"], check=False
    ).returncode:
        return "skipped, nothing can be mounted here"
    return _said(["unshare", "-m", "bash", "-c", mount, folder, *words], expected)


def _large_scan(path: Path) -> str:
    rng = np.random.default_rng(0)
    voxels = np.full((512, 512, 60), 40, np.int16)
    voxels += rng.integers(0, 20, voxels.shape, dtype=np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([0.8, 0.8, 2.5, 1.0])), path)
    return str(path)
