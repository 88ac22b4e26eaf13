"""Check a measured cohort: every rule looks at all scans, and no rule stops at the first fault."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from sacl.check.findings import Finding
from sacl.check.geometry_checks import geometry_findings
from sacl.check.intensity_checks import intensity_findings, looks_like_ct
from sacl.check.reference_checks import reference_findings
from sacl.check.scan_facts import ScanFacts
from sacl.types import SPLITS, UNKNOWN


@dataclass(frozen=True, eq=False)
class CohortFacts:
    """A measured cohort: what it is called, its organs and its scans.

    `modality` is that of most scans where nobody said it.
    """

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
    found = [problem for scan in scans for problem in scan.problems]
    found += _across_splits(scans)
    found += _duplicates(scans)
    found += intensity_findings(scans, cohort.modality)
    found += geometry_findings(scans)
    found += reference_findings(scans, cohort.organs)
    found += _scan_labels(cohort)
    return found


def _across_splits(scans: Iterable[ScanFacts]) -> Iterator[Finding]:
    by_subject = _by(scans, lambda scan: scan.subject_id)
    for subject, members in by_subject.items():
        splits = [split for split in SPLITS if any(m.split == split for m in members)]
        if len(splits) > 1:
            listed = ", ".join(f"{m.case_id} in {m.split}" for m in members[:6])
            yield Finding(
                "subject-in-two-splits",
                members[0].case_id,
                f"subject {subject} is in {' and '.join(splits)} ({listed}), expected one split",
            )


def _duplicates(scans: Iterable[ScanFacts]) -> Iterator[Finding]:
    """Tell the same voxels under several names, and the same reference for different voxels."""
    readable = [scan for scan in scans if scan.image]
    images = _by(readable, lambda scan: scan.image.digest if scan.image else "")
    for members in images.values():
        if len(members) < 2:
            continue
        others = ", ".join(f"{m.case_id} in {m.split}" for m in members[1:])
        code = "leak" if len({m.split for m in members}) > 1 else "duplicate"
        message = f"in {members[0].split}, has the same voxels as {others}"
        yield Finding(code, members[0].case_id, message)
    annotated = [scan for scan in readable if scan.reference and scan.reference.present]
    maps = _by(annotated, lambda scan: scan.reference.digest if scan.reference else "")
    for members in maps.values():
        if len({m.image.digest for m in members if m.image}) > 1:
            listed = ", ".join(m.case_id for m in members)
            yield Finding(
                "duplicate-reference",
                members[0].case_id,
                f"the same label map for the different images {listed}",
            )


def _scan_labels(cohort: CohortFacts) -> Iterator[Finding]:
    train = [scan for scan in cohort.scans if scan.split == "train"]
    for name in cohort.scan_label_names():
        by_value: dict[str, list[ScanFacts]] = defaultdict(list)
        for scan in train:
            by_value[scan.scan_labels.get(name, UNKNOWN)].append(scan)
        unknown = by_value.pop(UNKNOWN, [])
        if unknown and by_value:
            yield Finding(
                "unknown-scan-label",
                "",
                f"'{name}' is unknown for {len(unknown)} of {len(train)} training scans",
            )
        for value, members in by_value.items():
            if len(members) == 1 and len(train) > 1:
                yield Finding(
                    "rare-scan-label", members[0].case_id, f"{name} '{value}', expected 2 scans"
                )


def _by(scans: Iterable[ScanFacts], key: Callable[[ScanFacts], str]) -> dict[str, list[ScanFacts]]:
    groups: dict[str, list[ScanFacts]] = defaultdict(list)
    for scan in scans:
        groups[key(scan)].append(scan)
    return groups
