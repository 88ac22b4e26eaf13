"""Cross-validation folds that came with the data: nnU-Net's `splits_final.json`, MONAI's `fold`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from sacl.cohort.layouts.found import Found, FoundCase
from sacl.errors import ConfigError, DataError

SPLITS = "splits_final.json"
_LABEL = "fold"


def with_fold(found: Found, root: Path, fold: int | None) -> Found:
    """Return a dataset in which the training cases held out by one fold are for validation.

    The folds are those of `splits_final.json`, a list of `{train, val}`, in the dataset's folder,
    beside it, or in nnU-Net's `nnUNet_preprocessed`; else those of the scan-wise label `fold`.
    Where no fold is asked for, a note says that there are some, and nothing is changed. A training
    case that is in neither part of the fold stays what it is, and so does a dataset that has
    neither folds nor references.

    Raises:
        ConfigError: the data has no folds, not so many, or a validation part already.
        DataError: `splits_final.json` is damaged, or names a case that is not there.
    """
    path = splits_file(root)
    if fold is None:
        note = f"{SPLITS} has folds and none is used; choose one by ingest.fold"
        return dataclasses.replace(found, notes=(*found.notes, note)) if path else found
    if any(case.split == "validation" and case.has_reference for case in found.cases):
        raise ConfigError(
            f"ingest.fold: {fold} asked for, but {found.name} has validation scans of its own;"
            " leave it unset"
        )
    if path is None and not any(c.has_reference or _LABEL in c.scan_labels for c in found.cases):
        return found
    held_out = _by_file(path, fold, found) if path else _by_label(found, fold)
    cases = tuple(
        dataclasses.replace(case, split="validation", origin=f"fold {fold}")
        if case.case_id in held_out
        else case
        for case in found.cases
    )
    note = f"fold {fold} holds {len(held_out)} training scans out for validation"
    return dataclasses.replace(found, cases=cases, notes=(*found.notes, note))


def splits_file(root: Path) -> Path | None:
    """Return the `splits_final.json` of a dataset, None where there is none."""
    folder = root if root.is_dir() else root.parent
    preprocessed = folder.parent.parent / "nnUNet_preprocessed" / folder.name
    places = (folder, folder.parent, preprocessed)
    return next((place / SPLITS for place in places if (place / SPLITS).is_file()), None)


def _by_file(path: Path, fold: int, found: Found) -> set[str]:
    """Return the cases that a fold of `splits_final.json` holds out."""
    folds = _read(path)
    _require_fold(fold, len(folds), path.name)
    training = {case.case_id for case in found.cases if case.split == "train"}
    listed = [*folds[fold]["train"], *folds[fold]["val"]]
    strange = [case_id for case_id in listed if case_id not in training]
    if strange:
        raise DataError(
            f"{path.name}: fold {fold} names '{strange[0]}', no training case of {found.name}"
            f" ({len(strange)} such); its cases are named like '{found.cases[0].case_id}'"
        )
    return set(folds[fold]["val"])


def _by_label(found: Found, fold: int) -> set[str]:
    """Return the training cases whose scan-wise label names the fold."""
    cases: list[FoundCase] = [c for c in found.cases if c.split == "train"]
    folds = {c.scan_labels[_LABEL] for c in cases if _LABEL in c.scan_labels}
    if not folds:
        raise ConfigError(
            f"ingest.fold: {fold} asked for, but {found.name} has no {SPLITS} and its scans no"
            f" label '{_LABEL}'; leave it unset, or use ingest.validation_subjects"
        )
    if str(fold) not in folds:
        raise ConfigError(f"ingest.fold: {fold} asked for, expected one of {sorted(folds)}")
    return {c.case_id for c in cases if c.scan_labels.get(_LABEL) == str(fold)}


def _read(path: Path) -> list[dict[str, list[str]]]:
    try:
        folds: Any = json.loads(path.read_text(encoding="utf-8-sig"))
        parts = [fold[key] for fold in folds for key in ("train", "val")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path.name}: expected a list of {{train, val}} ({type(error).__name__})"
        ) from error
    if not isinstance(folds, list) or not all(_is_names(part) for part in parts):
        raise DataError(f"{path.name}: expected a list of {{train, val}} with lists of cases")
    return folds


def _is_names(part: Any) -> bool:
    return isinstance(part, list) and all(isinstance(name, str) for name in part)


def _require_fold(fold: int, count: int, where: str) -> None:
    if not 0 <= fold < count:
        raise ConfigError(f"ingest.fold: {fold} asked for, but {where} has {count}, from 0 on")
