"""What a check of a cohort can say: every rule with its level, title and remedy in one table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Rule:
    """One kind of fault: how grave it is, what it is called, and what to do about it."""

    level: Level
    title: str
    remedy: str


_TABLE = """
error unreadable: Image that cannot be read
    Export or copy the file again, or leave the case out.
error label-unreadable: Reference that cannot be read
    Export it again, or remove it so that the scan counts as unlabeled.
error label-grid: Reference on another grid than its image
    Find the image that the reference was drawn on, or let it be resampled with
    --repair-grid nearest.
error label-values: Label values that the dataset does not name
    Name the values in the dataset's table of labels, or correct the label map.
error ignored-voxels: Voxels marked to be ignored
    Complete the annotation, or remove the reference so that the scan counts as unlabeled.
error empty-reference: Reference without any organ
    Correct it, or remove it so that the scan counts as unlabeled.
error constant-image: Image of one value
    Export the scan again, or leave the case out.
error subject-in-two-splits: Subject in two splits
    Keep all scans of a subject in one split.
error leak: The same image in two splits
    Remove one: a scan that was trained on cannot be a test.
error sides-swapped: Left and right exchanged
    Look at the scan: either the names of the labels are exchanged, or the affine of the file is
    mirrored.
error cannot-ingest: Settings that this cohort does not allow
    Change the setting, or add the data.
warning needs-settings: Default settings that this cohort does not allow
    Give the settings named here to `sacl run`, or add the data.
warning nothing-to-score: Nothing to score a run by
    Hold subjects out with --ingest.test_subjects N, or give the cohort a split.
warning duplicate: The same image under several names
    Keep one, or correct the export that wrote one scan twice.
warning duplicate-reference: The same reference for different images
    Find out which scan the reference belongs to.
warning other-modality: Scan of another modality than the cohort
    Make a cohort of each modality: intensities are windowed in one way.
warning not-hu: CT intensities that are not in HU
    Export the scan with its rescale slope and intercept applied; if the cohort is MR, set
    ingest.modality to mr.
warning ct-in-mr: CT among MR
    Leave the scan out; if the cohort is CT, set ingest.modality to ct.
warning nearly-constant: Image that is almost of one value
    Look at the scan: it may be a mask, or cut to nothing.
warning extreme-values: A few voxels far beyond all others
    Look at the scan: defective voxels or fill values hide the rest when percentiles fail.
warning intensity-outlier: Intensities unlike the rest of the cohort
    Look at the scan and at how it was exported; leave it out if it is of another kind.
warning contradictory-header: Header that contradicts itself
    Repair the header: other programs place or size these voxels differently.
warning lost-header: Voxels of 1 mm at the origin: a header that was lost
    Export the scan again with its geometry; volumes and distances are wrong otherwise.
warning implausible-size: Voxels or field of view of an impossible size
    Correct the unit of the header (mm), or export the scan again.
warning spacing-outlier: Spacing unlike the rest of the cohort
    Look at the header; leave the scan out if it is of another kind (a localizer).
warning sheared: Axes that are not at right angles
    Gantry tilt: nothing is lost in `sacl`, but other tools may refuse or distort the scan.
warning few-slices: Scan of very few slices
    Leave it out if it is a localizer or cut by mistake.
warning organ-never-seen: Organ that no reference holds
    Leave it out with ingest.organs, or correct the dataset's table of labels.
warning organ-volume: Organ volume beyond what adults have
    Look at the reference and at the spacing; children and disease go beyond it too.
warning organ-volume-outlier: Organ volume unlike the rest of the cohort
    Look at the reference and at the spacing.
warning fragments: Organ in more pieces than it has
    Look at the reference: stray voxels, or a label used for something else.
note rare-scan-label: Scan-wise label that one training scan alone has
    Pretraining cannot learn what a class has in common from one scan; merge it if you can.
note unknown-scan-label: Scan-wise label that is not known
    Nothing has to be done; such scans take part in pretraining less.
note resampled-reference: Reference that will be resampled onto its image's grid
    Look at a few of them in the run's report: the setting ingest.repair_grid asks for it.
note intensity-scale: Intensity scales that differ between scans
    Nothing has to be done: MR is normalized scan by scan.
note nominal-spacing: One spacing for fields of view of many sizes
    Take volumes and distances as nominal; locate by slices, the default, which reads no spacing, or
    set locate.volume.in_plane_size.
note unit-spacing: Every scan has voxels of 1 mm
    Right if the data were resampled; otherwise the spacing was lost.
note zero-origin: Scans at the origin of the world
    Nothing has to be done: their position in the scanner is lost, and not needed.
note oblique: Oblique scans
    Nothing has to be done: results are written onto the scan's own grid.
note not-axial: Thick slices that are not axial
    Results are less good: patches are cut along the axial plane, in which these scans are coarse.
note small-pieces: Organs with stray pieces
    Nothing has to be done; islands do no harm to training.
note cut-off: Organs cut off by the image's border
    Nothing has to be done; their volumes are not compared.
"""
"""A rule begins with its level, code and title; its remedy is indented."""


def _rules() -> dict[str, Rule]:
    rules = {}
    for entry in re.split(r"\n(?=\w)", _TABLE.strip()):
        head, *remedy = entry.splitlines()
        name, _, title = head.partition(": ")
        level, code = name.split(" ")
        grave = next(known for known in LEVELS if known == level)
        rules[code] = Rule(grave, title, " ".join(map(str.strip, remedy)))
    return rules


RULES: Mapping[str, Rule] = _rules()
"""All rules by their code, the graver ones first."""


@dataclass(frozen=True)
class Finding:
    """Where a rule is broken: its code, the case (empty for the whole cohort), what is the matter.

    `message` says what was got and what was expected, without a final period.
    """

    code: str
    case_id: str
    message: str

    @property
    def rule(self) -> Rule:
        """The rule that was broken."""
        return RULES[self.code]

    @property
    def level(self) -> Level:
        """How grave it is."""
        return self.rule.level

    @property
    def line(self) -> str:
        """The message behind the case's name."""
        return f"{self.case_id}: {self.message}" if self.case_id else self.message


def grouped(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    """Return the findings by code, the graver codes first, in the order of `RULES`."""
    groups: dict[str, list[Finding]] = {code: [] for code in RULES}
    for finding in findings:
        groups[finding.code].append(finding)
    return {code: group for code, group in groups.items() if group}


def count_by_level(findings: Iterable[Finding]) -> dict[Level, int]:
    """Return how many kinds of findings there are of each level."""
    codes = {finding.code for finding in findings}
    return {level: sum(RULES[code].level == level for code in codes) for level in LEVELS}
