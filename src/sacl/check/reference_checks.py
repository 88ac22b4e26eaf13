"""Check the references of a cohort: sizes, sides and pieces of its organs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from sacl.check.findings import Finding
from sacl.check.organ_volumes import adult_range_ml, is_whole_pair
from sacl.check.outliers import robust_outliers
from sacl.check.scan_facts import OrganFacts, Reference, ScanFacts
from sacl.organs import canonical_name, side_pairs

_LOG_FLOOR = 0.08
_LOOSE_SHARE = 0.1
"""A second piece of this share of the organ is no stray voxel."""
_FEWEST_VOXELS = 100
"""A thin organ on a coarse grid falls into pieces by itself."""
_SIDES_MM = 5.0
"""Centers of left and right that lie closer along x do not tell the side."""
_MANY_PIECES = 20
_NAMED = 12


def reference_findings(scans: Sequence[ScanFacts], organs: Sequence[str]) -> Iterator[Finding]:
    """Yield what is the matter with the references of a cohort.

    Args:
        scans: The measured scans.
        organs: Names of all organs that the dataset names.
    """
    annotated = {scan.case_id: scan.reference for scan in scans if scan.reference}
    for scan in scans:
        if scan.reference is not None and not scan.reference.present:
            yield Finding("empty-reference", scan.case_id, "every voxel is background")
    yield from _never_seen(annotated, organs)
    for case, reference in annotated.items():
        yield from _sides(case, reference)
        yield from _pieces(case, reference)
    yield from _cut_off(annotated, organs)
    for organ in organs:
        yield from _volumes(organ, annotated)


def _never_seen(annotated: dict[str, Reference], organs: Sequence[str]) -> Iterator[Finding]:
    seen = {organ for reference in annotated.values() for organ in reference.present}
    looked_for = {organ for reference in annotated.values() for organ in reference.annotated}
    missing = [organ for organ in organs if organ in looked_for and organ not in seen]
    if missing and seen:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        message = f"{', '.join(missing[:_NAMED])}{more}: in none of {len(annotated)} references"
        yield Finding("organ-never-seen", "", message)


def _sides(case: str, reference: Reference) -> Iterator[Finding]:
    """Tell paired organs that lie on the other's side: x grows to the subject's right in RAS+."""
    present = reference.present
    pairs = side_pairs(list(present))
    by_name = {canonical_name(organ): organ for organ in present}
    if {"liver", "spleen"} <= set(by_name):
        pairs.append((by_name["spleen"], by_name["liver"]))
    wrong = []
    for left, right in pairs:
        left_x, right_x = present[left].center_mm[0], present[right].center_mm[0]
        if left_x - right_x > _SIDES_MM:
            wrong.append(f"{left} at x = {left_x:.0f} mm, {right} at x = {right_x:.0f} mm")
    if wrong:
        listed = "; ".join(wrong[:3]) + (f" and {len(wrong) - 3} more pairs" * (len(wrong) > 3))
        message = f"{listed}; expected the left one at the smaller x (RAS+)"
        yield Finding("sides-swapped", case, message)


def _pieces(case: str, reference: Reference) -> Iterator[Finding]:
    stray = []
    for organ, facts in reference.present.items():
        loose = facts.second_share if not is_whole_pair(organ) else 0.0
        rest = 1 - facts.main_share - (facts.second_share if is_whole_pair(organ) else 0.0)
        told = facts.voxels >= _FEWEST_VOXELS and not facts.at_border
        if told and max(loose, rest) > _LOOSE_SHARE:
            yield Finding(
                "fragments",
                case,
                f"{organ} in {facts.pieces} pieces, {1 - facts.main_share:.0%} of it outside the"
                " largest, expected one piece" + (" per side" * is_whole_pair(organ)),
            )
        elif facts.pieces > _MANY_PIECES:
            stray.append(f"{organ} in {facts.pieces} pieces")
    if stray:
        yield Finding("small-pieces", case, ", ".join(stray))


def _cut_off(annotated: dict[str, Reference], organs: Sequence[str]) -> Iterator[Finding]:
    for organ in organs:
        found = [r.present[organ] for r in annotated.values() if organ in r.present]
        cut = sum(facts.at_border for facts in found)
        if cut:
            yield Finding("cut-off", "", f"{organ} in {cut} of {len(found)} references")


def _volumes(organ: str, annotated: dict[str, Reference]) -> Iterator[Finding]:
    """Compare an organ's volumes with what adults have, else with the cohort's own."""
    found: dict[str, OrganFacts] = {
        case: reference.present[organ]
        for case, reference in annotated.items()
        if organ in reference.present
    }
    expected = adult_range_ml(organ)
    if expected is not None:
        low, high = expected
        for case, facts in found.items():
            if facts.volume_ml > high or (facts.volume_ml < low and not facts.at_border):
                yield Finding(
                    "organ-volume",
                    case,
                    f"{organ} {facts.volume_ml:.3g} mL, adults have {low:.0f} to {high:.0f} mL",
                )
        return
    logs = {c: math.log10(f.volume_ml) for c, f in found.items() if not f.at_border}
    for case, z in robust_outliers(logs, _LOG_FLOOR).items():
        usual = 10 ** float(np.median(list(logs.values())))
        yield Finding(
            "organ-volume-outlier",
            case,
            f"{organ} {found[case].volume_ml:.3g} mL, the cohort's median is {usual:.3g} mL"
            f" (robust z {z:+.1f})",
        )
