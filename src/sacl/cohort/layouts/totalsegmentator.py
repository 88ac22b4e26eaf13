"""TotalSegmentator, AbdomenAtlas: `s0000/ct.nii.gz` and `s0000/segmentations/ORGAN.nii.gz`.

One binary mask per organ (Wasserthal et al., Radiology: AI 5(5), 2023, doi 10.1148/ryai.230024; Qu
et al., NeurIPS Datasets and Benchmarks 2023, arXiv 2305.09666). An organ without a file was not
looked for in that scan; one whose mask is empty was looked for and is not there. `mri.nii.gz` is an
MR scan. `meta.csv`, if it is there, gives splits and scan-wise labels by `image_id`; a file like
`s0000/phase.json`, as `totalseg_get_phase` writes it, gives the contrast phase.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sacl.cohort.dataset import (
    Dataset,
    Layout,
    Modality,
    SourceCase,
    files_by_case,
    require_labels_read,
)
from sacl.cohort.tables import phase_in, phase_word, scan_labels_of, split_of
from sacl.errors import DataError
from sacl.files.atomic import real
from sacl.files.documents import read_rows
from sacl.files.nifti import SUFFIXES, stem
from sacl.types import PHASE

_IMAGES: dict[str, Modality] = {"ct": "ct", "mri": "mr"}
_MASKS = "segmentations"
_META = "meta.csv"


def _recognize(root: Path) -> str | None:
    for folder in _folders(root):
        for image in _images(folder):
            masks = " and segmentations" if (folder / _MASKS).is_dir() else ""
            return f"folders like {folder.name} with {image.name}{masks}"
    return None


def _read(root: Path) -> Dataset:
    """List the scans with their masks; one without masks is an unlabeled scan."""
    meta = read_rows(root / _META, key="image_id") if (root / _META).is_file() else {}
    cases = tuple(_case(folder, meta) for folder in _folders(root) if _images(folder))
    organs = sorted({organ for case in cases for organ in case.masks})
    missing = sum(case.case_id not in meta for case in cases)
    note = f"{missing} scans have no row in {_META}; they are for training, without labels"
    notes: tuple[str, ...] = (note,) if meta and missing else ()
    for case in cases:
        notes += require_labels_read(case.image.parent / _MASKS, case.masks.values())
    return Dataset(
        layout="totalsegmentator",
        name=real(root).name,
        organs=dict(enumerate(organs, start=1)),
        cases=cases,
        notes=notes,
    )


def _folders(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    names = (f"{name}{suffix}" for name in _IMAGES for suffix in SUFFIXES)
    return [folder / name for name in names if (folder / name).is_file()]


def _case(folder: Path, meta: Mapping[str, Mapping[str, str]]) -> SourceCase:
    image, *others = _images(folder)
    if others:
        raise DataError(
            f"{folder.name}: two scans, {image.name} and {others[0].name}; give each a folder of"
            " its own"
        )
    row = dict(meta.get(folder.name, {}))
    return SourceCase(
        case_id=folder.name,
        image=image,
        split=split_of(row, _META) or "train",
        scan_labels=scan_labels_of(row) | _phase(folder),
        origin=_META if row.get("split") else folder.name,
        masks=files_by_case(folder / _MASKS),
        modality=_IMAGES[stem(image)],
    )


def _phase(folder: Path) -> dict[str, str]:
    """Return the contrast phase that a JSON file beside the scan names, if there is one."""
    for path in sorted(folder.glob("*phase*.json")):
        return {PHASE: phase_word(phase_in(path, f"{folder.name}/{path.name}"))}
    return {}


TOTALSEGMENTATOR = Layout(
    "TotalSegmentator, AbdomenAtlas: s0000/ct.nii.gz and s0000/segmentations/ORGAN.nii.gz",
    _recognize,
    _read,
)
