"""Progress bars with an estimate on stderr; without a terminal, a line per minute."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sized
from contextvars import ContextVar
from typing import TypeVar

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

Item = TypeVar("Item")
_LOG_EVERY_S = 60.0
_SILENT = ContextVar("silent", default=False)


@contextlib.contextmanager
def silent(is_silent: bool = True) -> Iterator[None]:
    """Say nothing and draw no bar inside, if so."""
    token = _SILENT.set(is_silent)
    try:
        yield
    finally:
        _SILENT.reset(token)


def is_silent() -> bool:
    """Tell whether nothing is said."""
    return _SILENT.get()


def quiet_libraries() -> None:
    """Keep the libraries' warnings off the terminal: they name no scan and mend nothing."""
    warnings.simplefilter("ignore")
    for name in ("lightning", "nibabel.global", "pydicom", "highdicom"):
        logging.getLogger(name).setLevel(logging.ERROR)


def say(message: str) -> None:
    """Print one line of progress on stderr."""
    if not _SILENT.get():
        print(message, file=sys.stderr, flush=True)  # noqa: T201


def duration(seconds: float) -> str:
    """Return a duration as seconds, minutes, or hours and minutes.

    Example:
        >>> duration(12.3), duration(90), duration(7500)
        ('12 s', '2 min', '2 h 5 min')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def track(
    items: Iterable[Item], what: str, total: int | Callable[[], int] | None = None
) -> Iterator[Item]:
    """Yield the items behind a progress bar; off a terminal, a line once a minute.

    A `total` that changes as work goes on is asked for again and again.
    """
    count = total if callable(total) else lambda: total
    if isinstance(items, Sized):
        count = items.__len__
    if _SILENT.get() or not sys.stderr.isatty():
        yield from _lines(items, what, count)
        return
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=count())
        for item in items:
            yield item
            bar.update(task, advance=1, total=count())


def _lines(items: Iterable[Item], what: str, count: Callable[[], int | None]) -> Iterator[Item]:
    start = last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if done and now - last > _LOG_EVERY_S:
            last, total = now, count()
            left = f", about {(now - start) / done * (total - done):.0f} s left" if total else ""
            say(f"  {what}: {done}/{total or '?'}{left}")
        yield item
