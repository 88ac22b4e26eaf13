"""Check a measured cohort: every rule looks at all scans, and no rule stops at the first fault."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sacl.check.facts import OrganFacts, ReferenceFacts, ScanFacts, looks_like_ct
from sacl.check.findings import Finding
from sacl.check.scan_checks import LOG_FLOOR, geometry_findings, intensity_findings, robust_outliers
from sacl.cohort.dataset import in_short
from sacl.organs import canonical_name, side_pairs
from sacl.types import SPLITS, UNKNOWN

_LOOSE_SHARE = 0.1
"""A second piece of this share of the organ is no stray voxel."""
_FEWEST_VOXELS = 100
"""A thin organ on a coarse grid falls into pieces by itself."""
_SIDES_MM = 5.0
"""Centers of left and right that lie closer along x do not tell the side."""
_MANY_PIECES = 20
_NAMED = 12
_FACTOR = 5.0
"""A volume is believed from the smaller sex's mean divided by this to the larger one's times it."""

_MEAN_ML = {
    "liver": (1411.0, 1710.0),
    "spleen": (179.8, 238.4),
    "kidney_left": (156.5, 193.1),
    "kidney_right": (156.5, 193.1),
    "kidneys": (313.0, 386.2),
    "pancreas": (64.4, 87.4),
    "gallbladder": (0.0, 68.0),
    "stomach": (0.0, 400.0),
    "urinary_bladder": (0.0, 250.0),
}
"""Mean volume of women and of men on CT: Geraghty, Boone, McGahan and Jain, Abdominal Imaging 29,
482-490, 2004 (149 adults; both kidneys are twice the one). Hollow organs, which can be empty, with
their content: men of ICRP Publication 89 (2002), reference masses at 1 g per mL."""


@dataclass(frozen=True, eq=False)
class CohortFacts:
    """A measured cohort: what it is called, its organs and its scans."""

    name: str
    organs: tuple[str, ...]
    scans: tuple[ScanFacts, ...]
    modality: Literal["ct", "mr"]

    def scan_label_names(self) -> list[str]:
        """Return the names of all scan-wise labels, sorted."""
        return sorted({name for scan in self.scans for name in scan.scan_labels})


def likely_modality(scans: Iterable[ScanFacts]) -> Literal["ct", "mr"]:
    """Return the modality of most scans, by their intensities."""
    images = [scan.image for scan in scans if scan.image]
    return "ct" if 2 * sum(map(looks_like_ct, images)) > len(images) else "mr"


def check_cohort(cohort: CohortFacts) -> list[Finding]:
    """Return everything that is the matter with a cohort, in the order of the rules."""
    scans = cohort.scans
    return [
        *(problem for scan in scans for problem in scan.problems),
        *_across_splits(scans),
        *_duplicates(scans),
        *intensity_findings(scans, cohort.modality),
        *geometry_findings(scans),
        *_reference_findings(scans, cohort.organs),
        *_scan_labels(cohort),
    ]


def _across_splits(scans: Iterable[ScanFacts]) -> Iterator[Finding]:
    for subject, members in _by(scans, lambda scan: scan.subject_id).items():
        splits = [split for split in SPLITS if any(m.split == split for m in members)]
        if len(splits) > 1:
            where = f"{' and '.join(splits)} ({_places(members[:6])}), expected one split"
            message = f"subject {subject} is in {where}"
            yield Finding("subject-in-two-splits", members[0].case_id, message)


def _places(scans: Iterable[ScanFacts]) -> str:
    return ", ".join(f"{scan.case_id} in {scan.split}" for scan in scans)


def _duplicates(scans: Iterable[ScanFacts]) -> Iterator[Finding]:
    """Yield the same voxels under several names, and the same reference for different voxels."""
    for members in _by(scans, lambda scan: scan.image.digest if scan.image else "").values():
        if len(members) > 1:
            code = "leak" if len({m.split for m in members}) > 1 else "duplicate"
            message = f"in {members[0].split}, has the same voxels as {_places(members[1:])}"
            yield Finding(code, members[0].case_id, message)
    drawn = [scan for scan in scans if scan.image and scan.reference and scan.reference.present]
    for members in _by(drawn, lambda s: s.reference.digest if s.reference else "").values():
        if len({m.image.digest for m in members if m.image}) > 1:
            listed = ", ".join(m.case_id for m in members)
            message = f"the same label map for the different images {listed}"
            yield Finding("duplicate-reference", members[0].case_id, message)


def _scan_labels(cohort: CohortFacts) -> Iterator[Finding]:
    train = [scan for scan in cohort.scans if scan.split == "train"]
    for name in cohort.scan_label_names():
        by_value: dict[str, list[ScanFacts]] = defaultdict(list)
        for scan in train:
            by_value[scan.scan_labels.get(name, UNKNOWN)].append(scan)
        unknown = by_value.pop(UNKNOWN, [])
        if unknown and by_value:
            message = f"'{name}' is unknown for {len(unknown)} of {len(train)} training scans"
            yield Finding("unknown-scan-label", "", message)
        for value, members in by_value.items():
            if len(members) == 1 and len(train) > 1:
                message = f"{name} '{value}', expected 2 scans"
                yield Finding("rare-scan-label", members[0].case_id, message)


def _by(scans: Iterable[ScanFacts], key: Callable[[ScanFacts], str]) -> dict[str, list[ScanFacts]]:
    """Return the scans by a key; those of an empty one are left out."""
    groups: dict[str, list[ScanFacts]] = defaultdict(list)
    for scan in scans:
        if name := key(scan):
            groups[name].append(scan)
    return groups


def _reference_findings(scans: Sequence[ScanFacts], organs: Sequence[str]) -> Iterator[Finding]:
    annotated = {scan.case_id: scan.reference for scan in scans if scan.reference}
    for case, reference in annotated.items():
        if not reference.present:
            yield Finding("empty-reference", case, "every voxel is background")
    yield from _never_seen(annotated, organs)
    for case, reference in annotated.items():
        yield from _sides(case, reference)
        yield from _pieces(case, reference)
    for organ in organs:
        present = {c: r.present[organ] for c, r in annotated.items() if organ in r.present}
        if cut := sum(facts.at_border for facts in present.values()):
            yield Finding("cut-off", "", f"{organ} in {cut} of {len(present)} references")
        yield from _volumes(organ, present)


def _never_seen(annotated: dict[str, ReferenceFacts], organs: Sequence[str]) -> Iterator[Finding]:
    seen = {organ for reference in annotated.values() for organ in reference.present}
    looked_for = {organ for reference in annotated.values() for organ in reference.annotated}
    missing = [organ for organ in organs if organ in looked_for and organ not in seen]
    if missing and seen:
        message = f"{in_short(missing, _NAMED)}: in none of {len(annotated)} references"
        yield Finding("organ-never-seen", "", message)


def _sides(case: str, reference: ReferenceFacts) -> Iterator[Finding]:
    """Yield paired organs that lie on the other's side: x grows to the subject's right in RAS+."""
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


def _pieces(case: str, reference: ReferenceFacts) -> Iterator[Finding]:
    stray = []
    for organ, facts in reference.present.items():
        is_pair = canonical_name(organ) in ("kidneys", "lungs", "adrenal_glands")
        rest = 1 - facts.main_share
        loose = rest - facts.second_share if is_pair else max(rest, facts.second_share)
        whole = facts.voxels >= _FEWEST_VOXELS and not facts.at_border
        if whole and loose > _LOOSE_SHARE:
            message = f"{organ} in {facts.pieces} pieces, {rest:.0%} of it outside the largest"
            expected = "expected one piece" + " per side" * is_pair
            yield Finding("fragments", case, f"{message}, {expected}")
        elif facts.pieces > _MANY_PIECES:
            stray.append(f"{organ} in {facts.pieces} pieces")
    if stray:
        yield Finding("small-pieces", case, ", ".join(stray))


def _volumes(organ: str, present: Mapping[str, OrganFacts]) -> Iterator[Finding]:
    """Compare an organ's volumes with what adults have, else with the cohort's own."""
    if expected := adult_range_ml(organ):
        low, high = expected
        for case, facts in present.items():
            if facts.volume_ml > high or (facts.volume_ml < low and not facts.at_border):
                adults = f"adults have {low:.0f} to {high:.0f} mL"
                yield Finding("organ-volume", case, f"{organ} {facts.volume_ml:.3g} mL, {adults}")
        return
    logs = {c: math.log10(f.volume_ml) for c, f in present.items() if not f.at_border}
    for case, z in robust_outliers(logs, LOG_FLOOR).items():
        usual = 10 ** float(np.median(list(logs.values())))
        message = f"{organ} {present[case].volume_ml:.3g} mL, the cohort's median is {usual:.3g} mL"
        yield Finding("organ-volume-outlier", case, f"{message} (robust z {z:+.1f})")


def adult_range_ml(organ: str) -> tuple[float, float] | None:
    """Return the smallest and the largest volume that is believed of an adult's whole organ.

    None where the volume depends on how much of an organ the scan shows, or none is published.

    Example:
        >>> adult_range_ml("Liver"), adult_range_ml("aorta")
        ((282.2, 8550.0), None)
    """
    women, men = _MEAN_ML.get(canonical_name(organ), (0.0, 0.0))
    return (women / _FACTOR, men * _FACTOR) if men else None
