"""Public abdominal cohorts whose folders and label values are fixed: AMOS, BTCV, FLARE 2021.

AMOS 2022: `imagesTr/amos_0001.nii.gz`, `labelsTr/amos_0001.nii.gz`, and `Va` and `Ts` likewise.
Fifteen organs on 500 CT (up to amos_0500) and 100 MR scans (from amos_0501) (Ji et al., NeurIPS
2022 datasets and benchmarks, arXiv 2206.08023). The test scans' labels are not public. The organs
are those of the publication; the data's own `dataset.json` misspells the aorta.

BTCV / Synapse: `RawData/Training/img/img0001.nii.gz` and `.../label/label0001.nii.gz`. Thirteen
organs on portal venous CT (Landman et al., MICCAI 2015 multi-atlas labeling beyond the cranial
vault, doi 10.7303/syn3193805). The labels of `RawData/Testing` are not public.

FLARE 2021: `TrainingImg/train_000_0000.nii.gz` and `TrainingMask/train_000.nii.gz`. Four organs on
CT, both kidneys in one label (Ma et al., Medical Image Analysis 82, 2022, doi
10.1016/j.media.2022.102616). `ValidationImg` has no public labels. Mirrors nest a folder in one of
its own name.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from sacl.cohort.dataset import (
    Dataset,
    Layout,
    Modality,
    Part,
    SourceCase,
    cases_of,
    common_modality,
    files_by_case,
    nifti_files,
    three_parts,
)
from sacl.organs import BTCV_ORGANS

_AMOS_ORGANS = (
    *("spleen", "right kidney", "left kidney", "gall bladder", "esophagus", "liver", "stomach"),
    *("aorta", "postcava", "pancreas", "right adrenal gland", "left adrenal gland", "duodenum"),
    *("bladder", "prostate/uterus"),
)
_FLARE_ORGANS = ("liver", "kidneys", "spleen", "pancreas")
_AMOS_NAME = r"(amos_\d{4})"
_AMOS_LAST_CT = 500
_BTCV_ROOTS = (".", "RawData", "Abdomen/RawData", "averaged-training-images/RawData")


def _recognize_amos(root: Path) -> str | None:
    cases = files_by_case(root / "imagesTr", _AMOS_NAME)
    return f"imagesTr with {len(cases)} scans like {min(cases)}.nii.gz" if cases else None


def _read_amos(root: Path) -> Dataset:
    parts = three_parts(root, _AMOS_NAME, _AMOS_NAME, "amos_0001.nii.gz")
    dataset = _dataset("amos", "AMOS22", _AMOS_ORGANS, parts)
    cases = tuple(_with_modality(case) for case in dataset.cases)
    counts = Counter(case.modality for case in cases)
    note = f"{counts['ct']} CT scans (up to amos_0500) and {counts['mr']} MR scans (from amos_0501)"
    changed = dataclasses.replace(dataset, cases=cases, modality=common_modality(cases))
    return changed.with_notes(note if len(counts) > 1 else "")


def _with_modality(case: SourceCase) -> SourceCase:
    number = int(case.case_id.removeprefix("amos_"))
    modality: Modality = "ct" if number <= _AMOS_LAST_CT else "mr"
    return dataclasses.replace(case, modality=modality)


def _recognize_btcv(root: Path) -> str | None:
    training = _btcv_training(root)
    if training is None:
        return None
    return f"{training.name}/img and {training.name}/label with img*.nii.gz and label*.nii.gz"


def _read_btcv(root: Path) -> Dataset:
    """List the training cases, and those of `Testing` where it is there, as test."""
    training = _btcv_training(root) or root
    test = training.parent / "Testing"
    names = "img(.+)", "label(.+)", "img0001.nii.gz"
    parts = [
        Part(training / "img", training / "label", "train", *names),
        Part(test / "img", test / "label", "test", *names),
    ]
    return _dataset("btcv", "BTCV", BTCV_ORGANS, parts)


def _btcv_training(root: Path) -> Path | None:
    """Return the folder that holds `img` and `label`, wherever below the root it usually is."""
    for base in _BTCV_ROOTS:
        for folder in (root / base / "Training", root / base):
            if (folder / "label").is_dir() and files_by_case(folder / "img", "img(.+)"):
                return folder
    return None


def _recognize_flare(root: Path) -> str | None:
    folders = [_unnested(root / f"Training{kind}") for kind in ("Img", "Mask")]
    if all(map(nifti_files, folders)):
        return "TrainingImg and TrainingMask with NIfTI files"
    return None


def _read_flare(root: Path) -> Dataset:
    names = "(.+?)(?:_0000)?", "(.+)", "CASE_0000.nii.gz"
    folders = [
        (_unnested(root / f"{part}Img"), _unnested(root / f"{part}Mask"))
        for part in ("Training", "Validation")
    ]
    parts = [Part(*folders[0], "train", *names), Part(*folders[1], "validation", *names)]
    return _dataset("flare2021", "FLARE2021", _FLARE_ORGANS, parts)


def _unnested(folder: Path) -> Path:
    """Return a folder, or the one of its own name in it where that holds the files."""
    nested = folder / folder.name
    return nested if not nifti_files(folder) and nifti_files(nested) else folder


def _dataset(layout: str, name: str, organs: tuple[str, ...], parts: Sequence[Part]) -> Dataset:
    cases, notes = cases_of(parts)
    return Dataset(layout, name, dict(enumerate(organs, start=1)), cases, "ct", notes=notes)


AMOS = Layout(
    "AMOS 2022: imagesTr/amos_0001.nii.gz, labelsTr/amos_0001.nii.gz, Va and Ts likewise",
    _recognize_amos,
    _read_amos,
)
BTCV = Layout(
    "BTCV / Synapse: RawData/Training/img/img0001.nii.gz and .../label/label0001.nii.gz",
    _recognize_btcv,
    _read_btcv,
)
FLARE2021 = Layout(
    "FLARE 2021: TrainingImg/train_000_0000.nii.gz and TrainingMask/train_000.nii.gz",
    _recognize_flare,
    _read_flare,
)
