"""What a run without a settings file would do with a cohort, by what a check has measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from sacl.check.cohort_checks import CohortFacts
from sacl.check.facts import ScanFacts
from sacl.check.source import INGESTED
from sacl.cohort.dataset import Dataset
from sacl.errors import DataError
from sacl.plan.document import USUAL_TIME, make_plan
from sacl.plan.facts import MeasuredScan, measure_machine, task_facts
from sacl.plan.rules import Choice, Situation, hold_out_of, kinds_of
from sacl.run.clock import seconds_of
from sacl.settings import IngestSettings, RunConfig


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
    measured = [scan for scan in cohort.scans if scan.geometry is not None]
    if isinstance(held, str) or not measured:
        return [held] if isinstance(held, str) and held else []
    facts = task_facts(cohort.name, cohort.modality, cohort.organs, list(map(_measured, measured)))
    machine = measure_machine(config.device)
    time = config.time or USUAL_TIME
    situation = Situation(facts, machine, seconds_of(time), given)
    lines = list(make_plan(time, "", held, situation).lines())
    if len(kinds := kinds_of(situation)) > 1:
        lines.append(f"a trial decides between {' and '.join(kinds)}")
    return lines


def _measured(scan: ScanFacts) -> MeasuredScan:
    geometry, reference = scan.geometry, scan.reference if scan.labeled else None
    assert geometry is not None, "scans without one are left out"
    return MeasuredScan(
        subject_id=scan.subject_id,
        split=scan.split,
        shape=geometry.shape,
        spacing_mm=geometry.spacing_mm,
        scan_labels=scan.scan_labels,
        labeled=scan.labeled,
        annotated=reference.annotated if reference else (),
        organs={o: f.extent for o, f in reference.present.items()} if reference else None,
    )
