"""What the report shows: scores by organ and scan, losses, coarse maps, and what was run."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from sacl.errors import DataError
from sacl.files.documents import text_of_cell
from sacl.report.figures import loss_curves, palette
from sacl.report.page import number
from sacl.run.record import Record
from sacl.run.workspace import FOLDERS, Workspace
from sacl.scores.summary import FEWEST, ScoreRow, robust_z, score_table
from sacl.types import PHASE, SPLITS, Cohort, LabelScheme

Records = Mapping[str, Record]
"""The finished stages' run records, in the order in which the stages ran."""

POOR = 0.5
"""Dice below which an organ counts as poorly segmented."""
UNUSUAL = 3.5
"""Robust z-score from which on a volume is in doubt, where there is no Dice."""
_LOG_FLOOR = 0.08
"""Smallest believable standard deviation of the decimal logarithm of an organ's volume."""
_NEARLY_ALL = 0.9


@dataclass(frozen=True)
class OrganLine:
    """An organ of a scan: its scores, NaN where it has none, and its volume beside the cohort's.

    `usual_ml` is the median over the label maps that show it, `z` the robust z-score of the
    volume's logarithm: minus infinity where this map alone lacks it, NaN where too few have it.
    """

    organ: str
    dice: float
    hd95_mm: float
    nsd: float
    reference_ml: float
    predicted_ml: float
    usual_ml: float
    z: float

    @property
    def times(self) -> float:
        """The volume relative to the usual one."""
        return self.predicted_ml / self.usual_ml

    @property
    def doubt(self) -> str:
        """What is wrong with it, or odd, in words; nothing where all is well."""
        if self.reference_ml > 0 and self.predicted_ml == 0:
            return "missed"
        if self.reference_ml == 0 and self.predicted_ml > 0:
            return "invented"
        if self.dice < POOR:
            return f"Dice {number(self.dice, 2)}"
        if math.isnan(self.dice) and math.isnan(self.reference_ml) and abs(self.z) >= UNUSUAL:
            return f"{self.times:.2g} times the usual volume" if self.times else "absent"
        return ""


@dataclass(frozen=True)
class ScanLine:
    """A scan and its organs; `dice` is their mean, `hd95_mm` the largest one."""

    case_id: str
    subject_id: str
    split: str
    organs: tuple[OrganLine, ...]
    dice: float
    hd95_mm: float

    @property
    def worst(self) -> OrganLine | None:
        """The organ with the lowest Dice."""
        scored = [line for line in self.organs if not math.isnan(line.dice)]
        return min(scored, key=lambda line: line.dice, default=None)

    @property
    def strangest(self) -> OrganLine | None:
        """The organ whose volume is the furthest from the cohort's."""
        known = [line for line in self.organs if not math.isnan(line.z)]
        return max(known, key=lambda line: abs(line.z), default=None)

    @property
    def doubtful(self) -> list[OrganLine]:
        """The organs that are missed, invented, poor or of an odd volume."""
        return [line for line in self.organs if line.doubt]


@dataclass(frozen=True)
class OrganPart:
    """An organ's Dice by scan, and the volumes of its label maps."""

    by_scan: tuple[float, ...]
    volumes_ml: tuple[float, ...]
    maps: int


@dataclass(frozen=True)
class ScoresPart:
    """The main run's name, its scans, those in doubt first, and its organs."""

    main: str
    scans: Sequence[ScanLine]
    organs: Mapping[str, OrganPart]

    @property
    def scored(self) -> list[ScanLine]:
        """The scans with a Dice."""
        return [line for line in self.scans if not math.isnan(line.dice)]


def scan_lines(scores: pd.DataFrame) -> list[ScanLine]:
    """Return the scans of one run, those with most organs in doubt first.

    Of these the lowest Dice comes first; of those without one the most unusual volume does. Where
    an organ was not scored, its Dice and the volume of its reference are NaN.
    """
    lines = []
    names = [field.name for field in dataclasses.fields(OrganLine)]
    of_scans = _with_usual_volumes(scores).groupby(["case_id", "subject_id", "split"], sort=False)
    for about, part in of_scans:
        organs = tuple(OrganLine(*row) for row in part[names].itertuples(index=False))
        case_id, subject_id, split = map(str, about)
        dice, hd95_mm = float(part["dice"].mean()), float(part["hd95_mm"].max())
        lines.append(ScanLine(case_id, subject_id, split, organs, dice, hd95_mm))
    return sorted(lines, key=_doubtful_first)


def _doubtful_first(line: ScanLine) -> tuple[int, float, float, str]:
    dice = math.inf if math.isnan(line.dice) else line.dice
    z = abs(line.strangest.z) if line.strangest else 0.0
    return -len(line.doubtful), dice, -z, line.case_id


def _with_usual_volumes(scores: pd.DataFrame) -> pd.DataFrame:
    """Return a run's table with the columns `usual_ml` and `z`."""
    shown = scores["predicted_ml"].where(scores["predicted_ml"] > 0)
    logs, organ = np.log10(shown), scores["organ"]
    z = logs.groupby(organ).transform(lambda part: robust_z(part.to_numpy(float), _LOG_FLOOR))
    rows = shown.notna().groupby(organ)
    common = (rows.transform("mean") >= _NEARLY_ALL) & (rows.transform("size") >= FEWEST)
    z = z.mask((scores["predicted_ml"] == 0) & common, -math.inf)
    return scores.assign(usual_ml=10 ** logs.groupby(organ).transform("median"), z=z)


def shown_roles(lines: Sequence[ScanLine]) -> dict[str, ScanLine]:
    """Return the scans to picture by role: of those scored the worst three, median and best one.

    Of an even number the lower of the two middle scans is the median. Up to three are of those
    without a score, where their volumes are in doubt or nothing has a score. None is shown twice.
    """
    ranked = [line for line in lines if not math.isnan(line.dice)]
    odd = [line for line in lines if math.isnan(line.dice) and (line.doubtful or not ranked)][:3]
    names = ("worst", "second worst", "third worst")
    roles = list(zip(names, ranked, strict=False))
    roles += [(f"without a score, {n} of {len(odd)}", line) for n, line in enumerate(odd, start=1)]
    if ranked:
        roles += [("median", ranked[(len(ranked) - 1) // 2]), ("best", ranked[-1])]
    role_of: dict[str, tuple[str, ScanLine]] = {}
    for role, line in roles:
        role_of.setdefault(line.case_id, (role, line))
    return dict(role_of.values())


def scores_part(rows: Sequence[ScoreRow], unscored: Sequence[ScoreRow] = ()) -> ScoresPart | None:
    """Return what every page shows of the scores, None without any; the first run is the main one.

    Volumes of its label maps that were not scored take part where the volumes are compared.
    """
    both = [*rows, *unscored]
    if not both:
        return None
    own, organs = score_table([row for row in both if row.run == both[0].run]), {}
    for organ, part in own.groupby("organ", sort=False):
        ml = part["predicted_ml"]
        organs[str(organ)] = OrganPart(tuple(part["dice"].dropna()), tuple(ml[ml > 0]), len(ml))
    return ScoresPart(both[0].run, scan_lines(own), organs)


def label_of_classes(records: Records) -> str:
    """Return the name of the scan-wise label that made the semantic classes."""
    settings = records["pretrain"].settings["pretrain"] if "pretrain" in records else {}
    return str(settings.get("scan_label") or PHASE)


def split_words(cohort: Cohort) -> str:
    """Return the numbers of subjects by split in words."""
    labeled = len({case.subject_id for case in cohort.labeled})
    counts = {split: len({c.subject_id for c in cohort.of_split(split)}) for split in SPLITS}
    words = {**dict.fromkeys(SPLITS, ""), "train": f" ({labeled} labeled)"}
    listed = ", ".join(f"{n} {split}{words[split]}" for split, n in counts.items() if n)
    return f"{listed} subject{'s' if sum(counts.values()) > 1 else ''}"


def organ_colors(scheme: LabelScheme) -> dict[str, str]:
    """Return the color of every organ, which is that of its label maps and segmentations."""
    return palette(scheme.names)


def curves(workspace: Workspace) -> Markup | None:
    """Draw the losses of all networks that were trained, one panel per stage."""
    arms = sorted(workspace.folder("finetune").glob("*/losses.csv"))
    coarse, encoder = (workspace.folder(s) / "losses.csv" for s in ("locate", "pretrain"))
    panels = {
        "coarse networks": read_losses(coarse, "locate", "network"),
        "pretraining": read_losses(encoder, "pretrain", "pretraining"),
        "fine-tuning": [c for arm in arms for c in read_losses(arm, "finetune", arm.parent.name)],
    }
    panels = {title: curves for title, curves in panels.items() if any(map(len, curves))}
    return loss_curves(panels) if panels else None


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
