"""Does the DICOM intake judge rightly: 500 synthesized series of every fault, verdict by verdict.

`python -m research benchmark dicom_intake [--series 500] [--seed 0]` writes series of all kinds of
`tests/io/dicom` in equal parts, and series with two faults at once for the rest, into a temporary
folder, every fifth of them zipped. The intake runs over all of them at once. Every verdict is held
against the known fault, every accepted scan against its voxels (equal, or within float32) and its
grid (1e-6 mm). `results/dicom_intake.json` has the counts by expected and given verdict.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "dicom"))

import make_odd_series  # noqa: E402, F401  (adds its kinds)
from dicom_kinds import MAKERS, Expected, differences, new_patient  # noqa: E402

from sacl.dicom.intake import take_in  # noqa: E402
from sacl.dicom.verdict import Verdict  # noqa: E402
from sacl.files.documents import write_json  # noqa: E402
from sacl.run.machine import peak_memory_mb  # noqa: E402

RESULT = Path(__file__).parents[1] / "results" / "dicom_intake.json"
ACCEPTED = "accepted"


@dataclass(frozen=True)
class Planned:
    """A series as written: its kind and what has to become of it."""

    kind: str
    expected: list[Expected]


def main() -> None:
    """Synthesize, judge, compare, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    known = parser.parse_args()
    result = measure(known.series, known.seed)
    from research.benchmarks.circumstances import circumstances

    command = (
        f"python -m research benchmark dicom_intake --series {known.series} --seed {known.seed}"
    )
    decoding = {name: version(name) for name in ("pydicom", "pylibjpeg", "pylibjpeg-openjpeg")}
    result |= {"command": command, "decoding": decoding, **circumstances()}
    write_json(RESULT, result)
    print(f"{result['right']} of {result['series']} series right, {result['seconds']}")
    for wrong in result["wrong"]:
        print(wrong)
    sys.exit(result["right"] != result["series"])


def measure(count: int, seed: int) -> dict[str, Any]:
    """Return how many of so many series are judged rightly, and how long it took."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "export"
        start = time.perf_counter()
        planned = synthesize(root, count, seed)
        files = sum(path.is_file() for path in root.rglob("*"))
        written = time.perf_counter()
        cpu_start = time.process_time()
        verdicts = take_in(root).verdicts
        judged = time.perf_counter()
        cpu_s = time.process_time() - cpu_start
        wrong, confusion = compare(planned, verdicts)
        compared = time.perf_counter()
    return {
        "what": "verdicts of the DICOM intake on synthesized series with known faults",
        "series": count,
        "right": count - len(wrong),
        "wrong": wrong,
        "verdicts": len(verdicts),
        "kinds": dict(Counter(plan.kind for plan in planned.values())),
        "expected_then_given": confusion,
        "files": files,
        "seconds": {
            "synthesize": round(written - start, 1),
            "intake": round(judged - written, 1),
            "intake_cpu": round(cpu_s, 1),
            "read_and_compare": round(compared - judged, 1),
        },
        "peak_memory_mb": peak_memory_mb(),
        "seed": seed,
    }


def synthesize(root: Path, count: int, seed: int) -> dict[str, Planned]:
    """Write so many series, each in a folder or zip of its own, and return the truth by name."""
    kinds = [kind for kind in MAKERS if kind != "two_faults"]
    whole = count // len(kinds) * len(kinds)
    if whole == 0:
        whole, kinds = count, kinds[:: max(1, len(kinds) // count)]
    planned = {}
    for number in range(count):
        kind = kinds[number % len(kinds)] if number < whole else "two_faults"
        rng = np.random.default_rng([seed, number])
        name = f"s{number:04d}"
        expected = MAKERS[kind](rng, root / name, new_patient(rng, number))
        planned[name] = Planned(kind, expected)
        if number % 5 == 4:
            shutil.make_archive(str(root / name), "zip", root / name)
            shutil.rmtree(root / name)
    return planned


def compare(
    planned: dict[str, Planned], verdicts: tuple[Verdict, ...]
) -> tuple[list[dict[str, Any]], dict[str, dict[str, int]]]:
    """Return the series that are wrong, and counts by expected and given verdict."""
    given: dict[str, list[Verdict]] = {name: [] for name in planned}
    for verdict in verdicts:
        given[_name(verdict)].append(verdict)
    wrong = []
    confusion: dict[str, Counter[str]] = {}
    for name, plan in planned.items():
        differs = differences(given[name], plan.expected)
        if differs:
            wrong.append({"series": name, "kind": plan.kind, "differs": differs})
        wanted = sorted(truth.code or ACCEPTED for truth in plan.expected)
        told = sorted(v.fault.code if v.fault is not None else ACCEPTED for v in given[name])
        for n in range(max(len(wanted), len(told))):
            row = confusion.setdefault(wanted[n] if n < len(wanted) else "nothing", Counter())
            row[told[n] if n < len(told) else "nothing"] += 1
    return wrong, {code: dict(row) for code, row in sorted(confusion.items())}


def _name(verdict: Verdict) -> str:
    """Return the folder or zip that a series lies in."""
    path = verdict.series.slices[0].source.path
    return path.stem if path.suffix == ".zip" else path.parent.name


if __name__ == "__main__":
    main()
