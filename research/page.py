"""The page of a comparison: one HTML file that needs nothing but itself."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from research import tables
from research.charts import (
    ALPHA,
    ablation_bars,
    by_level,
    curves_of,
    forest_plot,
    learning_curves,
)
from research.results import Difference, Level, Results
from research.tables import p_equals, points
from sacl.report.figures import palette
from sacl.report.page import MINUS, number

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)


def page(results: Results) -> str:
    """Return the whole page of a comparison's results."""
    ours = results.protocol.ours
    colors = palette(list(results.protocol.strategies))
    curves = curves_of(results)
    ahead, changed = by_level(results), by_level(results, ablations=True)
    drawings = {
        "curves": learning_curves(curves, colors) if curves else "",
        "differences": forest_plot(ahead, f"{ours} less the other strategy, points of Dice")
        if ahead
        else "",
        "ablations": ablation_bars(changed, colors[ours], f"change against {ours}, points of Dice")
        if changed
        else "",
    }
    return _TEMPLATES.get_template("page.html").render(
        results=results,
        protocol=results.protocol,
        tables=tables,
        minus=MINUS,
        has_family=lambda name: any(level.families.get(name) for level in results.levels),
        headlines=[sentence(level, results) for level in results.levels],
        smallest_p=smallest_p(results),
        legend={name: colors[name] for name in curves},
        charts={kind: Markup(drawing) for kind, drawing in drawings.items()},
    )


def smallest_p(results: Results) -> float | None:
    """Return the smallest p-value that is possible, where no difference can be called clear."""
    values = [difference.smallest_p for _, difference in results.dice()]
    return min(values) if values and min(values) >= ALPHA else None


def sentence(level: Level, results: Results) -> str:
    """Return the result against the baseline at one number of labels, then against the best."""
    protocol, ours = results.protocol, results.protocol.ours
    start = f"With {level.labeled_subjects} labeled subjects, {ours}"
    differences = level.dice()
    first = differences.get(protocol.baseline)
    if first is None or first.p_holm is None:
        return f"{start} has nothing to be compared with yet."
    means = {
        name: figures.dice.mean
        for name, figures in level.strategies.items()
        if name in protocol.strategies
    }
    scored = f"Dice {number(means[ours])} against {number(means[first.against])}"
    text = f"{start} {verdict(first)}: {scored}"
    if first.low is not None:
        text += f" ({points(first.mean_difference)} points, 95 % interval"
        text += f" {points(first.low)} to {points(first.high)}, {p_equals(first.p_holm)})"
    if hangs_on_seeds(first):
        text += "; with other seeds it may be otherwise, an interval that resamples them includes 0"
    best = max(means, key=lambda name: means[name] or 0.0)
    if best not in (ours, protocol.baseline):
        verdict_of_best = p_equals(differences[best].p_holm)
        text += f"; the highest mean is that of {best}, {number(means[best])} ({verdict_of_best})"
    return text + "."


def verdict(difference: Difference) -> str:
    """Return what a difference says in words; without a clear one, that there is none."""
    mean, rival = difference.mean_difference or 0.0, difference.against
    if mean == 0 and difference.p == 1:
        return f"and {rival} score the same"
    if difference.p_holm is None or difference.p_holm >= ALPHA:
        return f"and {rival} do not clearly differ"
    return f"beats {rival}" if mean > 0 else f"does worse than {rival}"


def hangs_on_seeds(difference: Difference) -> bool:
    """Tell whether a difference is clear over subjects, and not over other seeds too."""
    pairs = difference.subject_seed_pairs
    is_clear = difference.p_holm is not None and difference.p_holm < ALPHA
    if pairs.low is None or pairs.high is None or difference.seeds < 2 or not is_clear:
        return False
    return pairs.low <= 0 <= pairs.high
