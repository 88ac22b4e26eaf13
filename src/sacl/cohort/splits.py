"""Which subject stands in which split, and which training subjects count as labeled.

Subjects are drawn from one seeded, stratified order: labeled ones from its start, held-out ones
from its end. So smaller labeled sets are nested in larger ones, and holding out more subjects does
not reorder the rest. The strata are values of a scan-wise label, which is known before anybody
annotates; which organs a reference shows is not looked at.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sacl.cohort.dataset import Dataset, SourceCase
from sacl.errors import ConfigError, DataError
from sacl.files.atomic import folder_fingerprint
from sacl.files.documents import as_record, read_json
from sacl.types import UNKNOWN, Split

FOLDS = "splits_final.json"
_FOLD = "fold"
_ORDER_KEY = "train_subjects_in_order"


def require_one_split(dataset: Dataset) -> None:
    """Refuse a dataset that has a subject in two splits, and name where these come from."""
    first: dict[str, SourceCase] = {}
    for case in dataset.cases:
        other = first.setdefault(case.subject, case)
        if other.split != case.split:
            raise DataError(
                f"{dataset.name}: subject {case.subject} is in two splits, case {other.case_id}"
                f" in {other.split} ({other.origin}) and case {case.case_id} in {case.split}"
                f" ({case.origin}); keep a subject's scans in one, or name the subjects in a table"
                " with case_id and subject_id (--ingest.scan_labels)"
            )


@dataclass(frozen=True)
class SplitRules:
    """Who is held out and who is labeled, as the settings of `ingest` say; see there."""

    validation_subjects: int = 0
    test_subjects: int = 0
    labeled_subjects: int | None = None
    labeled_order: Path | None = None
    stratify: str = "phase"
    labeled_values: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: object) -> SplitRules:
        """Return the rules that settings give, by fields of the same names."""
        return cls(**{f.name: getattr(settings, f.name) for f in dataclasses.fields(cls)})

    def fingerprints(self) -> dict[str, str]:
        """Return a hash of the file that the rules read, by the setting's name."""
        order = self.labeled_order
        return {} if order is None else {"labeled_order": folder_fingerprint(order)}


def choose_splits(dataset: Dataset, rules: SplitRules, seed: int) -> tuple[Dataset, list[str]]:
    """Return the dataset with subjects held out, and the subjects that keep their reference."""
    order = seeded_order(dataset, rules.stratify, seed)
    dataset = hold_out(dataset, order, rules.validation_subjects, rules.test_subjects)
    if rules.labeled_order is not None:
        order = read_order(rules.labeled_order, dataset)
    dataset = hide_other_values(dataset, rules.stratify, rules.labeled_values)
    return dataset, choose_labeled(dataset, order, rules.labeled_subjects)


def annotated_subjects(dataset: Dataset, split: Split = "train") -> list[str]:
    """Return the subjects of a split that have a reference, sorted."""
    return sorted({c.subject for c in dataset.cases if c.split == split and c.has_reference})


def stratified_order(strata: Mapping[str, str], seed: int) -> list[str]:
    """Return subjects in a seeded order of which every beginning holds the strata in proportion.

    The r-th of a stratum's n subjects, in random order, comes at (r + 1/2) / n.
    """
    generator = np.random.default_rng(seed)
    placed = []
    for members in members_by_stratum(strata):
        for rank, index in enumerate(generator.permutation(len(members))):
            place = (rank + 0.5) / len(members)
            placed.append((place, float(generator.random()), members[index]))
    return [subject for _, _, subject in sorted(placed)]


def seeded_order(dataset: Dataset, scan_label: str, seed: int) -> list[str]:
    """Return the annotated training subjects in the order from which all sets are drawn."""
    subjects = set(annotated_subjects(dataset))
    scans = [(c.subject, c.scan_labels) for c in dataset.cases if c.subject in subjects]
    return stratified_order(strata_of(scans, scan_label), seed)


def strata_of(scans: Iterable[tuple[str, Mapping[str, str]]], scan_label: str) -> dict[str, str]:
    """Return the stratum by subject: the values that its scans' labels have for `scan_label`."""
    values: dict[str, set[str]] = {}
    for subject, labels in scans:
        values.setdefault(subject, set()).add(labels.get(scan_label, UNKNOWN))
    return {subject: "+".join(sorted(own)) for subject, own in values.items()}


def members_by_stratum(strata: Mapping[str, str]) -> list[list[str]]:
    """Return the subjects of each stratum, both sorted by name."""
    names = sorted(set(strata.values()))
    return [sorted(s for s, stratum in strata.items() if stratum == name) for name in names]


def hold_out(dataset: Dataset, order: Sequence[str], validation: int, test: int) -> Dataset:
    """Move subjects from the end of an order to validation and test, where data has none itself."""
    wanted: dict[Split, int] = {"validation": validation, "test": test}
    for split, count in wanted.items():
        own = annotated_subjects(dataset, split)
        if count and own:
            raise ConfigError(
                f"ingest.{split}_subjects: {count} asked for, but the data has {len(own)} {split}"
                " subjects of its own; set it to 0"
            )
    if validation + test >= max(len(order), 1) and validation + test > 0:
        raise ConfigError(
            f"ingest: {validation} validation and {test} test subjects asked for, but only"
            f" {len(order)} training subjects have a reference; leave at least one to train on"
        )
    start = len(order) - validation - test
    for_validation, for_test = order[start : start + validation], order[start + validation :]
    dataset = dataset.with_changed(
        lambda case: case.subject in for_validation, split="validation", origin="held out"
    )
    return dataset.with_changed(lambda c: c.subject in for_test, split="test", origin="held out")


def hide_other_values(dataset: Dataset, scan_label: str, values: Sequence[str]) -> Dataset:
    """Hide the references of training scans whose scan-wise label is none of some values."""
    if not values:
        return dataset
    shown = [c for c in dataset.cases if c.split == "train" and c.has_reference]
    present = {case.scan_labels.get(scan_label, UNKNOWN) for case in shown}
    missing = [value for value in values if value not in present]
    if missing:
        raise ConfigError(
            f"ingest.labeled_values: no annotated training scan has {scan_label} '{missing[0]}';"
            f" they have {', '.join(sorted(present))}"
        )
    return dataset.with_changed(
        lambda c: c.split == "train" and c.scan_labels.get(scan_label, UNKNOWN) not in values,
        reference=None,
        masks={},
    )


def choose_labeled(dataset: Dataset, order: Sequence[str], count: int | None) -> list[str]:
    """Return the training subjects that keep their reference: the first `count` of an order."""
    able = set(annotated_subjects(dataset))
    ordered = [subject for subject in order if subject in able]
    if count is None:
        return sorted(able)
    if count > len(ordered):
        raise ConfigError(
            f"ingest.labeled_subjects: {count} asked for, but only {len(ordered)} training subjects"
            f" of {dataset.name} have a reference and a place in the order; ask for fewer"
        )
    return ordered[:count]


def read_order(path: Path, dataset: Dataset) -> list[str]:
    """Read subjects in the order in which they become labeled; unknown ones are refused.

    The file is a JSON list, a JSON object with `train_subjects_in_order`, or a text with one
    subject per line.
    """
    document = read_json(path) if path.suffix == ".json" else _lines(path)
    listed = document.get(_ORDER_KEY) if isinstance(document, dict) else document
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise DataError(f"{path.name}: expected a list of subjects, or an object with {_ORDER_KEY}")
    known = {case.subject for case in dataset.cases}
    strange = [name for name in listed if name not in known]
    if strange:
        raise DataError(
            f"{path.name}: subject {strange[0]} is not in {dataset.name} ({len(strange)} such);"
            f" its subjects are named like {min(known)}"
        )
    if len(set(listed)) != len(listed):
        raise DataError(f"{path.name}: a subject is named twice; remove the repetition")
    return listed


def with_fold(dataset: Dataset, root: Path, fold: int | None) -> Dataset:
    """Return a dataset in which the training cases held out by one fold are for validation.

    The folds are those of `splits_final.json`, a list of `{train, val}`, in the dataset's folder,
    beside it, or in nnU-Net's `nnUNet_preprocessed`; else those of the scan-wise label `fold`
    (MONAI). A case that is in neither part of the fold stays what it is, and so does a dataset
    that has neither folds nor references. A validation part of its own is refused.
    """
    path = _folds_file(root)
    if fold is None:
        note = f"{FOLDS} has folds and none is used; choose one by ingest.fold"
        return dataset.with_notes(note if path else "")
    if any(case.split == "validation" and case.has_reference for case in dataset.cases):
        raise ConfigError(
            f"ingest.fold: {fold} asked for, but {dataset.name} has validation scans of its own;"
            " leave it unset"
        )
    if path is None and not any(c.has_reference or _FOLD in c.scan_labels for c in dataset.cases):
        return dataset
    held_out = _by_file(path, fold, dataset) if path else _by_label(dataset, fold)
    dataset = dataset.with_changed(
        lambda case: case.case_id in held_out, split="validation", origin=f"fold {fold}"
    )
    return dataset.with_notes(
        f"fold {fold} holds {len(held_out)} training scans out for validation"
    )


@dataclass(frozen=True)
class _Fold:
    train: list[str]
    val: list[str]


def _folds_file(root: Path) -> Path | None:
    folder = root if root.is_dir() else root.parent
    preprocessed = folder.parent.parent / "nnUNet_preprocessed" / folder.name
    places = (folder, folder.parent, preprocessed)
    return next((place / FOLDS for place in places if (place / FOLDS).is_file()), None)


def _by_file(path: Path, fold: int, dataset: Dataset) -> set[str]:
    remedy = "expected a list of {train, val} with lists of cases"
    folds: list[_Fold] = as_record(read_json(path), list[_Fold], path.name, remedy)
    if not 0 <= fold < len(folds):
        raise ConfigError(
            f"ingest.fold: {fold} asked for, but {path.name} has {len(folds)}, from 0 on"
        )
    training = {case.case_id for case in dataset.cases if case.split == "train"}
    listed = [*folds[fold].train, *folds[fold].val]
    strange = [case_id for case_id in listed if case_id not in training]
    if strange:
        raise DataError(
            f"{path.name}: fold {fold} names '{strange[0]}', no training case of {dataset.name}"
            f" ({len(strange)} such); its cases are named like '{dataset.cases[0].case_id}'"
        )
    return set(folds[fold].val)


def _by_label(dataset: Dataset, fold: int) -> set[str]:
    cases = [case for case in dataset.cases if case.split == "train"]
    folds = {case.scan_labels[_FOLD] for case in cases if _FOLD in case.scan_labels}
    if not folds:
        raise ConfigError(
            f"ingest.fold: {fold} asked for, but {dataset.name} has no {FOLDS} and its scans no"
            f" label '{_FOLD}'; leave it unset, or use ingest.validation_subjects"
        )
    if str(fold) not in folds:
        raise ConfigError(f"ingest.fold: {fold} asked for, expected one of {sorted(folds)}")
    return {case.case_id for case in cases if case.scan_labels.get(_FOLD) == str(fold)}


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path.name}: not readable ({type(error).__name__})") from error
    return [line.strip() for line in lines if line.strip()]
