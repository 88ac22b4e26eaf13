"""Does every study get exactly one segmentation when the node is killed again and again.

`python -m research benchmark node_kills [--studies 50] [--seed 0]` writes CT studies of 8 slices,
sends them by C-STORE to a node of `sacl_node` in a process of its own, and kills that (SIGKILL)
0.2 to 5 seconds after it was up, over and over until every study was sent; then it lets the node
finish. A study of which an image was not acknowledged is sent again whole, as an archive does. The
node predicts by thresholds, so that starts are quick, and stores by C-STORE into an Orthanc. Each
study has to have one SEG instance at the end, with the voxels of a prediction without the node.
`results/node_kills.json` has what was killed and what came of it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "node"))

import node_parts  # noqa: E402

from sacl.cohort.layouts import dicom  # noqa: E402
from sacl.dicom.segmentation import read_segmentation  # noqa: E402
from sacl.files.documents import write_json  # noqa: E402

RESULT = Path(__file__).parents[1] / "results" / "node_kills.json"


class Killed:
    """A node in a process of its own that is killed now and then."""

    def __init__(self, root: Path, send_to: str, rng: np.random.Generator) -> None:
        self.port, self.health_port = node_parts.free_port(), node_parts.free_port()
        self.kills: Counter[str] = Counter()
        self._root, self._send_to, self._rng = root, send_to, rng
        self._start()
        self.stop = threading.Event()
        self.killer = threading.Thread(target=self.kill_again)
        self.killer.start()

    def _start(self) -> None:
        program = [sys.executable, node_parts.__file__, str(self._root / "store")]
        words = [str(self.port), str(self.health_port), self._send_to, "0.3"]
        with (self._root / "log.txt").open("a") as log:
            environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
            self._process = subprocess.Popen([*program, *words], env=environment, stderr=log)
        node_parts.wait_for(lambda: node_parts.health(self.health_port), 60)

    def kill_again(self) -> None:
        """Kill it and start it again in a thread until `stop` is set."""
        while not self.stop.wait(self._rng.uniform(0.2, 5.0)):
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self.kills[" and ".join(sorted(set(self.left()))) or "nothing"] += 1
            self._start()

    def left(self) -> list[str]:
        """Return the states of the studies that are not done."""
        with contextlib.closing(sqlite3.connect(self._root / "store" / "queue.sqlite")) as base:
            rows = base.execute("SELECT state FROM study WHERE state != 'done'")
            return [state for (state,) in rows]

    def finish(self, studies: int) -> dict[str, Any]:
        """Let it finish, end it by SIGTERM, and return the last state."""
        self.stop.set()
        self.killer.join()
        done = ("done", "aside", "unsuitable")

        def state() -> Any:
            now = node_parts.health(self.health_port)
            return now if sum(now["studies"][name] for name in done) == studies else None

        last = node_parts.wait_for(state, 600)
        self._process.terminate()
        last["exit_code"] = self._process.wait(30)
        return dict(last)


def measure(studies: int, seed: int, root: Path) -> dict[str, Any]:
    """Send, kill, finish, and compare what the Orthanc has with what it should have."""
    rng = np.random.default_rng(seed)
    folders = [node_parts.write_study(root / f"study{n}", n) for n in range(studies)]
    orthanc = node_parts.Orthanc(root / "orthanc")
    start = time.monotonic()
    try:
        node = Killed(root, f"ORTHANC@127.0.0.1:{orthanc.dicom_port}", rng)
        sendings = 0
        for folder in folders:
            statuses = None
            while statuses is None or statuses != [0] * len(list(folder.iterdir())):
                statuses = node_parts.send(folder, node.port)
                sendings += 1
                time.sleep(0.1)
            while len(node.left()) > 3:  # so that kills meet all that a node does
                time.sleep(0.1)
        last = node.finish(studies)
        found = orthanc.segmentations().values()
        equal = sum(_is_equal(orthanc, instances, folders) for instances in found)
    finally:
        orthanc.close()
    return {
        "studies": studies,
        "sendings": sendings,
        "kills": sum(node.kills.values()),
        "killed_while_studies_were": dict(node.kills),
        "segmentations_per_study": dict(Counter(str(len(one)) for one in found)),
        "equal_voxels": equal,
        "last_state": last["studies"],
        "exit_code_of_sigterm": last["exit_code"],
        "seconds": round(time.monotonic() - start),
    }


def _is_equal(orthanc: Any, instances: list[str], folders: list[Path]) -> bool:
    """Tell whether a study's one segmentation has the voxels that its images give."""
    import pydicom

    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "seg.dcm"
        path.write_bytes(orthanc.get(f"/instances/{instances[0]}/file"))
        number = int(pydicom.dcmread(path).StudyInstanceUID.rsplit(".", 1)[1])
        (case,) = dicom.read_export(folders[number]).cases
        volume, _ = case.load()
        voxels = read_segmentation(path, volume.grid).voxels
    return len(instances) == 1 and np.array_equal(voxels, node_parts.labels_of(volume.voxels))


def main() -> None:
    """Measure in a temporary folder and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    known = parser.parse_args()
    from research.benchmarks.circumstances import circumstances

    with tempfile.TemporaryDirectory() as root:
        result = measure(known.studies, known.seed, Path(root))
    command = f"python -m research benchmark node_kills --studies {known.studies}"
    record = {"command": f"{command} --seed {known.seed}", **result, **circumstances()}
    write_json(RESULT, record)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
