"""Read a cohort of any known layout, or several, into canonical volumes and one manifest."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sacl.cohort.annotation import (
    annotated_organs,
    choose_scheme,
    dataset_in_lines,
    keep_annotated,
    require_all_learned,
)
from sacl.cohort.dataset import Dataset, Modality, SourceCase
from sacl.cohort.layouts.dicom import DicomExport
from sacl.cohort.layouts.explain import Explanation, explain_dataset
from sacl.cohort.layouts.listing import Sources, list_sources, source_fingerprints
from sacl.cohort.manifest import write_cohort
from sacl.cohort.merging import read_scan
from sacl.cohort.references import MapRules, overlap_in_words, read_source_map
from sacl.cohort.splits import SplitRules, choose_splits
from sacl.dicom.pseudonyms import KEY
from sacl.dicom.verdict import SeriesRule
from sacl.errors import ConfigError, SaclError
from sacl.files.atomic import folder_fingerprint
from sacl.files.nifti import write_label_map, write_volume
from sacl.patches.window import WindowRule, window_of
from sacl.progress import say, track
from sacl.run.record import fingerprint, recorded
from sacl.run.workspace import Workspace
from sacl.settings import IngestSettings
from sacl.types import SPLITS, Case, Cohort

PHANTOM = "Dataset900_Phantom"
"""Folder that the phantom stage leaves its dataset in."""
_AT_A_TIME = 2
"""Scans under way at the same time; each takes the memory of its voxels once."""


@dataclass(frozen=True)
class _Plan:
    """What holds for every case: what is annotated, who is labeled, how intensities are read."""

    folder: Path
    dataset: Dataset
    rules: MapRules
    labeled: frozenset[str]
    modality: Modality
    settings: IngestSettings


@dataclass(frozen=True)
class _Ingested:
    """A case as written, and what was decided: contested voxels, resampling, header's doubts."""

    case: Case
    contested: Mapping[str, int]
    repair: str


def inputs(settings: IngestSettings, workspace: Workspace) -> dict[str, str]:
    """Return fingerprints of the data, or of the phantom stage, and of the tables beside it."""
    hashes = {}
    if not settings.data:
        _sources(settings, workspace)
        hashes["phantom"] = fingerprint(workspace.folder("phantom"))
    else:
        hashes.update(source_fingerprints(_sources(settings, workspace)))
    if settings.labeled_order is not None:
        hashes["labeled_order"] = folder_fingerprint(settings.labeled_order)
    return hashes


def ingest(settings: IngestSettings, workspace: Workspace) -> Path:
    """Write every scan in canonical orientation, the references that may be seen, `cohort.json`.

    A training subject that is not chosen as labeled gets no reference file: what is not there
    cannot be learned from. References of validation and test scans are written for scoring. Each
    case says which organs are annotated in it; another organ is unknown there, not absent.

    Raises:
        ConfigError: the settings ask for organs or subjects that the data does not have.
        DataError: a file is damaged, or the cohort contradicts itself.
    """
    with recorded(workspace, "ingest", settings, inputs(settings, workspace)) as (folder, done):
        dataset, modality = list_sources(_sources(settings, workspace))
        scheme, notes = choose_scheme(dataset, settings.organs)
        dataset = keep_annotated(dataset, scheme)
        for line in (*dataset.notes, *notes, *dataset_in_lines(dataset, scheme)):
            say(f"ingest: {line}")
        dataset, labeled = choose_splits(dataset, _split_rules(settings), workspace.seed)
        rules = MapRules(scheme, settings.overlap, settings.repair_grid == "nearest")
        plan = _Plan(folder, dataset, rules, frozenset(labeled), modality, settings)
        shown = [c for c in dataset.cases if c.split == "train" and _is_shown(c, plan)]
        require_all_learned(dataset, shown, scheme)
        cases, decided = _ingest_cases(plan)
        from_tags = dataset.layout == "dicom" and settings.scan_labels is None
        source: Literal["table", "tags"] = "tags" if from_tags else "table"
        cohort = Cohort(dataset.name, scheme, cases, modality, settings.window_hu, source)
        write_cohort(folder, cohort)
        done.update(_counts(cohort), layout=dataset.layout, labeled_subjects=labeled, **decided)
    return folder


def explain(settings: IngestSettings, workspace: Workspace) -> list[Explanation]:
    """Return how every source would be read; nothing is written.

    Raises:
        ConfigError: there is no data to read.
        DataError: a source is of no known layout, or its listing fails.
    """
    sources = _sources(settings, workspace)
    return [explain_dataset(path, sources.layout, sources.export) for path in sources.paths]


def dicom_export(settings: IngestSettings, workspace: Workspace) -> DicomExport:
    """Return how DICOM is read; the key lies outside of the stages' folders, and so outlives them.

    Pseudonyms stay the same for as long as the work directory is there.
    """
    rule = SeriesRule(settings.modality, settings.series)
    return DicomExport(rule, workspace.root / KEY)


def _sources(settings: IngestSettings, workspace: Workspace) -> Sources:
    """Return where the scans lie: the given folders, else what the phantom stage generated."""
    paths = settings.data
    if not paths:
        phantom = workspace.folder("phantom")
        if not (phantom / "run.json").is_file():
            raise ConfigError("ingest.data: no data to read; give --data FOLDER or phantom.scans")
        paths = (phantom / PHANTOM,)
    export = dicom_export(settings, workspace)
    return Sources(
        paths, settings.layout, settings.modality, settings.scan_labels, settings.fold, export
    )


def _split_rules(settings: IngestSettings) -> SplitRules:
    return SplitRules(
        settings.validation_subjects,
        settings.test_subjects,
        settings.labeled_subjects,
        settings.labeled_order,
        settings.stratify,
        settings.labeled_values,
    )


def _is_shown(case: SourceCase, plan: _Plan) -> bool:
    """Tell whether a case's reference may be seen: by scoring, or by training where labeled."""
    return case.has_reference and (case.split != "train" or case.subject in plan.labeled)


def _ingest_cases(plan: _Plan) -> tuple[tuple[Case, ...], dict[str, object]]:
    """Write all cases, and return with them what was decided about overlaps and grids."""
    cases = plan.dataset.cases
    # Decoding DICOM is Python's own work, which threads cannot share.
    threads = 1 if any(case.load for case in cases) else _AT_A_TIME
    with ThreadPoolExecutor(threads) as pool:
        written = pool.map(lambda case: _ingest_case(case, plan), cases)
        done = list(track(written, "ingest", len(cases)))
    contested = {d.case.case_id: dict(d.contested) for d in done if d.contested}
    repaired = {d.case.case_id: d.repair for d in done if d.repair}
    doubts = {d.case.case_id: d.case.native.contradiction for d in done}
    doubts = {case_id: doubt for case_id, doubt in doubts.items() if doubt}
    for case_id, repair in repaired.items():
        say(
            f"ingest: case {case_id}: label map resampled by nearest neighbor onto the image's"
            f" grid ({repair})"
        )
    if doubts:
        first, doubt = next(iter(doubts.items()))
        more = f"; {len(doubts) - 1} more scans likewise" if len(doubts) > 1 else ""
        say(f"ingest: WARNING, the header contradicts itself in case {first}: {doubt}{more}")
    if contested:
        words = overlap_in_words(contested.values())
        say(f"ingest: {words}; the {plan.settings.overlap} organ wins; run.json has all pairs")
    decided = {"overlaps": contested, "repaired_grids": repaired, "contradictions": doubts}
    return tuple(d.case for d in done), decided


def _ingest_case(source: SourceCase, plan: _Plan) -> _Ingested:
    """Write a case's image and, where it may be seen, its reference; return what was decided."""
    image_name, reference_name = f"images/{source.case_id}.nii", None
    volume, native = read_scan(source)
    rule = WindowRule(plan.modality, plan.settings.window_hu)
    window = window_of(volume.voxels, rule, f"case {source.case_id}")
    write_volume(plan.folder / image_name, volume)
    grid = volume.grid
    del volume  # the voxels are not kept while the reference is read
    annotated: tuple[str, ...] = ()
    contested, repair = {}, ""
    if _is_shown(source, plan):
        annotated = annotated_organs(plan.dataset, source, plan.rules.scheme)
        reference_name = f"references/{source.case_id}.nii.gz"
        try:
            reference = read_source_map(plan.dataset, source, annotated, grid, plan.rules)
            write_label_map(plan.folder / reference_name, reference.label_map)
        except SaclError:
            (plan.folder / image_name).unlink()  # nothing is left of a bad case
            raise
        contested = {f"{a} and {b}": n for (a, b), n in reference.contested.items()}
        repair = reference.repair
    case = Case(
        case_id=source.case_id,
        subject_id=source.subject,
        image=image_name,
        reference=reference_name,
        split=source.split,
        native=native,
        window=window,
        scan_labels=source.scan_labels,
        annotated=annotated,
    )
    return _Ingested(case, contested, repair)


def _counts(cohort: Cohort) -> dict[str, object]:
    """Return the numbers of cases and subjects by split, and say them."""
    counts: dict[str, object] = {"modality": cohort.modality, "organs": list(cohort.scheme.names)}
    lines = []
    for split in SPLITS:
        cases = cohort.of_split(split)
        references = sum(case.reference is not None for case in cases)
        subjects = len({case.subject_id for case in cases})
        counts[split] = {"cases": len(cases), "subjects": subjects, "with_reference": references}
        lines.append(f"{split} {len(cases)} scans, {references} with reference")
    say(f"ingest: {'; '.join(lines)}")
    return counts
