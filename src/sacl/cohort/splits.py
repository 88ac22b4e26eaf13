"""Which subject stands in which split, and which training subjects count as labeled.

Subjects are drawn from one seeded, stratified order: labeled ones from its start, held-out ones
from its end. So smaller labeled sets are nested in larger ones, and holding out more subjects does
not reorder the rest. The strata are values of a scan-wise label, which is known before anybody
annotates; which organs a reference shows is not looked at.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sacl.cohort.layouts.found import Found, FoundCase
from sacl.errors import ConfigError, DataError
from sacl.types import UNKNOWN, Split

_ORDER_KEY = "train_subjects_in_order"


def subject_of(case: FoundCase) -> str:
    """Return the subject of a case; a case of an unnamed subject is a subject of its own."""
    return case.subject_id or case.case_id


def require_one_split(found: Found) -> None:
    """Refuse a dataset that has a subject in two splits.

    Raises:
        DataError: names the subject, two of its cases and where their splits come from.
    """
    first: dict[str, FoundCase] = {}
    for case in found.cases:
        other = first.setdefault(subject_of(case), case)
        if other.split != case.split:
            raise DataError(
                f"{found.name}: subject {subject_of(case)} is in two splits, case {other.case_id}"
                f" in {other.split} ({other.origin}) and case {case.case_id} in {case.split}"
                f" ({case.origin}); keep a subject's scans in one"
            )


def annotated_subjects(found: Found, split: Split = "train") -> list[str]:
    """Return the subjects of a split that have a reference, sorted."""
    return sorted({subject_of(c) for c in found.cases if c.split == split and c.has_reference})


def stratified_order(strata: Mapping[str, str], seed: int) -> list[str]:
    """Return subjects in a seeded order of which every beginning holds the strata in proportion.

    The r-th of a stratum's n subjects, in random order, comes at (r + 1/2) / n.
    """
    generator = np.random.default_rng(seed)
    by_stratum: dict[str, list[str]] = {}
    for subject in sorted(strata):
        by_stratum.setdefault(strata[subject], []).append(subject)
    placed = []
    for stratum in sorted(by_stratum):
        members = by_stratum[stratum]
        for rank, index in enumerate(generator.permutation(len(members))):
            place = (rank + 0.5) / len(members)
            placed.append((place, float(generator.random()), members[index]))
    return [subject for _, _, subject in sorted(placed)]


def seeded_order(found: Found, scan_label: str, seed: int) -> list[str]:
    """Return the annotated training subjects in the order from which all sets are drawn.

    A subject's stratum is the set of values that its scans have for `scan_label`.
    """
    values: dict[str, set[str]] = {subject: set() for subject in annotated_subjects(found)}
    for case in found.cases:
        if subject_of(case) in values:
            values[subject_of(case)].add(case.scan_labels.get(scan_label, UNKNOWN))
    return stratified_order({s: "+".join(sorted(v)) for s, v in values.items()}, seed)


def hold_out(found: Found, order: Sequence[str], validation: int, test: int) -> Found:
    """Move annotated training subjects from the end of an order to validation and test.

    Raises:
        ConfigError: the data has such a split already, or no training subject would be left.
    """
    for split, count in (("validation", validation), ("test", test)):
        own = annotated_subjects(found, "validation" if split == "validation" else "test")
        if count and own:
            raise ConfigError(
                f"ingest.{split}_subjects: {count} asked for, but the data has {len(own)} {split}"
                " subjects of its own; set it to 0"
            )
    if validation + test >= max(len(order), 1) and validation + test > 0:
        raise ConfigError(
            f"ingest: {validation} validation and {test} test subjects asked for, but only"
            f" {len(order)} training subjects have a reference; one at least has to stay"
        )
    start = len(order) - validation - test
    split_of: dict[str, Split] = dict.fromkeys(order[start : start + validation], "validation")
    split_of.update(dict.fromkeys(order[start + validation :], "test"))
    cases = (
        dataclasses.replace(case, split=split_of[subject_of(case)], origin="held out")
        if subject_of(case) in split_of
        else case
        for case in found.cases
    )
    return dataclasses.replace(found, cases=tuple(cases))


def hide_other_values(found: Found, scan_label: str, values: Sequence[str]) -> Found:
    """Hide the references of training scans whose scan-wise label is none of some values.

    Raises:
        ConfigError: no annotated training scan has such a value.
    """
    if not values:
        return found
    shown = [c for c in found.cases if c.split == "train" and c.has_reference]
    present = {case.scan_labels.get(scan_label, UNKNOWN) for case in shown}
    missing = [value for value in values if value not in present]
    if missing:
        raise ConfigError(
            f"ingest.labeled_values: no annotated training scan has {scan_label} '{missing[0]}';"
            f" they have {', '.join(sorted(present))}"
        )
    return dataclasses.replace(
        found,
        cases=tuple(
            case
            if case.split != "train" or case.scan_labels.get(scan_label, UNKNOWN) in values
            else dataclasses.replace(case, reference=None, masks={})
            for case in found.cases
        ),
    )


def choose_labeled(found: Found, order: Sequence[str], count: int | None) -> list[str]:
    """Return the training subjects that keep their reference: the first `count` of an order.

    Raises:
        ConfigError: more are asked for than there are.
    """
    able = set(annotated_subjects(found))
    ordered = [subject for subject in order if subject in able]
    if count is None:
        return sorted(able)
    if count > len(ordered):
        raise ConfigError(
            f"ingest.labeled_subjects: {count} asked for, but only {len(ordered)} training subjects"
            f" of {found.name} have a reference and a place in the order; ask for fewer"
        )
    return ordered[:count]


def read_order(path: Path, found: Found) -> list[str]:
    """Read subjects in the order in which they become labeled.

    The file is a JSON list, a JSON object with `train_subjects_in_order`, or a text with one
    subject per line.

    Raises:
        DataError: the file is not readable, or names a subject twice or one that is not there.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        document = json.loads(text) if path.suffix == ".json" else lines
    except (OSError, ValueError) as error:
        raise DataError(f"{path.name}: not readable ({type(error).__name__})") from error
    listed = document.get(_ORDER_KEY) if isinstance(document, dict) else document
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise DataError(f"{path.name}: expected a list of subjects, or an object with {_ORDER_KEY}")
    known = {subject_of(case) for case in found.cases}
    strange = [name for name in listed if name not in known]
    if strange:
        raise DataError(
            f"{path.name}: subject {strange[0]} is not in {found.name} ({len(strange)} such);"
            f" its subjects are named like {min(known)}"
        )
    if len(set(listed)) != len(listed):
        raise DataError(f"{path.name}: a subject is named twice; remove the repetition")
    return listed
