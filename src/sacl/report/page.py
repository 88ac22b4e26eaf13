"""HTML pages that need nothing but themselves, and how numbers are written on them and elsewhere.

What they say is in `templates/`: `base.html` with the styles, and a file for each page.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import median

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from sacl.progress import duration
from sacl.scores.summary import Estimate

DASH = "\N{EN DASH}"
"""Stands for a value that is undefined, and between the ends of an interval."""
MINUS = "\N{MINUS SIGN}"
GENERATOR = '<meta name="generator" content="sacl">'
"""What every page has near its start: by it a page of ours is told from a file of the user's."""


def render(template: str, **values: object) -> str:
    """Return what a file of `templates/` makes of some values."""
    return environment().get_template(template).render(generator=GENERATOR, **values)


def environment() -> Environment:
    """Return what renders templates; in HTML it escapes all but drawings (`markupsafe.Markup`)."""
    made = Environment(
        loader=PackageLoader("sacl.report"),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for writer in (
        *(number, score_text, plural, significant, spread, spaced),
        *(median, duration),
    ):
        made.filters[writer.__name__] = writer
    return made


def number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """Return a number with a true minus sign, infinity as ∞, a dash where it is undefined."""
    if value is None or math.isnan(value):
        return DASH
    if math.isinf(value):
        return "∞"
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    zero = float(text) == 0
    return text.lstrip("+-") if zero else text.replace("-", MINUS)


def significant(value: float) -> str:
    """Return a number with three significant digits and no exponent."""
    if value == 0 or not math.isfinite(value):
        return number(value, 0)
    text = number(value, max(0, 2 - math.floor(math.log10(abs(value)))))
    return text.rstrip("0").rstrip(".") if "." in text else text


def spread(values: Iterable[float]) -> str:
    """Return the median with the smallest and the largest value."""
    known = sorted(values)
    if not known:
        return DASH
    low, high, middle = known[0], known[-1], significant(median(known))
    return middle if low == high else f"{middle} ({significant(low)}{DASH}{significant(high)})"


def score_text(estimate: Estimate, digits: int = 3) -> str:
    """Return a mean with its interval, such as `0.812 (0.790-0.834)`."""
    mean = number(estimate.mean, digits)
    if math.isnan(estimate.mean) or math.isnan(estimate.low):
        return mean
    return f"{mean} ({number(estimate.low, digits)}{DASH}{number(estimate.high, digits)})"


def plural(count: int, noun: str, several: str = "") -> str:
    """Return a number with its noun.

    Example:
        >>> plural(1, "scan"), plural(3, "kind of error", "kinds of errors")
        ('1 scan', '3 kinds of errors')
    """
    return f"{count} {noun if count == 1 else several or noun + 's'}"


def spaced(name: str) -> str:
    """Return a name with spaces for underscores."""
    return str(name).replace("_", " ")
