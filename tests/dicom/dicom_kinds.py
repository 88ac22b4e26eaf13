"""What has to become of a series, and the kinds of series that there are by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from make_series import Patient, Scan, make_scan, oblique, tilted, uid

from sacl.dicom.stack import read_stack
from sacl.dicom.verdict import Verdict
from sacl.geometry import to_canonical
from sacl.types import Grid, NativeFrame, Volume

Rng = np.random.Generator


@dataclass(frozen=True, eq=False)
class Expected:
    """What has to become of a series: rejected by a code, or accepted as exactly this scan."""

    code: str | None
    scan: Scan | None = None
    note: str = ""


Maker = Callable[[Rng, Path, Patient], list[Expected]]
MAKERS: dict[str, Maker] = {}
"""Every kind of series by name; a maker writes it into a folder and says what is expected."""


def kind(maker: Maker) -> Maker:
    MAKERS[maker.__name__] = maker
    return maker


def some_scan(rng: Rng, patient: Patient, **changes) -> Scan:
    """Return an axial, oblique or tilted scan of CT or MR."""
    changes.setdefault("slices", int(rng.integers(8, 21)))
    changes.setdefault("modality", str(rng.choice(["CT", "MR"])))
    make = [make_scan, oblique, tilted][rng.integers(3)]
    return make(rng, patient=patient, **changes)


def new_patient(rng: Rng, number: int) -> Patient:
    """Return a patient of its own, with one study."""
    return Patient(
        name=f"Zzname{number:04d}^Vorname",
        patient_id=f"PIDX{int(rng.integers(1 << 30)):010d}",
        study_uid=uid(rng),
        accession=f"ACCX{number:06d}",
        institution=f"Klinikum {'ABC'[number % 3]}",
    )


def differences(verdicts: Sequence[Verdict], expected: Sequence[Expected]) -> list[str]:
    """Return how verdicts differ from the truth: in codes, notes, voxels or grids; none if right.

    Accepted scans are read, and have to be one of the expected ones to the voxel: equal where they
    are whole numbers, within float32 elsewhere; their grid within 1e-6 mm.
    """
    codes = Counter(verdict.fault.code for verdict in verdicts if verdict.fault is not None)
    wrong = []
    if codes != Counter(truth.code for truth in expected if truth.code is not None):
        wrong.append(f"rejected {dict(codes)}")
    accepted = [verdict for verdict in verdicts if verdict.accepted]
    left = [truth for truth in expected if truth.code is None]
    if len(accepted) != len(left):
        wrong.append(f"accepted {len(accepted)}, not {len(left)}")
    for verdict in accepted:
        volume, native = read_stack(verdict.stack, "x")
        match = next((truth for truth in left if _is(truth.scan, volume, native)), None)
        if match is None:
            wrong.append("voxels or grid of an accepted scan")
            continue
        left.remove(match)
        if not any(match.note in note for note in ("", *verdict.notes)):
            wrong.append(f"notes {verdict.notes}")
    return wrong


def _is(scan: Scan | None, volume: Volume, native: NativeFrame) -> bool:
    assert scan is not None
    true = Grid(scan.stored.shape, scan.affine)
    voxels, grid = to_canonical(scan.values, true)
    if voxels.shape != volume.voxels.shape:
        return False
    exact = np.issubdtype(volume.voxels.dtype, np.integer)
    back = to_canonical(np.zeros(native.grid.shape), native.grid)[1]
    return all(
        (
            np.allclose(voxels, volume.voxels, rtol=0 if exact else 1e-6, atol=0),
            np.allclose(grid.affine, volume.grid.affine, rtol=0, atol=1e-6),
            np.allclose(grid.affine, back.affine, rtol=0, atol=1e-6),
        )
    )
