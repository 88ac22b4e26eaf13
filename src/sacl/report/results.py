"""What the page of results says: scores, scan by scan, what was run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
from markupsafe import Markup

from sacl.phase_words import PHASE
from sacl.progress import duration
from sacl.report.figures import Pictures, box_plots, palette
from sacl.report.page import number, p_equals, plural, points, spaced
from sacl.run.record import Record, Tree
from sacl.scores.summary import RunComparison, ScoreRow, Summary, score_table
from sacl.types import SPLITS, Cohort

Records = Mapping[str, Record]
"""The finished stages' run records, in the order in which the stages ran."""

POOR = 0.5
"""Dice below which an organ counts as poorly segmented."""
_ALPHA = 0.05


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


@dataclass(frozen=True)
class CoverageLine:
    """In how many scans the coarse maps show an organ, how large it is (median), its mean Dice."""

    organ: str
    scans: int
    shown: int
    volume_ml: float
    dice: float


@dataclass(frozen=True)
class ScoresPart:
    """The main run's name, scans and number of poor organs, and all runs' boxes and colors."""

    main: str
    scans: Sequence[ScanLine]
    poor: int
    boxes: Markup
    run_colors: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, eq=False)
class ResultsPage:
    """All that a page of results shows; what is None or empty is left out.

    `doubts` about predictions are those of `sacl.prediction.guard`.
    """

    title: str
    subtitle: str
    headline: str
    details: Sequence[str]
    summary: Summary
    scores: ScoresPart | None
    phantom: bool = False
    pictures: Pictures | None = None
    curves: Markup | None = None
    coverage: Sequence[CoverageLine] = ()
    doubts: Sequence[object] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    left_out: Sequence[str] = ()


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
    dice = figures.dice
    interval = f" (95 % interval {number(dice.low)} to {number(dice.high)})"
    sentence = f"Mean Dice {number(dice.mean)}{interval * (dice.low == dice.low)} over"
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
    if not ranked:
        return {}
    middle, best = ranked[(len(ranked) - 1) // 2], ranked[-1]
    role_of: dict[ScanLine, str] = {}
    names = ("worst", "second worst", "third worst")
    for role, line in [*zip(names, ranked, strict=False), ("median", middle), ("best", best)]:
        role_of.setdefault(line, role)
    return {role: line for line, role in role_of.items()}


def scores_part(rows: Sequence[ScoreRow]) -> ScoresPart | None:
    """Return what every page shows of the scores, None without any; the first run is the main one.

    The boxes are the spread of Dice over scans by organ.
    """
    if not rows:
        return None
    scores, name = score_table(rows), rows[0].run
    values = {
        str(organ): {str(run): part["dice"].tolist() for run, part in group.groupby("run")}
        for organ, group in scores.groupby("organ", sort=False)
    }
    colors = palette(list(dict.fromkeys(scores["run"])))
    main = scores[scores["run"] == name]
    boxes = box_plots(values, colors, "Dice")
    return ScoresPart(name, scan_lines(main), int((main["dice"] < POOR).sum()), boxes, colors)


# -- what was run ------------------------------------------------------------------------------


def run_facts(cohort: Cohort, records: Records, label_name: str) -> dict[str, str]:
    """Return what was run, on what, how long it took, and with which versions."""
    counts = Counter(case.scan_label(label_name) for case in cohort.cases)
    values = (f"{spaced(value)} ({n})" for value, n in sorted(counts.items()))
    facts = {
        "Cohort": f"{cohort.name}, {cohort.modality.upper()}, {plural(len(cohort.cases), 'scan')}",
        "Subjects": split_words(cohort),
        "Organs": ", ".join(map(spaced, cohort.scheme.names)),
        spaced(label_name).capitalize(): ", ".join(values),
    }
    seconds = {stage: record.duration_s for stage, record in records.items()}
    parts = ", ".join(f"{stage} {duration(s)}" for stage, s in seconds.items())
    last = list(records.values())[-1]
    versions = ", ".join(f"{name} {version}" for name, version in last.versions.items())
    peak = max(record.peak_memory_mb or 0 for record in records.values())
    return facts | {
        "Duration": f"{duration(sum(seconds.values()))} in all: {parts}",
        "Peak memory": f"{peak / 1024:.1f} GB",
        "Device, seed": f"{last.device}, {last.settings['seed']}",
        "Versions": versions + (f", source {last.git_revision}" if last.git_revision else ""),
    }


def scan_label_of(records: Records) -> str:
    """Return the name of the scan-wise label that made the semantic classes."""
    settings = records["pretrain"].settings["pretrain"] if "pretrain" in records else {}
    return str(settings.get("scan_label") or PHASE)


def settings_lines(records: Records) -> dict[str, str]:
    """Return the settings of every stage in one line each, as its record has them."""
    return {
        stage: ", ".join(_flat(record.settings.get(stage) or {}))
        for stage, record in records.items()
    }


def split_words(cohort: Cohort) -> str:
    """Return the numbers of subjects by split in words."""
    labeled = len({case.subject_id for case in cohort.labeled})
    counts = {split: len({c.subject_id for c in cohort.of_split(split)}) for split in SPLITS}
    words = {**dict.fromkeys(SPLITS, ""), "train": f" ({labeled} labeled)"}
    return ", ".join(f"{n} {split}{words[split]}" for split, n in counts.items() if n) + " subjects"


def _flat(settings: Tree, prefix: str = "") -> Iterator[str]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name} {value}"
