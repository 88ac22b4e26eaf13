"""What is decided by a listing, before scans are read: who is held out, or what to label first."""

from __future__ import annotations

from sacl.cohort.dataset import Dataset, counted, in_short
from sacl.cohort.splits import annotated_subjects, strata_of, stratified_order
from sacl.errors import DataError
from sacl.plan.rules import RESULTS, Choice
from sacl.settings import IngestSettings

_HOLD_OUT_FROM = 10
"""Labeled subjects from which on some are held out. 7 of 70 ACDC subjects and 8,000 steps with a
teacher are level with all 70 labels (0.894 and 0.897), so that a fifth of more costs little."""
_MOST_HELD_OUT = 10
_TO_LABEL = 3


def hold_out_of(dataset: Dataset, ingest: IngestSettings, seed: int) -> Choice:
    """Return how many of the labeled subjects are held out.

    Where no training scan has a label map, a DataError names those to label first.
    """
    labeled = len(annotated_subjects(dataset))
    scored = sum(case.split != "train" and case.has_reference for case in dataset.cases)
    if not labeled:
        raise DataError(_what_to_label(dataset, ingest.stratify, seed, scored))
    return held_out(labeled, scored)


def held_out(labeled_subjects: int, scored_scans: int) -> Choice:
    """Return the choice, by labeled training subjects and scans that the data hold out."""
    setting = "ingest.validation_subjects"
    if scored_scans:
        return Choice(setting, 0, f"the data hold out {scored_scans} labeled scans of their own")
    if labeled_subjects < _HOLD_OUT_FROM:
        coarse = ", and only coarse maps are, by cross-fitting" if labeled_subjects > 1 else ""
        subjects = counted(labeled_subjects, "labeled subject")
        reason = f"{subjects}, needed to learn from, so final maps are not scored{coarse}"
        return Choice(setting, 0, reason)
    count = min(_MOST_HELD_OUT, labeled_subjects // 5)
    reason = f"of {labeled_subjects} labeled subjects, so that the run can judge itself"
    return Choice(setting, count, reason, f"{RESULTS}: 7 labels are level with 70")


def _what_to_label(dataset: Dataset, stratify: str, seed: int, scored: int) -> str:
    training = [case for case in dataset.cases if case.split == "train"]
    strata = strata_of([(c.subject, c.scan_labels) for c in training], stratify)
    chosen = stratified_order(strata, seed)[:_TO_LABEL]
    scans = [next(c.case_id for c in training if c.subject == subject) for subject in chosen]
    others = f" ({scored} scans held out for scoring are)" if scored else ""
    first = f"draw all organs in {in_short(scans)} first" if scans else "there is none to train on"
    return (
        f"{dataset.name}: none of {len(training)} training scans is labeled{others}, so nothing"
        f" says what to segment; {first}, save the label maps beside them (docs/how-to/cohort.md)"
        " and repeat the command"
    )
