"""AMOS 2022: `imagesTr/amos_0001.nii.gz`, `labelsTr/amos_0001.nii.gz`, and `Va` and `Ts` likewise.

Fifteen abdominal organs on 500 CT (up to amos_0500) and 100 MR scans (from amos_0501) (Ji et al.,
NeurIPS 2022 datasets and benchmarks, arXiv 2206.08023). The test scans' labels are not public. The
organs are those of the publication; the data's own `dataset.json` misspells the aorta.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from sacl.cohort.layouts.found import Found, FoundCase, by_key, nifti_files, pair
from sacl.files.nifti import stem
from sacl.types import Split

ORGANS = (
    "spleen",
    "right kidney",
    "left kidney",
    "gall bladder",
    "esophagus",
    "liver",
    "stomach",
    "aorta",
    "postcava",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
    "duodenum",
    "bladder",
    "prostate/uterus",
)
"""The organs of the label values 1 to 15."""

_PARTS: tuple[tuple[str, Split], ...] = (("Tr", "train"), ("Va", "validation"), ("Ts", "test"))
_NAME = re.compile(r"amos_(\d{4})")
_LAST_CT = 500


def recognize(root: Path) -> str | None:
    """Return why a folder is AMOS, None where it is not."""
    images = _files(root / "imagesTr")
    return f"imagesTr with {len(images)} scans like {images[0].name}" if images else None


def read(root: Path) -> Found:
    """List the cases, each with its modality.

    Raises:
        DataError: a label map has no image.
    """
    cases = [_with_modality(case) for part in _PARTS for case in _cases(root, *part)]
    modalities = {case.modality for case in cases}
    counts = [sum(case.modality == modality for case in cases) for modality in ("ct", "mr")]
    note = "{} CT scans (up to amos_0500) and {} MR scans (from amos_0501)".format(*counts)
    return Found(
        layout="amos",
        name="AMOS22",
        organs=dict(enumerate(ORGANS, start=1)),
        cases=tuple(cases),
        modality=modalities.pop() if len(modalities) == 1 else None,
        notes=(note,) if all(counts) else (),
    )


def _cases(root: Path, part: str, split: Split) -> list[FoundCase]:
    images, labels = (_files(root / f"{kind}{part}") for kind in ("images", "labels"))
    return pair(
        by_key(images, map(stem, images), f"images{part}"),
        by_key(labels, map(stem, labels), f"labels{part}"),
        f"images{part}",
        split,
    )


def _files(folder: Path) -> list[Path]:
    return [path for path in nifti_files(folder) if _NAME.fullmatch(stem(path))]


def _with_modality(case: FoundCase) -> FoundCase:
    number = int(case.case_id.removeprefix("amos_"))
    return dataclasses.replace(case, modality="ct" if number <= _LAST_CT else "mr")
