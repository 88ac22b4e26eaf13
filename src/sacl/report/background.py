"""The page's sections on what was run, and on what its figures do not say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sacl.report.page import Section, bullets, facts
from sacl.types import SPLITS, Cohort, join_labels

Records = Mapping[str, Mapping[str, Any]]
"""The finished stages' run records, in the order in which the stages ran."""


def subtitle(cohort: Cohort, records: Records) -> str:
    """Return the run in one line: cohort, organs, subjects, strategy and head."""
    parts = [
        f"{cohort.name}: {len(cohort.scheme.names)} organs, {cohort.modality.upper()}",
        _splits(cohort),
        *(f"{_setting(records, 'pretrain', 'strategy')} pretraining",) * ("pretrain" in records),
        *(f"{_setting(records, 'finetune', 'head')} head",) * ("finetune" in records),
    ]
    return " · ".join(parts)


def run_section(cohort: Cohort, records: Records, label_names: Sequence[str]) -> Section:
    """Return what was run, on what, how long it took, and with which versions."""
    pairs = [
        ("Cohort", f"{cohort.name}, {cohort.modality.upper()}, {len(cohort.cases)} scans"),
        ("Subjects", _splits(cohort)),
        ("Organs", ", ".join(name.replace("_", " ") for name in cohort.scheme.names)),
        (" x ".join(label_names).capitalize(), _scan_labels(cohort, label_names)),
        ("Pretraining", _pick(records, "pretrain", ("strategy", "network", "steps", "batch"))),
        ("Fine-tuning", _pick(records, "finetune", ("head", "decoder", "steps", "batch"))),
        ("Duration", _durations(records)),
        ("Peak memory", _peak_memory(records)),
        *_last(records),
    ]
    return Section("What was run", facts([(name, value) for name, value in pairs if value]))


def limits_section(summary: Mapping[str, Any], phantom: bool) -> Section:
    """Return what this report does not say."""
    subjects = sum(summary["subjects"].values())
    texts = []
    if phantom:
        texts.append(
            "The scans are generated phantoms. The figures show that training strategies can be"
            " told apart, not how well any of them does on patients."
        )
    if subjects:
        texts.append(
            f"{subjects} held-out subject{'s' * (subjects != 1)} of one cohort: other scanners,"
            " hospitals and diseases are not measured."
        )
    texts.append(
        "Every network was trained once. Intervals and p-values cover which subjects were held"
        " out, not the luck of a training run or of which subjects were labeled."
    )
    if subjects and subjects < 10:
        texts.append("With fewer than about ten subjects the bootstrap intervals are too narrow.")
    if len(summary["subjects"]) > 1:
        texts.append(f"Scores are over the splits {' and '.join(summary['subjects'])} together.")
    texts.append("Research software: its label maps are not for diagnosis or treatment.")
    return Section("What this report does not say", bullets(texts))


def _splits(cohort: Cohort) -> str:
    parts = []
    for split in SPLITS:
        subjects = {case.subject_id for case in cohort.of_split(split)}
        if subjects:
            labeled = len({case.subject_id for case in cohort.labeled})
            parts.append(f"{len(subjects)} {split}" + f" ({labeled} labeled)" * (split == "train"))
    return ", ".join(parts) + " subjects"


def _scan_labels(cohort: Cohort, names: Sequence[str]) -> str:
    counts = Counter(
        join_labels([case.scan_label(name) for name in names]) for case in cohort.cases
    )
    return ", ".join(f"{value.replace('_', ' ')} ({n})" for value, n in sorted(counts.items()))


def _setting(records: Records, stage: str, name: str) -> str:
    return str(records[stage]["settings"][stage].get(name, ""))


def _pick(records: Records, stage: str, names: tuple[str, ...]) -> str:
    if stage not in records:
        return ""
    return ", ".join(f"{name} {_setting(records, stage, name)}" for name in names)


def _durations(records: Records) -> str:
    total = sum(record["duration_s"] for record in records.values())
    parts = ", ".join(f"{stage} {_time(r['duration_s'])}" for stage, r in records.items())
    return f"{_time(total)} in all: {parts}"


def _peak_memory(records: Records) -> str:
    peak = max((record["peak_memory_mb"] for record in records.values()), default=0.0)
    return f"{peak / 1024:.1f} GB"


def _time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _last(records: Records) -> list[tuple[str, str]]:
    """Return device, seed and versions of the stage that ran last."""
    if not records:
        return []
    record = list(records.values())[-1]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    revision = record.get("git_revision")
    return [
        ("Device, seed", f"{record['device']}, {record['settings']['seed']}"),
        ("Versions", versions + (f", source {revision}" if revision else "")),
    ]
