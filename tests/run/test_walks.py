"""How far a reader walks: the files between the command line and what a step computes or writes."""

from __future__ import annotations

import ast
from collections import deque
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "src" / "sacl"
TO_THE_STAGE = [
    "sacl.cli",
    "sacl.commands",
    "sacl.run.configure",
    "sacl.settings",
    "sacl.run.pipeline",
]
"""A command is read, its settings are made, and the pipeline loads the stage by name."""


def imports() -> dict[str, set[str]]:
    """Return which modules of the package each of them imports."""
    files = {
        ".".join(("sacl", *path.relative_to(ROOT).with_suffix("").parts)): path
        for path in ROOT.rglob("*.py")
    }
    files = {name.removesuffix(".__init__"): path for name, path in files.items()}
    edges: dict[str, set[str]] = {name: set() for name in files}
    for name, path in files.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                named = {f"{node.module}.{alias.name}" for alias in node.names}
                edges[name] |= (named & files.keys()) or ({node.module} & files.keys())
    return edges


EDGES = imports()


def way(start: str, goal: str) -> list[str]:
    """Return the files on the shortest way of imports from one to another."""
    ways, seen = deque([[start]]), {start}
    while ways:
        so_far = ways.popleft()
        if so_far[-1] == goal:
            return so_far
        for following in sorted(EDGES[so_far[-1]] - seen):
            seen.add(following)
            ways.append([*so_far, following])
    pytest.fail(f"{start} does not lead to {goal}")


def once(*parts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name for part in parts for name in part))


@pytest.mark.parametrize("method", ["semantic", "pooled", "simclr"])
def test_a_pretraining_step_is_a_dozen_files_from_the_command_line(method):
    stage, of_method = "sacl.stages.pretrain", f"sacl.methods.{method}"
    assert set(TO_THE_STAGE[1:]) <= EDGES["sacl.cli"] | EDGES["sacl.commands"]
    files = once(
        TO_THE_STAGE,
        way(stage, "sacl.methods"),  # which imports the method by its name
        way(stage, "sacl.training.loop"),
        [m for m in EDGES[of_method] if m.startswith("sacl.methods")],
        way(of_method, "sacl.patches.views"),
        way(of_method, "sacl.losses.contrastive"),
    )
    assert len(files) <= 12, files


def test_a_label_map_is_written_within_fourteen_files():
    stage, volume = "sacl.stages.predict", "sacl.prediction.volume"
    files = once(
        TO_THE_STAGE,
        way(stage, volume),
        [m for m in EDGES[volume] if m.startswith("sacl.prediction")],
        way(volume, "sacl.networks.segmenter"),
        way(stage, "sacl.files.nifti"),
    )
    assert len(files) <= 14, files
