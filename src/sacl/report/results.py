"""What a page of results shows: scores, scan by scan, losses, coarse maps, what they are of."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from sacl.errors import DataError
from sacl.files.documents import text_of_cell
from sacl.report.figures import box_plots, palette
from sacl.run.record import Record
from sacl.run.workspace import FOLDERS
from sacl.scores.summary import ScoreRow, score_table
from sacl.types import PHASE, SPLITS, Cohort

Records = Mapping[str, Record]
"""The finished stages' run records, in the order in which the stages ran."""

POOR = 0.5
"""Dice below which an organ counts as poorly segmented."""


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
class ScoresPart:
    """The main run's name, scans and number of poor organs, and all runs' boxes and colors."""

    main: str
    scans: Sequence[ScanLine]
    poor: int
    boxes: Markup
    run_colors: Mapping[str, str]


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


def label_of_classes(records: Records) -> str:
    """Return the name of the scan-wise label that made the semantic classes."""
    settings = records["pretrain"].settings["pretrain"] if "pretrain" in records else {}
    return str(settings.get("scan_label") or PHASE)


def split_words(cohort: Cohort) -> str:
    """Return the numbers of subjects by split in words."""
    labeled = len({case.subject_id for case in cohort.labeled})
    counts = {split: len({c.subject_id for c in cohort.of_split(split)}) for split in SPLITS}
    words = {**dict.fromkeys(SPLITS, ""), "train": f" ({labeled} labeled)"}
    return ", ".join(f"{n} {split}{words[split]}" for split, n in counts.items() if n) + " subjects"


def read_losses(path: Path, stage: str, name: str) -> list[pd.Series[float]]:
    """Read curves by step from a table of losses, one per value of the column `network`."""
    if not path.is_file():
        return []
    with _undamaged(path, stage):
        table = pd.read_csv(path, dtype={"step": int, "loss": float}, index_col="step")
        if "network" not in table:
            return [table["loss"].rename(name)]
        networks = table.groupby("network", sort=False)
        return [part["loss"].rename(f"{name} {network}") for network, part in networks]


def read_coverage(path: Path) -> list[Any]:
    """Read for each `organ`, of how many `scans`, in how many the coarse maps have it `shown`.

    `volume_ml` is its median where it is shown, `dice` its mean where it was judged.
    """
    if not path.is_file():
        return []
    with _undamaged(path, "locate"):
        kinds = {"organ": str, "found": bool, "volume_ml": float, "dice": float}
        table = pd.read_csv(path, dtype=kinds)
        table["organ"] = table["organ"].map(text_of_cell)
        table["volume_ml"] = table["volume_ml"].where(table["found"])
        organs = table.groupby("organ", sort=False, as_index=False).agg(
            scans=("found", "size"),
            shown=("found", "sum"),
            volume_ml=("volume_ml", "median"),
            dice=("dice", "mean"),
        )
        return list(organs.itertuples(index=False))


@contextlib.contextmanager
def _undamaged(path: Path, stage: str) -> Iterator[None]:
    """Refuse, in one line, a file of a stage that cannot be read as what it is."""
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{FOLDERS[stage]}/{path.name}: damaged ({type(error).__name__}); run `sacl {stage}"
            " CONFIG.yaml --force`"
        ) from None
