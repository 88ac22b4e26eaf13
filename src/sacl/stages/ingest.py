"""Read a cohort of any known layout into canonical volumes and one manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from sacl.errors import ConfigError, DataError
from sacl.geometry import require_same_grid
from sacl.io.layouts.found import Found, FoundCase
from sacl.io.layouts.recognize import find
from sacl.io.manifest import write_cohort
from sacl.io.nifti import read_labels, read_volume, write_label_map, write_volume
from sacl.io.progress import say, track
from sacl.io.run_record import fingerprint, listing_fingerprint, recorded
from sacl.io.scan_table import with_table
from sacl.io.splits import (
    choose_labeled,
    hold_out,
    read_order,
    require_one_split,
    seeded_order,
    subject_of,
)
from sacl.io.workspace import Workspace
from sacl.organs import canonical_name, match
from sacl.patches.window import window_of
from sacl.settings import IngestSettings
from sacl.types import SPLITS, Case, Cohort, Grid, LabelMap, LabelScheme

PHANTOM = "Dataset900_Phantom"
"""Folder that the phantom stage leaves its dataset in."""
_SCAN_LABELS = "scan_labels.csv"
_AIR_HU = -500.0


@dataclass(frozen=True)
class _Plan:
    """What holds for every case: label values, who is labeled, how intensities are read."""

    folder: Path
    scheme: LabelScheme
    label_of: Mapping[int, int]
    ignore: int | None
    labeled: frozenset[str]
    modality: Literal["ct", "mr"]
    settings: IngestSettings


def inputs(settings: IngestSettings, workspace: Workspace) -> dict[str, str]:
    """Return fingerprints of the data, or of the phantom stage, and of the tables beside it."""
    data = _data(settings, workspace)
    if settings.data is None:
        found = {"phantom": fingerprint(workspace.folder("phantom"))}
    else:
        found = {"data": listing_fingerprint(data)}
    for name in ("scan_labels", "labeled_order"):
        path: Path | None = getattr(settings, name)
        if path is not None:
            found[name] = listing_fingerprint(path)
    return found


def ingest(settings: IngestSettings, workspace: Workspace) -> Path:
    """Write every scan in canonical orientation, the references that may be seen, `cohort.json`.

    A training subject that is not chosen as labeled gets no reference file: what is not there
    cannot be learned from. References of validation and test scans are written for scoring.

    Raises:
        ConfigError: the settings ask for organs or subjects that the data does not have.
        DataError: a file is damaged, or the cohort contradicts itself.
    """
    with recorded(workspace, "ingest", settings, inputs(settings, workspace)) as (folder, done):
        found = _found(settings, _data(settings, workspace))
        order = seeded_order(found, settings.labeled_scan_label, workspace.seed)
        found = hold_out(found, order, settings.validation_subjects, settings.test_subjects)
        if settings.labeled_order is not None:
            order = read_order(settings.labeled_order, found)
        labeled = choose_labeled(found, order, settings.labeled_subjects)
        scheme, label_of = _scheme(found, settings.organs)
        modality = _modality(found, settings)
        plan = _Plan(folder, scheme, label_of, found.ignore, frozenset(labeled), modality, settings)
        cases = tuple(_ingest_case(case, plan) for case in track(found.cases, "ingest"))
        cohort = Cohort(found.name, scheme, cases, modality)
        write_cohort(folder, cohort)
        done.update(_counts(cohort), layout=found.layout, labeled_subjects=labeled)
    return folder


def _data(settings: IngestSettings, workspace: Workspace) -> Path:
    """Return where the scans lie: the given folder, else what the phantom stage generated."""
    if settings.data is not None:
        return settings.data
    phantom = workspace.folder("phantom")
    if not (phantom / "run.json").is_file():
        raise ConfigError("ingest.data: no data to read; give --data FOLDER or phantom.scans")
    return phantom / PHANTOM


def _found(settings: IngestSettings, data: Path) -> Found:
    """List the cases with all that is known of them, and tell the user how they were read."""
    found, reason = find(data, settings.layout)
    say(f"ingest: {found.name} read as {found.layout}, by {reason}")
    beside = data / _SCAN_LABELS
    if settings.scan_labels is not None:
        found = with_table(found, settings.scan_labels)
    elif beside.is_file():
        say(f"ingest: scan-wise labels from the data's own {_SCAN_LABELS}")
        found = with_table(found, beside)
    for note in found.notes:
        say(f"ingest: {note}")
    require_one_split(found)
    return found


def _scheme(found: Found, wanted: tuple[str, ...]) -> tuple[LabelScheme, dict[int, int]]:
    """Return the cohort's organs, and the label of every value of the source that is kept.

    Raises:
        ConfigError: an organ that is wanted is not annotated in the data.
    """
    if not found.organs and not wanted:
        raise ConfigError(
            f"ingest.organs: {found.name} names no organs; list those to segment, for instance"
            " --ingest.organs liver spleen"
        )
    sources = list(found.organs.values())
    target = match(sources, wanted) if wanted else {name: name for name in sources}
    missing = [name for name in wanted if sources and name not in target.values()]
    if missing:
        raise ConfigError(
            f"ingest.organs: no organ '{missing[0]}' in {found.name}; it has {', '.join(sources)}"
        )
    names = tuple(canonical_name(name) for name in wanted or sources)
    scheme = LabelScheme(found.name, names)
    kept = {value: target[name] for value, name in found.organs.items() if name in target}
    return scheme, {v: scheme.label_of(canonical_name(name)) for v, name in kept.items()} | {
        value: 0 for value, name in found.organs.items() if name not in target
    }


def _modality(found: Found, settings: IngestSettings) -> Literal["ct", "mr"]:
    """Return the modality: as set, as the dataset says, else guessed by the first scan."""
    if settings.modality != "auto":
        return settings.modality
    if found.modality is not None:
        return found.modality
    low = float(read_volume(found.cases[0].image)[0].voxels.min())
    guess: Literal["ct", "mr"] = "ct" if low < _AIR_HU else "mr"
    say(
        f"ingest: taken as {guess.upper()}, the lowest intensity of {found.cases[0].case_id} is"
        f" {low:g}; set --ingest.modality if this is wrong"
    )
    return guess


def _ingest_case(case: FoundCase, plan: _Plan) -> Case:
    """Check a case, then write its image and, where it may be seen, its reference."""
    volume, native = read_volume(case.image)
    window = window_of(
        volume.voxels,
        plan.modality,
        plan.settings.window_hu,
        plan.settings.percentiles,
        f"case {case.case_id}",
    )
    reference = None
    seen = case.split != "train" or subject_of(case) in plan.labeled
    if case.reference is not None and seen:
        reference = _reference(case.reference, volume.grid, case, plan)
    image_name = f"images/{case.case_id}.nii"
    reference_name = f"references/{case.case_id}.nii.gz" if reference is not None else None
    entry = Case(
        case_id=case.case_id,
        subject_id=subject_of(case),
        image=image_name,
        reference=reference_name,
        split=case.split,
        native=native,
        window=window,
        scan_labels=case.scan_labels,
        annotated=plan.scheme.names if reference is not None else (),
    )
    write_volume(plan.folder / image_name, volume)
    if reference is not None and reference_name is not None:
        write_label_map(plan.folder / reference_name, reference)
    return entry


def _reference(path: Path, grid: Grid, case: FoundCase, plan: _Plan) -> LabelMap:
    """Read a reference and give its values the cohort's meaning.

    Raises:
        DataError: it lies on another grid than the image, has values that the dataset does not
            name, voxels to be ignored, or, of a labeled training scan, nothing but background.
    """
    voxels, own_grid, _ = read_labels(path)
    require_same_grid(grid, own_grid, f"case {case.case_id}")
    values = _values(voxels)
    if plan.ignore in values:
        raise DataError(
            f"case {case.case_id}: its label map has voxels of the value {plan.ignore}, 'ignore';"
            " complete the annotation, or remove this label map so that the scan counts as"
            " unlabeled"
        )
    strange = sorted(values - set(plan.label_of) - {0})
    if strange:
        raise DataError(
            f"case {case.case_id}: label values {strange[:10]} outside the dataset's scheme, which"
            f" has {sorted(plan.label_of)}; correct the label map or the scheme"
        )
    if case.split == "train" and values <= {0}:
        raise DataError(
            f"case {case.case_id}: empty label map, every voxel is background; correct it, or"
            " remove it so that the scan counts as unlabeled"
        )
    table = np.zeros(max(values) + 1, np.uint8 if len(plan.scheme.names) <= 255 else np.uint16)
    for value in values:
        table[value] = plan.label_of.get(value, 0)
    remapped = np.empty(voxels.shape, table.dtype, order="F")
    for k in range(voxels.shape[2]):
        remapped[:, :, k] = table[voxels[:, :, k]]
    return LabelMap(remapped, grid, plan.scheme)


def _values(voxels: np.ndarray) -> set[int]:
    """Return all values of a label map."""
    low, high = int(voxels.min()), int(voxels.max())
    if low < 0 or high > np.iinfo(np.uint16).max:
        return {int(value) for value in np.unique(voxels)}
    seen = np.zeros(high + 1, np.bool_)
    for k in range(voxels.shape[2]):  # by slice: an index array costs 8 bytes per voxel
        seen[voxels[:, :, k]] = True
    return set(np.flatnonzero(seen).tolist())


def _counts(cohort: Cohort) -> dict[str, object]:
    """Return the numbers of cases and subjects by split, and say them."""
    counts: dict[str, object] = {"modality": cohort.modality, "organs": list(cohort.scheme.names)}
    for split in SPLITS:
        cases = cohort.of_split(split)
        counts[split] = {
            "cases": len(cases),
            "subjects": len({case.subject_id for case in cases}),
            "with_reference": sum(case.reference is not None for case in cases),
        }
    told = "; ".join(
        f"{split} {len(cohort.of_split(split))} scans,"
        f" {sum(c.reference is not None for c in cohort.of_split(split))} with reference"
        for split in SPLITS
    )
    say(f"ingest: {told}")
    return counts
