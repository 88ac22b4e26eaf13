"""What the page of results says: the segmenter's scores, scan by scan, and what was run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Integer
from markupsafe import Markup

from sacl.report.embedding import Embedding, Separability, flat_map, separabilities
from sacl.report.figures import as_seen, box_plots, overlay, palette, scatter_maps
from sacl.report.page import duration, number, p_equals, plural, points, spaced
from sacl.run.record import Record
from sacl.scores.statistics import Estimate
from sacl.scores.summary import RunComparison, Summary
from sacl.types import SPLITS, UNKNOWN, Cohort, LabelMap, Volume

Records = Mapping[str, Record]
"""The finished stages' run records, in the order in which the stages ran."""

POOR = 0.5
"""Dice below which an organ counts as poorly segmented."""
_ALPHA = 0.05
_UNKNOWN_COLOR = "#9aa0a6"
_WORST_SHOWN = 3
_MAPPED_PATCHES = 1500


@dataclass(frozen=True)
class ScanLine:
    """A scan's scores: mean Dice over its organs, the worst organ, what is missed and invented."""

    case_id: str
    subject_id: str
    split: str
    dice: float
    worst_organ: str
    worst_dice: float
    hd95_mm: float
    missed: tuple[str, ...]
    invented: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class ShownScan:
    """A scan to show: its role (worst, median, best), its scores, and all that is drawn."""

    role: str
    line: ScanLine
    image: Volume
    window: tuple[float, float]
    reference: LabelMap
    predicted: LabelMap


@dataclass(frozen=True)
class Pictures:
    """Slices side by side (heading, caption, data URI), and the colors of their outlines."""

    items: tuple[tuple[str, str, str], ...]
    colors: Mapping[str, str]


@dataclass(frozen=True)
class EncoderPart:
    """What the encoder learned: how far classes lie apart, and a map of so many patches."""

    rows: tuple[Separability, ...]
    map: Markup
    patches: int


# -- in words ----------------------------------------------------------------------------------


def headline(summary: Summary) -> tuple[str, list[str]]:
    """Return how good the segmenter is in one sentence, and what to know with it.

    A difference to another run is called one only where the p-value after Holm's correction is
    below 0.05.
    """
    if not summary.runs:
        return "Nothing was scored: no held-out scan has a reference.", []
    main, figures = next(iter(summary.runs.items()))
    subjects = sum(summary.subjects.values())
    interval = "" if math.isnan(figures.dice.low) else f" ({_interval(figures.dice)})"
    sentence = f"Mean Dice {number(figures.dice.mean)}{interval} over"
    sentence += f" {plural(subjects, 'held-out subject')}."
    looked_for = figures.pairs - figures.undefined - figures.invented
    details = [
        f"{figures.missed} of {plural(looked_for, 'organ')} were missed,"
        f" {figures.invented} shown where there is none."
    ]
    tested = [c for c in summary.comparisons_of("dice").values() if not math.isnan(c.p)]
    details += [f"{main} against {c.against}: {_verdict(c)}; {_difference(c)}" for c in tested]
    smallest = min((c.smallest_p for c in tested), default=0.0)
    if smallest >= _ALPHA:
        details.append(
            f"With so few subjects no p-value below {smallest:.3g} is possible: this test cannot"
            " show a difference, whatever the scores."
        )
    return sentence, details


def _interval(estimate: Estimate) -> str:
    return f"95 % interval {number(estimate.low)} to {number(estimate.high)}"


def _verdict(comparison: RunComparison) -> str:
    if comparison.mean_difference == comparison.low == comparison.high == 0:
        return "the same"
    if comparison.p_holm >= _ALPHA:
        return "no clear difference"
    return "better" if comparison.mean_difference > 0 else "worse"


def _difference(comparison: RunComparison) -> str:
    text = f"{points(comparison.mean_difference)} points of Dice"
    if not math.isnan(comparison.low):
        text += f" (95 % interval {points(comparison.low)} to {points(comparison.high)})"
    return f"{text}, {p_equals(comparison.p_holm)}, {plural(comparison.subjects, 'subject')}."


def limits(summary: Summary, phantom: bool) -> list[str]:
    """Return what the page does not say."""
    subjects = sum(summary.subjects.values())
    texts = []
    if phantom:
        texts.append(
            "The scans are generated phantoms. The figures show that the program works, not how"
            " well it does on patients."
        )
    if subjects:
        texts.append(
            f"{plural(subjects, 'held-out subject')} of one cohort: other scanners, hospitals and"
            " diseases are not measured."
        )
    texts.append(
        "Every network was trained once. Intervals and p-values cover which subjects were held"
        " out, not the luck of a training run or of which subjects were labeled."
    )
    if subjects and subjects < 10:
        texts.append("With fewer than about ten subjects the bootstrap intervals are too narrow.")
    if len(summary.subjects) > 1:
        texts.append(f"Scores are over the splits {' and '.join(summary.subjects)} together.")
    texts.append("Research software: its label maps are not for diagnosis or treatment.")
    return texts


# -- scans -------------------------------------------------------------------------------------


def scan_lines(scores: pd.DataFrame) -> list[ScanLine]:
    """Return the scans of one run, the lowest mean Dice first, undefined ones last."""
    lines = []
    for case_id, part in scores.groupby("case_id", sort=False):
        there, predicted = part["reference_ml"] > 0, part["predicted_ml"] > 0
        defined = part.dropna(subset="dice").sort_values("dice", kind="stable")
        lines.append(
            ScanLine(
                case_id=str(case_id),
                subject_id=str(part["subject_id"].iloc[0]),
                split=str(part["split"].iloc[0]),
                dice=float(defined["dice"].mean()),
                worst_organ=str(defined["organ"].iloc[0]) if len(defined) else "",
                worst_dice=float(defined["dice"].min()),
                hd95_mm=float(part["hd95_mm"].max()),
                missed=tuple(part.loc[there & ~predicted, "organ"]),
                invented=tuple(part.loc[~there & predicted, "organ"]),
            )
        )
    return sorted(lines, key=lambda line: (math.isnan(line.dice), line.dice, line.case_id))


def shown_roles(lines: Sequence[ScanLine]) -> dict[str, ScanLine]:
    """Return the worst three scans, the median and the best one by role; each scan once.

    Of an even number the lower of the two middle scans is the median.
    """
    ranked = [line for line in lines if not math.isnan(line.dice)]
    names = ("worst", "second worst", "third worst")[:_WORST_SHOWN]
    roles = dict(zip(names, ranked, strict=False))
    if ranked:
        roles |= {"median": ranked[(len(ranked) - 1) // 2], "best": ranked[-1]}
    once: dict[str, ScanLine] = {}
    for role, line in roles.items():
        if line not in once.values():
            once[role] = line
    return once


def pictures(scans: Sequence[ShownScan]) -> Pictures:
    """Return one slice of each scan with the outlines of reference and prediction."""
    organs = scans[0].reference.scheme.names
    colors = palette(organs)
    by_label = {n + 1: colors[name] for n, name in enumerate(organs)}
    shown: set[int] = set()
    items = []
    for scan in scans:
        reference, predicted = scan.reference.voxels, scan.predicted.voxels
        k = telling_slice(reference, predicted)
        low, high = scan.window
        gray = (np.asarray(scan.image.voxels[:, :, k], np.float32) - low) / (high - low)
        seen_r, seen_p = as_seen(reference[:, :, k]), as_seen(predicted[:, :, k])
        spacing = scan.image.grid.spacing_mm
        gray = np.clip(as_seen(gray), 0, 1).astype(np.float32)
        uri = overlay(gray, seen_r, seen_p, by_label, spacing[1] / spacing[0])
        caption = f"{scan.line.case_id}, mean Dice {number(scan.line.dice)}"
        items.append((scan.role.capitalize(), caption, uri))
        shown |= {int(n) for n in np.union1d(seen_r, seen_p) if n}
    key = {spaced(organs[n - 1]): colors[organs[n - 1]] for n in sorted(shown)}
    return Pictures(tuple(items), {"reference (white)": "#ffffff", **key})


def telling_slice(
    reference: Integer[np.ndarray, "i j k"], predicted: Integer[np.ndarray, "i j k"]
) -> int:
    """Return the axial slice k in which most pixels are wrong, or of a perfect map the fullest."""
    area = np.count_nonzero(reference != predicted, axis=(0, 1))
    if not area.any():
        area = np.count_nonzero(reference, axis=(0, 1))
    return int(np.argmax(area))


def only_annotated(predicted: LabelMap, annotated: Collection[str]) -> LabelMap:
    """Return a prediction without the organs that were not annotated in that scan.

    Beside a reference that cannot have them they would look like mistakes.
    """
    scheme = predicted.scheme
    kept = np.array([0, *((organ in annotated) * scheme.label_of(organ) for organ in scheme.names)])
    return LabelMap(kept.astype(predicted.voxels.dtype)[predicted.voxels], predicted.grid, scheme)


# -- charts and tables -------------------------------------------------------------------------


def organ_boxes(scores: pd.DataFrame) -> Markup:
    """Return the spread of Dice over scans by organ, a color per run."""
    values = {
        str(organ): {str(run): part["dice"].tolist() for run, part in group.groupby("run")}
        for organ, group in scores.groupby("organ", sort=False)
    }
    return box_plots(values, palette(list(dict.fromkeys(scores["run"]))), "Dice")


def encoder_part(
    embedding: Embedding, organs: Sequence[str], label_name: str, seed: int
) -> EncoderPart:
    """Return how well the encoder separates organs and scan-wise labels, as figures and map."""
    shown = embedding.sample(_MAPPED_PATCHES, seed)
    groups, colors = {"by organ": shown.organ.tolist()}, {"by organ": palette(organs)}
    labels = sorted(set(shown.scan_label.tolist()) - {UNKNOWN})
    if len(labels) > 1:
        groups[f"by {label_name}"] = shown.scan_label.tolist()
        colors[f"by {label_name}"] = {**palette(labels), UNKNOWN: _UNKNOWN_COLOR}
    drawing = scatter_maps(flat_map(shown.feature, seed), groups, colors)
    rows = tuple(separabilities(embedding, label_name, seed))
    return EncoderPart(rows, drawing, len(shown.feature))


# -- what was run ------------------------------------------------------------------------------


def run_facts(cohort: Cohort, records: Records, label_names: Sequence[str]) -> dict[str, str]:
    """Return what was run, on what, how long it took, and with which versions."""
    facts = {
        "Cohort": f"{cohort.name}, {cohort.modality.upper()}, {plural(len(cohort.cases), 'scan')}",
        "Subjects": split_words(cohort),
        "Organs": ", ".join(map(spaced, cohort.scheme.names)),
    }
    for name in label_names:
        counts = Counter(case.scan_label(name) for case in cohort.cases)
        values = (f"{spaced(value)} ({n})" for value, n in sorted(counts.items()))
        facts[spaced(name).capitalize()] = ", ".join(values)
    if not records:
        return facts
    seconds = {stage: record.duration_s for stage, record in records.items()}
    parts = ", ".join(f"{stage} {duration(s)}" for stage, s in seconds.items())
    last = list(records.values())[-1]
    versions = ", ".join(f"{name} {version}" for name, version in last.versions.items())
    peak = max(record.peak_memory_mb or 0 for record in records.values())
    revision = last.git_revision
    return facts | {
        "Duration": f"{duration(sum(seconds.values()))} in all: {parts}",
        "Peak memory": f"{peak / 1024:.1f} GB",
        "Device, seed": f"{last.device}, {last.settings['seed']}",
        "Versions": versions + (f", source {revision}" if revision else ""),
    }


def settings_lines(records: Records) -> dict[str, str]:
    """Return the settings of every stage in one line each, as its record has them."""
    return {
        stage: ", ".join(_flat(record.settings.get(stage) or {}))
        for stage, record in records.items()
    }


def split_words(cohort: Cohort) -> str:
    """Return the numbers of subjects by split in words."""
    labeled = len({case.subject_id for case in cohort.labeled})
    parts = []
    for split in SPLITS:
        subjects = len({case.subject_id for case in cohort.of_split(split)})
        if subjects:
            parts.append(f"{subjects} {split}" + f" ({labeled} labeled)" * (split == "train"))
    return ", ".join(parts) + " subjects"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[str]:
    texts = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            texts += _flat(value, f"{prefix}{name}.")
        else:
            texts.append(f"{prefix}{name} {value}")
    return texts
