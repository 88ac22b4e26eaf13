"""Charts as inline SVG in the page's own text color.

The only module that knows matplotlib. Nothing here opens a window or a file.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, Literal

import pandas as pd
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from sacl.files.label_table import hex_color

INK = "#010203"
"""Drawn for black and replaced by the page's text color, so that charts survive dark mode."""
PAPER = "#fdfcfb"
"""Drawn for the background, likewise."""
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sacl",  # or the ids in a chart differ from run to run
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "legend.frameon": False,
}


def palette(names: Sequence[str]) -> dict[str, str]:
    """Return a color for every name; of a scheme's organs those that label maps and DICOM have."""
    return {name: hex_color(n) for n, name in enumerate(names, start=1)}


def drawn(size: tuple[float, float], alt: str, draw: Callable[[Figure], None]) -> Markup:
    """Return what a function draws on a figure of this size (inches) as an `<svg>`.

    It scales with the page and takes its text color; `alt` is its text for those who cannot see it.
    """
    file = io.StringIO()
    with rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(
            file,
            format="svg",
            bbox_inches="tight",
            transparent=True,
            dpi=150,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor").replace(PAPER, "var(--paper)")
    view = re.match(r'<svg[^>]*viewBox="([^"]*)"[^>]*>', text)
    assert view is not None, "matplotlib writes a viewBox"
    links = 'xmlns:xlink="http://www.w3.org/1999/xlink"'
    head = f'<svg viewBox="{view[1]}" role="img" aria-label="{escape(alt)}" {links}>'
    return Markup(head + text[view.end() :])


def loss_curves(panels: Mapping[str, Sequence[pd.Series[float]]]) -> Markup:
    """Return a chart per panel with its curves by step: thin as they are, thick a running mean."""

    def draw(figure: Figure) -> None:
        charts = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (title, curves) in zip(charts, panels.items(), strict=True):
            colors = palette([str(curve.name) for curve in curves])
            for curve, (name, color) in zip(curves, colors.items(), strict=True):
                axes.plot(curve.index, curve, color=color, lw=0.6, alpha=0.25)
                reach = max(1, len(curve) // 40)
                smooth = curve.rolling(2 * reach + 1, center=True, min_periods=1).mean()
                axes.plot(curve.index, smooth, color=color, lw=1.6, label=name)
            axes.set_title(title, loc="left", fontsize=10)
            axes.set_xlabel("step")
            grid(axes, "y")
            if len(curves) > 1:
                axes.legend(fontsize=8, handlelength=1.2)
        charts[0].set_ylabel("loss")

    return drawn((9.6, 2.5), "Loss over the training steps: " + ", ".join(panels), draw)


def grid(axes: Any, axis: Literal["x", "y"]) -> None:
    """Draw faint lines behind the data, across the given axis."""
    axes.grid(axis=axis, color=INK, alpha=0.12, lw=0.6)
    axes.set_axisbelow(True)
