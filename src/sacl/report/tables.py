"""Tables as HTML and as plain text, and how numbers are written in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

DASH = "\N{EN DASH}"
"""Stands for a value that is undefined, and between the ends of an interval."""


MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Cell:
    """One cell: its text, and whether it is stressed, faint or a number (aligned right)."""

    text: str
    kind: str = ""


def number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """Return a number with a true minus sign, a dash where it is None."""
    if value is None:
        return DASH
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    zero = float(text) == 0
    return text.lstrip("+-") if zero else text.replace("-", MINUS)


def p_text(p: float | None) -> str:
    """Return a p-value with two or three decimals; very small ones as `< 0.001`."""
    if p is None:
        return DASH
    if p < 0.001:
        return "<\N{NO-BREAK SPACE}0.001"
    return f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def score_cell(estimate: Mapping[str, Any], digits: int = 3) -> str:
    """Return a mean with its interval, such as `0.812 (0.790-0.834)`."""
    mean = number(estimate["mean"], digits)
    if estimate["mean"] is None or estimate["low"] is None:
        return mean
    return f"{mean} ({number(estimate['low'], digits)}{DASH}{number(estimate['high'], digits)})"


def html_table(
    head: Sequence[str | Cell], body: Sequence[Sequence[str | Cell]], caption: str = ""
) -> str:
    """Return a table; all text is escaped, every column but the first is aligned for numbers."""
    columns = [cell if isinstance(cell, Cell) else Cell(cell) for cell in head]
    top = "".join(f'<th scope="col"{_class(c)}>{escape(c.text)}</th>' for c in columns)
    rows = "\n".join(f"<tr>{_row(row)}</tr>" for row in body)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table>{title}<thead><tr>{top}</tr></thead>\n'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _row(row: Sequence[str | Cell]) -> str:
    first, *others = (cell if isinstance(cell, Cell) else Cell(cell) for cell in row)
    return f'<th scope="row"{_class(first)}>{escape(first.text)}</th>' + "".join(
        f"<td{_class(cell)}>{escape(cell.text)}</td>" for cell in others
    )


def _class(cell: Cell) -> str:
    return f' class="{escape(cell.kind)}"' if cell.kind else ""


def plain_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Return a table as lines of text with aligned columns."""
    lines = [list(head), *(list(row) for row in body)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
