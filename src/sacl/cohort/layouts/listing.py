"""What is known of a cohort before voxels are read: layouts and sources, tables, subjects."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sacl.cohort.annotation import require_known_organs
from sacl.cohort.dataset import Dataset, Layout, Modality, Recognized, first_of, in_short
from sacl.cohort.layouts import dicom
from sacl.cohort.layouts.challenges import AMOS, BTCV, FLARE2021, TOTALSEGMENTATOR
from sacl.cohort.layouts.nnssl import NNSSL
from sacl.cohort.layouts.nnunet import NNUNET
from sacl.cohort.layouts.plain import (
    DECATHLON,
    FOLDER,
    FOLDERS,
    MONAI_DATALIST,
    TABLE,
    refuse_a_part,
)
from sacl.cohort.merging import merge, of_one_modality, with_guessed_subjects, with_modality
from sacl.cohort.splits import require_one_split, with_fold
from sacl.cohort.tables import BESIDE, with_table
from sacl.dicom.verdict import DicomExport
from sacl.errors import ConfigError, DataError
from sacl.files.atomic import folder_fingerprint, real
from sacl.run.workspace import KEY

PHANTOM = "Dataset900_Phantom"
"""Folder that the phantom stage leaves its dataset in."""
LAYOUTS: dict[str, Layout] = {
    "nnssl": NNSSL,
    "nnunet": NNUNET,
    "amos": AMOS,
    "decathlon": DECATHLON,
    "btcv": BTCV,
    "flare2021": FLARE2021,
    "totalsegmentator": TOTALSEGMENTATOR,
    "table": TABLE,
    "monai_datalist": MONAI_DATALIST,
    "folder": FOLDER,
    "dicom": dicom.DICOM,
    "folders": FOLDERS,
}
"""All layouts, the more specific one first."""


def find(
    root: Path, layout: str = "auto", export: DicomExport | None = None
) -> tuple[Dataset, str]:
    """List a dataset, and tell by what its layout was recognized."""
    name, (reason, read) = recognize(root, layout)
    return dicom.read_export(root, export) if name == dicom.NAME else read(), reason


def recognize(root: Path, layout: str = "auto") -> tuple[str, Recognized]:
    """Return the name of a dataset's layout, which is to be this one, and what was recognized."""
    _require_there(root)
    for name in LAYOUTS if layout == "auto" else [layout]:
        if recognized := LAYOUTS[name].recognize(root):
            if layout == "auto" and name == "folder":
                refuse_a_part(root)
            return name, recognized
    if layout != "auto":
        expected = LAYOUTS[layout].expected
        raise DataError(f"data '{root}': not in the layout {layout}; expected {expected}")
    zips = [(path.name, "no DICOM file in it") for path in sorted(root.glob("*.zip"))]
    empty = f"; {first_of(zips, 'zips')}" if zips else ""
    raise DataError(
        f"data '{root}': unknown layout ({', '.join(LAYOUTS)}){empty}; list the scans in a"
        " cohort.csv with the columns case_id, image and label"
    )


def _require_there(root: Path) -> None:
    """Refuse a path that leads nowhere, in a circle, or to a pipe."""
    try:
        is_there = root.stat() and (root.is_dir() or root.is_file())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        shown = str(root) if len(str(root)) < 200 else f"{str(root)[:60]}..."
        printable = shown.encode(errors="backslashreplace").decode()
        raise DataError(f"data '{printable}': {(reason or 'no such path').lower()}") from error
    if not is_there:
        raise DataError(f"data '{root}': a pipe or device, expected a folder or a file")


@dataclass(frozen=True)
class Sources:
    """Where a cohort's data lie and how they are read; the fields are settings of `ingest`.

    The key to the pseudonyms of DICOM lies in `work`, and so lasts as long as that.
    """

    paths: tuple[Path, ...]
    layout: str = "auto"
    modality: Literal["auto", "ct", "mr"] = "auto"
    scan_labels: Path | None = None
    fold: int | None = None
    series: Literal["all", "largest"] = "all"
    work: Path | None = None

    def __post_init__(self) -> None:
        """Refuse a source that is named twice, whose scans would count twice; or no table."""
        places = [real(path) for path in self.paths]
        twice = next((path for path in self.paths if places.count(real(path)) > 1), None)
        if twice is not None:
            raise ConfigError(f"data: {twice.name} is given twice; give it once")
        table = self.scan_labels
        if table is not None and not table.exists():
            raise DataError(
                f"ingest.scan_labels: no {table.name} beside the YAML file, in the working"
                f" directory, or in {in_short([path.name for path in self.paths])}"
            )

    @classmethod
    def of(cls, settings: Any, phantom: Path | None, work: Path | None) -> Sources:
        """Return what settings of `ingest` read, else the dataset in the phantom stage's folder."""
        paths = settings.data
        if not paths:
            if phantom is None or not (phantom / "run.json").is_file():
                raise ConfigError(
                    "ingest.data: no data to read; give --data FOLDER or phantom.scans"
                )
            paths = (phantom / PHANTOM,)
        how = {f.name: getattr(settings, f.name) for f in dataclasses.fields(cls)[1:-1]}
        return cls(paths, work=work, **how)

    @property
    def export(self) -> DicomExport:
        """How DICOM is read."""
        return DicomExport(self.modality, self.series, self.work / KEY if self.work else None)


def list_sources(sources: Sources) -> tuple[Dataset, Modality]:
    """List the cases of all sources with all that is known of them, of one modality."""
    datasets = []
    for source in sources.paths:
        dataset, reason = read_source(source, sources)
        read_as = f"{dataset.name}: layout {dataset.layout}, recognized by {reason}"
        notes = tuple(dict.fromkeys((read_as, *dataset.notes)))
        dataset = dataclasses.replace(dataset, notes=notes)
        datasets.append(with_modality(dataset, sources.modality))
    dataset = joined(datasets, sources)
    modality, dataset = of_one_modality(dataset, sources.modality)
    require_one_split(dataset)
    require_known_organs(dataset)
    return dataset, modality


def joined(datasets: list[Dataset], sources: Sources) -> Dataset:
    """Return listed datasets as one, with the user's table and with guessed subjects."""
    if len(datasets) > 1:
        datasets = [with_guessed_subjects(dataset) for dataset in datasets]
    dataset = merge(datasets)
    if sources.scan_labels is not None:
        dataset = with_table(dataset, sources.scan_labels)
    if len(datasets) == 1:
        dataset = with_guessed_subjects(dataset)
    return dataset.with_notes(_unlabeled(dataset))


def read_source(source: Path, sources: Sources) -> tuple[Dataset, str]:
    """List the cases of one source, with the tables beside it, and tell how it was recognized."""
    dataset, reason = find(source, sources.layout, sources.export)
    dataset = with_fold(dataset, source, sources.fold)
    for table in tables_beside(source, sources):
        dataset = with_table(dataset, table)
        dataset = dataset.with_notes(f"scan-wise labels from the data's own {table.name}")
    return dataset, reason


def tables_beside(source: Path, sources: Sources) -> list[Path]:
    """Return the tables in a source's folder that are read without being asked for.

    A table that the user gives takes the place of a single source's own.
    """
    scan_labels, subjects = (source / name for name in BESIDE)
    given = sources.scan_labels
    tables = [] if given is not None and len(sources.paths) == 1 else [scan_labels]
    tables += [] if given is not None and given.name == subjects.name else [subjects]
    return [table for table in tables if table.is_file()]


def source_fingerprints(sources: Sources) -> dict[str, str]:
    """Return a hash per source, and of the user's table, of all that `list_sources` reads."""
    hashes = {}
    for n, source in enumerate(sources.paths):
        key = "data" if n == 0 else f"data[{n}]"
        if recognize(source, sources.layout)[0] == dicom.NAME:
            tables = map(folder_fingerprint, tables_beside(source, sources))
            hashes[key] = "-".join([dicom.fingerprint_of_export(source), *tables])
        else:
            root = source if source.is_dir() else source.parent
            hashes[key] = read_source(source, sources)[0].fingerprint(root)
    if sources.scan_labels is not None:
        hashes["scan_labels"] = folder_fingerprint(sources.scan_labels)
    return hashes


def _unlabeled(dataset: Dataset) -> str:
    """Name the training scans without a reference where others have one, nothing where all have."""
    training = [case for case in dataset.cases if case.split == "train"]
    without = [case.case_id for case in training if not case.has_reference]
    note = f"{len(without)} of {len(training)} training scans have no label map and count as"
    return f"{note} unlabeled: {in_short(without)}" if 0 < len(without) < len(training) else ""
