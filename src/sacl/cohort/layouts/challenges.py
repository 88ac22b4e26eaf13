"""Public cohorts whose folders and label values are fixed: AMOS, BTCV, FLARE, TotalSegmentator.

AMOS 2022: `imagesTr/amos_0001.nii.gz`, `labelsTr/amos_0001.nii.gz`, and `Va` and `Ts` likewise.
Fifteen organs on 500 CT (up to amos_0500) and 100 MR scans (from amos_0501) (Ji et al., NeurIPS
2022 datasets and benchmarks, arXiv 2206.08023). The test scans' labels are not public. The organs
are those of the publication; the data's own `dataset.json` misspells the aorta.

BTCV / Synapse: `RawData/Training/img/img0001.nii.gz` and `.../label/label0001.nii.gz`. Thirteen
organs on portal venous CT (Landman et al., MICCAI 2015 multi-atlas labeling beyond the cranial
vault, doi 10.7303/syn3193805). The labels of `RawData/Testing` are not public. The same download
has a cervix set (`Cervix/RawData`, files like `0507688-Image.nii.gz`) of other organs.

FLARE 2021: `TrainingImg/train_000_0000.nii.gz` and `TrainingMask/train_000.nii.gz`. Four organs on
CT, both kidneys in one label (Ma et al., Medical Image Analysis 82, 2022, doi
10.1016/j.media.2022.102616). `ValidationImg` has no public labels. Mirrors nest a folder in one of
its own name.

TotalSegmentator, AbdomenAtlas: `s0000/ct.nii.gz` and `s0000/segmentations/ORGAN.nii.gz`.
One binary mask per organ (Wasserthal et al., Radiology: AI 5(5), 2023, doi 10.1148/ryai.230024; Qu
et al., NeurIPS Datasets and Benchmarks 2023, arXiv 2305.09666). An organ without a file was not
looked for in that scan; one whose mask is empty was looked for and is not there. `mri.nii.gz` is an
MR scan. `meta.csv`, if it is there, gives splits and scan-wise labels by `image_id`; a file like
`s0000/phase.json`, as `totalseg_get_phase` writes it, gives the contrast phase.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from sacl.cohort.dataset import (
    Dataset,
    Layout,
    Modality,
    Part,
    Recognized,
    SourceCase,
    cases_of,
    common_modality,
    files_by_case,
    in_short,
    require_labels_read,
    scan_files,
    three_parts,
)
from sacl.cohort.tables import phase_in, phase_word, scan_labels_of, split_of
from sacl.errors import DataError
from sacl.files.atomic import real
from sacl.files.documents import read_rows
from sacl.files.itk import stem_of
from sacl.files.nifti import SUFFIXES
from sacl.organs import BTCV_ORGANS
from sacl.types import PHASE, Split

_AMOS_ORGANS = (
    *("spleen", "right kidney", "left kidney", "gall bladder", "esophagus", "liver", "stomach"),
    *("aorta", "postcava", "pancreas", "right adrenal gland", "left adrenal gland", "duodenum"),
    *("bladder", "prostate/uterus"),
)
_FLARE_SPLITS: dict[str, Split] = {"Training": "train", "Validation": "validation"}
_AMOS_NAME, _AMOS_LAST_CT = r"(amos_\d{4})", 500
_BTCV_ROOTS = (".", "RawData", "Abdomen/RawData", "averaged-training-images/RawData")
_CERVIX = re.compile(r"\d{7}-(Image|Mask)")
_IMAGES: dict[str, Modality] = {"ct": "ct", "mri": "mr"}
_MASKS = "segmentations"
_META = "meta.csv"


def _btcv_parts(root: Path) -> list[Part]:
    """Return training and `Testing`, wherever below the root they usually are."""
    names = "img(.+)", "label(.+)", "img0001.nii.gz"
    for base in _BTCV_ROOTS:
        for folder in (root / base / "Training", root / base):
            training = Part(folder / "img", folder / "label", "train", *names)
            if training.labels.is_dir() and training.scans:
                test = folder.parent / "Testing"
                return [training, Part(test / "img", test / "label", "test", *names)]
    return []


def _beside(root: Path, parts: list[Part]) -> tuple[str, ...]:
    """Say that BTCV's cervix set, of other organs, is not read; refuse it among the scans."""
    folders = {folder for part in parts for folder in (part.images, part.labels)}
    files = sorted(path for folder in folders for path in scan_files(folder))
    cervix = [path.name for path in files if _CERVIX.fullmatch(stem_of(path))]
    if cervix:
        raise DataError(
            f"{root.name}: {in_short(cervix)} among the abdominal scans are of BTCV's cervix set,"
            " which has other organs; move them to a folder of their own"
        )
    is_there = (root / "Cervix").is_dir()
    return ("Cervix: not read, a set of other organs",) if is_there else ()


def _flare_parts(root: Path) -> list[Part]:
    names = "(.+?)(?:_0000)?", "(.+)", "CASE_0000.nii.gz"
    parts = [
        Part(_unnested(root / f"{part}Img"), _unnested(root / f"{part}Mask"), split, *names)
        for part, split in _FLARE_SPLITS.items()
    ]
    return parts if scan_files(parts[0].labels) else []


def _unnested(folder: Path) -> Path:
    """Return a folder, or the one of its own name in it where that holds the files."""
    nested = folder / folder.name
    return nested if not scan_files(folder) and scan_files(nested) else folder


def _challenge(
    expected: str,
    layout: str,
    name: str,
    organs: tuple[str, ...],
    parts_of: Callable[[Path], list[Part]],
) -> Layout:
    """Return the layout of a cohort; `parts_of` finds its parts below a root, if they are there."""

    def recognize(root: Path) -> Recognized | None:
        parts = parts_of(root)
        scans = list(parts[0].scans.values()) if parts else []
        if not scans:
            return None
        reason = f"{parts[0].images.name} with {len(scans)} scans like {scans[0].name}"
        return reason, lambda: read(root, parts)

    def read(root: Path, parts: list[Part]) -> Dataset:
        beside = _beside(root, parts)
        cases, notes = cases_of(parts)
        cases = tuple(dataclasses.replace(case, modality=_modality_of(case)) for case in cases)
        counts = Counter(case.modality for case in cases)
        if len(counts) > 1:
            notes += (f"{counts['ct']} CT scans and {counts['mr']} MR scans, by their numbers",)
        table = dict(enumerate(organs, start=1))
        return Dataset(layout, name, table, cases, common_modality(cases), notes=notes + beside)

    return Layout(expected, recognize)


def _modality_of(case: SourceCase) -> Modality:
    number = case.case_id.removeprefix("amos_")
    return "mr" if number != case.case_id and int(number) > _AMOS_LAST_CT else "ct"


def _recognize_folders(root: Path) -> Recognized | None:
    below = sorted(root.glob("[!.]*")) if root.is_dir() else []
    folders = [folder for folder in below if _images(folder)]
    if not folders:
        return None
    like = f"folders like {folders[0].name} with {_images(folders[0])[0].name}"
    drawn = [folder for folder in folders if (folder / _MASKS).is_dir()]
    if not drawn and any(len(scan_files(folder)) > 1 for folder in folders):
        return None  # what lies beside the scans may be their label maps
    like += " and segmentations" if folders[0] in drawn else ""
    return like, partial(_read_folders, root, folders)


def _read_folders(root: Path, folders: list[Path]) -> Dataset:
    """List the scans with their masks; one without masks is an unlabeled scan."""
    meta = read_rows(root / _META, key="image_id") if (root / _META).is_file() else {}
    cases = tuple(_case(folder, meta) for folder in folders)
    organs = sorted({organ for case in cases for organ in case.masks})
    missing = sum(case.case_id not in meta for case in cases)
    note = f"{missing} scans have no row in {_META}; they are for training, without labels"
    notes: tuple[str, ...] = (note,) if meta and missing else ()
    for case in cases:
        notes += require_labels_read(case.image.parent / _MASKS, case.masks.values())
    table = dict(enumerate(organs, start=1))
    return Dataset("totalsegmentator", real(root).name, table, cases, notes=notes)


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
    labels = scan_labels_of(row)
    for path in sorted(folder.glob("*phase*.json"))[:1]:
        labels[PHASE] = phase_word(phase_in(path, f"{folder.name}/{path.name}"))
    return SourceCase(
        case_id=folder.name,
        image=image,
        split=split_of(row, _META) or "train",
        scan_labels=labels,
        origin=_META if row.get("split") else folder.name,
        masks=files_by_case(folder / _MASKS),
        modality=_IMAGES[stem_of(image)],
    )


AMOS = _challenge(
    "AMOS 2022: imagesTr/amos_0001.nii.gz, labelsTr/amos_0001.nii.gz, Va and Ts likewise",
    "amos",
    "AMOS22",
    _AMOS_ORGANS,
    lambda root: three_parts(root, _AMOS_NAME, _AMOS_NAME, "amos_0001.nii.gz"),
)
BTCV = _challenge(
    "BTCV / Synapse: RawData/Training/img/img0001.nii.gz and .../label/label0001.nii.gz",
    "btcv",
    "BTCV",
    BTCV_ORGANS,
    _btcv_parts,
)
FLARE2021 = _challenge(
    "FLARE 2021: TrainingImg/train_000_0000.nii.gz and TrainingMask/train_000.nii.gz",
    "flare2021",
    "FLARE2021",
    ("liver", "kidneys", "spleen", "pancreas"),
    _flare_parts,
)
TOTALSEGMENTATOR = Layout(
    "TotalSegmentator, AbdomenAtlas: s0000/ct.nii.gz and s0000/segmentations/ORGAN.nii.gz",
    _recognize_folders,
)
