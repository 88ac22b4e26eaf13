"""BTCV / Synapse: `RawData/Training/img/img0001.nii.gz` and `.../label/label0001.nii.gz`.

Thirteen abdominal organs on portal venous CT (Landman et al., MICCAI 2015 multi-atlas labeling
beyond the cranial vault, doi 10.7303/syn3193805). The labels of `RawData/Testing` are not public.
"""

from __future__ import annotations

from pathlib import Path

from sacl.cohort.layouts.found import Found, by_key, nifti_files, pair
from sacl.files.nifti import stem
from sacl.organs import BTCV_ORGANS

_ROOTS = (".", "RawData", "Abdomen/RawData", "averaged-training-images/RawData")


def recognize(root: Path) -> str | None:
    """Return why a folder is the BTCV abdomen data, None where it is not."""
    training = _training(root)
    if training is None:
        return None
    return f"{training.name}/img and {training.name}/label with img*.nii.gz and label*.nii.gz"


def read(root: Path) -> Found:
    """List the training cases, and those of `Testing` where it is there, as test.

    Raises:
        DataError: a label map has no image.
    """
    training = _training(root) or root
    cases = []
    for folder, split in ((training, "train"), (training.parent / "Testing", "test")):
        images = [path for path in nifti_files(folder / "img") if path.name.startswith("img")]
        labels = [path for path in nifti_files(folder / "label") if path.name.startswith("label")]
        cases += pair(
            by_key(images, (stem(path).removeprefix("img") for path in images), "img"),
            by_key(labels, (stem(path).removeprefix("label") for path in labels), "label"),
            f"{folder.name}/img",
            "train" if split == "train" else "test",
        )
    organs = dict(enumerate(BTCV_ORGANS, start=1))
    return Found("btcv", "BTCV", organs, tuple(cases), modality="ct")


def _training(root: Path) -> Path | None:
    """Return the folder that holds `img` and `label`, wherever below the root it usually is."""
    for base in _ROOTS:
        for folder in (root / base / "Training", root / base):
            images = nifti_files(folder / "img")
            if (folder / "label").is_dir() and any(p.name.startswith("img") for p in images):
                return folder
    return None
