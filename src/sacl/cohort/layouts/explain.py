"""Say how a dataset would be read, without reading it: its layout, why, and what is in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sacl.cohort.dataset import Dataset, SourceCase
from sacl.cohort.layouts import dicom
from sacl.cohort.layouts.listing import recognize
from sacl.dicom.files import DAMAGE, Opener
from sacl.dicom.header import scrubbed, text
from sacl.dicom.intake import Intake, take_in
from sacl.dicom.pseudonyms import KeyRow, read_key, with_pseudonyms
from sacl.dicom.slices import read_dataset
from sacl.dicom.verdict import DicomExport, Verdict
from sacl.types import SPLITS

_COLUMNS = ("series", "subject", "modality", "slices", "spacing_mm", "phase", "verdict", "code")
_PAIRS = 3


@dataclass(frozen=True, kw_only=True)
class SeriesRow:
    """A DICOM series, or a file that is refused, in the table; without file, UID or date.

    A subject and a scan have their pseudonym where the key knows them, else a running number of
    this table alone. The description is scrubbed.
    """

    verdict: str
    code: str | None
    reason: str | None
    series: int | None = None
    subject: str | None = None
    case_id: str | None = None
    series_number: int | None = None
    part: str | None = None
    modality: str | None = None
    slices: int | None = None
    spacing_mm: tuple[float, ...] | None = None
    phase: str | None = None
    phase_reason: str | None = None
    notes: tuple[str, ...] = ()
    description: str | None = None


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """How a dataset would be read: of DICOM every series, of any other layout the cases by split.

    `pairs` are the first images with their label maps.
    """

    layout: str
    reason: str
    notes: tuple[str, ...]
    series: tuple[SeriesRow, ...] = ()
    name: str | None = None
    modality: str | None = None
    organs: tuple[str, ...] = ()
    cases: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    pairs: tuple[str, ...] = ()

    def as_text(self) -> str:
        """Return it for a terminal: a line per series, its sentence at the end."""
        lines = [f"layout {self.layout}, by {self.reason}", *self.notes]
        lines += [
            f"{split}: {count['cases']} cases, {count['with_reference']} with a reference"
            for split, count in self.cases.items()
        ]
        lines += [f"pairs, such as {'; '.join(self.pairs)}"] if self.pairs else []
        if not self.series:
            return "\n".join(lines)
        rows = [[*(name.replace("_", " ") for name in _COLUMNS), "reason, notes [description]"]]
        rows += [
            [*(_cell(getattr(row, name)) for name in _COLUMNS), _remark(row)] for row in self.series
        ]
        widths = [max(len(row[n]) for row in rows) for n in range(len(_COLUMNS))]
        for row in rows:
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
            lines.append("  ".join([*cells, row[-1]]).rstrip())
        return "\n".join(lines)


def explain_dataset(root: Path, layout: str, export: DicomExport) -> Explanation:
    """Return how `ingest` would read a dataset, also an export of which no series is accepted."""
    name, (reason, read) = recognize(root, layout)
    if name != dicom.NAME:
        return _counts(read(), reason, root if root.is_dir() else root.parent)
    intake = take_in(root, export)
    known = read_key(export.key) if export.key is not None else []
    rows = _series_table(intake, known)
    return Explanation(layout=name, reason=reason, notes=intake.notes, series=rows)


def _series_table(intake: Intake, known: Sequence[KeyRow]) -> tuple[SeriesRow, ...]:
    """Return a row per series and per refused file; pseudonyms are those that the key knows."""
    by_scan = {row.scan: row.case_id for row in known}
    by_subject = {row.subject: row.subject_id for row in known}
    keys, _ = with_pseudonyms([verdict.series for verdict in intake.verdicts], [])
    numbers: dict[tuple[str, ...], int] = {}
    rows = []
    with Opener() as opener:
        for count, (verdict, key) in enumerate(zip(intake.verdicts, keys, strict=True), start=1):
            number = numbers.setdefault(key.subject, len(numbers) + 1)
            subject = by_subject.get(key.subject, str(number))
            case_id = by_scan.get(key.scan) if verdict.accepted else None
            rows.append(_row(verdict, count, subject, case_id, opener))
    for fault in (each.fault for each in intake.refused):
        rows.append(SeriesRow(verdict="rejected", code=fault.code, reason=fault.sentence))
    return tuple(rows)


def _row(
    verdict: Verdict, count: int, subject: str, case_id: str | None, opener: Opener
) -> SeriesRow:
    first, stack = verdict.series.slices[0], verdict.stack
    try:
        header = read_dataset(first.source, opener)
        description = scrubbed(text(header, "SeriesDescription"), header)
    except DAMAGE:
        description = ""
    fault = verdict.fault
    return SeriesRow(
        verdict="accepted" if fault is None else "rejected",
        code=None if fault is None else fault.code,
        reason=None if fault is None else fault.sentence,
        series=count,
        subject=subject,
        case_id=case_id,
        series_number=first.series_number,
        part=verdict.series.part or None,
        modality=first.modality if first.modality.isalnum() else None,
        slices=len(stack.slices if stack is not None else verdict.series.slices),
        spacing_mm=tuple(round(mm, 4) for mm in stack.grid.spacing_mm) if stack else None,
        phase=verdict.labels.get("phase"),
        phase_reason=verdict.phase_reason or None,
        notes=verdict.notes,
        description=description or None,
    )


def _counts(dataset: Dataset, reason: str, root: Path) -> Explanation:
    paired = [_pair(case, root) for case in dataset.cases if case.has_reference]
    cases = Counter(case.split for case in dataset.cases)
    labeled = Counter(case.split for case in dataset.cases if case.has_reference)
    return Explanation(
        layout=dataset.layout,
        reason=reason,
        name=dataset.name,
        modality=dataset.modality,
        organs=tuple(dataset.organs.values()),
        notes=dataset.notes,
        cases={s: {"cases": cases[s], "with_reference": labeled[s]} for s in SPLITS},
        pairs=tuple(paired[:_PAIRS]),
    )


def _pair(case: SourceCase, root: Path) -> str:
    """Return an image and its label map in words, by their places below the dataset's folder."""
    label = case.reference or next(iter(case.masks.values()))
    image, label = (
        path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
        for path in (case.image, label)
    )
    return f"{image} with {'' if case.reference else f'{len(case.masks)} masks such as '}{label}"


def _cell(value: object) -> str:
    if isinstance(value, tuple):
        return " x ".join(f"{mm:g}" for mm in value)
    return "-" if value is None else str(value)


def _remark(row: SeriesRow) -> str:
    words = [row.reason, row.part, row.phase_reason, *row.notes]
    return "; ".join(filter(None, words)) + (f" [{row.description}]" if row.description else "")
