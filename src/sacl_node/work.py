"""Predict a study: its best series goes through the segmenter, a DICOM segmentation comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sacl.dicom.intake import headers_of, take_in
from sacl.dicom.segmentation import write_segmentation
from sacl.dicom.stack import read_stack
from sacl.dicom.verdict import DicomExport, only_largest
from sacl.errors import DataError

if TYPE_CHECKING:
    from sacl.model import Model as Segmenter


class UnsuitableError(DataError):
    """No series of a study is a scan that the segmenter reads."""


@dataclass(frozen=True, eq=False)
class Model:
    """A segmenter, the fingerprint that stands for it in UIDs, and the modality that it reads."""

    segmenter: Segmenter
    fingerprint: str
    modality: Literal["auto", "ct", "mr"] = "auto"


def open_model(paths: Sequence[Path], device: str) -> Model:
    """Return a trained model, or several that predict together; refuse one that cannot alone."""
    from sacl.model import load_model

    model = load_model(*paths, device=device)
    model.require_coarse(False)
    return Model(model, model.fingerprint, model.members[0].predictor.spec.window.modality)


def segment_study(images: Path, result: Path, model: Model) -> list[str]:
    """Write the segmentation of a study's best series; return in words which, and what is in doubt.

    The best is the one of the model's modality with the most slices. The UIDs are derived from
    those of the series and the model's fingerprint, so that the same work has the same UIDs.

    Raises:
        UnsuitableError: no series is accepted; the reasons are in it, without identifiers.
    """
    intake = take_in(images, DicomExport(modality=model.modality))
    best = next((each for each in only_largest(intake.verdicts) if each.accepted), None)
    if best is None or best.stack is None:
        raise UnsuitableError("; ".join(intake.notes))
    name = images.parent.name
    volume, _ = read_stack(best.stack, name)
    segmented = model.segmenter.segment(volume, name)
    source, own = headers_of(best.stack, name), model.fingerprint
    write_segmentation(result, segmented.label_map, source, f"model {own}", made_by=own)
    i, j, k = best.stack.grid.shape
    accepted = sum(each.accepted for each in intake.verdicts)
    return [
        f"{accepted} of {len(intake.verdicts)} series are scans; taken is one of {i} x {j} x {k}"
        f" voxels, {best.stack.grid.spacing_mm[2]:.3g} mm apart",
        *(f"in doubt: {doubt}" for doubt in segmented.doubts),
    ]
