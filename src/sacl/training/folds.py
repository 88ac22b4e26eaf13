"""Deal the labeled subjects to folds: no scan is located by a network that saw its subject."""

from __future__ import annotations

from sacl.errors import DataError
from sacl.types import Cohort


def deal_folds(cohort: Cohort, folds: int) -> dict[str, int]:
    """Return the fold of every labeled subject; a fold's network is trained on the other folds.

    Subjects in which the same organs are annotated are dealt in turn, so that every network learns
    every organ as far as possible: of an organ that none of its scans annotates, a network would
    put out anything.

    Args:
        cohort: Its labeled cases are dealt, subject by subject.
        folds: As many as possible, up to this number.

    Raises:
        DataError: fewer than two subjects are labeled, or an organ is annotated in one fold alone.
    """
    annotated: dict[str, set[str]] = {}
    for case in cohort.labeled:
        annotated.setdefault(case.subject_id, set()).update(case.annotated)
    if len(annotated) < 2:
        raise DataError(
            f"cohort {cohort.name}: {len(annotated)} labeled subject, but the coarse network needs"
            " at least 2, so that none is located by a network that saw it; label another, or give"
            " label maps with --from DIR"
        )
    organs = cohort.scheme.names
    in_turn = sorted(annotated, key=lambda subject: [o not in annotated[subject] for o in organs])
    count = min(folds, len(annotated))
    fold_of = {subject: number % count for number, subject in enumerate(in_turn)}
    for organ in organs:
        knowing = {fold_of[subject] for subject in in_turn if organ in annotated[subject]}
        if len(knowing) < 2:
            raise DataError(
                f"cohort {cohort.name}: {organ} is annotated in too few labeled subjects, in one of"
                f" {count} folds alone, so that no other subject could teach where it is; label"
                " another subject with it, leave it out of ingest.organs, or give label maps with"
                " --from DIR"
            )
    return fold_of
