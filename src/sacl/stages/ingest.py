"""Read a cohort of any known layout, or several, into canonical volumes and one manifest."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sacl.cohort.convert import CohortPlan, Converted, convert_case, plan_cohort
from sacl.cohort.dataset import Dataset, Modality
from sacl.cohort.layouts.explain import Explanation, explain_dataset
from sacl.cohort.layouts.listing import Sources, list_sources, source_fingerprints
from sacl.cohort.manifest import write_cohort
from sacl.cohort.references import Decisions, MapRules
from sacl.cohort.splits import SplitRules
from sacl.files.atomic import place_of
from sacl.patches.window import WindowRule, window_of
from sacl.progress import say
from sacl.run.record import PLACE, Tree, fingerprint, recorded
from sacl.run.workspace import Workspace
from sacl.settings import IngestSettings
from sacl.types import SPLITS, Cohort

_AT_A_TIME = 2
"""Scans under way at the same time; each takes the memory of its voxels once."""


def inputs(settings: IngestSettings, workspace: Workspace) -> dict[str, str]:
    """Return fingerprints of the data, or of the phantom stage, and of the tables beside it."""
    sources = _sources(settings, workspace)
    if settings.data:
        hashes = source_fingerprints(sources) | {PLACE: place_of(settings.data)}
    else:
        hashes = {"phantom": fingerprint(workspace.folder("phantom"))}
    return hashes | SplitRules.of(settings).fingerprints()


def ingest(
    settings: IngestSettings,
    workspace: Workspace,
    listed: tuple[Dataset, Modality] | None = None,
) -> Path:
    """Write every scan in canonical orientation, the references that may be seen, `cohort.json`.

    A training subject that is not chosen as labeled gets no reference file: what is not there
    cannot be learned from. References of validation and test scans are written for scoring. Each
    case says which organs are annotated in it; another organ is unknown there, not absent. Settings
    that ask for what the data does not have, and damaged or contradictory files, are refused.
    `listed` is what `list_cohort` returned, if it was called: headers are read once.
    """
    with recorded(workspace, "ingest", settings, inputs(settings, workspace)) as (folder, done):
        if listed is None:
            with workspace.in_turn("ingest: the scans are listed"):
                listed = list_cohort(settings, workspace)
        done.update(write_listed(folder, *listed, settings, workspace))
    return folder


@dataclass(frozen=True, eq=False)
class IngestListed:
    """The stage for scans that `list_cohort` has listed."""

    dataset: Dataset
    modality: Modality

    inputs = staticmethod(inputs)

    def ingest(self, settings: IngestSettings, workspace: Workspace) -> Path:
        """Do what the stage does."""
        return ingest(settings, workspace, (self.dataset, self.modality))


def write_listed(
    folder: Path,
    dataset: Dataset,
    modality: Modality,
    settings: IngestSettings,
    workspace: Workspace,
) -> Tree:
    """Write a listed dataset as a cohort into a folder, and return what is worth recording.

    Raises:
        DataError: scans are bad; all others are written.
    """
    plan = plan_cohort(dataset, settings.organs, SplitRules.of(settings), workspace.seed)
    for line in plan.lines:
        say(f"ingest: {line}")
    rules = MapRules(plan.scheme, settings.overlap, settings.repair_grid == "nearest")
    window = WindowRule(modality, settings.window_hu)
    work = partial(_open_source, folder, plan, rules, window)
    # Decoding DICOM is Python's own work, which threads cannot share.
    at_once = 1 if any(case.load for case in dataset.cases) else _AT_A_TIME
    names = [case.case_id for case in plan.dataset.cases]
    done = workspace.engine.results_of(work, names, folder, Converted, "ingest", at_once=at_once)
    cases = tuple(each.case for each in done.values())
    from_tags = dataset.layout == "dicom" and settings.scan_labels is None
    source: Literal["table", "tags"] = "tags" if from_tags else "table"
    cohort = Cohort(dataset.name, plan.scheme, cases, modality, settings.window_hu, source)
    write_cohort(folder, cohort)
    decided = Decisions()
    for name, each in done.items():
        decided.note(name, each.decided)
    for case_id, repair in decided.repaired_grids.items():
        where = f"ingest: case {case_id}: label map resampled by nearest neighbor"
        say(f"{where} onto the image's grid ({repair})")
    for line in decided.lines(f"the {settings.overlap} organ"):
        say(f"ingest: {line}")
    named = {"layout": dataset.layout, "labeled_subjects": plan.labeled}
    return {**_counts(cohort), **named, **dataclasses.asdict(decided)}


def list_cohort(
    settings: IngestSettings, workspace: Workspace | None = None
) -> tuple[Dataset, Modality]:
    """Return the scans as listed before any is read, in the data's own splits, and their modality.

    The key to DICOM's pseudonyms is kept in the work directory, if one is given.
    """
    return list_sources(_sources(settings, workspace))


def explain(settings: IngestSettings, workspace: Workspace) -> list[Explanation]:
    """Return how every source would be read; nothing is written."""
    sources = _sources(settings, workspace)
    return [explain_dataset(path, sources.layout, sources.export) for path in sources.paths]


def _sources(settings: IngestSettings, workspace: Workspace | None) -> Sources:
    if workspace is None:
        return Sources.of(settings, None, None)
    return Sources.of(settings, workspace.folder("phantom"), workspace.root)


def _open_source(
    folder: Path, plan: CohortPlan, rules: MapRules, window: WindowRule
) -> Callable[[str], Converted]:
    """Return what converts a case."""
    sources = {case.case_id: case for case in plan.dataset.cases}

    def window_at(voxels: np.ndarray, where: str) -> tuple[float, float]:
        return window_of(voxels, window, where)

    return lambda name: convert_case(folder, sources[name], plan, rules, window_at)


def _counts(cohort: Cohort) -> Tree:
    """Return modality, organs and the numbers of cases and subjects by split, and say these."""
    counts: dict[str, Any] = {"modality": cohort.modality, "organs": cohort.scheme.names}
    lines = []
    for split in SPLITS:
        cases = cohort.of_split(split)
        references = sum(case.reference is not None for case in cases)
        subjects = len({case.subject_id for case in cases})
        counts[split] = {"cases": len(cases), "subjects": subjects, "with_reference": references}
        lines.append(f"{split} {len(cases)} scans, {references} with reference")
    say(f"ingest: {'; '.join(lines)}")
    return counts
