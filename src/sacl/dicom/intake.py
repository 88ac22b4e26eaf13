"""Go through an export: find its files, group them into series and judge each."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sacl.dicom.files import DAMAGE, Opener, RefusedArchive, sources
from sacl.dicom.headers import read_dataset, read_slices
from sacl.dicom.identifiers import names_the_patient
from sacl.dicom.series import Series, group
from sacl.dicom.slices import Slice
from sacl.dicom.verdict import Rule, Verdict, judge, only_largest
from sacl.progress import track


@dataclass(frozen=True, eq=False)
class Intake:
    """An export as judged: a verdict per series, and what is no image.

    `files` counts the files that are no DICOM (`other`), that are DICOM but cannot be read
    (`damaged`), DICOM without an image such as reports (`object`), and images (`image`).
    """

    verdicts: tuple[Verdict, ...]
    refused: tuple[RefusedArchive, ...]
    files: Counter[str]

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user is told of it, in sentences without anybody's name."""
        reasons = Counter(v.fault.code for v in self.verdicts if v.fault is not None)
        accepted = sum(verdict.accepted for verdict in self.verdicts)
        why = ", ".join(f"{count} {code}" for code, count in reasons.most_common())
        told = [f"{accepted} of {len(self.verdicts)} series accepted" + (why and f"; {why}")]
        names = {
            "other": "files that are no DICOM skipped",
            "object": "DICOM files without an image skipped",
            "damaged": "DICOM files with a damaged header skipped",
        }
        told += [f"{self.files[kind]} {name}" for kind, name in names.items() if self.files[kind]]
        codes = Counter(archive.fault.code for archive in self.refused)
        told += [f"{count} zips refused, {code}" for code, count in codes.items()]
        return tuple(told)


def take_in(root: Path, rule: Rule | None = None) -> Intake:
    """Judge all series of a folder, a zip or a folder of zips, in the order of patient and time.

    Headers are read first, one file at a time; pixels only where a verdict needs them.
    """
    rule = rule or Rule()
    slices, refused, files = list_slices(root)
    with Opener() as opener:
        every = sorted(group(slices, rule.min_slices), key=_patient_and_time)
        verdicts = [judge(series, rule, opener) for series in track(every, "dicom series")]
    if rule.series == "largest":
        verdicts = only_largest(verdicts)
    return Intake(tuple(verdicts), tuple(refused), files)


def list_slices(root: Path) -> tuple[list[Slice], list[RefusedArchive], Counter[str]]:
    """Return all slices of an export by their headers, the zips refused, and the kinds of files."""
    slices: list[Slice] = []
    refused: list[RefusedArchive] = []
    files: Counter[str] = Counter()
    equal: dict[Any, Any] = {}
    with Opener() as opener:
        for source in track(sources(root), "dicom headers"):
            if isinstance(source, RefusedArchive):
                refused.append(source)
                continue
            kind, found = read_slices(source, root, opener)
            files[kind] += 1
            slices += [_sharing(piece, equal) for piece in found]
    return slices, refused, files


def is_dicom(root: Path) -> bool:
    """Tell whether there is a DICOM image in a folder or zip; stops at the first."""
    with Opener() as opener:
        for source in sources(root):
            if isinstance(source, RefusedArchive):
                continue
            if read_slices(source, root, opener)[0] == "image":
                return True
    return False


def names_a_patient(words: str, intake: Intake) -> bool:
    """Tell whether a text, such as a folder's name, names a patient of the export."""
    first = {verdict.series.study: verdict.series.slices[0] for verdict in intake.verdicts}
    with Opener() as opener:
        for piece in first.values():
            try:
                if names_the_patient(words, read_dataset(piece.source, opener)):
                    return True
            except DAMAGE:
                continue
    return False


def _sharing(piece: Slice, equal: dict[Any, Any]) -> Slice:
    """Return a slice that shares with others what is equal: it takes about half the memory then.

    Args:
        piece: the slice.
        equal: what was met so far, by itself.
    """
    names = ("identity", "traits", "encoding", "spacing_mm", "orientation", "modality")
    values = {name: getattr(piece, name) for name in names}
    return dataclasses.replace(piece, **{n: equal.setdefault(v, v) for n, v in values.items()})


def _patient_and_time(series: Series) -> tuple[str | int, ...]:
    who, number = series.identity, series.slices[0].series_number
    order = number if number is not None else 1_000_000
    return who.patient_id, who.study_time, who.study_uid, order, who.series_uid, series.part
