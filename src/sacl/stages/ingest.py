"""Read a cohort of any known layout, or several, into canonical volumes and one manifest."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from sacl.cohort.annotation import (
    annotated_organs,
    choose_scheme,
    count_annotated,
    keep_annotated,
    require_all_learned,
    require_known_organs,
)
from sacl.cohort.layouts.dicom import DicomExport
from sacl.cohort.layouts.explain import Explanation, explain_dataset
from sacl.cohort.layouts.folds import splits_file, with_fold
from sacl.cohort.layouts.found import Found, FoundCase, Modality
from sacl.cohort.layouts.recognize import find
from sacl.cohort.manifest import write_cohort
from sacl.cohort.merging import merge
from sacl.cohort.modality import of_one_modality, read_scan, with_modality
from sacl.cohort.overlap import overlap_in_words
from sacl.cohort.references import ReferenceRules, read_reference
from sacl.cohort.scan_table import with_table
from sacl.cohort.splits import (
    choose_labeled,
    hide_other_values,
    hold_out,
    read_order,
    require_one_split,
    seeded_order,
    subject_of,
)
from sacl.dicom.pseudonyms import KEY
from sacl.dicom.verdict import SeriesRule
from sacl.errors import ConfigError, SaclError
from sacl.files.ahead import in_threads
from sacl.files.atomic import listing_fingerprint
from sacl.files.nifti import write_label_map, write_volume
from sacl.patches.window import WindowRule, window_of
from sacl.progress import say, track
from sacl.run.record import fingerprint, recorded
from sacl.run.workspace import Workspace
from sacl.settings import IngestSettings
from sacl.types import SPLITS, UNKNOWN, Case, Cohort, Grid, LabelScheme, NativeFrame

PHANTOM = "Dataset900_Phantom"
"""Folder that the phantom stage leaves its dataset in."""
_SCAN_LABELS = "scan_labels.csv"
_AT_A_TIME = 2
"""Scans under way at the same time; each takes the memory of its voxels once."""
_MANY = 12
"""A scan-wise label with more values than this, such as an age, is told without them."""


@dataclass(frozen=True)
class _Plan:
    """What holds for every case: what is annotated, who is labeled, how intensities are read."""

    folder: Path
    found: Found
    rules: ReferenceRules
    labeled: frozenset[str]
    modality: Modality
    settings: IngestSettings


def inputs(settings: IngestSettings, workspace: Workspace) -> dict[str, str]:
    """Return fingerprints of the data, or of the phantom stage, and of the tables beside it."""
    sources = _sources(settings, workspace)
    if not settings.data:
        found = {"phantom": fingerprint(workspace.folder("phantom"))}
    else:
        found = {
            "data" if n == 0 else f"data[{n}]": listing_fingerprint(source)
            for n, source in enumerate(sources)
        }
    folds = next((f for f in map(splits_file, sources) if f), None)
    if folds and settings.fold is not None:
        found["fold"] = listing_fingerprint(folds)
    for name in ("scan_labels", "labeled_order"):
        path: Path | None = getattr(settings, name)
        if path is not None:
            found[name] = listing_fingerprint(path)
    return found


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
        found, modality = _found(settings, workspace)
        scheme, notes = choose_scheme(found, settings.organs)
        found = keep_annotated(found, scheme)
        for note in (*found.notes, *notes):
            say(f"ingest: {note}")
        _announce(found, scheme)
        order = seeded_order(found, settings.stratify, workspace.seed)
        found = hold_out(found, order, settings.validation_subjects, settings.test_subjects)
        if settings.labeled_order is not None:
            order = read_order(settings.labeled_order, found)
        found = hide_other_values(found, settings.stratify, settings.labeled_values)
        labeled = choose_labeled(found, order, settings.labeled_subjects)
        rules = ReferenceRules(scheme, settings.overlap, settings.repair_grid == "nearest")
        plan = _Plan(folder, found, rules, frozenset(labeled), modality, settings)
        shown = [case for case in found.cases if case.split == "train" and _is_shown(case, plan)]
        require_all_learned(found, shown, scheme)
        cases, decided = _ingest_cases(plan)
        cohort = Cohort(found.name, scheme, cases, modality)
        write_cohort(folder, cohort)
        done.update(_counts(cohort), layout=found.layout, labeled_subjects=labeled, **decided)
    return folder


def _sources(settings: IngestSettings, workspace: Workspace) -> tuple[Path, ...]:
    """Return where the scans lie: the given folders, else what the phantom stage generated."""
    if settings.data:
        return settings.data
    phantom = workspace.folder("phantom")
    if not (phantom / "run.json").is_file():
        raise ConfigError("ingest.data: no data to read; give --data FOLDER or phantom.scans")
    return (phantom / PHANTOM,)


def explain(settings: IngestSettings, workspace: Workspace) -> list[Explanation]:
    """Return how every source would be read; nothing is written.

    Raises:
        ConfigError: there is no data to read.
        DataError: a source is of no known layout, or its listing fails.
    """
    export = dicom_export(settings, workspace)
    sources = _sources(settings, workspace)
    return [explain_dataset(source, settings.layout, export) for source in sources]


def dicom_export(settings: IngestSettings, workspace: Workspace) -> DicomExport:
    """Return how DICOM is read; the key lies outside of the stages' folders, and so outlives them.

    Pseudonyms stay the same for as long as the work directory is there.
    """
    rule = SeriesRule(settings.modality, settings.series)
    return DicomExport(rule, workspace.root / KEY)


def _found(settings: IngestSettings, workspace: Workspace) -> tuple[Found, Modality]:
    """List the cases of all sources with all that is known of them, of one modality."""
    sources = _sources(settings, workspace)
    own_tables = settings.scan_labels is None or len(sources) > 1
    export = dicom_export(settings, workspace)
    founds = [_listed(source, settings, own_tables, export) for source in sources]
    found = merge(founds)
    if settings.scan_labels is not None:
        found = with_table(found, settings.scan_labels)
    modality, found = of_one_modality(found, settings.modality)
    require_one_split(found)
    require_known_organs(found)
    return found, modality


def _listed(source: Path, settings: IngestSettings, own_table: bool, export: DicomExport) -> Found:
    """List the cases of one source, and tell the user how it was read."""
    found, reason = find(source, settings.layout, export)
    say(f"ingest: {found.name} read as {found.layout}, by {reason}")
    found = with_fold(found, source, settings.fold)
    beside = source / _SCAN_LABELS
    if own_table and beside.is_file():
        say(f"ingest: scan-wise labels from the data's own {_SCAN_LABELS}")
        found = with_table(found, beside)
    return with_modality(found, settings.modality)


def _announce(found: Found, scheme: LabelScheme) -> None:
    """Say what was found: scans, subjects, organs and how often each is annotated, scan labels."""
    subjects = {subject_of(case) for case in found.cases}
    say(f"ingest: {len(found.cases)} scans of {len(subjects)} subjects")
    counts, references = count_annotated(found, scheme)
    say(f"ingest: {len(scheme.names)} organs, {', '.join(scheme.names)}")
    partly = [f"{organ} {counts[organ]}" for organ in scheme.names if counts[organ] < references]
    if partly:
        say(
            f"ingest: not annotated in all of the {references} references, and unknown in the"
            f" others: {', '.join(partly)}"
        )
    for name in sorted({name for case in found.cases for name in case.scan_labels}):
        values = Counter(case.scan_labels.get(name, UNKNOWN) for case in found.cases)
        told = ", ".join(f"{value} {count}" for value, count in sorted(values.items()))
        say(f"ingest: {name}: {told if len(values) <= _MANY else f'{len(values)} values'}")


def _is_shown(case: FoundCase, plan: _Plan) -> bool:
    """Tell whether a case's reference may be seen: by scoring, or by training where labeled."""
    return case.has_reference and (case.split != "train" or subject_of(case) in plan.labeled)


def _ingest_cases(plan: _Plan) -> tuple[tuple[Case, ...], dict[str, object]]:
    """Write all cases, and return with them what was decided about overlaps and grids."""
    cases, contested, repaired = [], {}, {}
    # Decoding DICOM is Python's own work, which threads cannot share.
    threads = 1 if any(case.load for case in plan.found.cases) else _AT_A_TIME
    done = in_threads(lambda found: _ingest_case(found, plan), plan.found.cases, threads)
    for case, pairs, repair in track(done, "ingest", len(plan.found.cases)):
        cases.append(case)
        if repair:
            repaired[case.case_id] = repair
            say(
                f"ingest: case {case.case_id}: label map resampled by nearest neighbor onto the"
                f" image's grid ({repair})"
            )
        if pairs:
            contested[case.case_id] = pairs
    if contested:
        told = overlap_in_words(contested.values())
        say(f"ingest: {told}; the {plan.settings.overlap} organ wins; run.json has all pairs")
    return tuple(cases), {"overlaps": contested, "repaired_grids": repaired}


def _ingest_case(found: FoundCase, plan: _Plan) -> tuple[Case, dict[str, int], str]:
    """Write a case's image and, where it may be seen, its reference; return what was decided."""
    image_name = f"images/{found.case_id}.nii"
    native, grid, window = _write_image(found, plan, plan.folder / image_name)
    annotated: tuple[str, ...] = ()
    reference_name, contested, repair = None, {}, ""
    if _is_shown(found, plan):
        annotated = annotated_organs(plan.found, found, plan.rules.scheme)
        reference_name = f"references/{found.case_id}.nii.gz"
        try:
            reference = read_reference(plan.found, found, annotated, grid, plan.rules)
            write_label_map(plan.folder / reference_name, reference.label_map)
        except SaclError:
            (plan.folder / image_name).unlink()  # nothing is left of a bad case
            raise
        contested = {f"{a} and {b}": n for (a, b), n in reference.contested.items()}
        repair = reference.repair
    case = Case(
        case_id=found.case_id,
        subject_id=subject_of(found),
        image=image_name,
        reference=reference_name,
        split=found.split,
        native=native,
        window=window,
        scan_labels=found.scan_labels,
        annotated=annotated,
    )
    return case, contested, repair


def _write_image(
    found: FoundCase, plan: _Plan, path: Path
) -> tuple[NativeFrame, Grid, tuple[float, float]]:
    """Write a case's image, and return its frames and window; the voxels are not kept."""
    volume, native = read_scan(found)
    rule = WindowRule(plan.modality, plan.settings.window_hu)
    window = window_of(volume.voxels, rule, f"case {found.case_id}")
    write_volume(path, volume)
    return native, volume.grid, window


def _counts(cohort: Cohort) -> dict[str, object]:
    """Return the numbers of cases and subjects by split, and say them."""
    counts: dict[str, object] = {"modality": cohort.modality, "organs": list(cohort.scheme.names)}
    for split in SPLITS:
        cases = cohort.of_split(split)
        counts[split] = {
            "cases": len(cases),
            "subjects": len({case.subject_id for case in cases}),
            "with_reference": sum(case.reference is not None for case in cases),
        }
    told = "; ".join(
        f"{split} {len(cohort.of_split(split))} scans,"
        f" {sum(c.reference is not None for c in cohort.of_split(split))} with reference"
        for split in SPLITS
    )
    say(f"ingest: {told}")
    return counts
