"""Is the way to canonical orientation and back exact, in memory and through files?

`python -m research benchmark round_trips` draws 1,000 random affines (rotated, sheared, flipped,
permuted, anisotropic, shapes with axes of one voxel too; NIfTI header codes of every usual kind),
and writes `results/round_trips.json`. Of each:

1. nibabel writes a scan of random int16 voxels; `sacl` reads it;
2. every corner voxel has to keep its place in the world;
3. canonical voxels go back to the native order: bit for bit the stored ones;
4. a label map made of them is written on the native frame: its header's geometry has to be the
   scan's, bit for bit, and its voxels those of the scan;
5. `sacl` reads that map again: the canonical labels, bit for bit.

Beside it stands how often the canonical orientation is that of nibabel's `as_closest_canonical`:
two rules for the same question, which may part where an affine is so oblique or sheared that
"closest" is arguable.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from pathlib import Path

import nibabel
import numpy as np
from scipy.spatial.transform import Rotation

from research.benchmarks.circumstances import circumstances
from sacl.files.documents import write_json
from sacl.files.nifti import read_labels, read_volume, write_label_map
from sacl.geometry import to_native
from sacl.types import LabelMap, LabelScheme

RESULT = Path(__file__).parents[1] / "results" / "round_trips.json"
SCHEME = LabelScheme("two", ("first", "second"))
CODES = ((1, 1), (2, 0), (0, 1), (4, 2), (1, 3))
"""sform and qform codes; a quaternion holds no shear, so a sheared affine needs an sform."""
SFORM = ("srow_x", "srow_y", "srow_z")
"""Without meaning, and not compared, where the sform code is 0."""
QFORM = (
    *("sform_code", "qform_code", "xyzt_units"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)


def main() -> None:
    """Make all round trips and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--affines", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    known = parser.parse_args()
    rng = np.random.default_rng(known.seed)
    trips = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(known.affines):
            trips.append(round_trip(rng, CODES[number % len(CODES)], Path(folder)))
    result = _summary(trips)
    about = {
        "what": "native to canonical to native, in memory and through NIfTI files",
        "seed": known.seed,
        "command": "python -m research benchmark round_trips",
    }
    write_json(known.out, {**about, **circumstances(), **result})
    print(json.dumps(result, indent=1))


def round_trip(
    rng: np.random.Generator, codes: tuple[int, int], folder: Path
) -> dict[str, float | bool]:
    """Return what one random scan's ways there and back amount to."""
    shape = tuple(rng.integers(1, 9, 3).tolist())
    affine, facts = random_affine(rng, shears=codes[0] != 0)
    voxels = rng.integers(-1000, 2000, shape).astype(np.int16)
    scan = nibabel.Nifti1Image(voxels, affine)
    scan.set_sform(affine, code=codes[0])
    scan.set_qform(affine, code=codes[1])
    scan.header["xyzt_units"] = 10
    nibabel.save(scan, folder / "scan.nii.gz")

    volume, native = read_volume(folder / "scan.nii.gz")
    labels = (volume.voxels > 0).astype(np.uint8) + (volume.voxels > 1000)
    label_map = LabelMap(labels, volume.grid, SCHEME)
    write_label_map(folder / "labels.nii.gz", label_map, native)
    again, grid, _ = read_labels(folder / "labels.nii.gz")

    stored, written = nibabel.load(folder / "scan.nii.gz"), nibabel.load(folder / "labels.nii.gz")
    closest = nibabel.as_closest_canonical(stored)
    return {
        **facts,
        "has_axis_of_one_voxel": min(shape) == 1,
        "world_deviation_mm": _deviation_mm(voxels, stored.affine, volume),
        "native_voxels_exact": np.array_equal(to_native(volume.voxels, native.grid), voxels),
        "written_voxels_exact": np.array_equal(
            np.asarray(written.dataobj), (voxels > 0).astype(np.uint8) + (voxels > 1000)
        ),
        "written_header_exact": _same_geometry(stored.header, written.header),
        "written_affine_deviation": float(np.abs(stored.affine - written.affine).max()),
        "reread_labels_exact": np.array_equal(again, labels),
        "reread_grid_deviation": float(np.abs(grid.affine - volume.grid.affine).max()),
        "orientation_is_nibabels": closest.shape == volume.grid.shape
        and np.array_equal(np.asarray(closest.dataobj), volume.voxels),
    }


def random_affine(
    rng: np.random.Generator, shears: bool
) -> tuple[np.ndarray, dict[str, float | bool]]:
    """Return a rotated, permuted, flipped, anisotropic, perhaps sheared affine, and what it is."""
    axes, signs = rng.permutation(3), rng.choice([-1, 1], 3)
    turn = np.zeros((3, 3))
    turn[axes, range(3)] = signs
    # A third lies along the axes, a third is tilted as scans are, a third is turned anyhow.
    angle = rng.choice([0.0, 15.0, 180.0])
    rotation = Rotation.from_euler("xyz", rng.uniform(-angle, angle, 3), degrees=True).as_matrix()
    shear = np.eye(3)
    if shears and rng.random() < 0.5:
        shear[np.triu_indices(3, 1)] = rng.uniform(-0.5, 0.5, 3)
    affine = np.eye(4)
    affine[:3, :3] = rotation @ shear @ turn @ np.diag(rng.uniform(0.2, 9.0, 3))
    affine[:3, 3] = rng.uniform(-900, 900, 3)
    facts = {"tilt_deg": float(angle), "sheared": bool(shear[0, 1]), "flipped": min(signs) < 0}
    return affine, facts | {"permuted": not np.array_equal(axes, range(3))}


def _same_geometry(a: nibabel.Nifti1Header, b: nibabel.Nifti1Header) -> bool:
    names = (*SFORM, *QFORM) if int(a["sform_code"]) else QFORM
    return all(a[name].tobytes() == b[name].tobytes() for name in names) and (
        a["pixdim"][:4].tobytes() == b["pixdim"][:4].tobytes()
    )


def _deviation_mm(voxels: np.ndarray, affine: np.ndarray, volume) -> float:
    """Return how far a corner voxel's place is from that of the same voxel in canonical order."""
    index = np.arange(voxels.size).reshape(voxels.shape)
    canonical = nibabel.orientations.apply_orientation(
        index, nibabel.orientations.io_orientation(np.linalg.inv(volume.grid.affine) @ affine)
    )
    corners = list(itertools.product(*[(0, n - 1) for n in canonical.shape]))
    here = volume.grid.affine @ np.c_[corners, np.ones(8)].T
    there = np.array(np.unravel_index([canonical[c] for c in corners], voxels.shape))
    return float(np.abs(here - affine @ np.vstack([there, np.ones(8)])).max())


def _summary(trips: list[dict[str, float | bool]]) -> dict[str, object]:
    exact = [name for name in trips[0] if name.endswith("_exact")]
    tame = [t for t in trips if t["tilt_deg"] <= 15 and not t["sheared"]]
    return {
        "affines": len(trips),
        "of_these": {
            "oblique": sum(t["tilt_deg"] > 0 for t in trips),
            **{
                name: sum(bool(t[name]) for t in trips)
                for name in ("sheared", "flipped", "permuted", "has_axis_of_one_voxel")
            },
        },
        "exact": {name: sum(bool(t[name]) for t in trips) for name in exact},
        "all_exact": all(t[name] for t in trips for name in exact),
        "largest_deviation": {
            "place_of_a_voxel_mm": max(t["world_deviation_mm"] for t in trips),
            "affine_of_the_written_map": max(t["written_affine_deviation"] for t in trips),
            "canonical_affine_of_the_reread_map": max(t["reread_grid_deviation"] for t in trips),
        },
        "orientation_is_nibabels": {
            "of_all": [sum(bool(t["orientation_is_nibabels"]) for t in trips), len(trips)],
            "of_those_not_sheared_and_tilted_by_at_most_15_degrees_per_axis": [
                sum(bool(t["orientation_is_nibabels"]) for t in tame),
                len(tame),
            ],
        },
    }


if __name__ == "__main__":
    main()
