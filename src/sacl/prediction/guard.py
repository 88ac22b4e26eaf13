"""Compare final label maps with the coarse maps, and find what is in doubt.

A segmenter that loses an organ which its coarse map has is worse than no segmenter for it. Nothing
but the two maps is needed to see that, so it is looked at in every scan, annotated or not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool
from scipy import ndimage

from sacl.files.documents import read_if_there, write_json
from sacl.scores.organs_of_case import dice, volume_ml
from sacl.scores.summary import COARSE, Summary
from sacl.types import Box, Case, LabelMap

FINDINGS_FILE = "findings.json"
"""In the folder of a run's predictions."""

Kind = Literal[
    "unlike_training",
    "vanished",
    "never_predicted",
    "worse_than_coarse",
    "hardly_learned",
    "lost_volume",
    "at_border",
    "never_located",
]
"""What is doubted, from what weighs most to what weighs least."""

_BELIEVABLE_ML = 0.05
_MOST_OF_IT = 0.5
"""An organ below this share of its coarse volume has lost most of it."""
_LARGE = 1.2
"""Coarse maps this many times larger than what was drawn are said to be."""
_AT_BORDER = 0.005
"""An organ with this share of its voxels on the square's border is cut off by it."""
_WORSE = 0.05
"""A final Dice this much below the coarse one is clearly worse."""
_BEHIND, _BEHIND_IN_ALL = 0.02, 0.005
"""The same of an organ's mean on held-out scans, which only is said, and of the mean of all."""
_LEARNED = 0.8
"""Final Dice on scans of training from which on it tells nothing about others, nor does a coarse
one: a network that saw a scan too often is ahead on that scan alone."""
_HARDLY = 0.5
"""Final Dice on scans of training below which an organ is hardly learned."""
_WORTH_SAYING = 0.1
"""Share of the scans from which on a loss of volume or a cut is said."""


@dataclass(frozen=True)
class Change:
    """One organ of one scan in its coarse and in its final map.

    `at_border` is the share of the final organ's voxels on the border of the square that the
    segmenter read; `drawn_ml` the volume in a reference, NaN without one, as are the Dice.
    `unseen` tells that no training saw the scan's reference.
    """

    case_id: str
    organ: str
    coarse_ml: float
    final_ml: float
    at_border: float = 0.0
    drawn_ml: float = float("nan")
    coarse_dice: float = float("nan")
    final_dice: float = float("nan")
    unseen: bool = True

    @property
    def vanished(self) -> bool:
        """The coarse map has a believable volume of the organ and the final map nothing."""
        return self.final_ml == 0 and self.coarse_ml >= _BELIEVABLE_ML


_Said = tuple[Kind, Sequence[Change], str]


@dataclass(frozen=True)
class Doubt:
    """One doubt about an organ, or about all where it is empty; in which scans, and in words."""

    organ: str
    kind: Kind
    scans: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Findings:
    """All doubts about a run's final maps, and the organs that were taken from the coarse maps."""

    doubts: tuple[Doubt, ...] = ()
    from_coarse: tuple[str, ...] = ()


def changes_of(
    case: Case,
    coarse: LabelMap,
    final: LabelMap,
    boxes: Sequence[Box] = (),
    reference: LabelMap | None = None,
    unseen: bool | None = True,
) -> list[Change]:
    """Return what became of every organ of a scan, by its coarse and final map on one grid.

    `boxes` are what the segmenter read of every axial slice, none where it read organ by organ. Of
    a reference only the annotated organs count; `unseen` tells that training has not seen it, None
    that it is not to be scored.
    """
    border = _border(boxes[0], final) if boxes else np.zeros(final.grid.shape[:2], np.bool_)
    changes = []
    for organ in final.scheme.names:
        before, after = coarse.mask(organ), final.mask(organ)
        voxels = int(np.count_nonzero(after))
        change = Change(
            case.case_id,
            organ,
            coarse_ml=volume_ml(before, coarse.grid.voxel_ml),
            final_ml=voxels * final.grid.voxel_ml,
            at_border=int(np.count_nonzero(after[border])) / max(voxels, 1),
        )
        if reference and organ in case.annotated:
            truth = reference.mask(organ)
            change = replace(change, drawn_ml=volume_ml(truth, reference.grid.voxel_ml))
            if unseen is not None:
                before_dice, after_dice = dice(truth, before), dice(truth, after)
                change = replace(change, coarse_dice=before_dice, final_dice=after_dice)
                change = replace(change, unseen=unseen)
        changes.append(change)
    return changes


def _border(box: Box, label_map: LabelMap) -> Bool[np.ndarray, "i j"]:
    """Return the pixels on the edges of a square that lie inside the slice."""
    square = np.zeros(label_map.grid.shape[:2], np.bool_)
    i, j = (slice(max(a, 0), b) for a, b in zip(box.start[:2], box.stop[:2], strict=True))
    square[i, j] = True
    return square & ~ndimage.binary_erosion(square, border_value=1)


def organs_to_take_from_coarse(changes: Iterable[Change]) -> tuple[str, ...]:
    """Return the organs that are better in the coarse maps.

    These are those that most coarse maps have and that vanish in most of those scans, and those
    whose final Dice is clearly lower, on scans that training did not see or, where there is none,
    even on those that it saw. Give it no scan of the test subjects: it decides what they are scored
    by.
    """
    lost = []
    for organ, rows in _by_organ(changes).items():
        located = [row for row in rows if row.coarse_ml >= _BELIEVABLE_ML]
        gone = [row for row in located if row.vanished]
        vanishes = 2 * len(located) > len(rows) and 2 * len(gone) > len(located)
        if vanishes or _is_worse(_scored(rows)):
            lost.append(organ)
    return tuple(lost)


def _scored(rows: Sequence[Change]) -> list[Change]:
    """Return the changes with a Dice of scans that training did not see; if none has, all."""
    scored = [row for row in rows if not np.isnan(row.coarse_dice + row.final_dice)]
    return [row for row in scored if row.unseen] or scored


def _is_worse(scored: Sequence[Change]) -> bool:
    if not scored:
        return False
    before, after = _mean_dice(scored)
    return after < before - _WORSE and (scored[0].unseen or after < _LEARNED)


def _mean_dice(rows: Sequence[Change]) -> tuple[float, float]:
    pairs = [(row.coarse_dice, row.final_dice) for row in rows]
    before, after = np.mean(pairs, axis=0)
    return float(before), float(after)


def _by_organ(changes: Iterable[Change]) -> dict[str, list[Change]]:
    rows: defaultdict[str, list[Change]] = defaultdict(list)
    for change in changes:
        rows[change.organ].append(change)
    return rows


def with_organs_of(final: LabelMap, coarse: LabelMap, organs: Sequence[str]) -> LabelMap:
    """Return the final map with some organs as the coarse map has them.

    One that the coarse map lacks stays as it is.
    """
    voxels = final.voxels.copy(order="K")
    taken = {final.scheme.label_of(organ): coarse.mask(organ) for organ in organs}
    taken = {label: mask for label, mask in taken.items() if mask.any()}
    voxels[np.isin(voxels, [*taken])] = 0
    for label, mask in taken.items():
        voxels[mask] = label
    return LabelMap(voxels, final.grid, final.scheme)


def find_doubts(changes: Sequence[Change], from_coarse: tuple[str, ...] = ()) -> Findings:
    """Return the doubts that the changes of all scans give rise to, the heaviest first."""
    doubts = [
        Doubt(organ, kind, tuple(row.case_id for row in rows), f"{organ}: {words}")
        for organ, changed in _by_organ(changes).items()
        for kind, rows, words in _doubts(changed, organ in from_coarse)
    ]
    doubts.sort(key=lambda doubt: get_args(Kind).index(doubt.kind))
    return Findings(tuple(doubts), from_coarse)


def _doubts(rows: Sequence[Change], replaced: bool) -> Iterator[_Said]:
    located = [row for row in rows if row.coarse_ml >= _BELIEVABLE_ML]
    taken = "; it is taken from the coarse map" if replaced else ""
    if not located:
        yield "never_located", rows, f"no coarse map of {len(rows)} scans has it"
    elif all(row.final_ml == 0 for row in rows):
        words = f"predicted in none of {len(rows)} scans; the coarse map has it in {len(located)}"
        yield "never_predicted", located, words + taken
    else:
        yield from _losses(located, _excess_of(located), taken)
    scored = _scored(rows)
    if _is_worse(scored):
        before, after = _mean_dice(scored)
        saw = "did not see" if scored[0].unseen else "saw"
        words = f"final Dice {after:.2f}, coarse Dice {before:.2f} on {len(scored)} annotated scans"
        words += f" that training {saw}{taken or '; the coarse map is the better one'}"
        yield "worse_than_coarse", scored, words
    seen = [row for row in rows if not row.unseen and not np.isnan(row.final_dice)]
    if seen and not taken and (after := _mean_dice(seen)[1]) < _HARDLY:
        words = f"Dice {after:.2f} on {len(seen)} labeled scans that training saw: hardly"
        yield "hardly_learned", seen, f"{words} learned yet; more time may help"


def behind_coarse(summary: Summary, scans: Sequence[str]) -> tuple[Doubt, ...]:
    """Return the doubts that scores on held-out scans give rise to: all together, then organs.

    Nothing is taken from the coarse maps for it, since the scans may be somebody's test set.
    """
    final, coarse = next(iter(summary.runs.values()), None), summary.runs.get(COARSE)
    if final is None or coarse is None:
        return ()
    means = {"": (final.dice.mean, coarse.dice.mean)} | {
        organ: (of.dice.mean, coarse.organs[organ].dice.mean) for organ, of in final.organs.items()
    }
    return tuple(
        Doubt(
            organ,
            "worse_than_coarse",
            tuple(scans),
            f"{organ or 'all organs'}: mean Dice {after:.3f} on held-out scans ({len(scans)}),"
            f" below the {before:.3f} of the coarse maps; more time or labels may help",
        )
        for organ, (after, before) in means.items()
        if before - after > (_BEHIND if organ else _BEHIND_IN_ALL)
    )


def _excess_of(rows: Sequence[Change]) -> float:
    """Return how many times too large coarse maps are, at most, in nine of ten drawn scans."""
    times = [row.coarse_ml / row.drawn_ml for row in rows if row.drawn_ml > 0]
    return max(1.0, float(np.quantile(times, 0.9))) if times else 1.0


def _losses(located: Sequence[Change], excess: float, taken: str) -> Iterator[_Said]:
    """Yield what is lost, where a coarse volume counts as that many times smaller."""
    of = f"of the {len(located)} scans whose coarse map has it"
    gone = [row for row in located if row.vanished]
    least_of_it = _MOST_OF_IT / excess
    shrunken = [row for row in located if 0 < row.final_ml < least_of_it * row.coarse_ml]
    cut = [row for row in located if row.at_border >= _AT_BORDER]
    least = max(1.0, _WORTH_SAYING * len(located))
    if len(gone) >= least:
        yield "vanished", gone, f"vanished in {len(gone)} {of}{taken}"
    if len(shrunken) >= least:
        but = f" (up to {excess:.1f} times too large on labeled scans)" * (excess > _LARGE)
        words = f"less than {least_of_it:.0%} of the coarse map's volume{but}"
        words += f" in {len(shrunken)} {of}"
        yield "lost_volume", shrunken, words
    if len(cut) >= least:
        words = f"cut off in {len(cut)} {of}, by the border of the square that the segmenter reads"
        yield "at_border", cut, words


def write_findings(folder: Path, findings: Findings) -> None:
    """Write `findings.json`."""
    write_json(folder / FINDINGS_FILE, findings)


def read_findings(folder: Path) -> Findings:
    """Return the findings of a run's predictions; none where nothing was recorded."""
    remedy = "run `sacl predict CONFIG.yaml --force`"
    return read_if_there(folder / FINDINGS_FILE, Findings, remedy) or Findings()
