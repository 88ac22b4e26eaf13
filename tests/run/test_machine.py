"""What a machine offers: the limits of batch jobs count."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sacl.run.machine import available_cores, free_memory_mb, is_short_of_memory

MIB = 1024**2


def write(path: Path, text: str | int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "proc/meminfo", "MemTotal: 9000000 kB\nMemAvailable:    8192000 kB")
    return tmp_path


def test_memory_is_what_the_system_has_left(root: Path) -> None:
    assert free_memory_mb(root) == 8000


def test_nobody_knows_the_memory_of_other_systems(tmp_path: Path) -> None:
    assert free_memory_mb(tmp_path) is None


def test_a_job_has_what_its_control_groups_leave(root: Path) -> None:
    """Version 2; the limit is on a group around that of the process, and cached files go."""
    write(root / "proc/self/cgroup", "0::/slurm/job_1/step_0")
    groups = root / "sys/fs/cgroup/slurm"
    for name in ("job_1/step_0", "job_1", "."):
        write(groups / name / "memory.max", "max" if name != "job_1" else 4000 * MIB)
        write(groups / name / "memory.current", 1500 * MIB)
        write(groups / name / "memory.stat", f"anon 1\ninactive_file {500 * MIB}")
    assert free_memory_mb(root) == 3000


def test_a_job_has_what_its_control_groups_of_version_1_leave(root: Path) -> None:
    write(root / "proc/self/cgroup", "5:cpu,cpuacct:/\n4:memory:/job_1")
    group = root / "sys/fs/cgroup/memory/job_1"
    write(group / "memory.limit_in_bytes", 2000 * MIB)
    write(group / "memory.usage_in_bytes", 800 * MIB)
    write(group / "memory.stat", f"inactive_file 0\ntotal_inactive_file {300 * MIB}")
    assert free_memory_mb(root) == 1500


def test_a_container_sees_its_own_limit_at_the_top(root: Path) -> None:
    write(root / "proc/self/cgroup", "0::/../../elsewhere")
    write(root / "sys/fs/cgroup/memory.max", 1000 * MIB)
    write(root / "sys/fs/cgroup/memory.current", 400 * MIB)
    assert free_memory_mb(root) == 600


@pytest.mark.parametrize(
    ("quota", "cores"), [("max", 8), ("200000", 2), ("150000", 2), ("1000", 1)]
)
def test_a_container_has_the_cores_that_it_was_given(monkeypatch, root: Path, quota, cores) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    write(root / "proc/self/cgroup", "0::/pod/container")
    write(root / "sys/fs/cgroup/pod/cpu.max", f"{quota} 100000")
    write(root / "sys/fs/cgroup/pod/container/cpu.max", "max 100000")
    assert available_cores(root) == cores


@pytest.mark.parametrize(("quota", "cores"), [(-1, 8), (300000, 3)])
def test_so_it_has_by_control_groups_of_version_1(monkeypatch, root: Path, quota, cores) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    write(root / "proc/self/cgroup", "5:cpu,cpuacct:/job_1\n4:memory:/job_1")
    group = root / "sys/fs/cgroup/cpu,cpuacct/job_1"
    write(group / "cpu.cfs_quota_us", quota)
    write(group / "cpu.cfs_period_us", 100000)
    assert available_cores(root) == cores


def test_an_allocation_that_fails_is_told_from_other_errors() -> None:
    assert is_short_of_memory(MemoryError())
    assert is_short_of_memory(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert not is_short_of_memory(RuntimeError("shape mismatch"))
