"""Read a cohort of any known layout, or several, into canonical volumes and one manifest."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from sacl.cohort.convert import CohortPlan, Window, convert_case, plan_cohort
from sacl.cohort.dataset import Dataset, Modality
from sacl.cohort.layouts.explain import Explanation, explain_dataset
from sacl.cohort.layouts.listing import Sources, list_sources, source_fingerprints
from sacl.cohort.manifest import write_cohort
from sacl.cohort.references import Decided, Decisions, MapRules
from sacl.cohort.splits import SplitRules
from sacl.errors import ConfigError
from sacl.patches.window import WindowRule, window_of
from sacl.progress import say, track
from sacl.run.record import Tree, fingerprint, recorded
from sacl.run.workspace import Workspace
from sacl.settings import IngestSettings
from sacl.types import SPLITS, Case, Cohort

PHANTOM = "Dataset900_Phantom"
"""Folder that the phantom stage leaves its dataset in."""
_AT_A_TIME = 2
"""Scans under way at the same time; each takes the memory of its voxels once."""


def inputs(settings: IngestSettings, workspace: Workspace) -> dict[str, str]:
    """Return fingerprints of the data, or of the phantom stage, and of the tables beside it."""
    sources = _sources(settings, workspace)
    if settings.data:
        hashes = source_fingerprints(sources)
    else:
        hashes = {"phantom": fingerprint(workspace.folder("phantom"))}
    return hashes | SplitRules.of(settings).fingerprints()


def ingest(settings: IngestSettings, workspace: Workspace) -> Path:
    """Write every scan in canonical orientation, the references that may be seen, `cohort.json`.

    A training subject that is not chosen as labeled gets no reference file: what is not there
    cannot be learned from. References of validation and test scans are written for scoring. Each
    case says which organs are annotated in it; another organ is unknown there, not absent. Settings
    that ask for what the data does not have, and damaged or contradictory files, are refused.
    """
    with recorded(workspace, "ingest", settings, inputs(settings, workspace)) as (folder, done):
        dataset, modality = list_sources(_sources(settings, workspace))
        done.update(write_listed(folder, dataset, modality, settings, workspace.seed))
    return folder


def write_listed(
    folder: Path, dataset: Dataset, modality: Modality, settings: IngestSettings, seed: int
) -> Tree:
    """Write a listed dataset as a cohort into a folder, and return what is worth recording."""
    plan = plan_cohort(dataset, settings.organs, SplitRules.of(settings), seed)
    for line in plan.lines:
        say(f"ingest: {line}")
    rules = MapRules(plan.scheme, settings.overlap, settings.repair_grid == "nearest")
    window = WindowRule(modality, settings.window_hu)
    converted = _convert(folder, plan, rules, lambda v, where: window_of(v, window, where))
    cases = tuple(case for case, _ in converted)
    from_tags = dataset.layout == "dicom" and settings.scan_labels is None
    source: Literal["table", "tags"] = "tags" if from_tags else "table"
    cohort = Cohort(dataset.name, plan.scheme, cases, modality, settings.window_hu, source)
    write_cohort(folder, cohort)
    decided = Decisions()
    for case, of_case in converted:
        decided.note(case.case_id, of_case)
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
    """Return where the scans lie: the given folders, else what the phantom stage generated."""
    paths = settings.data
    if not paths:
        phantom = workspace.folder("phantom") if workspace else Path()
        if not (phantom / "run.json").is_file():
            raise ConfigError("ingest.data: no data to read; give --data FOLDER or phantom.scans")
        paths = (phantom / PHANTOM,)
    how = settings.layout, settings.modality, settings.scan_labels, settings.fold, settings.series
    return Sources(paths, *how, workspace.root if workspace else None)


def _convert(
    folder: Path, plan: CohortPlan, rules: MapRules, window: Window
) -> list[tuple[Case, Decided]]:
    cases = plan.dataset.cases
    # Decoding DICOM is Python's own work, which threads cannot share.
    threads = 1 if any(case.load for case in cases) else _AT_A_TIME
    with ThreadPoolExecutor(threads) as pool:
        written = pool.map(lambda case: convert_case(folder, case, plan, rules, window), cases)
        return list(track(written, "ingest", len(cases)))


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
