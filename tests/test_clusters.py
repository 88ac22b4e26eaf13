"""The scripts of the page on clusters run: against stubs of the batch systems' commands."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from sacl.commands import parsed
from sacl.handlers import engine_of
from sacl.run.engine import Shard

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "clusters.md"
BLOCKS = re.findall(r"```(?:bash|yml)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
STUBS = {
    "sacl": 'echo "$@" >> "$SAID/sacl"',
    "sbatch": """
        echo "sbatch $*" >> "$SAID/sbatch"
        for last; do :; done
        case "$*" in *--wrap*) bash -c "$last"; exit;; esac
        count=$(sed -n 's/^#SBATCH --array=1-//p' "$last")
        export SLURM_ARRAY_TASK_COUNT=$count
        for SLURM_ARRAY_TASK_ID in $(seq "$count"); do
          export SLURM_ARRAY_TASK_ID
          bash "$last"
        done
        echo 4711""",
    "srun": '"$@"',
    "scontrol": "echo node7; echo node8",
    "ray": """
        case "$*" in *"--min-nodes 2 "*) ;; *) exit 1;; esac
        while [ "$1" != -- ]; do shift; done
        shift
        "$@" """,
}


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """Return an environment in which a batch system's commands are stubs that say what they do."""
    for name, text in STUBS.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    return {**os.environ, "PATH": f"{path.parent}:{os.environ['PATH']}", "SAID": str(tmp_path)}


def calls(folder: Path) -> list[list[str]]:
    return [line.split() for line in (folder / "sacl").read_text().splitlines()]


def run(text: str, shell: dict[str, str], folder: Path) -> None:
    subprocess.run(["bash", "-euc", text], env=shell, cwd=folder, check=True)


def shards_of(called: list[list[str]]) -> list[Shard | None]:
    return [engine_of(parsed(words)[0]).shard for words in called]


def test_an_array_predicts_all_parts_and_a_dependent_job_merges(
    tmp_path: Path, shell: dict[str, str]
) -> None:
    (tmp_path / "parts.sbatch").write_text(BLOCKS[0])
    run(BLOCKS[1], shell, tmp_path)
    assert shards_of(calls(tmp_path)[:-1]) == [Shard(n, 8) for n in range(1, 9)]
    assert calls(tmp_path)[-1] == ["merge", "predict", "clinic.yaml"]
    assert "--dependency=afterok:4711" in (tmp_path / "sbatch").read_text().splitlines()[-1]


def test_a_job_of_several_machines_is_a_cluster_of_ray(
    tmp_path: Path, shell: dict[str, str]
) -> None:
    allocated = {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_NUM_NODES": "2"}
    run(BLOCKS[2], shell | allocated, tmp_path)
    (called,) = calls(tmp_path)
    engine = engine_of(parsed(called)[0])
    assert (engine.kind, engine.address) == ("ray", "node7:6379")


def test_an_indexed_job_predicts_all_parts(tmp_path: Path, shell: dict[str, str]) -> None:
    job = yaml.safe_load(BLOCKS[3])["spec"]
    (container,) = job["template"]["spec"]["containers"]
    assert job["completionMode"] == "Indexed"
    for index in range(job["completions"]):
        environment = shell | {"JOB_COMPLETION_INDEX": str(index)}
        subprocess.run(container["command"], env=environment, cwd=tmp_path, check=True)
    assert shards_of(calls(tmp_path)) == [Shard(n, 8) for n in range(1, 9)]
