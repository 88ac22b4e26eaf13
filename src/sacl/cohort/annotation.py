"""Which organs a cohort has, and which of them somebody looked for in which scan.

An organ is "annotated" in a scan where somebody looked for it, whether it is there or not; where
nobody looked, it is unknown: neither trained nor scored as absent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace

from sacl.cohort.dataset import Dataset, SourceCase, counted, in_short
from sacl.errors import ConfigError, DataError
from sacl.organs import canonical_name, is_complete, match, wholes
from sacl.types import UNKNOWN, LabelScheme

_MANY = 12
"""A scan-wise label with more values than this, such as an age, is described without them."""


def annotated_organs(dataset: Dataset, case: SourceCase, scheme: LabelScheme) -> tuple[str, ...]:
    """Return the scheme's organs that somebody looked for in a scan, of a whole all parts of it."""
    if not case.has_reference:
        return ()
    listed = case.annotated
    if listed is None:
        listed = tuple(case.masks) or tuple(dataset.table_of(case).values())
    names = set(map(canonical_name, listed))
    return tuple(organ for organ in scheme.names if is_complete(organ, names))


def choose_scheme(dataset: Dataset, wanted: Sequence[str]) -> tuple[LabelScheme, tuple[str, ...]]:
    """Return the cohort's organs, and what the user should know of the choice.

    They are those that are wanted, else all of the data. Where one part of the data has both sides
    or all lobes of an organ in one label and another part has them apart, they are merged. Organs
    that the data does not have are refused.
    """
    tables = _tables(dataset)
    sources = list(dict.fromkeys(name for table in tables for name in table))
    if not sources and not wanted:
        raise ConfigError(
            f"ingest.organs: {dataset.name} names no organs; list those to segment, for instance"
            " --ingest.organs liver,spleen"
        )
    canonical = [{canonical_name(name) for name in table} for table in tables]
    for name in wanted if sources else ():
        if not any(is_complete(name, table) for table in canonical):
            raise ConfigError(
                f"ingest.organs: no organ '{name}' in {dataset.name}; it has {', '.join(sources)};"
                " name it as the data do"
            )
    if wanted:
        return LabelScheme(dataset.name, tuple(map(canonical_name, wanted))), ()
    names, merged = _coarsest(list(dict.fromkeys(map(canonical_name, sources))), canonical)
    notes = tuple(
        f"{' and '.join(parts)} are merged into {whole}, which some of the data do not divide"
        for whole, parts in merged.items()
    )
    return LabelScheme(dataset.name, names), notes


def only_labeled(dataset: Dataset) -> tuple[Dataset, tuple[str, ...]]:
    """Return the scans with a reference, all for testing, and the names of the others."""
    labeled = tuple(replace(c, split="test") for c in dataset.cases if c.has_reference)
    if not labeled:
        raise DataError(
            f"{dataset.name}: none of {counted(len(dataset.cases), 'scan')} has a label map, so"
            " nothing can be scored; `sacl predict` makes label maps of such scans"
        )
    others = tuple(case.case_id for case in dataset.cases if not case.has_reference)
    return replace(dataset, cases=labeled), others


def label_of_value(
    dataset: Dataset, case: SourceCase, scheme: LabelScheme, annotated: Sequence[str]
) -> dict[int, int]:
    """Return the cohort's label of every value of a case's map; 0 for what is not annotated."""
    table = dataset.table_of(case)
    target = match(list(table.values()), annotated)
    return {
        value: scheme.label_of(target[name]) if name in target else 0
        for value, name in table.items()
    }


def require_known_organs(dataset: Dataset) -> None:
    """Refuse a case that is said to be annotated for an organ that the data never names."""
    tables = _tables(dataset) + [tuple(case.masks) for case in dataset.cases]
    names = dict.fromkeys(name for table in tables for name in table)
    known = {canonical_name(name) for name in names}.union(*map(wholes, names))
    for case in dataset.cases:
        for name in case.annotated or ():
            if canonical_name(name) not in known:
                raise DataError(
                    f"case {case.case_id}: annotated for '{name}', not an organ of {dataset.name},"
                    f" which has {', '.join(names)}; correct the name, and separate several by ;"
                )


def keep_annotated(dataset: Dataset, scheme: LabelScheme) -> Dataset:
    """Return a dataset in which references without an organ of the scheme are left out."""
    lost = {
        case.case_id
        for case in dataset.cases
        if case.has_reference and not annotated_organs(dataset, case, scheme)
    }
    kept = dataset.with_changed(
        lambda case: case.case_id in lost, reference=None, masks={}, annotated=None
    )
    note = f"{len(lost)} references annotate none of the organs; these scans count as unlabeled"
    return kept.with_notes(note if lost else "")


def dataset_in_lines(dataset: Dataset, scheme: LabelScheme) -> list[str]:
    """Return in lines: scans, subjects, organs and how often each is annotated, scan labels."""
    subjects = {case.subject for case in dataset.cases}
    lines = [
        f"{counted(len(dataset.cases), 'scan')} of {counted(len(subjects), 'subject')}",
        f"{counted(len(scheme.names), 'organ')}: {in_short(scheme.names, _MANY)}",
    ]
    references = sum(case.has_reference for case in dataset.cases)
    counts = Counter(o for case in dataset.cases for o in annotated_organs(dataset, case, scheme))
    partly = [f"{organ} {counts[organ]}" for organ in scheme.names if counts[organ] < references]
    if partly:
        lines.append(
            f"annotated in fewer than all {references} references, and unknown in the others:"
            f" {', '.join(partly)}"
        )
    for name in sorted({name for case in dataset.cases for name in case.scan_labels}):
        values = Counter(case.scan_labels.get(name, UNKNOWN) for case in dataset.cases)
        counts_of = ", ".join(f"{value} {count}" for value, count in sorted(values.items()))
        lines.append(f"{name}: {counts_of if len(values) <= _MANY else f'{len(values)} values'}")
    return lines


def require_all_learned(
    dataset: Dataset, labeled: Sequence[SourceCase], scheme: LabelScheme
) -> None:
    """Refuse labeled scans that leave an organ without any annotation to learn it from."""
    learned = {organ for case in labeled for organ in annotated_organs(dataset, case, scheme)}
    missing = [organ for organ in scheme.names if organ not in learned]
    if labeled and missing:
        raise ConfigError(
            f"ingest.organs: no labeled training scan is annotated for {', '.join(missing)}; leave"
            " it out of ingest.organs, or label subjects with it (ingest.labeled_subjects,"
            " labeled_order, stratify)"
        )


def _tables(dataset: Dataset) -> list[tuple[str, ...]]:
    """Return the organs that each source of the data names, as it calls them."""
    tables = [dataset.organs, *(dataset.table_of(case) for case in dataset.cases)]
    listed = dict.fromkeys(tuple(table.values()) for table in tables)
    if not any(listed):
        listed = dict.fromkeys(tuple(case.masks) for case in dataset.cases)
    return [table for table in listed if table]


def _coarsest(
    names: Sequence[str], tables: Sequence[Collection[str]]
) -> tuple[tuple[str, ...], dict[str, list[str]]]:
    """Return the organs without those that some table only has merged, and what is merged."""
    merged: dict[str, list[str]] = {}
    for name in names:
        for whole in wholes(name):
            if any(whole in table and name not in table for table in tables):
                merged.setdefault(whole, []).append(name)
                break
    gone = {part for parts in merged.values() for part in parts}
    return tuple(name for name in names if name not in gone), merged
