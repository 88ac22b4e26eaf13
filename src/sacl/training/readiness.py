"""What stands against a run before it starts: settings, disk and memory that this cohort lacks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from sacl.check.cohort_checks import CohortFacts
from sacl.check.findings import Finding
from sacl.check.scan_facts import ScanFacts
from sacl.organs import match, side_pairs
from sacl.settings import RunConfig
from sacl.training.forecast import Forecast, labeled_scans, organs_of
from sacl.types import UNKNOWN

_PHASE = "phase"
_BY_SCAN_LABEL = ("semantic", "supcon")


def readiness_findings(
    config: RunConfig, cohort: CohortFacts, expected: Forecast, configured: bool
) -> list[Finding]:
    """Return what a run would stop at: an error where a configuration was given, else a warning.

    Args:
        config: The settings of the run.
        cohort: What the data are.
        expected: The estimate of the run.
        configured: Whether somebody wrote the settings for this cohort, or they are the defaults.
    """
    code = "cannot-run" if configured else "needs-settings"
    texts = [
        *_labels(config, cohort, expected),
        *_organs(config, cohort),
        *_pretraining(config, cohort),
        *_machine(config, expected),
    ]
    return [Finding(code, "", text) for text in texts] + _scoring(config, cohort)


def _scoring(config: RunConfig, cohort: CohortFacts) -> list[Finding]:
    held_out = any(scan.split != "train" and scan.has_reference for scan in cohort.scans)
    if held_out or config.ingest.validation_subjects + config.ingest.test_subjects:
        return []
    return [Finding("nothing-to-score", "", "no validation or test scan has a reference")]


def _labels(config: RunConfig, cohort: CohortFacts, expected: Forecast) -> Iterator[str]:
    subjects = expected.counts.labeled_subjects
    if subjects < 2 and config.locate.source is None:
        yield (
            f"{subjects} labeled training subjects, the coarse network needs 2: label more, or give"
            " coarse label maps with --from DIR"
        )
    wanted = config.ingest.labeled_subjects
    if wanted is not None and wanted > subjects:
        yield f"ingest.labeled_subjects is {wanted}, and there are {subjects}"


def _organs(config: RunConfig, cohort: CohortFacts) -> Iterator[str]:
    wanted = config.ingest.organs
    if not cohort.organs and not wanted:
        yield "the data name no organs: list those to segment with --ingest.organs liver,spleen"
    found = set(match(cohort.organs, wanted).values())
    missing = [organ for organ in wanted if organ not in found]
    if cohort.organs and missing:
        yield f"ingest.organs asks for {', '.join(missing)}; the data have" + (
            f" {', '.join(cohort.organs)}"
        )
    labeled, _ = labeled_scans(config, cohort.scans)
    learned = {organ for scan in labeled if scan.reference for organ in scan.reference.annotated}
    unlearned = [organ for organ in organs_of(config, cohort) if organ not in learned]
    if labeled and unlearned:
        yield f"no labeled training scan is annotated for {', '.join(unlearned)}"
    pairs = side_pairs(organs_of(config, cohort))
    if pairs and (config.pretrain.augment.flip or config.finetune.augment.flip):
        yield f"augment.flip is on, and left and right differ ({pairs[0][0]}): set it to false"


def _pretraining(config: RunConfig, cohort: CohortFacts) -> Iterator[str]:
    said = {scan.modality for scan in cohort.scans if scan.modality is not None}
    if len(said) > 1 and config.ingest.modality == "auto":
        yield "the scans are CT and MR, a cohort is one: choose with --ingest.modality ct or mr"
    train = [scan for scan in cohort.scans if scan.split == "train"]
    names, strategy = config.pretrain.scan_label_names, config.pretrain.strategy
    if not train:
        yield "no training scan: give the cohort a train split"
    elif strategy in _BY_SCAN_LABEL and not any(_has_all(scan, names) for scan in train):
        if cohort.modality == "ct" and config.locate.estimate_phase and names == (_PHASE,):
            return  # the coarse maps will tell it
        others = ", ".join(cohort.scan_label_names()) or "none"
        yield (
            f"pretrain.strategy '{strategy}' needs the scan-wise label '{' and '.join(names)}' and"
            f" no training scan has it (there are: {others}): give it with --ingest.scan-labels"
            " CSV, or take --pretrain.strategy organ"
        )


def _has_all(scan: ScanFacts, names: Sequence[str]) -> bool:
    return all(scan.scan_labels.get(name, UNKNOWN) != UNKNOWN for name in names)


def _machine(config: RunConfig, expected: Forecast) -> Iterator[str]:
    need, free = sum(expected.disk_gb.values()), free_disk_gb(config.work)
    if need > free:
        yield (
            f"the work directory needs about {need:.1f} GB, its disk has {free:.1f} GB free: take"
            " another --work, or lower extract.patch_size or extract.margin"
        )
    memory, installed = max(expected.memory_gb.values()), installed_memory_gb()
    if installed is not None and memory > installed:
        yield (
            f"the run needs about {memory:.1f} GB of memory, this machine has {installed:.1f} GB"
        )


def free_disk_gb(folder: Path) -> float:
    """Return the free disk of a folder, made or not yet, in GB."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / 1e9


def installed_memory_gb() -> float | None:
    """Return the machine's memory in GB, None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    except (AttributeError, OSError, ValueError):
        return None
