"""What is checked, and what a run without a settings file would do with it.

It is the scans of any source, or of a cohort that was ingested already.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from sacl.check.cohort_checks import CohortFacts
from sacl.cohort.dataset import Dataset, SourceCase
from sacl.cohort.layouts.listing import Sources, joined, read_source
from sacl.cohort.manifest import MANIFEST, read_cohort, read_image
from sacl.errors import DataError
from sacl.plan.document import USUAL_TIME, make_plan
from sacl.plan.facts import measure_machine, task_facts
from sacl.plan.rules import Choice, Situation, hold_out_of, kinds_of
from sacl.run.clock import seconds_of
from sacl.run.workspace import FOLDERS, KEY
from sacl.settings import IngestSettings, RunConfig
from sacl.types import Case, Cohort, NativeFrame, Volume

INGESTED = MANIFEST
"""Layout of a cohort that was ingested: its splits are made."""


def dataset_of(ingest: IngestSettings, work: Path) -> tuple[Dataset, str]:
    """List the cases of all sources, else of the phantom in `work`, and what they are read as."""
    # Nothing is written but the page: only a key that a run has made gives its pseudonyms.
    known = work if (work / KEY).is_file() else None
    sources = Sources.of(ingest, work / FOLDERS["phantom"], known)
    listed = [_listed(path, sources) for path in sources.paths]
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
    cases = tuple(
        SourceCase(
            case_id=case.case_id,
            image=folder / case.image,
            reference=folder / case.reference if case.reference else None,
            split=case.split,
            subject_id=case.subject_id,
            scan_labels=case.scan_labels,
            origin=MANIFEST,
            annotated=case.annotated,
            load=partial(_load, folder, case),
        )
        for case in cohort.cases
    )
    organs = dict(enumerate(cohort.scheme.names, start=1))
    return Dataset(INGESTED, cohort.name, organs, cases, modality=cohort.modality)


def _load(folder: Path, case: Case) -> tuple[Volume, NativeFrame]:
    return read_image(folder, case), case.native


def foresee_split(
    dataset: Dataset, config: RunConfig, given: Mapping[str, Any] | None
) -> tuple[IngestSettings, Choice | str]:
    """Return the settings of ingest as a run would have them, and who is held out, or why not."""
    ingest = config.ingest
    if given is None or dataset.layout == INGESTED:
        return ingest, ""
    try:
        held = hold_out_of(dataset, ingest, config.seed)
    except DataError as error:
        return ingest, f"nothing: {error}"
    if held.setting in given:
        return ingest, held
    return msgspec.structs.replace(ingest, validation_subjects=held.value), held


def foresee(
    cohort: CohortFacts, config: RunConfig, held: Choice | str, given: Mapping[str, Any]
) -> list[str]:
    """Return what a run would do, in lines."""
    measured = [scan.measured for scan in cohort.scans if scan.geometry is not None]
    if isinstance(held, str) or not measured:
        return [held] if isinstance(held, str) and held else []
    facts = task_facts(cohort.name, cohort.modality, cohort.organs, measured)
    machine = measure_machine(config.device)
    time = config.time or USUAL_TIME
    situation = Situation(facts, machine, seconds_of(time), given)
    lines = list(make_plan(time, "", held, situation).lines())
    if len(kinds := kinds_of(situation)) > 1:
        lines.append(f"a trial decides between {' and '.join(kinds)}")
    return lines
