"""What the page of results says: scores, scan by scan, what the encoder learned, what was run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float, Integer, Shaped
from markupsafe import Markup
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import recall_score, silhouette_score
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits

from sacl.phase_words import PHASE
from sacl.report.figures import Pictures, box_plots, palette, scatter_maps
from sacl.report.page import duration, number, p_equals, plural, points, spaced
from sacl.run.record import Record, Tree
from sacl.scores.summary import RunComparison, ScoreRow, Summary, score_table
from sacl.types import SPLITS, UNKNOWN, Cohort

Records = Mapping[str, Record]
"""The finished stages' run records, in the order in which the stages ran."""

POOR = 0.5
"""Dice below which an organ counts as poorly segmented."""
_ALPHA = 0.05
_UNKNOWN_COLOR = "#9aa0a6"
_MAPPED_PATCHES = 1500
_MOST_POINTS = 4000
_NEIGHBORS = 15
_ITERATIONS = 500


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
class Embedding:
    """Query patches as the encoder sees them: unit features and what the patches show."""

    feature: Float[np.ndarray, "n d"]
    organ: Shaped[np.ndarray, " n"]
    scan_label: Shaped[np.ndarray, " n"]
    subject_id: Shaped[np.ndarray, " n"]
    split: Shaped[np.ndarray, " n"]

    def take(self, rows: Shaped[np.ndarray, " m"]) -> Embedding:
        """Return some of the patches, by index or by mask."""
        return Embedding(*(values[rows] for values in vars(self).values()))

    def sample(self, count: int, seed: int) -> Embedding:
        """Return at most `count` patches, drawn without replacement, in their own order."""
        return self.take(np.sort(_some(np.arange(len(self.feature)), count, seed)))


@dataclass(frozen=True)
class Separability:
    """How far apart some classes lie; NaN where it cannot be said.

    `silhouette` (cosine, −1 to 1) is over held-out subjects. `accuracy` is the mean over classes
    of the share of held-out subjects' patches that the nearest training patches name rightly;
    `chance` is what guessing gives.
    """

    what: str
    classes: int
    silhouette: float
    accuracy: float
    chance: float


@dataclass(frozen=True)
class EncoderPart:
    """What the encoder learned: how far classes lie apart, and a map of so many patches."""

    rows: tuple[Separability, ...]
    map: Markup
    patches: int


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
    encoder: EncoderPart | None = None
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


# -- the encoder -------------------------------------------------------------------------------


def read_embedding(path: Path) -> Embedding:
    """Return the embedding that pretraining wrote, `embedding.npz`."""
    with np.load(path, allow_pickle=False) as arrays:
        return Embedding(**{field.name: arrays[field.name] for field in fields(Embedding)})


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


def separabilities(embedding: Embedding, label_name: str, seed: int) -> list[Separability]:
    """Return the separability of organs, of scan-wise labels, and of their combinations.

    Training subjects are those of the split `train`, held-out ones all others. Patches whose
    scan-wise label is unknown do not enter where the label matters. Labels that are unknown for
    all, or the same for all, give no line.
    """
    rows = [_separability("organ", embedding, embedding.organ, seed)]
    known = embedding.take(embedding.scan_label != UNKNOWN)
    if len(np.unique(known.scan_label)) > 1:
        both = np.array([f"{a} / {b}" for a, b in zip(known.organ, known.scan_label, strict=True)])
        rows.append(_separability(label_name, known, known.scan_label, seed))
        rows.append(_separability(f"organ and {label_name}", known, both, seed))
    return rows


def flat_map(feature: Float[np.ndarray, "n d"], seed: int) -> Float[np.ndarray, "n 2"]:
    """Return points whose neighborhoods resemble those of the features.

    t-SNE (van der Maaten and Hinton, JMLR 9:2579, 2008) of the first 50 principal components.
    Distances between far groups and sizes of groups mean nothing. Fewer than five patches give
    their first two coordinates.
    """
    count, width = feature.shape
    if count < 5:
        return np.pad(feature, ((0, 0), (0, 2)))[:, :2]
    reduced = PCA(min(50, count, width), random_state=seed).fit_transform(feature)
    perplexity = min(30.0, (count - 1) / 3)
    # Its OpenMP threads wait for each other actively: on a busy machine one is faster than two.
    with threadpool_limits(1):
        method = TSNE(perplexity=perplexity, max_iter=_ITERATIONS, random_state=seed)
        return np.asarray(method.fit_transform(reduced))


def _separability(
    what: str, embedding: Embedding, classes: Shaped[np.ndarray, " n"], seed: int
) -> Separability:
    train = _some(np.flatnonzero(embedding.split == "train"), _MOST_POINTS, seed)
    held_out = _some(np.flatnonzero(embedding.split != "train"), _MOST_POINTS, seed)
    known = np.unique(classes[train])
    accuracy = math.nan
    if len(train) and len(held_out):
        neighbors = KNeighborsClassifier(min(_NEIGHBORS, len(train)))
        neighbors.fit(embedding.feature[train], classes[train])
        named, true = neighbors.predict(embedding.feature[held_out]), classes[held_out]
        accuracy = float(recall_score(true, named, labels=np.unique(true), average="macro"))
    return Separability(
        what=what,
        classes=len(known),
        silhouette=_silhouette(embedding.feature[held_out], classes[held_out]),
        accuracy=accuracy,
        chance=1 / len(known) if len(known) else math.nan,
    )


def _some(rows: Integer[np.ndarray, " n"], count: int, seed: int) -> Integer[np.ndarray, " m"]:
    """Return at most `count` rows, drawn without replacement."""
    if len(rows) <= count:
        return rows
    return np.random.default_rng(seed).choice(rows, count, replace=False)


def _silhouette(feature: Float[np.ndarray, "n d"], classes: Shaped[np.ndarray, " n"]) -> float:
    """Return the mean silhouette with cosine distances; NaN for one class, or one patch each."""
    if not 1 < len(np.unique(classes)) < len(classes):
        return math.nan
    return float(silhouette_score(feature, classes, metric="cosine"))


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
    revision = last.git_revision
    return facts | {
        "Duration": f"{duration(sum(seconds.values()))} in all: {parts}",
        "Peak memory": f"{peak / 1024:.1f} GB",
        "Device, seed": f"{last.device}, {last.settings['seed']}",
        "Versions": versions + (f", source {revision}" if revision else ""),
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
