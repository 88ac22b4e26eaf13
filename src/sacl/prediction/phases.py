"""Estimate scans' contrast phases from the HU of their organs, each with probability and reason.

The HU of one scan's organs are modeled as jointly Gaussian in every phase:

    HU(organ) = native + iodine x enhancement(phase) + shift + own deviation

`iodine` (1 +- 0.25) is common to all organs: dose per weight, cardiac output and tube voltage move
all enhancement together. `shift` (0 +- 5 HU) is the scanner's. So the covariance of a phase is
known, and an organ that was not measured is left out of it. Any mask may also be wrong: with
probability 0.1, whatever the others are, an organ's HU is that of some other tissue, 60 +- 80 HU.

Portal venous and delayed scans differ in the amount of enhancement and hardly in its pattern, so
beforehand the portal venous phase counts as commoner (`_BEFOREHAND`): in the archives it is, and
delayed scans are the rarest.

The enhancement is of about 120 kVp; where each number is from, and which are set by hand, stands in
docs/how-to/scan-labels.md (native values also in `sacl_phantom/tissues.yaml`).
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Real, Shaped
from scipy import ndimage, stats
from scipy.special import logsumexp

from sacl.cohort.dataset import first_of
from sacl.cohort.manifest import PHASES_FILE, PhaseSource, ScanPhase, write_phases
from sacl.organs import canonical_name
from sacl.patches.query import organ_regions
from sacl.progress import say
from sacl.types import PHASE, PHASES, UNKNOWN, Case, Cohort, LabelMap, Volume

TISSUE_OF = {
    "aorta": "aorta",
    "portal_vein_and_splenic_vein": "portal_vein",
    "inferior_vena_cava": "inferior_vena_cava",
    "kidney_left": "kidneys",
    "kidney_right": "kidneys",
    "kidneys": "kidneys",
    "liver": "liver",
    "spleen": "spleen",
}
"""The tissue whose HU an organ's mask gives, by the organ's canonical name."""
TISSUES = tuple(dict.fromkeys(TISSUE_OF.values()))
"""The tissues in the order in which they are named."""

_EDGE_MM = 4.0
_CORTEX_EDGE_MM = 2.0
"""Kidneys lose less of their edge: the cortex, 5 to 8 mm thick, is what enhances first."""
_STEP_MM = 2.0
_LEAST_ML = 0.3
_SOFT_HU = (-30.0, 700.0)
_LEAST_SOFT_SHARE = 0.2


@dataclass(frozen=True)
class _TissueHU:
    """Mean and deviation without contrast and of the rise in the phases after; what CT can have."""

    native: tuple[float, float]
    rise: tuple[tuple[float, float], ...]
    plausible: tuple[float, float]


_HU = {
    "aorta": _TissueHU((40, 8), ((270, 90), (280, 60), (120, 30), (65, 20)), (-20, 1000)),
    "portal_vein": _TissueHU((40, 8), ((15, 20), (95, 35), (130, 30), (70, 20)), (-50, 600)),
    "inferior_vena_cava": _TissueHU((38, 8), ((10, 25), (45, 40), (95, 35), (65, 20)), (-50, 800)),
    "kidneys": _TissueHU((30, 8), ((80, 50), (140, 45), (150, 35), (110, 35)), (-50, 500)),
    "liver": _TissueHU((56, 13), ((6, 8), (22, 12), (58, 15), (32, 12)), (-50, 250)),
    "spleen": _TissueHU((48, 8), ((45, 35), (90, 25), (76, 18), (38, 15)), (-50, 350)),
}

_BEFOREHAND = dict(zip(PHASES, (0.2, 0.1, 0.2, 0.4, 0.1), strict=True))
"""How common the phases are taken to be among abdominal scans; set by hand."""

_IODINE_DEVIATION = 0.25
_SHIFT_DEVIATION_HU = 5.0
_WRONG_MASK = 0.1
_OTHER_TISSUE_HU = (60.0, 80.0)
_CONTRADICTS = 0.95


@dataclass(frozen=True)
class PhaseEstimate:
    """What a scan's HU say: the phase or `unknown`, and why.

    `probability` is that of the likeliest phase, also where it was not enough; `likeliest` is that
    phase, `unknown` where the HU are not to be believed or none was measured.
    """

    phase: str
    likeliest: str
    probability: float
    hu: Mapping[str, float]
    explanation: str


def organ_hu(image: Volume, label_map: LabelMap) -> dict[str, float]:
    """Return the median HU of every tissue of `TISSUES` that the map holds at least 0.3 ml of.

    A coarse mask is wrong at its edge first, so 4 mm (kidneys: 2 mm) of it are left out, of a thin
    organ half of its depth. Fat, air and bone are left out too, unless there is hardly anything
    else. Voxels finer than 2 mm are thinned out before.
    """
    values: defaultdict[str, list[np.ndarray]] = defaultdict(list)
    milliliters: defaultdict[str, float] = defaultdict(float)
    steps = tuple(max(1, int(_STEP_MM // s)) for s in label_map.grid.spacing_mm)
    spacing_mm = [s * n for s, n in zip(label_map.grid.spacing_mm, steps, strict=True)]
    for organ, region in organ_regions(label_map).items():
        tissue = TISSUE_OF.get(canonical_name(organ))
        if tissue is None:
            continue
        thinned = tuple(slice(r.start, r.stop, n) for r, n in zip(region, steps, strict=True))
        mask = label_map.voxels[thinned] == label_map.scheme.label_of(organ)
        if not mask.any():
            continue
        core = _core(mask, spacing_mm, _CORTEX_EDGE_MM if tissue == "kidneys" else _EDGE_MM)
        values[tissue].append(_of_soft_tissue(np.asarray(image.voxels[thinned])[core]))
        milliliters[tissue] += np.count_nonzero(core) * float(np.prod(spacing_mm)) / 1000.0
    return {
        tissue: float(np.median(np.concatenate(values[tissue])))
        for tissue in TISSUES
        if milliliters[tissue] >= _LEAST_ML
    }


def _of_soft_tissue(hu: Shaped[np.ndarray, " n"]) -> Shaped[np.ndarray, " kept"]:
    """Return the HU that soft tissue and enhanced blood can have; all where those are too few."""
    low, high = _SOFT_HU
    kept = hu[(hu >= low) & (hu <= high)]
    return kept if len(kept) >= _LEAST_SOFT_SHARE * len(hu) else hu


def _core(
    mask: Bool[np.ndarray, "i j k"], spacing_mm: Sequence[float], edge_mm: float
) -> Bool[np.ndarray, "i j k"]:
    """Return the voxels of a mask that lie deeper than the edge, or in its inner half."""
    depth = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=spacing_mm)
    inner = np.asarray(depth)[1:-1, 1:-1, 1:-1]
    return np.asarray(inner > min(edge_mm, 0.5 * float(inner.max())), dtype=np.bool_)


def estimate_phase(hu: Mapping[str, float], threshold: float) -> PhaseEstimate:
    """Return the contrast phase of a scan by its median HU by tissue; any may be missing.

    Below the threshold, the least probability that is believed, the phase is `unknown`.
    """
    doubt = _doubt(hu)
    if doubt:
        return PhaseEstimate(UNKNOWN, UNKNOWN, 0.0, hu, doubt)
    probability = phase_probabilities(hu)
    best, second = sorted(PHASES, key=lambda phase: -probability[phase])[:2]
    measured = ", ".join(f"{_words(t)} {hu[t]:.0f} HU" for t in TISSUES if t in hu)
    verdict = f"{_words(best)} ({probability[best]:.2f})"
    sure = probability[best] >= threshold
    if not sure:
        verdict = f"unknown, {verdict} or {_words(second)} ({probability[second]:.2f})"
    return PhaseEstimate(
        best if sure else UNKNOWN, best, probability[best], hu, f"{measured}: {verdict}"
    )


def phase_probabilities(hu: Mapping[str, float]) -> dict[str, float]:
    """Return the probability of every phase; where nothing was measured, that beforehand."""
    tissues = [tissue for tissue in TISSUES if tissue in hu]
    measured = np.array([hu[tissue] for tissue in tissues])
    evidence = [
        np.log(_BEFOREHAND[phase]) + _log_evidence(measured, *_moments(phase, tissues))
        for phase in PHASES
    ]
    share = np.exp(np.array(evidence) - logsumexp(evidence))
    return dict(zip(PHASES, share.tolist(), strict=True))


def _moments(
    phase: str, tissues: Sequence[str]
) -> tuple[Real[np.ndarray, " n"], Real[np.ndarray, "n n"]]:
    """Return mean `[n]` and covariance `[n, n]` of the tissues' HU in a phase."""
    number = PHASES.index(phase)
    native = np.array([_HU[t].native for t in tissues]).reshape(-1, 2)
    rise = np.array([((0, 0), *_HU[t].rise)[number] for t in tissues]).reshape(-1, 2)
    common = _IODINE_DEVIATION**2 * np.outer(rise[:, 0], rise[:, 0]) + _SHIFT_DEVIATION_HU**2
    return native[:, 0] + rise[:, 0], common + np.diag(native[:, 1] ** 2 + rise[:, 1] ** 2)


def _log_evidence(
    hu: Real[np.ndarray, " n"], mean: Real[np.ndarray, " n"], covariance: Real[np.ndarray, "n n"]
) -> float:
    """Return the log density of the HU, summed over which of the masks are wrong."""
    each = stats.norm.logpdf(hu, *_OTHER_TISSUE_HU) + np.log(_WRONG_MASK)
    terms = []
    for flags in itertools.product((True, False), repeat=len(hu)):
        right = np.array(flags, dtype=np.bool_)
        log_density = each[~right].sum() + right.sum() * np.log1p(-_WRONG_MASK)
        if right.any():
            own = covariance[np.ix_(right, right)]
            log_density += stats.multivariate_normal.logpdf(hu[right], mean[right], own)
        terms.append(log_density)
    return float(logsumexp(terms))


def _doubt(hu: Mapping[str, float]) -> str:
    """Return why the HU cannot be those of a CT's organs; empty where they can."""
    if not hu:
        return f"unknown: none of {', '.join(_words(t) for t in TISSUES)} was located"
    strange = [t for t in hu if not _HU[t].plausible[0] <= hu[t] <= _HU[t].plausible[1]]
    if "liver" not in strange and 2 * len(strange) <= len(hu):
        return ""
    worst = "liver" if "liver" in strange else strange[0]
    low, high = _HU[worst].plausible
    return (
        f"unknown: {_words(worst)} {hu[worst]:.0f} HU, expected {low:g} to {high:g} HU in a CT;"
        " is the rescale intercept missing, or the coarse map off?"
    )


def _words(name: str) -> str:
    return name.replace("_", " ")


def can_estimate(cohort: Cohort) -> bool:
    """Tell whether the phases of a cohort's scans can be estimated, and say why not of a CT cohort.

    Nothing is estimated where no organ of the cohort tells the phase, or where its label `phase`
    means something else, such as a cardiac phase.
    """
    if cohort.modality != "ct":
        return False
    foreign = {case.scan_label(PHASE) for case in cohort.cases} - {*PHASES, UNKNOWN}
    reason = ""
    if not any(canonical_name(organ) in TISSUE_OF for organ in cohort.scheme.names):
        reason = f"{cohort.scheme.name} has none of the organs {', '.join(TISSUE_OF)}"
    elif foreign:
        reason = f"the cohort's label '{PHASE}' is '{min(foreign)}', which is no contrast phase"
    if reason:
        say(f"locate: contrast phases not estimated, {reason}")
    return not reason


def phase_of_scan(
    case: Case, image: Volume, coarse: LabelMap, origin: PhaseSource, threshold: float
) -> ScanPhase:
    """Return a scan's phase; one that the cohort knows stays.

    Where the HU contradict it with a probability above 0.95, that is marked.
    """
    estimate, known = estimate_phase(organ_hu(image, coarse), threshold), case.scan_label(PHASE)
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


def record_phases(folder: Path, scans: Sequence[ScanPhase]) -> dict[str, object]:
    """Write `phases.csv` beside the coarse maps; say what is in it, and return what to record."""
    write_phases(folder / PHASES_FILE, scans, TISSUES)
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
