"""Measure the estimator of the contrast phase on phantoms whose maps err, and show it on real CT.

`python -m research benchmark phase_estimator [--work work/demo] [--data DIR/TotalSegmentator_CT]`
generates phantom scans of subjects that chose nothing, damages their label maps as a coarse
network would (shifted, dilated or eroded, organs missing) and compares what the HU say with the
phase that was generated. The threshold is chosen on other subjects. The phantom generates three
phases; scans of the other two are repainted with HU set by hand, so their figures are told apart.
With `--work`, the maps that a run's coarse network made of its phantom cohort are used too. What
the estimator says of real CT is shown without a score, because nobody knows their phase for sure.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from research.benchmarks.circumstances import circumstances
from research.benchmarks.damaged_maps import Damage, damaged
from sacl.cohort.manifest import read_cohort, read_image
from sacl.dicom.intake import take_in
from sacl.dicom.stack import read_stack
from sacl.files.documents import write_json
from sacl.files.nifti import read_label_map, read_labels, read_volume
from sacl.geometry import require_same_grid
from sacl.prediction.phases import TISSUE_OF, estimate_phase, organ_hu, phase_probabilities
from sacl.run.record import read_record
from sacl.run.workspace import Workspace
from sacl.scores.organs_of_case import dice
from sacl.stages.locate import PHASE_THRESHOLD
from sacl.types import PHASE, PHASES, UNKNOWN, LabelMap, LabelScheme, Volume
from sacl_phantom import make_scan
from sacl_phantom.contrast import draw_contrast
from sacl_phantom.scan import PhantomScan

RESULT = Path(__file__).parents[1] / "results" / "phase_estimator.json"
SHAPE, SPACING_MM = (96, 78, 36), (4.0, 4.0, 6.0)
CHOOSING, SCORED = range(20), range(2000, 2024)
GENERATED = ("native", "arterial_late", "portal_venous")
REPAINTED = ("arterial_early", "delayed")
WANTED_ACCURACY = 0.99

_EARLY = {
    "aorta": 0.85,
    "heart": 1.1,
    "kidney_cortex": 0.6,
    "kidney_medulla": 0.1,
    "spleen": 0.5,
    "liver": 0.25,
    "portal_vein_and_splenic_vein": 0.12,
    "inferior_vena_cava": 0.15,
    "renal_vein": 0.5,
}
"""Share of the late arterial enhancement that is there in the early arterial phase; else 0.4."""
_DELAYED = {
    "aorta": 0.55,
    "heart": 0.6,
    "liver": 0.6,
    "spleen": 0.5,
    "kidney_cortex": 0.75,
    "kidney_medulla": 0.8,
    "portal_vein_and_splenic_vein": 0.5,
    "inferior_vena_cava": 0.6,
}
"""Share of the portal venous enhancement that is left in the delayed phase; else 0.6."""


@dataclass(frozen=True)
class Answer:
    """What the estimator said of one scan, and what was generated."""

    true: str
    said: str
    probability: Mapping[str, float]


DAMAGES = {
    "true map": Damage(),
    "mild": Damage(3.0, 2.0, 0.05),
    "strong": Damage(8.0, 4.0, 0.25),
}


def main() -> None:
    """Choose the threshold, score, show real CT, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="work directory of `sacl demo`")
    parser.add_argument("--data", type=Path, help="folder with ct_3mm.nii.gz")
    known = parser.parse_args()
    start = time.process_time()
    choice = choose_threshold()
    result = {
        "script": "python -m research benchmark phase_estimator",
        "data": "phantom",
        "shape": SHAPE,
        "spacing_mm": SPACING_MM,
        "threshold": choice,
        "threshold_used": PHASE_THRESHOLD,
        "subjects": {"choosing": [CHOOSING[0], CHOOSING[-1]], "scored": [SCORED[0], SCORED[-1]]},
        "damage": {name: vars(damage) for name, damage in DAMAGES.items()},
        **score(),
        "coarse_network": of_a_run(Workspace(known.work)) if known.work else None,
        "real_ct": real_scans(known.data) if known.data else None,
        "cpu_seconds": round(time.process_time() - start),
        **circumstances(),
    }
    write_json(RESULT, result)
    print(
        json.dumps({k: v for k, v in result.items() if k not in ("versions", "machine")}, indent=1)
    )


def choose_threshold() -> dict[str, Any]:
    """Return the least threshold that is wrong in 1 % of its answers at most, on other subjects.

    All five phases, mildly damaged maps and iodine that varies by a fifth.
    """
    rng = np.random.default_rng(1)
    answers = []
    for subject in CHOOSING:
        for phase in PHASES:
            scan = generate(subject, phase, iodine=float(np.exp(rng.normal(0, 0.2))))
            answers.append(ask(scan, phase, DAMAGES["mild"], rng, threshold=0.0))
    by_threshold = {}
    for threshold in np.arange(0.5, 0.96, 0.05).round(2):
        kept = [a for a in answers if max(a.probability.values()) >= threshold]
        by_threshold[f"{threshold:.2f}"] = {
            "coverage": round(len(kept) / len(answers), 3),
            "accuracy": round(float(np.mean([a.said == a.true for a in kept])), 3),
        }
    enough = [t for t, row in by_threshold.items() if row["accuracy"] >= WANTED_ACCURACY]
    return {"chosen": float(min(enough)) if enough else None, "by_threshold": by_threshold}


def score() -> dict[str, Any]:
    """Return the figures for the subjects that chose nothing."""
    rng = np.random.default_rng(2)
    threshold = PHASE_THRESHOLD
    answers: dict[str, list[Answer]] = {name: [] for name in DAMAGES}
    repainted: dict[str, list[Answer]] = {name: [] for name in DAMAGES}
    overlap: dict[str, list[float]] = {name: [] for name in DAMAGES}
    for subject in SCORED:
        for phase in GENERATED + REPAINTED:
            scan = generate(subject, phase)
            for name, damage in DAMAGES.items():
                kind = answers if phase in GENERATED else repainted
                kind[name].append(ask(scan, phase, damage, rng, threshold))
                if phase == "native":
                    overlap[name].append(mean_dice(scan, damaged(scan.labels, damage, rng)))
    noisy = [
        ask(generate(s, p, iodine=iodine, noise_hu=40.0), p, DAMAGES["mild"], rng, threshold)
        for s in SCORED[:8]
        for p in GENERATED
        for iodine in (0.6, 1.5)
    ]
    return {
        "mean_dice_of_damaged_maps": {n: round(float(np.mean(d)), 3) for n, d in overlap.items()},
        "generated_phases": {name: figures(given) for name, given in answers.items()},
        "repainted_phases": {name: figures(given) for name, given in repainted.items()},
        "iodine_x0.6_or_x1.5_noise_40_hu_mild": figures(noisy),
    }


def figures(answers: list[Answer]) -> dict[str, Any]:
    """Return accuracy, coverage, reliability and the confusion matrix."""
    said = [a for a in answers if a.said != UNKNOWN]
    probability = np.array([[a.probability[p] for p in PHASES] for a in answers])
    truth = np.array([[a.true == p for p in PHASES] for a in answers], dtype=float)
    confusion = {
        true: dict(Counter(a.said for a in answers if a.true == true))
        for true in dict.fromkeys(a.true for a in answers)
    }
    return {
        "scans": len(answers),
        "coverage": round(len(said) / len(answers), 3),
        "accuracy_where_said": round(float(np.mean([a.said == a.true for a in said])), 3),
        "accuracy_of_the_likeliest": round(
            float(np.mean(probability.argmax(1) == truth.argmax(1))), 3
        ),
        "brier": round(float(((probability - truth) ** 2).sum(axis=1).mean()), 4),
        "expected_calibration_error": round(calibration_error(probability, truth), 4),
        "confusion": confusion,
    }


def calibration_error(probability: np.ndarray, truth: np.ndarray, bins: int = 10) -> float:
    """Return the mean gap between confidence and accuracy over equal bins of confidence."""
    confidence = probability.max(axis=1)
    right = probability.argmax(axis=1) == truth.argmax(axis=1)
    of_bin = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        (of_bin == b).mean() * abs(confidence[of_bin == b].mean() - right[of_bin == b].mean())
        for b in np.unique(of_bin)
    ]
    return float(sum(gaps))


def ask(
    scan: PhantomScan, true: str, damage: Damage, rng: np.random.Generator, threshold: float
) -> Answer:
    """Return what the estimator says of a scan with a damaged map."""
    hu = organ_hu(scan.image, damaged(scan.labels, damage, rng))
    said = estimate_phase(hu, threshold).phase
    return Answer(true, said, phase_probabilities(hu))


def generate(subject: int, phase: str, iodine: float = 1.0, noise_hu: float = 18.0) -> PhantomScan:
    """Return a phantom scan; the phases that the phantom lacks are painted with HU set by hand."""

    def draw(person: Any, _: Any, rng: np.random.Generator) -> dict[str, float]:
        base = {"arterial_early": "arterial_late", "delayed": "portal_venous"}.get(phase, phase)
        native = draw_contrast(person, "native", deepcopy(rng))
        enhanced = draw_contrast(person, base, rng)  # type: ignore[arg-type]
        share = {"arterial_early": _EARLY, "delayed": _DELAYED}.get(phase, {})
        other = {"arterial_early": 0.4, "delayed": 0.6}.get(phase, 1.0)
        return {
            tissue: native[tissue] + iodine * share.get(tissue, other) * (value - native[tissue])
            for tissue, value in enhanced.items()
        }

    with patch("sacl_phantom.scan.draw_contrast", draw):
        return make_scan(subject, "native", SHAPE, SPACING_MM, noise_hu)


def mean_dice(scan: PhantomScan, found: LabelMap) -> float:
    """Return the mean Dice of the organs that tell the phase, missing ones counting 0."""
    organs = [o for o in scan.labels.scheme.names if o in TISSUE_OF]
    return float(np.nanmean([dice(scan.labels.mask(o), found.mask(o)) for o in organs]))


def of_a_run(workspace: Workspace) -> dict[str, Any]:
    """Return the figures on a phantom run's own coarse maps, and how good those maps are."""
    cohort = read_cohort(workspace.require("ingest"))
    answers = []
    for case in cohort.cases:
        path = workspace.require("locate") / "maps" / f"{case.case_id}.nii.gz"
        coarse, _ = read_label_map(path, cohort.scheme)
        hu = organ_hu(read_image(workspace.folder("ingest"), case), coarse)
        said = estimate_phase(hu, PHASE_THRESHOLD).phase
        answers.append(Answer(case.scan_label(PHASE), said, phase_probabilities(hu)))
    record = read_record(workspace.require("locate"))
    found = record.results["cross_fitted"]
    dice_of = {o: d for o, d in found["dice"].items() if o in TISSUE_OF}
    return {"dice_of_cross_fitted_maps": dice_of, **figures(answers)}


def real_scans(data: Path) -> list[dict[str, Any]]:
    """Return what the estimator says of real CT with another model's segmentations."""
    names = {int(v): n for v, n in json.loads((data / "labels.json").read_text()).items()}
    scheme = LabelScheme("TotalSegmentator", tuple(names[v] for v in sorted(names)))
    told = []
    for image, segmentation, known in _real(data):
        labels, grid, _ = read_labels(data / segmentation)
        require_same_grid(image.grid, grid, segmentation)
        estimate = estimate_phase(organ_hu(image, LabelMap(labels, grid, scheme)), PHASE_THRESHOLD)
        told.append({"scan": segmentation, "known": known, "says": estimate.explanation})
    return told


def _real(data: Path) -> Iterator[tuple[Volume, str, str]]:
    yield read_volume(data / "ct_3mm.nii.gz")[0], "segmentation_3mm.nii.gz", "nothing"
    verdict = take_in(data / "dicom_series.zip").verdicts[0]
    assert verdict.stack is not None, "the series is accepted"
    known = f"contrast {verdict.labels['contrast']}; its tags say {verdict.labels['phase']}"
    yield read_stack(verdict.stack, "dicom_series")[0], "segmentation_dicom.nii.gz", known


if __name__ == "__main__":
    main()
