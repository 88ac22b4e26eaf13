"""What a cohort must have for a comparison; told before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from sacl.cohort.manifest import read_cohort
from sacl.comparison.cells import Cell
from sacl.comparison.running import Confirmed, bring_up_to_date, has_data, stage_state
from sacl.errors import ConfigError, WorkspaceError
from sacl.phase_words import PHASE
from sacl.run.pipeline import check_device
from sacl.settings.protocol import VERSION, Protocol
from sacl.types import UNKNOWN, Cohort

RESULTS = "results.json"
_BY_SCAN_LABEL = ("semantic", "supcon")


def require_results_of(protocol: Protocol) -> None:
    """Refuse a folder that holds another comparison's results.

    Raises:
        WorkspaceError: they are of another version of the protocol, or of another name.
    """
    path = protocol.work / RESULTS
    if not path.is_file():
        return
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        version, name = document["version"], document["protocol"]["name"]
    except (ValueError, KeyError, TypeError) as error:
        raise WorkspaceError(
            f"{RESULTS}: not the results of a comparison; remove it, or take another --work"
        ) from error
    if version != VERSION or name != protocol.name:
        raise WorkspaceError(
            f"{RESULTS}: results of '{name}', version {version}, expected '{protocol.name}',"
            f" version {VERSION}; take another --work"
        )


def prepare(
    protocol: Protocol, cells: Sequence[Cell], confirmed: Confirmed, *, redo: bool = False
) -> None:
    """Read the cohort at every number of labels, the largest first, and check what is compared.

    Raises:
        SaclError: there is no device or data, the cohort cannot be read, or lacks subjects, scored
            scans or scan-wise labels that the comparison needs.
    """
    check_device(cells[0].config.device)
    firsts = {cell.labeled_subjects: cell for cell in reversed(cells)}
    for cell in firsts.values():
        _require_data(cell, confirmed)
    for count in sorted(firsts, key=lambda n: -1 if n is None else n, reverse=True):
        for stage in ("phantom", "ingest"):
            if stage in firsts[count].stages:
                bring_up_to_date(firsts[count], stage, confirmed, redo=redo)
    cohorts = {
        count: read_cohort(cell.workspace("ingest").require("ingest"))
        for count, cell in firsts.items()
    }
    _require_different_counts(cohorts)
    for cell in cells:
        _require_suits(cell, cohorts[cell.labeled_subjects], protocol)


def labeled_count(cohort: Cohort) -> int:
    """Return how many training subjects keep their reference."""
    return len({case.subject_id for case in cohort.labeled})


def scored_cases(cohort: Cohort, scan_label: str, values: Sequence[str]) -> set[str]:
    """Return the cases that count: those with one of the values, all where none is named."""
    return {c.case_id for c in cohort.cases if not values or c.scan_label(scan_label) in values}


def _require_data(cell: Cell, confirmed: Confirmed) -> None:
    """Refuse a cell whose scans are neither at hand nor ingested, here or on another machine."""
    if not has_data(cell) and stage_state(cell, "ingest", confirmed) != "current":
        absent = [path.name for path in cell.config.ingest.sources if not path.exists()]
        got = f"'{absent[0]}', which is not there" if absent else "nothing"
        raise ConfigError(f"ingest.data: got {got}; give --data FOLDER or phantom.scans")


def _require_different_counts(cohorts: Mapping[int | None, Cohort]) -> None:
    every = cohorts.get(None)
    if every is not None and (count := labeled_count(every)) in cohorts:
        raise ConfigError(
            f"labeled_subjects: null is all {count} subjects, and {count} stands there too; leave"
            " one of them out"
        )


def _require_scored(cell: Cell, cohort: Cohort, protocol: Protocol) -> None:
    label, values = cell.config.ingest.labeled_scan_label, protocol.scored_values
    unheard = [value for value in values if not scored_cases(cohort, label, (value,))]
    if unheard:
        heard = sorted({case.scan_label(label) for case in cohort.cases} - {UNKNOWN})
        raise ConfigError(
            f"scored_values: no scan of {cohort.name} has the {label} '{unheard[0]}'; there are"
            f" {', '.join(heard) or 'none'}"
        )
    counted = scored_cases(cohort, label, values)
    splits = protocol.splits
    for split in splits:
        if not any(
            c.reference is not None and c.case_id in counted for c in cohort.of_split(split)
        ):
            raise ConfigError(
                f"splits: no {split} scan of {cohort.name} has a reference to score against; score"
                f" another split, or set ingest.{split}_subjects"
            )


def _require_suits(cell: Cell, cohort: Cohort, protocol: Protocol) -> None:
    _require_scored(cell, cohort, protocol)
    count = labeled_count(cohort)
    if count < 2 and cell.config.locate.source is None:
        raise ConfigError(
            f"labeled_subjects: {count}, but the coarse networks need 2 at least, so that none"
            " locates a subject that it saw; label another, or give locate.source"
        )
    names = cell.config.pretrain.scan_label_names
    estimated = {PHASE} if cohort.modality == "ct" and cell.config.locate.estimate_phase else set()
    known = any(
        all(name in estimated or case.scan_label(name) != UNKNOWN for name in names)
        for case in cohort.of_split("train")
    )
    if cell.config.pretrain.strategy in _BY_SCAN_LABEL and not known:
        raise ConfigError(
            f"strategy '{cell.strategy}': needs the scan-wise label '{' x '.join(names)}', and no"
            f" training scan of {cohort.name} has it; give ingest.scan_labels, or take the strategy"
            " 'organ'"
        )
