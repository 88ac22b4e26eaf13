"""Read single values of a header, forgiving what hospitals write; nothing odd is printed."""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Iterator

from pydicom import Dataset
from pydicom.multival import MultiValue

from sacl.dicom.files import DAMAGE

Numbers = tuple[float, ...]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom from printing the values it finds odd: they can be a patient's."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def text(header: Dataset, keyword: str) -> str:
    """Return a value as stripped text, values of a list joined by a backslash; empty if none."""
    if keyword not in header:
        return ""
    try:
        value = header.get(keyword)
    except DAMAGE:
        return ""
    if value is None:
        return ""
    if isinstance(value, (MultiValue, list)):
        return "\\".join(str(item).strip() for item in value)
    return str(value).strip().strip("\0")


def numbers(header: Dataset, keyword: str, count: int) -> Numbers | None:
    """Return so many finite numbers of a value, None where it is missing or garbled."""
    if keyword not in header:
        return None
    try:
        value = header.get(keyword)
        items = list(value) if isinstance(value, (MultiValue, list)) else [value]
        found = tuple(float(item) for item in items)
    except DAMAGE:
        return None
    return found if len(found) == count and all(map(math.isfinite, found)) else None


def number(header: Dataset, keyword: str) -> float | None:
    """Return one finite number, None where it is missing or garbled."""
    found = numbers(header, keyword, 1)
    return found[0] if found else None


def integer(header: Dataset, keyword: str) -> int | None:
    """Return a whole number, None where it is missing or garbled."""
    found = number(header, keyword)
    return None if found is None else int(found)


def near(a: Numbers | None, b: Numbers | None, tolerance: float) -> bool:
    """Tell whether two lists of numbers are there and differ nowhere by more than the tolerance."""
    if a is None or b is None:
        return False
    return all(abs(x - y) <= tolerance for x, y in zip(a, b, strict=True))
