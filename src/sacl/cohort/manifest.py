"""`cohort.json` and the volumes beside it: the one description of a cohort all stages share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sacl.errors import DataError
from sacl.files.atomic import write_text
from sacl.files.nifti import map_volume, read_label_map, read_volume
from sacl.types import Case, Cohort, Grid, LabelMap, LabelScheme, NativeFrame, Volume

MANIFEST = "cohort.json"
_VERSION = 1


def write_cohort(folder: Path, cohort: Cohort) -> None:
    """Write the cohort's manifest into its folder; it holds no path outside of it."""
    document = {
        "version": _VERSION,
        "name": cohort.name,
        "modality": cohort.modality,
        "scheme": {"name": cohort.scheme.name, "names": list(cohort.scheme.names)},
        "cases": [_case_to_json(case) for case in cohort.cases],
    }
    write_text(folder / MANIFEST, json.dumps(document, indent=1, allow_nan=False) + "\n")


def read_cohort(folder: Path) -> Cohort:
    """Read the cohort of a folder.

    Raises:
        DataError: the manifest is missing, damaged or of another version.
    """
    where = f"{folder.name}/{MANIFEST}"
    try:
        document = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{where}: no such file; run `sacl ingest` first") from error
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error}); run `sacl ingest --force`") from error
    if document.get("version") != _VERSION:
        raise DataError(
            f"{where}: version {document.get('version')}, expected {_VERSION};"
            " run `sacl ingest --force`"
        )
    try:
        scheme = LabelScheme(document["scheme"]["name"], tuple(document["scheme"]["names"]))
        cases = tuple(_case_from_json(row) for row in document["cases"])
        return Cohort(document["name"], scheme, cases, document["modality"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{where}: damaged, {type(error).__name__} {error}; run `sacl ingest --force`"
        ) from error


def read_image(folder: Path, case: Case) -> Volume:
    """Return a case's canonical image, memory-mapped where it is stored uncompressed."""
    path = folder / case.image
    return map_volume(path) if path.suffix == ".nii" else read_volume(path)[0]


def read_reference(folder: Path, case: Case, scheme: LabelScheme) -> LabelMap | None:
    """Return a case's canonical reference, None where it has none or it is hidden."""
    if case.reference is None:
        return None
    return read_label_map(folder / case.reference, scheme)[0]


def _case_to_json(case: Case) -> dict[str, Any]:
    native = case.native
    return {
        "case_id": case.case_id,
        "subject_id": case.subject_id,
        "split": case.split,
        "image": case.image,
        "reference": case.reference,
        "annotated": list(case.annotated),
        "scan_labels": dict(case.scan_labels),
        "window": [float(end) for end in case.window],
        "native": {
            "shape": list(native.grid.shape),
            "affine": native.grid.affine.tolist(),
            "qform_code": native.qform_code,
            "sform_code": native.sform_code,
            "xyzt_units": native.xyzt_units,
            "qform": list(native.qform),
        },
    }


def _case_from_json(row: Mapping[str, Any]) -> Case:
    native = row["native"]
    i, j, k = native["shape"]
    low, high = row["window"]
    return Case(
        case_id=row["case_id"],
        subject_id=row["subject_id"],
        image=row["image"],
        reference=row["reference"],
        split=row["split"],
        native=NativeFrame(
            Grid((i, j, k), np.array(native["affine"], dtype=np.float64)),
            native["qform_code"],
            native["sform_code"],
            native["xyzt_units"],
            tuple(native["qform"]),
        ),
        window=(float(low), float(high)),
        scan_labels=row["scan_labels"],
        annotated=tuple(row["annotated"]),
    )
