"""What is checked: the scans of any source, or of a cohort that was ingested already."""

from __future__ import annotations

from pathlib import Path

from sacl.cohort.dataset import Dataset, SourceCase
from sacl.cohort.layouts.listing import Sources, joined, read_source
from sacl.cohort.manifest import MANIFEST, read_cohort
from sacl.dicom.pseudonyms import KEY
from sacl.errors import ConfigError
from sacl.files.nifti import read_volume
from sacl.run.workspace import FOLDERS
from sacl.settings import IngestSettings
from sacl.types import Case, Cohort, NativeFrame, Volume

INGESTED = MANIFEST
"""Layout of a cohort that was ingested: its splits are made."""


def dataset_of(ingest: IngestSettings, work: Path) -> tuple[Dataset, str]:
    """List the cases of all sources, else of the phantom in `work`, and what they are read as."""
    paths = ingest.data
    if not paths:
        made = sorted((work / FOLDERS["phantom"]).glob("*/dataset.json"))
        if not made:
            raise ConfigError("check: no data to check; give a folder, or run `sacl phantom`")
        paths = (made[0].parent,)
    # Nothing is written but the page: only a key that a run has made gives its pseudonyms.
    known = work if (work / KEY).is_file() else None
    how = ingest.layout, ingest.modality, ingest.scan_labels, ingest.fold, ingest.series
    sources = Sources(paths, *how, known)
    listed = [_listed(path, sources) for path in paths]
    origins = dict.fromkeys(origin for _, origin in listed)
    return joined([dataset for dataset, _ in listed], sources), "; ".join(origins)


def _listed(path: Path, sources: Sources) -> tuple[Dataset, str]:
    for folder in (path, path / FOLDERS["ingest"]):
        if (folder / MANIFEST).is_file():
            return _from_manifest(folder, read_cohort(folder)), "canonical volumes of a run"
    dataset, reason = read_source(path, sources)
    return dataset, f"read as {dataset.layout}, by {reason}"


def _from_manifest(folder: Path, cohort: Cohort) -> Dataset:
    """Return an ingested cohort as any other dataset, each scan with the frame of its own file."""

    def case_of(entry: Case) -> SourceCase:
        path = folder / entry.image

        def load() -> tuple[Volume, NativeFrame]:
            return read_volume(path)[0], entry.native

        return SourceCase(
            case_id=entry.case_id,
            image=path,
            reference=folder / entry.reference if entry.reference else None,
            split=entry.split,
            subject_id=entry.subject_id,
            scan_labels=entry.scan_labels,
            origin=MANIFEST,
            annotated=entry.annotated,
            load=load,
        )

    organs = dict(enumerate(cohort.scheme.names, start=1))
    cases = tuple(case_of(entry) for entry in cohort.cases)
    return Dataset(INGESTED, cohort.name, organs, cases, modality=cohort.modality)
