"""The forms that results are exported in: what to write per scan, and for all together."""

from __future__ import annotations

from pathlib import Path

from sacl.cohort.layouts.nnssl import write_collection
from sacl.cohort.layouts.nnunet import (
    DATASET,
    SPLITS,
    SUMMARY,
    folds_of,
    write_dataset,
    write_folds,
    write_summary,
)
from sacl.export.dicom import (
    write_binary_segmentation,
    write_labelmap_segmentation,
    write_structures,
)
from sacl.export.form import Export, Form
from sacl.export.nifti import write_map, write_masks
from sacl.files.nifti import read_label_map
from sacl.geometry import require_same_grid
from sacl.progress import say, track
from sacl.scores.nnunet import foreground_mean, label_figures, means


def finish_nnunet(export: Export) -> list[Path]:
    """Write `dataset.json`, and `summary.json` and `splits_final.json` where there is what for.

    Raises:
        DataError: a reference lies on another grid than its prediction.
    """
    cohort = export.cohort
    labeled = cohort.labeled if cohort else ()
    written = [export.out / DATASET]
    modality = cohort.modality if cohort else None
    write_dataset(written[0], export.scheme, modality, len(labeled))
    if export.reference_of:
        written.append(export.out / SUMMARY)
        _summarize(written[-1], export)
    else:
        say(f"export: no held-out scan has a reference, so there is no {SUMMARY}")
    seed = export.workspace.seed if export.workspace else 0
    folds = folds_of(labeled, export.folds, seed)
    if folds:
        if len(folds) < export.folds:
            say(f"export: only {len(folds)} subjects are labeled, so {SPLITS} has as many folds")
        written.append(export.out / SPLITS)
        write_folds(written[-1], folds)
    return written


def _summarize(path: Path, export: Export) -> None:
    """Compare what was written with the references, case by case."""
    names = export.scheme.names
    cases = {}
    for case_id, read in track(export.reference_of.items(), "scoring scans"):
        reference, annotated = read()
        predicted, _ = read_label_map(export.out / f"{case_id}.nii.gz", export.scheme)
        require_same_grid(reference.grid, predicted.grid, f"case {case_id}")
        known = {export.scheme.label_of(organ) for organ in annotated}
        cases[case_id] = label_figures(reference.voxels, predicted.voxels, len(names), known)
    by_label = means(list(cases.values()))
    write_summary(path, cases, by_label, foreground_mean(by_label))


def finish_nnssl(export: Export) -> list[Path]:
    """Write `pretrain_data.json` with the images and the coarse label maps that it names."""
    assert export.workspace is not None
    assert export.cohort is not None
    maps = export.workspace.folder("locate") / "maps"
    home = export.workspace.folder("ingest")
    return [write_collection(export.out, export.cohort, export.cases, home, maps, export.force)]


FORMS: dict[str, Form] = {
    "nifti": Form("one label map per scan, with the label table in it", ".nii.gz", write_map),
    "nifti-per-organ": Form("a folder per scan with one mask per organ", "", write_masks),
    "nnunet": Form("nnU-Net's predictions and JSON files", ".nii.gz", write_map, finish_nnunet),
    "dicom-seg": Form(
        "a DICOM segmentation per scan, of bits",
        ".seg.dcm",
        write_binary_segmentation,
        needs_source=True,
    ),
    "dicom-seg-labelmap": Form(
        "a DICOM segmentation per scan, of label values",
        ".seg.dcm",
        write_labelmap_segmentation,
        needs_source=True,
    ),
    "rtstruct": Form(
        "a DICOM structure set per scan", ".rtstruct.dcm", write_structures, needs_source=True
    ),
    "nnssl": Form("the scans as nnssl pretrains on", finish=finish_nnssl, splits=("train",)),
}
"""All forms by name."""
