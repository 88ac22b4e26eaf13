"""How many cases a second pass through shards, journal, skipping and merging, where none has work.

    python -m research benchmark many_cases --out research/results/many_cases.json

Four shards do 100,000 empty cases in turn, do them again, when all are skipped, and are merged.
Each call reads the journal, as a process would that starts. Seconds are of the wall clock and of
the processor, of one process; a busy machine falsifies the former.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from research.benchmarks.circumstances import circumstances
from sacl.files.documents import write_json
from sacl.files.journal import Journal
from sacl.progress import silent
from sacl.run.engine import Engine, Shard, ShardDone
from sacl.run.machine import peak_memory_mb
from sacl.run.workers import DoCase

GOAL_PER_S = 5000


@dataclass(frozen=True)
class Nothing:
    """What becomes of an empty case."""

    number: int


def open_nothing() -> DoCase:
    """Return what does nothing with a case but to say which it is."""
    return lambda case: Nothing(int(case.rpartition("-")[2]))


def in_shards(folder: Path, cases: list[str], shards: int) -> None:
    """Do all cases in shards, one after another."""
    for number in range(1, shards + 1):
        engine = Engine(workers=1, shard=Shard(number, shards))
        try:
            engine.each(open_nothing, cases, Journal(folder, Nothing), "nothing")
        except ShardDone:
            continue


def merged(folder: Path, cases: list[str]) -> None:
    """Merge the shards; whatever is missing or out of order is an error."""
    engine = Engine(workers=1, merges=True)
    outcomes = engine.each(open_nothing, cases, Journal(folder, Nothing), "nothing")
    assert [outcome.result for outcome in outcomes] == [Nothing(n) for n in range(len(cases))]


def measured(work: Callable[[], Any], count: int) -> dict[str, Any]:
    """Return how long something takes, and how many cases a second these are."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    return {
        "wall_s": round(wall, 2),
        "processor_s": round(processor, 2),
        "cases_per_s": round(count / wall),
        "cases_per_processor_s": round(count / processor),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parents[1] / "results" / "many_cases.json"
    )
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--shards", type=int, default=4)
    given = parser.parse_args()
    cases = [f"case-{number}" for number in range(given.cases)]
    with tempfile.TemporaryDirectory() as named, silent():
        folder, before_mb = Path(named), peak_memory_mb() or 0.0
        sharded = partial(in_shards, folder, cases, given.shards)
        figures = {
            "work": measured(sharded, given.cases),
            "skip": measured(sharded, given.cases),
            "merge": measured(partial(merged, folder, cases), given.cases),
        }
        journal_mb = sum(path.stat().st_size for path in folder.rglob("*.jsonl")) / 1e6
    for name, values in figures.items():
        print(name, *(f"  {key:<22} {value}" for key, value in values.items()), sep="\n")
    record = {
        "script": "python -m research benchmark many_cases",
        "settings": {"cases": given.cases, "shards": given.shards},
        "goal_cases_per_s": GOAL_PER_S,
        "figures": figures,
        "journal_mb": round(journal_mb, 1),
        "memory_mb": round((peak_memory_mb() or 0.0) - before_mb),
        **circumstances(),
    }
    write_json(given.out, record)


if __name__ == "__main__":
    main()
