"""How much of each organ lies outside the square around all organs: the old rule and today's.

Perfect maps: what a network in that square could never segment. Then the maps are damaged by blobs
far from an organ, as coarse networks leave them: how much wider the square becomes. Run with
`python -m research.benchmarks.square_placement`; real cohorts need SACL_DATA.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from sacl.files.documents import write_json
from sacl.files.nifti import read_labels
from sacl.patches.query import box_around, whole_slice_box
from sacl.patches.region import PLACEMENT_RULE, Placement, region_boxes
from sacl.types import Box, Grid, LabelMap, LabelScheme
from sacl_phantom import make_scan

OUT = Path(__file__).parents[1] / "results" / "square_placement.json"
PLACEMENT = Placement()
SEED = 0
BLOB_SHARES = (0.01, 0.1, 0.2, 0.4)
TOUCHING = np.ones((3, 3, 3), np.bool_)


@dataclass(frozen=True)
class Loss:
    """Per organ, the share of its voxels outside the square, scan by scan; and the square."""

    outside: dict[str, list[float]]
    side_mm: list[float]


def pooled_square(coarse: LabelMap) -> Box:
    """Return the square of rule 1: islands by the components of all organs together."""
    component, count = ndimage.label(coarse.voxels > 0, TOUCHING)
    if count == 0:
        return whole_slice_box(coarse.grid, 0)
    sizes = np.bincount(component.ravel())
    sizes[0] = 0
    inside = (sizes >= 0.5 * sizes.max())[component]
    ends = []
    for axes in ((1, 2), (0, 2)):
        share = np.cumsum(inside.sum(axis=axes)) / inside.sum()
        first, last = (int(np.searchsorted(share, p)) for p in (0.02, 0.98))
        ends.append((first, last + 1))
    spacing = coarse.grid.spacing_mm
    extent = max((b - a) * mm for (a, b), mm in zip(ends, spacing[:2], strict=True))
    middle = (sum(ends[0]) / 2, sum(ends[1]) / 2)
    side = max(PLACEMENT.region_context * extent, PLACEMENT.min_side_mm)
    return box_around(middle, side, spacing, 0)


def square(coarse: LabelMap) -> Box:
    """Return the square of today's rule."""
    return region_boxes(coarse, PLACEMENT.region_context, PLACEMENT.min_side_mm)[0]


RULES = {"rule 1 (all organs together)": pooled_square, f"rule {PLACEMENT_RULE}": square}


def outside(reference: LabelMap, box: Box) -> dict[str, float]:
    """Return the share of each organ's voxels outside of a square."""
    inner = np.zeros(reference.grid.shape[:2], np.bool_)
    inner[max(box.start[0], 0) : box.stop[0], max(box.start[1], 0) : box.stop[1]] = True
    shares = {}
    for organ in reference.scheme.names:
        mask = reference.mask(organ)
        if mask.any():
            shares[organ] = float(mask[~inner].sum() / mask.sum())
    return shares


def abdomen() -> LabelMap:
    """Return liver, spleen and two kidneys as ellipsoids that do not touch, on 2 mm."""
    shape, spacing = (180, 140, 40), (2.0, 2.0, 5.0)
    scheme = LabelScheme("abdomen", ("liver", "spleen", "kidney_right", "kidney_left"))
    center = ((110, 80, 22), (-115, 30, 24), (65, -45, 14), (-75, -45, 16))
    radius = ((80, 70, 70), (25, 45, 45), (26, 28, 50), (26, 28, 50))
    where = np.meshgrid(
        *[(np.arange(n) - n / 2) * s for n, s in zip(shape, spacing, strict=True)], indexing="ij"
    )
    voxels = np.zeros(shape, np.uint8)
    for label, ((x, y, k), (a, b, c)) in enumerate(zip(center, radius, strict=True), 1):
        z = (k - shape[2] / 2) * spacing[2]
        ball = ((where[0] - x) / a) ** 2 + ((where[1] - y) / b) ** 2 + ((where[2] - z) / c) ** 2
        voxels[(ball < 1) & (voxels == 0)] = label
    return LabelMap(voxels, Grid(shape, np.diag([*spacing, 1.0])), scheme)


def cohorts() -> Iterator[tuple[str, list[LabelMap]]]:
    """Yield every cohort's name and its references, as perfect coarse maps."""
    yield "abdominal arrangement (synthetic)", [abdomen()]
    yield "phantom (13 organs)", [phantom(seed) for seed in range(8)]
    data = os.environ.get("SACL_DATA")
    if data is None:
        return
    yield "TotalSegmentator CT (4 organs)", [total_segmentator(Path(data))]
    for name in ("Dataset061_OpenKBP", "Dataset027_ACDC", "Dataset004_Hippocampus"):
        folder = Path(data) / name
        labels = json.loads((folder / "dataset.json").read_text())["labels"]
        scheme = LabelScheme(
            name, tuple(o for o, v in sorted(labels.items(), key=lambda x: x[1]) if v)
        )
        maps = [read_labels(p)[:2] for p in sorted(folder.glob("labels*/*.nii.gz"))]
        yield name, [LabelMap(voxels, grid, scheme) for voxels, grid in maps]


def phantom(seed: int) -> LabelMap:
    """Return the reference of a phantom scan of the default shape."""
    return make_scan(seed, "native", shape=(128, 104, 40), spacing_mm=(3.0, 3.0, 6.0)).labels


def total_segmentator(data: Path) -> LabelMap:
    """Return liver, spleen and kidneys of the one real abdominal CT."""
    folder = data / "TotalSegmentator_CT"
    names = {v: int(k) for k, v in json.loads((folder / "labels.json").read_text()).items()}
    scheme = LabelScheme("four", ("liver", "spleen", "kidney_right", "kidney_left"))
    voxels, grid, _ = read_labels(folder / "segmentation_3mm.nii.gz")
    mapped = np.zeros(grid.shape, np.uint8)
    for organ in scheme.names:
        mapped[voxels == names[organ]] = scheme.label_of(organ)
    return LabelMap(mapped, grid, scheme)


def losses(maps: list[LabelMap], rule: str) -> Loss:
    """Return what a rule's squares leave out of perfect maps."""
    shares: defaultdict[str, list[float]] = defaultdict(list)
    sides = []
    for reference in maps:
        box = RULES[rule](reference)
        sides.append(box.shape[0] * reference.grid.spacing_mm[0])
        for organ, share in outside(reference, box).items():
            shares[organ].append(share)
    return Loss(dict(shares), sides)


def with_blob(reference: LabelMap, share: float, rng: np.random.Generator) -> LabelMap:
    """Return the map with a ball of one organ, of a share of its volume, at a random place."""
    voxels = reference.voxels.copy()
    present = np.unique(voxels[voxels > 0])
    label = rng.choice(present)
    volume_mm3 = share * (voxels == label).sum() * reference.grid.voxel_ml * 1000
    radius_mm = (3 * volume_mm3 / (4 * np.pi)) ** (1 / 3)
    where = [rng.uniform(0, n) for n in voxels.shape]
    distance = [
        ((np.arange(n) - c) * s) ** 2
        for n, c, s in zip(voxels.shape, where, reference.grid.spacing_mm, strict=True)
    ]
    ball = distance[0][:, None, None] + distance[1][:, None] + distance[2] <= radius_mm**2
    voxels[ball & (voxels == 0)] = label
    return LabelMap(voxels, reference.grid, reference.scheme)


def widening(maps: list[LabelMap], rule: str) -> dict[str, dict[str, float]]:
    """Return by how much a blob of one organ widens the square, by the blob's size."""
    growth = {}
    for share in BLOB_SHARES:
        rng = np.random.default_rng(SEED)
        ratios = [
            RULES[rule](with_blob(reference, share, rng)).shape[0] / RULES[rule](reference).shape[0]
            for reference in maps
        ]
        growth[f"{share:g}"] = {
            "median": round(float(np.median(ratios)), 3),
            "over_1.25": round(float(np.mean(np.array(ratios) > 1.25)), 3),
        }
    return growth


def summary(loss: Loss) -> dict[str, object]:
    """Return mean, worst and number of scans over 1 % by organ, and the square's median side."""
    return {
        "median_side_mm": round(float(np.median(loss.side_mm)), 1),
        "outside": {
            organ: {
                "scans": len(shares),
                "mean": round(float(np.mean(shares)), 5),
                "worst": round(float(np.max(shares)), 4),
                "scans_over_1_percent": int(np.sum(np.array(shares) > 0.01)),
            }
            for organ, shares in loss.outside.items()
        },
    }


def main() -> None:
    """Measure, print one line per cohort and rule, and write the JSON."""
    cohort_results: dict[str, object] = {}
    for name, maps in cohorts():
        cohort_results[name] = of_rules = {}
        for rule in RULES:
            of_rules[rule] = summary(losses(maps, rule)) | {"wider_by_a_blob": widening(maps, rule)}
            worst = {o: v["worst"] for o, v in of_rules[rule]["outside"].items() if v["worst"] > 0}
            print(f"{name}, {rule}: side {of_rules[rule]['median_side_mm']} mm, worst {worst}")
    document = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "settings": {
            "region_context": PLACEMENT.region_context,
            "min_side_mm": PLACEMENT.min_side_mm,
            "blob_shares": BLOB_SHARES,
            "seed": SEED,
        },
        "cohorts": cohort_results,
    }
    write_json(OUT, document)


if __name__ == "__main__":
    main()
