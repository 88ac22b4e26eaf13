"""HTML pages that need nothing but themselves, and how numbers are written on them and elsewhere.

What they say is in `templates/`: `base.html` with the styles, and a file for each page.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from sacl.cohort.dataset import counted
from sacl.progress import duration
from sacl.scores.summary import Estimate

DASH = "\N{EN DASH}"
"""Stands for a value that is undefined, and between the ends of an interval."""
MINUS = "\N{MINUS SIGN}"
GENERATOR = '<meta name="generator" content="sacl">'
"""What every page has near its start: by it a page of ours is told from a file of the user's."""


@dataclass(frozen=True)
class Axis:
    """An axis on which values are drawn, with a few ticks; linear, or logarithmic."""

    low: float
    high: float
    ticks: tuple[float, ...]
    is_log: bool = False

    def at(self, value: float) -> float:
        """Return where a value lies, in percent of the axis; beyond an end it lies there."""
        low, high, value = (
            math.log10(max(v, 1e-9)) if self.is_log else v for v in (self.low, self.high, value)
        )
        return round(100 * min(1.0, max(0.0, (value - low) / (high - low))), 1)


SHARE_AXIS = Axis(0.0, 1.0, (0.0, 0.5, 1.0))
"""Of Dice and of all that lies between 0 and 1."""


def log_axis(values: Iterable[float]) -> Axis:
    """Return a logarithmic axis for values > 0, from tick to tick: of 1, 2 and 5, or decades."""
    known = sorted(values)
    low, high = known[0], known[-1] * 1.0001
    digits = (1, 2, 5) if high < 50 * low else (1,)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**exponent for exponent in exponents for digit in digits]
    first = max(tick for tick in ticks if tick <= low)
    last = min(tick for tick in ticks if tick >= high)
    return Axis(first, last, tuple(tick for tick in ticks if first <= tick <= last), is_log=True)


def render(template: str, **values: object) -> str:
    """Return what a file of `templates/` makes of some values."""
    return _ours().get_template(template).render(generator=GENERATOR, **values)


def environment() -> Environment:
    """Return what renders templates; in HTML it escapes all but drawings (`markupsafe.Markup`)."""
    made = Environment(
        loader=PackageLoader("sacl.report"),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for writer in (number, score_text, significant, spread, spaced, counted, median, duration):
        made.filters[writer.__name__] = writer
    made.globals |= {"share_axis": SHARE_AXIS, "log_axis": log_axis, "nan": math.nan}
    return made


_ours = functools.cache(environment)


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


def spaced(name: str) -> str:
    """Return a name with spaces for underscores."""
    return str(name).replace("_", " ")
