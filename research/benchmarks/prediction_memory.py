"""Peak memory of predicting one 512 × 512 × 200 CT, above the process that is ready and idle.

`python -m research benchmark prediction_memory` runs both heads, each in a process of its own, with
networks of the default architecture and 13 organs whose weights are random (memory does not depend
on them), and writes `results/prediction_memory.json`. Goal: at most 2 GB above idle.

Idle is the resident memory after imports, with all networks loaded. The peak is the largest one
while a compressed int16 NIfTI is read, predicted and written. The dense head reads whole slices;
the query head locates the organs with the coarse network's ensemble first, and then works on every
organ's patches. As a random coarse network finds nothing useful, the patches are planned on a map
of 13 ellipsoids.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from research.benchmarks.circumstances import circumstances, watched
from sacl.files.documents import write_json
from sacl.model import Member, Model
from sacl.networks.coarse import CoarseNetwork
from sacl.networks.encoder import EncoderSpec
from sacl.networks.segmenter import SegmenterSpec, build_segmenter
from sacl.patches.region import Placement
from sacl.patches.window import WindowRule
from sacl.prediction.coarse import Ensemble
from sacl.prediction.volume import MapRecipe, Predictor
from sacl.settings import ExtractSettings, FinetuneSettings, IngestSettings, VolumeSettings
from sacl.stages.predict_folder import predict_folder
from sacl.training.coarse import volume_spec
from sacl.types import LabelScheme

SHAPE, SPACING_MM = (512, 512, 200), (0.8, 0.8, 2.5)
ORGANS = tuple(f"organ_{n}" for n in range(1, 14))
GOAL_GB = 2.0
RESULT = Path(__file__).parents[1] / "results" / "prediction_memory.json"


def main() -> None:
    """Measure both heads and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--head", choices=["dense", "query"])
    parser.add_argument("--slices", type=int, default=SHAPE[2])
    known = parser.parse_args()
    if known.head:
        print(json.dumps(measure(known.head, known.slices)))
        return
    heads = {}
    for head in ("dense", "query"):
        command = [sys.executable, "-m", __spec__.name, "--head", head]
        command += ["--slices", str(known.slices)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        heads[head] = json.loads(done.stdout.splitlines()[-1])
        print(head, heads[head])
    result = {
        "what": "peak resident memory of predicting one scan, above the idle process",
        "goal_gb": GOAL_GB,
        "scan": {"shape": [*SHAPE[:2], known.slices], "spacing_mm": SPACING_MM, "dtype": "int16"},
        "organs": len(ORGANS),
        "settings": "defaults of every stage; 3 coarse networks for the query head",
        "command": "python -m research benchmark prediction_memory",
        **circumstances(),
    }
    write_json(RESULT, {**result, "heads": heads})


def measure(head: str, slices: int) -> dict[str, float | bool]:
    """Return the memory and time that one head takes for one scan."""
    device, settings = torch.device("cpu"), VolumeSettings()
    segmenter = build_segmenter(_spec(head), seed=0).eval()
    scheme = LabelScheme("thirteen", ORGANS)
    spec = volume_spec(scheme, [settings.spacing_mm], settings.crop, None, 32)
    networks = tuple(CoarseNetwork(spec).eval() for _ in range(3))
    ensemble = Ensemble(spec, networks, device)
    with tempfile.TemporaryDirectory() as folder:
        scan = Path(folder) / "scan.nii.gz"
        # The scan is made by another process: what making it takes is not this one's.
        subprocess.run([sys.executable, "-c", _MAKE_SCAN, str(scan), str(slices)], check=True)
        predictor = Predictor(segmenter, device, MapRecipe(keep_component=0.1))
        model = Model((Member("random", predictor, _Drawn(ensemble)),))
        # Networks allocate on their first call what they then keep; that is part of being ready.
        predictor.logits([np.zeros((2 if head == "query" else 1, 64, 64), np.float32)], 64)
        begun = time.monotonic()
        with watched(_resident_gb, 0.005) as seen:
            predict_folder(model, scan, Path(folder) / "out")
        seconds = time.monotonic() - begun
    idle, peak = seen
    above = peak - idle
    peak_rss_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {
        "idle_gb": round(idle, 3),
        "peak_gb": round(peak, 3),
        "above_idle_gb": round(above, 3),
        "meets_goal": above <= GOAL_GB,
        "seconds": round(seconds, 1),
        "peak_rss_of_process_gb": round(peak_rss_gb, 3),
    }


_MAKE_SCAN = """
import sys
import nibabel
import numpy as np
slices = int(sys.argv[2])
rng = np.random.default_rng(0)
voxels = np.empty((512, 512, slices), np.int16, order="F")
i, j = np.mgrid[-1:1:512j, -1:1:512j]
for k in range(slices):
    body = np.where((i / 0.8) ** 2 + (j / 0.6) ** 2 < 1, 40.0, -1000.0)
    voxels[:, :, k] = body + rng.normal(0, 20, body.shape)
nibabel.save(nibabel.Nifti1Image(voxels, np.diag([0.8, 0.8, 2.5, 1.0])), sys.argv[1])
"""


def _resident_gb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e9


def _spec(head: str) -> SegmenterSpec:
    cuts = ExtractSettings()
    return SegmenterSpec(
        encoder=EncoderSpec(),
        decoder=FinetuneSettings().decoder,
        head=head,
        scheme="thirteen",
        organs=ORGANS,
        image_size=cuts.dense_size if head == "dense" else cuts.patch_size,
        window=WindowRule("ct", IngestSettings().window_hu),
        placement=Placement(region="slice"),
    )


class _Drawn:
    """Coarse networks whose label map is drawn over."""

    def __init__(self, ensemble):
        self.ensemble = ensemble
        self.networks = ensemble.networks

    def locate(self, volume, window):
        located = self.ensemble.locate(volume, window)
        _draw_ellipsoids(located.voxels)
        return located


def _draw_ellipsoids(voxels: np.ndarray) -> None:
    """Overwrite a label map, in place, with 13 ellipsoids as large as abdominal organs."""
    voxels[:] = 0
    rng = np.random.default_rng(1)
    shape = np.array(voxels.shape)
    for label in range(1, len(ORGANS) + 1):
        center = shape * rng.uniform(0.3, 0.7, 3)
        radius = shape * rng.uniform(0.04, 0.15, 3)
        low = np.maximum(0, (center - radius).astype(int))
        high = np.minimum(shape, (center + radius).astype(int) + 1)
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        axes = np.ogrid[box]
        inside = sum(((x - c) / r) ** 2 for x, c, r in zip(axes, center, radius, strict=True)) < 1
        voxels[box][inside] = label


if __name__ == "__main__":
    main()
