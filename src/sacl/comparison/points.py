"""What the charts of a comparison show: every strategy's curve, and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sacl.report.learning_curves import Difference, Level

Document = Mapping[str, Any]
_ALPHA = 0.05
"""A difference below it is drawn as a clear one."""


def curve_of(document: Document, name: str) -> list[Level]:
    """Return a strategy's Dice at every number of labels at which it has one."""
    found = []
    for level in document["levels"]:
        figures = level["strategies"].get(name)
        if figures and figures["dice"]["mean"] is not None:
            dice = figures["dice"]
            seeds = [value for value in figures["dice_by_seed"].values() if value is not None]
            count = level["labeled_subjects"]
            found.append(Level(count, dice["mean"], dice["low"], dice["high"], seeds))
    return found


def differences_of(document: Document, family: str, sign: int) -> dict[str, list[Difference]]:
    """Return the differences of the Dice by number of labels; `sign` -1 turns them round."""
    groups: dict[str, list[Difference]] = {}
    for level in document["levels"]:
        own = [
            _difference(c, sign)
            for c in level[family]
            if c["metric"] == "dice" and c["mean_difference"] is not None
        ]
        if own:
            groups[f"{level['labeled_subjects']} labeled"] = own
    return groups


def _difference(c: Mapping[str, Any], sign: int) -> Difference:
    ends: Sequence[float | None] = (c["low"], c["high"])
    if c["low"] is not None:
        ends = sorted((sign * c["low"], sign * c["high"]))
    clear = c["p_holm"] is not None and c["p_holm"] < _ALPHA
    return Difference(c["against"], sign * c["mean_difference"], ends[0], ends[1], clear)
