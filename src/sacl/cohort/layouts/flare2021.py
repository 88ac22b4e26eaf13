"""FLARE 2021: `TrainingImg/train_000_0000.nii.gz` and `TrainingMask/train_000.nii.gz`.

Four abdominal organs on CT, both kidneys in one label (Ma et al., Medical Image Analysis 82, 2022,
doi 10.1016/j.media.2022.102616). `ValidationImg` has no public labels. Mirrors nest a folder in one
of its own name.
"""

from __future__ import annotations

from pathlib import Path

from sacl.cohort.layouts.found import Found, FoundCase, by_key, nifti_files, pair
from sacl.files.nifti import stem
from sacl.types import Split

_ORGANS = {1: "liver", 2: "kidneys", 3: "spleen", 4: "pancreas"}


def recognize(root: Path) -> str | None:
    """Return why a folder is the FLARE 2021 data, None where it is not."""
    if _files(root, "TrainingImg") and _files(root, "TrainingMask"):
        return "TrainingImg and TrainingMask with NIfTI files"
    return None


def read(root: Path) -> Found:
    """List the training cases, and those of `ValidationImg` where it is there.

    Raises:
        DataError: a label map has no image.
    """
    cases = _cases(root, "Training", "train") + _cases(root, "Validation", "validation")
    return Found("flare2021", "FLARE2021", _ORGANS, tuple(cases), modality="ct")


def _cases(root: Path, part: str, split: Split) -> list[FoundCase]:
    images = _files(root, f"{part}Img")
    masks = _files(root, f"{part}Mask")
    return pair(
        by_key(images, (stem(path).removesuffix("_0000") for path in images), f"{part}Img"),
        by_key(masks, map(stem, masks), f"{part}Mask"),
        f"{part}Img",
        split,
    )


def _files(root: Path, name: str) -> list[Path]:
    return nifti_files(root / name) or nifti_files(root / name / name)
