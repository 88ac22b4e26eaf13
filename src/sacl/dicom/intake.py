"""Go through an export: list its files, group them into series and judge each; and read it again.

`ingested_series` and `series_named` lead from a scan back to the headers of its images: one
dataset per slice in the order of the native grid's k axis, or a single one of an enhanced series.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import Dataset

from sacl.dicom.files import DAMAGE, NO_PERMISSION, Opener, Refused, sources
from sacl.dicom.header import names_the_patient
from sacl.dicom.pseudonyms import read_key
from sacl.dicom.series import Series, group
from sacl.dicom.slices import Slice, meta_text, read_dataset, read_slices
from sacl.dicom.stack import SliceStack
from sacl.dicom.verdict import DicomExport, Verdict, beside_others, judge_series, only_largest
from sacl.errors import DataError, NoSeriesError
from sacl.progress import track

Headers = Sequence[Dataset]
"""Of a scan's own images, without pixels."""
_SHARED = ("identity", "image_type", "encoding", "spacing_mm", "orientation", "modality")
"""What many slices have in common: kept once, it takes about half the memory."""
_NOT_READ = {
    "other": "files that are no DICOM",
    "object": "DICOM files without an image",
    "damaged": "DICOM files with a damaged header",
}


@dataclass(frozen=True, eq=False)
class Intake:
    """An export as judged: a verdict per series, what is refused, and the files by their kind."""

    verdicts: tuple[Verdict, ...]
    refused: tuple[Refused, ...]
    files: Counter[str]

    @property
    def notes(self) -> tuple[str, ...]:
        """What to tell the user of it, in sentences without anybody's name."""
        reasons = Counter(v.fault.code for v in self.verdicts if v.fault is not None)
        accepted = sum(verdict.accepted for verdict in self.verdicts)
        why = ", ".join(f"{count} {code}" for code, count in reasons.most_common())
        notes = [f"{accepted} of {len(self.verdicts)} series accepted" + (why and f"; {why}")]
        counts = {name: self.files[kind] for kind, name in _NOT_READ.items()}
        notes += [f"{count} {name} skipped" for name, count in counts.items() if count]
        faults = Counter(each.fault for each in self.refused)
        locked = faults.pop(NO_PERMISSION, 0)
        if locked:
            notes.append(f"{locked} files or folders skipped: no permission to read them")
        notes += [
            f"{n} zip{'s' * (n > 1)} refused, {f.code}: {f.sentence}" for f, n in faults.items()
        ]
        return tuple(notes)


def take_in(root: Path, export: DicomExport | None = None) -> Intake:
    """Judge all series of a folder, a zip or a folder of zips, in the order of patient and time."""
    export = export or DicomExport()
    slices, refused, files = list_slices(root)
    with Opener() as opener:
        every = sorted(group(slices), key=_patient_and_time)
        verdicts = [
            judge_series(series, opener, export.modality) for series in track(every, "dicom series")
        ]
    verdicts = beside_others(verdicts)
    if export.series == "largest":
        verdicts = only_largest(verdicts)
    return Intake(tuple(verdicts), tuple(refused), files)


def list_slices(root: Path) -> tuple[list[Slice], list[Refused], Counter[str]]:
    """Return all slices of an export by their headers, what is refused, and the kinds of files."""
    slices: list[Slice] = []
    refused: list[Refused] = []
    files: Counter[str] = Counter()
    equal: dict[Any, Any] = {}
    with Opener() as opener:
        for source in track(sources(root), "dicom headers"):
            if isinstance(source, Refused):
                refused.append(source)
                continue
            kind, pieces = read_slices(source, root, opener)
            files[kind] += 1
            if kind == "locked":
                refused.append(Refused(source.path, NO_PERMISSION))
            for piece in pieces:
                values = {name: getattr(piece, name) for name in _SHARED}
                shared = {name: equal.setdefault(value, value) for name, value in values.items()}
                slices.append(dataclasses.replace(piece, **shared))
    return slices, refused, files


def what_is_dicom(root: Path) -> str | None:
    """Return in words by what a folder or zip is an export, None where it is none.

    A zip is one whatever is in it, and so is a folder without any image in which a zip or file is
    refused: `take_in` says why.
    """
    refused = False
    with Opener() as opener:
        for source in sources(root):
            kind = "locked" if isinstance(source, Refused) else read_slices(source, root, opener)[0]
            refused = refused or kind == "locked"
            if kind == "image":
                return "DICOM images in a zip" if root.is_file() else "DICOM images in it"
    if root.suffix.lower() == ".zip" and root.is_file():
        return "a zip"
    return "zips or files in it that are refused" if refused else None


def names_a_patient(words: str, intake: Intake) -> bool:
    """Tell whether a text, such as a folder's name, names a patient of the export."""
    first = {verdict.series.study: verdict.series.slices[0] for verdict in intake.verdicts}
    with Opener() as opener:
        for piece in first.values():
            with contextlib.suppress(*DAMAGE):
                if names_the_patient(words, read_dataset(piece.source, opener)):
                    return True
    return False


def ingested_series(roots: Sequence[Path], key: Path) -> Callable[[str], Headers]:
    """Return what reads the headers of a case's source images; the files are listed once for all.

    `roots` are what the cohort was ingested from, `key` is the work directory's `dicom-key.csv`.
    It raises NoSeriesError where the key does not know the case, or the roots have it no more.
    """
    rows = {row.case_id: row for row in read_key(key)}

    @functools.cache
    def by_scan() -> dict[tuple[str, ...], list[Slice]]:
        scans: dict[tuple[str, ...], list[Slice]] = {}
        for piece in (piece for root in roots for piece in list_slices(root)[0]):
            scans.setdefault(piece.identity.scan, []).append(piece)
        return scans

    def read(case_id: str) -> Headers:
        row = rows.get(case_id)
        if row is None:
            raise NoSeriesError(f"not in {key.name}, so not ingested from DICOM")
        own = _accepted(by_scan().get(row.scan[:-1], []))
        stack = next((stack for part, stack in own if part == row.part), None)
        if stack is None:
            raise NoSeriesError(
                "the series is not in the folder given, or is no longer accepted; give the"
                " folder that was ingested"
            )
        return headers_of(stack, case_id)

    return read


def series_named(root: Path, case_id: str) -> Headers:
    """Return the headers of the one series in a folder or zip of a case's name; or refuse."""
    paths = [path for path in (root / case_id, root / f"{case_id}.zip") if path.exists()]
    if not paths:
        raise NoSeriesError(
            f"{root.name} has no folder or zip of this name; give a folder with one DICOM series"
            " per case"
        )
    accepted = _accepted(list_slices(paths[0])[0])
    if len(accepted) != 1:
        raise NoSeriesError(
            f"{len(accepted)} DICOM series are accepted in the folder, expected one; `sacl ingest"
            " FOLDER --explain` gives all reasons"
        )
    return headers_of(accepted[0][1], case_id)


def _accepted(slices: Sequence[Slice]) -> list[tuple[str, SliceStack]]:
    """Return the accepted series among some slices, each behind what tells it from its like."""
    with Opener() as opener:
        verdicts = [judge_series(series, opener) for series in group(slices)]
    return [(v.series.part, v.stack) for v in verdicts if v.stack is not None]


def headers_of(stack: SliceStack, case_id: str) -> Headers:
    """Return the headers of a scan's images; emptied SOP UIDs are those of the files' meta data.

    Raises:
        DataError: the series has changed since it was stacked.
    """
    headers = []
    try:
        with Opener() as opener:
            for source in dict.fromkeys(piece.source for piece in stack.slices):
                header = read_dataset(source, opener)
                for keyword in ("SOPClassUID", "SOPInstanceUID"):
                    setattr(header, keyword, meta_text(header, keyword) or None)
                headers.append(header)
    except DAMAGE as error:
        raise DataError(
            f"case {case_id}: its DICOM series changed while it was read ({type(error).__name__})"
        ) from error
    return headers


def _patient_and_time(series: Series) -> tuple[str | int, ...]:
    who, number = series.identity, series.slices[0].series_number
    order = number if number is not None else 1_000_000
    return who.patient_id, who.study_time, who.study_uid, order, who.series_uid, series.part
