"""Estimate the contrast phase of a cohort's scans from their coarse maps, and say what came out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from sacl.cohort.dataset import first_of
from sacl.cohort.manifest import PHASES_FILE, PhaseSource, ScanPhase, read_image, write_phases
from sacl.files.nifti import read_label_map
from sacl.organs import canonical_name
from sacl.patches.phase import TISSUE_OF, TISSUES, PhaseEstimate, estimate_phase, organ_hu
from sacl.phase_words import PHASE, PHASES
from sacl.progress import say, track
from sacl.types import UNKNOWN, Case, Cohort

_CONTRADICTS = 0.95


def estimate_phases(
    cohort: Cohort, ingested: Path, located: Path, threshold: float
) -> dict[str, object]:
    """Write `phases.csv` beside the coarse maps and return what to record; a CT cohort only.

    A phase that the cohort knows stays: where the HU contradict it with a probability above 0.95,
    that is said and marked. Nothing is estimated where no organ of the cohort tells the phase, or
    where its label `phase` means something else, such as a cardiac phase.
    """
    if cohort.modality != "ct":
        return {}
    if reason := _why_not(cohort):
        say(f"locate: contrast phases not estimated, {reason}")
        return {}
    scans = []
    for case in track(cohort.cases, "estimate phases"):
        coarse, _ = read_label_map(located / "maps" / f"{case.case_id}.nii.gz", cohort.scheme)
        estimate = estimate_phase(organ_hu(read_image(ingested, case), coarse), threshold)
        scans.append(_decide(case, estimate, cohort.phase_source))
    write_phases(located / PHASES_FILE, scans, TISSUES)
    return _summarize(scans)


def _why_not(cohort: Cohort) -> str:
    """Return why a CT cohort's contrast phases cannot be estimated; empty where they can."""
    if not any(canonical_name(organ) in TISSUE_OF for organ in cohort.scheme.names):
        return f"{cohort.scheme.name} has none of the organs {', '.join(TISSUE_OF)}"
    foreign = {case.scan_label(PHASE) for case in cohort.cases} - {*PHASES, UNKNOWN}
    if foreign:
        return f"the cohort's label '{PHASE}' is '{min(foreign)}', which is no contrast phase"
    return ""


def _decide(case: Case, estimate: PhaseEstimate, origin: PhaseSource) -> ScanPhase:
    known = case.scan_label(PHASE)
    source: PhaseSource = "unknown" if estimate.phase == UNKNOWN else "estimated"
    return ScanPhase(
        case_id=case.case_id,
        phase=estimate.phase if known == UNKNOWN else known,
        source=source if known == UNKNOWN else origin,
        estimated=estimate.likeliest,
        probability=estimate.probability,
        conflict=known not in (UNKNOWN, estimate.likeliest) and estimate.probability > _CONTRADICTS,
        explanation=estimate.explanation,
        hu=estimate.hu,
    )


def _summarize(scans: list[ScanPhase]) -> dict[str, object]:
    """Say the sources, the estimated phases and the conflicts, and return them."""
    sources = Counter(scan.source for scan in scans)
    phases = Counter(scan.phase for scan in scans if scan.source == "estimated")
    conflicts = [scan for scan in scans if scan.conflict]
    parts = [f"{n} by the {source}" for source, n in sources.items() if source in ("table", "tags")]
    if phases:
        named = ", ".join(f"{n} {phase}" for phase, n in sorted(phases.items()))
        parts.append(f"{sources['estimated']} estimated ({named})")
    if sources["unknown"]:
        parts.append(f"{sources['unknown']} unknown")
    say(f"locate: contrast phases: {'; '.join(parts)}")
    if conflicts:
        words = "labeled {0.phase}, but its HU suggest {0.estimated} ({0.probability:.2f})"
        first = first_of([(scan.case_id, words.format(scan)) for scan in conflicts])
        say(f"locate: {first}; the label is kept, see {PHASES_FILE}")
    return {
        "sources": dict(sources),
        "estimated": dict(phases),
        "conflicts": [scan.case_id for scan in conflicts],
    }
