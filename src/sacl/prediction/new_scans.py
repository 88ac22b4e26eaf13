"""New scans in any format, and their label maps, written in the format of the scan."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sacl.cohort.dataset import counted, in_short
from sacl.dicom.files import DAMAGE, Opener
from sacl.dicom.header import names_the_patient
from sacl.dicom.intake import Intake, headers_of, take_in
from sacl.dicom.segmentation import write_segmentation
from sacl.dicom.slices import read_dataset
from sacl.dicom.stack import SliceStack, read_stack
from sacl.dicom.verdict import DicomExport, Verdict
from sacl.errors import DataError
from sacl.files.itk import SUFFIXES, frame_in, is_itk, volume_in, write_itk
from sacl.files.nifti import is_nifti, stem, write_label_map
from sacl.types import LabelMap, NativeFrame, Volume

NIFTI, DICOM_SEG = ".nii.gz", ".seg.dcm"
_CHANNEL = "_0000"
"""nnU-Net's suffix of an image's first channel, which its label map does not have."""
_SEGMENTATION = (".seg.nrrd", ".seg.nhdr")
"""What 3D Slicer calls segmentations, and this program those of NRRD scans."""
_DETACHED = (".nhdr", ".mhd")
_PACKED = re.compile(r"\.(zip|dcm)$", re.IGNORECASE)
_LONGEST = 100
_NAMELESS = "scan"
_EXPECTED = (
    "expected NIfTI, NRRD or MetaImage files, directly in the folder, or DICOM, anywhere below it"
    " or in a zip"
)
_EXPLAIN = "`sacl ingest FOLDER --explain` says of each series why"


@dataclass(frozen=True, eq=False)
class NewScan:
    """A scan where it lies, and how its label map is written.

    Its results are called `name`; messages call it `shown`. `frame` checks the header alone.
    `suffix` ends the label map's name and `mask_suffix` that of a mask; a DICOM scan has no `path`.
    """

    name: str
    shown: str
    suffix: str
    frame: Callable[[], NativeFrame]
    load: Callable[[], tuple[Volume, NativeFrame]]
    path: Path | None = None
    stack: SliceStack | None = None

    @property
    def mask_suffix(self) -> str:
        """What ends the name of a mask of one organ: DICOM's are NIfTI."""
        return NIFTI if self.stack else self.suffix

    @property
    def images(self) -> tuple[str, ...]:
        """The UIDs of the DICOM images that a segmentation names."""
        return tuple(piece.sop_uid for piece in self.stack.slices) if self.stack else ()

    def write(
        self, path: Path, label_map: LabelMap, native: NativeFrame, run: str
    ) -> tuple[str, ...]:
        """Write a canonical label map in the format of a path's name.

        Returns what is to be doubted of the file. `run` names the segmenter in DICOM.
        """
        if path.name.endswith(NIFTI):
            write_label_map(path, label_map, native)
        elif self.stack is None:
            write_itk(path, label_map, native)
        elif lacks := write_segmentation(path, label_map, headers_of(self.stack, self.shown), run):
            return (
                f"its images have no {' and no '.join(lacks)}; the segmentation has new ones, and"
                " viewers will not match it to the images without them",
            )
        return ()


@dataclass(frozen=True, eq=False)
class Found:
    """The scans of a file or folder, and in sentences what in it is not read, and why."""

    scans: tuple[NewScan, ...]
    notes: tuple[str, ...]


def find_scans(root: Path, modality: Literal["auto", "ct", "mr"] = "auto") -> Found:
    """List the scans of a file or folder: NIfTI, NRRD and MetaImage directly in it, DICOM anywhere.

    A file is one scan, or a zip of DICOM, or zips of it. Of DICOM, each accepted series of the
    modality is a scan. Results are called as the scans' files; those of DICOM as its folder or zip,
    with the number of the series where there are several, but not by a patient's name.

    Raises:
        DataError: there is no scan, or two would have results of one name.
    """
    if not root.exists():
        raise DataError(f"{root}: no such file or folder")
    files, ignored = _image_files(root)
    scans = _scans_of_files(root, files)
    notes = [f"{counted(len(ignored), 'segmentation')} skipped: {in_short(ignored)}"] * bool(
        ignored
    )
    hint = ""
    if root.is_dir() or not files:
        intake = take_in(root, DicomExport(modality))
        detached = sum(path.suffix.lower() in _DETACHED for path in files)
        others = intake.files.pop("other", 0) - len(files) - len(ignored) - detached
        scans += _scans_of_series(root, intake, {scan.name for scan in scans})
        if all(verdict.accepted for verdict in intake.verdicts):
            notes += intake.notes[1:]
        else:
            notes += [*intake.notes, _EXPLAIN]
        if others > 0:
            notes.append(f"{counted(others, 'other file')} not read")
        hint = "" if intake.verdicts or intake.refused else _EXPECTED
    if not scans:
        raise DataError("; ".join(filter(None, [f"{root}: no scan", *notes, hint])))
    return Found(tuple(scans), tuple(notes))


def _image_files(root: Path) -> tuple[list[Path], list[str]]:
    """Return the image files that a path names or a folder holds, and what is a segmentation."""
    if not root.is_dir():
        return [root] if is_nifti(root) or is_itk(root) else [], []
    paths = sorted(path for path in root.iterdir() if is_nifti(path) or is_itk(path))
    maps = [path.name for path in paths if path.name.lower().endswith(_SEGMENTATION)]
    return [path for path in paths if path.name not in maps], maps


def _scans_of_files(root: Path, files: Sequence[Path]) -> list[NewScan]:
    beside = files if root.is_dir() else _image_files(root.parent)[0]
    has_channels = all(stem(path).endswith(_CHANNEL) for path in beside)
    scans: dict[str, NewScan] = {}
    for path in files:
        name = stem(path).removesuffix(_CHANNEL if has_channels else "")
        if name in scans:
            raise DataError(
                f"{root}: {scans[name].shown} and {path.name} differ only in their ending, and so"
                " would their label maps; keep one of them, or rename one"
            )
        scans[name] = NewScan(
            name,
            path.name,
            NIFTI if is_nifti(path) else SUFFIXES[path.suffix.lower()],
            functools.partial(frame_in, path),
            functools.partial(volume_in, path),
            path,
        )
    return list(scans.values())


def _scans_of_series(root: Path, intake: Intake, taken: set[str]) -> list[NewScan]:
    accepted = [verdict for verdict in intake.verdicts if verdict.accepted]
    names = _names_of_series(root, accepted, taken)
    scans = []
    for verdict, name in zip(accepted, names, strict=True):
        assert verdict.stack is not None
        scans.append(
            NewScan(
                name,
                name,
                DICOM_SEG,
                functools.partial(NativeFrame, verdict.stack.grid),
                functools.partial(read_stack, verdict.stack, name),
                stack=verdict.stack,
            )
        )
    return scans


def _names_of_series(root: Path, accepted: Sequence[Verdict], taken: set[str]) -> list[str]:
    """Return a name per series: its folder's or zip's, longer or numbered where that is taken."""
    folders = [_folder_of(root, verdict) for verdict in accepted]
    count = Counter(folders)
    last = Counter(folder[-1] for folder in count)
    names: list[str] = []
    for verdict, folder in zip(accepted, folders, strict=True):
        number = verdict.series.slices[0].series_number
        words = [folder[-1]] if last[folder[-1]] == 1 else list(folder)
        words += [f"s{number}"] if count[folder] > 1 and number is not None else []
        name = base = re.sub(r"[^\w.-]+", "_", "-".join(words))[-_LONGEST:].lstrip(".") or _NAMELESS
        n = 1
        while name in taken:
            n += 1
            name = f"{base}-{n}"
        taken.add(name)
        names.append(name)
    return names


def _folder_of(root: Path, verdict: Verdict) -> tuple[str, ...]:
    """Return the folders below the root in which a series lies, those that name no patient."""
    first = verdict.series.slices[0].source
    folders = [part for part in first.folder(root).split("/") if part not in (".", "")]
    try:
        with Opener() as opener:
            header = read_dataset(first, opener)
    except DAMAGE:
        return (_NAMELESS,)
    parts = [_PACKED.sub("", part) for part in folders or [root.resolve().name]]
    return tuple(part for part in parts if not names_the_patient(part, header)) or (_NAMELESS,)
