"""The forms that results are exported in: one table of what each writes per scan and for all."""

from __future__ import annotations

import functools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sacl.cohort.layouts import nnunet
from sacl.cohort.layouts.nnssl import write_collection
from sacl.dicom.intake import Headers
from sacl.dicom.rtstruct import write_rtstruct
from sacl.dicom.segmentation import write_segmentation
from sacl.errors import ConfigError, DataError
from sacl.files.atomic import write_text
from sacl.files.nifti import write_label_map
from sacl.organs import snake_case
from sacl.progress import say
from sacl.run.workspace import Workspace
from sacl.types import SPLITS, Case, Cohort, LabelMap, LabelScheme, NativeFrame, Split

DicomWriter = Callable[[Path, LabelMap, Headers, str], tuple[str, ...]]


@dataclass(frozen=True, eq=False)
class Result:
    """A predicted label map on its canonical grid, and the frame of the scan's own file.

    `run` is the name of the run, or of the folder of label maps. `source` reads the headers of a
    case's own DICOM images.
    """

    case_id: str
    label_map: LabelMap
    native: NativeFrame
    run: str
    source: Callable[[str], Headers] | None = None


@dataclass(frozen=True, eq=False)
class Export:
    """What all scans of an export share; a folder of label maps has no run, cohort and cases."""

    out: Path
    scheme: LabelScheme
    workspace: Workspace | None = None
    cohort: Cohort | None = None
    cases: tuple[Case, ...] = ()
    folds: int = 5
    force: bool = False


@dataclass(frozen=True)
class Form:
    """One way to write results.

    `write` puts one scan's result at a path, the case's name with `suffix`, whole or not at all;
    None where a form needs no predictions. `finish` writes what is said of all scans together.
    `network` names the function of `export.networks` that writes what was trained instead, so that
    torch is imported by these forms alone.
    """

    summary: str
    suffix: str = ""
    write: Callable[[Result, Path], None] | None = None
    finish: Callable[[Export], list[Path]] | None = None
    splits: tuple[Split, ...] = SPLITS
    needs_source: bool = False
    network: str = ""


def _write_map(result: Result, path: Path) -> None:
    write_label_map(path, result.label_map, result.native)


def _write_masks(result: Result, folder: Path) -> None:
    """Write a mask `ORGAN.nii.gz` per organ into a folder, which appears when all are in it."""
    partial = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    for organ, name in mask_names(result.label_map.scheme).items():
        alone = mask_alone(result.label_map, organ)
        write_label_map(partial / f"{name}.nii.gz", alone, result.native)
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)


def mask_names(scheme: LabelScheme) -> dict[str, str]:
    """Return what the file of each organ's mask is called, without a suffix; no two alike."""
    names = {organ: snake_case(organ) for organ in scheme.names}
    twice = next((name for name, count in Counter(names.values()).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"scheme {scheme.name}: two organs would be written to {twice}; rename one")
    return names


def mask_alone(label_map: LabelMap, organ: str) -> LabelMap:
    """Return the mask of an organ as a label map of it alone."""
    mask = label_map.mask(organ).astype(np.uint8)
    return LabelMap(mask, label_map.grid, LabelScheme(organ, (organ,)))


def _write_dicom(write: DicomWriter, result: Result, path: Path) -> None:
    """Write a result onto the scan's own images, and say what these lack."""
    assert result.source is not None
    source = result.source(result.case_id)
    try:
        made_up = write(path, result.label_map, source, result.run)
    except DataError as error:
        raise DataError(f"case {result.case_id}: {error}") from error
    if made_up:
        say(
            f"export: case {result.case_id}: its images have no {' and no '.join(made_up)}; the"
            " result got a new one, so viewers will not match it to these images"
        )


def _finish_nnunet(export: Export) -> list[Path]:
    """Write `dataset.json`, and of a run `splits_final.json`."""
    cohort = export.cohort
    labeled = cohort.labeled if cohort else ()
    written = [export.out / nnunet.DATASET]
    nnunet.write_dataset(
        written[0], export.scheme, cohort.modality if cohort else None, len(labeled)
    )
    seed = export.workspace.seed if export.workspace else 0
    folds = nnunet.folds_of(labeled, export.folds, seed)
    if folds:
        if len(folds) < export.folds:
            few = f"only {len(folds)} subjects are labeled"
            say(f"export: {few}, so {nnunet.SPLITS} has as many folds")
        written.append(export.out / nnunet.SPLITS)
        write_text(written[-1], json.dumps(folds, indent=4) + "\n")
    return written


def _finish_nnssl(export: Export) -> list[Path]:
    """Write `pretrain_data.json` with the images and the coarse label maps that it names."""
    assert export.workspace is not None
    assert export.cohort is not None
    maps, home = export.workspace.folder("locate") / "maps", export.workspace.folder("ingest")
    return [write_collection(export.out, export.cohort, export.cases, home, maps, export.force)]


def _dicom(summary: str, suffix: str, write: DicomWriter) -> Form:
    return Form(summary, suffix, functools.partial(_write_dicom, write), needs_source=True)


FORMS: dict[str, Form] = {
    "nifti": Form("one label map per scan, with the label table in it", ".nii.gz", _write_map),
    "nifti-per-organ": Form("a folder per scan with one mask per organ", "", _write_masks),
    "nnunet": Form("nnU-Net's predictions and JSON files", ".nii.gz", _write_map, _finish_nnunet),
    "dicom-seg": _dicom("a DICOM segmentation per scan, of bits", ".seg.dcm", write_segmentation),
    "dicom-seg-labelmap": _dicom(
        "a DICOM segmentation per scan, of label values",
        ".seg.dcm",
        functools.partial(write_segmentation, kind="LABELMAP"),
    ),
    "rtstruct": _dicom("a DICOM structure set per scan", ".rtstruct.dcm", write_rtstruct),
    "nnssl": Form("the scans as nnssl pretrains on", finish=_finish_nnssl, splits=("train",)),
    "weights": Form("the segmenter's weights", network="write_weights"),
    "onnx": Form("the segmenter for onnxruntime", network="write_onnx"),
    "monai-bundle": Form("the segmenter as a MONAI bundle", network="write_bundle"),
    "nnunet-encoder": Form("weights for nnU-Net to train on", network="write_nnunet"),
}
"""All forms by name."""


def form_named(name: str, sources: Sequence[Path]) -> Form:
    """Return a form by its name, for an export with these folders or zips of DICOM; or refuse."""
    if name not in FORMS:
        raise ConfigError(f"--form {name}: expected one of {', '.join(FORMS)}")
    form = FORMS[name]
    if form.needs_source and not sources:
        raise ConfigError(
            f"--form {name}: refers to the scans' own DICOM images; give their folder with --source"
        )
    if sources and not form.needs_source:
        raise ConfigError(f"--form {name}: uses no DICOM images; leave out --source")
    missing = next((source for source in sources if not source.exists()), None)
    if missing is not None:
        raise ConfigError(f"--source {missing.name}: no such file or folder")
    return form
