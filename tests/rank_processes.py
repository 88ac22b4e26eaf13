"""Ranks for tests: processes that join by gloo, as those that `torchrun` starts do."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sacl import ranks

_AT_MOST_S = 250.0
"""Ranks that take longer are killed, before the test is."""


class Ended(NamedTuple):
    """How a rank ended, and what it said on stderr."""

    code: int | None
    said: str


def start(count: int, target: Callable[..., int], *arguments: Any) -> list[Ended]:
    """Call a function in each of some ranks, and return how they ended."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port = opened.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        errors = [Path(folder) / str(rank) for rank in range(count)]
        processes = []
        for rank, said in enumerate(errors):
            numbers = {"RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port}
            numbers |= {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "OMP_NUM_THREADS": 1}
            given = {name: str(value) for name, value in numbers.items()}
            given |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "test"}
            arguments_of_rank = (given, said, target, arguments)
            processes.append(context.Process(target=_rank, args=arguments_of_rank))
            processes[-1].start()
        for process in processes:
            process.join(_AT_MOST_S)
            process.kill()
        return [
            Ended(p.exitcode, said.read_text()) for p, said in zip(processes, errors, strict=True)
        ]


def _rank(given: dict[str, str], said: Path, target: Callable[..., int], arguments: Any) -> None:
    os.environ.update(given)
    os.dup2(os.open(said, os.O_CREAT | os.O_WRONLY), 2)
    torch.set_num_threads(1)
    ranks._FIRST_SPEAKS_S = 0.5
    sys.exit(target(*arguments))


def share(answer: Path, work: Callable[..., Any], *arguments: Any) -> int:
    """Let all ranks call a function together, and keep what it returns on the first."""

    def command() -> int:
        with ranks.shared(work, *arguments):
            torch.save(work(*arguments), answer)
        return 0

    return ranks.join_and_run(command)


def on_ranks(count: int, work: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function returns on the first of some ranks that call it together."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer"
        for ended in start(count, share, answer, work, *arguments):
            assert ended.code == 0, ended.said
        return torch.load(answer, weights_only=False)
