"""What has to become of a series, and the kinds of series that there are by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from make_series import Patient, Scan, make_scan, oblique, tilted, uid

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
