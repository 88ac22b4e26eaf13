"""What a comparison found, in plain words, also when it found nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sacl.report.tables import number, p_text

_ALPHA = 0.05
_NO_BREAK = "\N{NO-BREAK SPACE}"
_WORDS = {
    "semantic": "semantic pretraining",
    "organ": "organ-only pretraining",
    "supcon": "contrastive pretraining without attention",
    "simclr": "SimCLR pretraining",
    "simclr-attention": "SimCLR pretraining with attention",
    "simclr-slices": "SimCLR pretraining on whole slices",
    "none": "no pretraining",
    "scratch": "training from scratch",
    "scratch-long": "longer training from scratch",
    "coarse": "the coarse maps",
}


def words(run: str) -> str:
    """Return a run's name in words; a name of the user's own stays as it is."""
    return _WORDS.get(run, run)


def headline(summary: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Return the result of a run in one sentence, and what to know with it.

    The sentence is on the first comparison of the Dice that was tested; a difference is called
    one only where the p-value after Holm's correction is below 0.05.
    """
    if not summary["runs"]:
        return "Nothing was scored: no held-out scan has a reference.", []
    tested = [c for c in summary["comparisons"] if c["metric"] == "dice" and c["p"] is not None]
    if not tested:
        main, figures = next(iter(summary["runs"].items()))
        sentence = f"{_start(main)} reaches a mean Dice of {number(figures['dice']['mean'])}."
        return sentence, ["There is no other run to compare it with."]
    first, *others = tested
    details = [_details(first)]
    details += [f"Against {words(c['against'])}: {_verdict(c)}; {_details(c)}" for c in others]
    smallest = min(c["smallest_p"] for c in tested)
    if smallest >= _ALPHA:
        details.append(
            f"With so few subjects no p-value below {smallest:.3g} is possible: this test cannot"
            " show a difference, whatever the scores."
        )
    return _sentence(first, summary["runs"]), details


def _sentence(comparison: Mapping[str, Any], runs: Mapping[str, Any]) -> str:
    ours, theirs = (runs[comparison[run]]["dice"]["mean"] for run in ("run", "against"))
    text = comparison_sentence(comparison, _start(comparison["run"]), ours, theirs)
    return f"{text}."


def comparison_sentence(
    comparison: Mapping[str, Any], name: str, ours: float | None, theirs: float | None
) -> str:
    """Return how a run, here called `name`, compares with the other one, and both mean Dices."""
    rival = words(comparison["against"])
    scores = f"Dice {number(ours, 3)} against {number(theirs, 3)}"
    return {
        "better": f"{name} beats {rival}: {scores}",
        "worse": f"{name} does worse than {rival}: {scores}",
        "no clear difference": f"{name} and {rival} do not clearly differ: {scores}",
        "the same": f"{name} and {rival} score the same: {scores}",
    }[_verdict(comparison)]


def _verdict(comparison: Mapping[str, Any]) -> str:
    if comparison["mean_difference"] == 0 and comparison["p"] == 1:
        return "the same"
    if comparison["p_holm"] >= _ALPHA:
        return "no clear difference"
    return "better" if comparison["mean_difference"] > 0 else "worse"


def _details(comparison: Mapping[str, Any]) -> str:
    """Return difference, interval, p and number of subjects."""
    subjects = comparison["subjects"]
    text = f"{points(comparison['mean_difference'])} points of Dice"
    if comparison["low"] is not None:
        text += f" (95 % interval {points(comparison['low'])} to {points(comparison['high'])})"
    return text + f", {p_equals(comparison['p_holm'])}, {subjects} subject{'s' * (subjects != 1)}."


def p_equals(p: float | None) -> str:
    """Return `p = 0.012`, or `p < 0.001`, in one unbreakable piece."""
    text = p_text(p)
    return (f"p {text}" if text.startswith("<") else f"p = {text}").replace(" ", _NO_BREAK)


def points(difference: float | None) -> str:
    """Return a difference of Dice in points (hundredths) with its sign."""
    return number(None if difference is None else 100 * difference, 1, sign=True)


def _start(run: str) -> str:
    """Return a run's name for the start of a sentence; a name of the user's own stays as it is."""
    return words(run)[:1].upper() + words(run)[1:] if run in _WORDS else run
