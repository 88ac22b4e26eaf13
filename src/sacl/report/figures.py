"""All drawings: charts as inline SVG in the page's own text color, scans as PNG.

The only module that knows matplotlib. Nothing here opens a window or a file.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

INK = "#010203"
"""Drawn for black and replaced by the page's text color, so that charts survive dark mode."""
_PAPER = "#fdfcfb"
"""Drawn for the background, likewise."""
_STYLE = {
    "svg.fonttype": "none",
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

FEW_COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#b8a900")
"""Okabe and Ito's palette, safe for color-blind readers, without black."""
MANY_COLORS = (
    *("#1965b0", "#dc050c", "#4eb265", "#f6c141", "#882e72", "#7bafde", "#f1932d"),
    *("#ae76a3", "#90c987", "#e8601c", "#5289c7", "#c8b400", "#b98ec0", "#777777"),
)
"""Paul Tol's discrete rainbow in an order that keeps neighbors apart, for up to 14 organs."""


@dataclass(frozen=True, eq=False)
class Curve:
    """A line of a chart: its name and its values over the training steps."""

    name: str
    steps: np.ndarray
    values: np.ndarray


def palette(names: Sequence[str]) -> dict[str, str]:
    """Return a color for every name; names beyond 14 begin again from the first color."""
    colors = FEW_COLORS if len(names) <= len(FEW_COLORS) else MANY_COLORS
    return {name: colors[n % len(colors)] for n, name in enumerate(names)}


def drawn(size: tuple[float, float], alt: str, draw: Callable[[Figure], None]) -> str:
    """Return what a function draws on a figure of this size (inches), in the page's style."""
    with rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        return _svg(figure, alt)


def box_plots(
    values: Mapping[str, Mapping[str, Sequence[float]]], colors: Mapping[str, str], label: str
) -> str:
    """Return boxes of every run (inner key) within every group (outer key), one group per row.

    A box spans the quartiles, its line is the median, the whiskers reach 1.5 times the box; every
    scan is a dot.
    """
    runs = list(colors)
    step = 0.8 / len(runs)
    with rc_context(_STYLE):
        figure = Figure(figsize=(8.6, 0.5 + len(values) * (0.12 + 0.17 * len(runs))))
        axes = figure.subplots()
        for row, group in enumerate(values.values()):
            for n, run in enumerate(runs):
                _box(axes, group.get(run, ()), row - 0.4 + (n + 0.5) * step, step, colors[run])
        axes.set_yticks(range(len(values)), [text.replace("_", " ") for text in values])
        axes.set_ylim(len(values) - 0.5, -0.5)
        axes.set_xlim(-0.02, 1.02)
        axes.set_xlabel(label)
        grid(axes, "x")
        axes.tick_params(axis="y", length=0)
        return _svg(figure, f"Box plots of {label} by organ and run")


def dot_rows(values: Mapping[str, Sequence[float]], label: str) -> str:
    """Return a row of dots per group on a logarithmic axis, with a line at the median.

    Values must be above 0.
    """
    with rc_context(_STYLE):
        figure = Figure(figsize=(8.6, 0.6 + 0.26 * len(values)))
        axes = figure.subplots()
        for row, group in enumerate(values.values()):
            axes.plot(group, [row] * len(group), "o", color=FEW_COLORS[0], ms=4, alpha=0.4, mew=0)
            axes.plot([float(np.median(group))] * 2, [row - 0.3, row + 0.3], color=INK, lw=1.4)
        axes.set_yticks(range(len(values)), [text.replace("_", " ") for text in values])
        axes.set_ylim(len(values) - 0.4, -0.6)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.set_xlabel(label)
        grid(axes, "x")
        axes.tick_params(axis="y", length=0)
        return _svg(figure, f"Dots of {label}, one row per organ")


def loss_curves(panels: Mapping[str, Sequence[Curve]], colors: Mapping[str, str]) -> str:
    """Return one chart per panel with its smoothed curves; `colors` where a name has its own."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(9.6, 2.5), layout="constrained")
        charts = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (title, curves) in zip(charts, panels.items(), strict=True):
            own = palette([curve.name for curve in curves])
            for curve in curves:
                color = colors.get(curve.name, own[curve.name])
                axes.plot(curve.steps, curve.values, color=color, lw=0.6, alpha=0.25)
                smooth = _smooth(curve.values)
                axes.plot(curve.steps, smooth, color=color, lw=1.6, label=curve.name)
            axes.set_title(title, loc="left", fontsize=10)
            axes.set_xlabel("step")
            grid(axes, "y")
            if len(curves) > 1:
                axes.legend(fontsize=8, handlelength=1.2)
        charts[0].set_ylabel("loss")
        return _svg(figure, "Loss over the training steps: " + ", ".join(panels))


def scatter_maps(
    points: np.ndarray,
    groups: Mapping[str, Sequence[str]],
    colors: Mapping[str, Mapping[str, str]],
) -> str:
    """Return the points `[n, 2]` side by side, colored once by every grouping.

    Every class carries its name at one of its points, so that nothing hangs on color alone.
    `colors` maps the classes of every grouping.
    """
    with rc_context(_STYLE):
        figure = Figure(figsize=(8.6, 4.3))
        charts = figure.subplots(1, len(groups), squeeze=False)[0]
        for axes, (title, of_point) in zip(charts, groups.items(), strict=True):
            member = np.asarray(of_point)
            parts = {name: points[member == name] for name in sorted(set(of_point))}
            for name, own in parts.items():
                axes.scatter(*own.T, s=9, color=colors[title][name], lw=0, rasterized=True)
            for name, (x, y) in _label_places(parts, np.ptp(points, axis=0)).items():
                text = axes.text(x, y, name.replace("_", " "), fontsize=7.5, weight="bold")
                text.set_path_effects([withStroke(linewidth=2.5, foreground=_PAPER)])
            axes.set_title(title, loc="left", fontsize=10)
            axes.set_axis_off()
        return _svg(figure, "Map of the query patches' embeddings")


def overlay(
    image: np.ndarray,
    reference: np.ndarray,
    predicted: np.ndarray,
    colors: Mapping[int, str],
    pixel_aspect: float,
) -> str:
    """Return a data URI of a gray slice with outlines: reference white, predicted in color.

    All arrays are `[row, column]` as shown, `image` in [0, 1]; `pixel_aspect` is the height of a
    pixel in units of its width.
    """
    rows, columns = image.shape
    width = 4.0
    height = min(max(width * rows * pixel_aspect / columns, 1.5), 8.0)
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.imshow(image, cmap="gray", vmin=0, vmax=1, aspect=pixel_aspect, interpolation="bilinear")
    for labels, color_of, line in ((reference, None, 1.7), (predicted, colors, 1.3)):
        for label, color in colors.items():
            mask = labels == label
            if mask.any():
                shade = color if color_of else "white"
                # a rim of zeros closes the outline of an organ at the edge
                axes.contour(
                    *np.meshgrid(np.arange(-1, columns + 1), np.arange(-1, rows + 1)),
                    np.pad(mask, 1).astype(float),
                    levels=[0.5],
                    colors=[shade],
                    linewidths=line,
                )
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.text(0.02, 0.5, "R", color="white", transform=axes.transAxes, va="center")
    axes.text(0.98, 0.5, "L", color="white", transform=axes.transAxes, va="center", ha="right")
    axes.set_axis_off()
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150, facecolor="black")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _box(axes: Axes, values: Sequence[float], at: float, step: float, color: str) -> None:
    value = np.asarray(values, dtype=np.float64)
    value = value[np.isfinite(value)]
    if not value.size:
        return
    line = {"color": color, "lw": 1.2}
    axes.boxplot(
        value,
        positions=[at],
        widths=step * 0.7,
        vert=False,
        showfliers=False,
        patch_artist=True,
        boxprops={"facecolor": color + "40", "edgecolor": color, "lw": 1.0},
        medianprops={"color": color, "lw": 2.2},
        whiskerprops=line,
        capprops=line,
    )
    axes.plot(value, np.full(value.size, at), ".", color=color, ms=2.5, alpha=0.6)


def _label_places(parts: Mapping[str, np.ndarray], extent: np.ndarray) -> dict[str, np.ndarray]:
    """Return a point of each class for its name: among its own kind, and clear of other names."""
    text_size = np.maximum(extent, 1e-6) * (0.4, 0.05)
    places: dict[str, np.ndarray] = {}
    for name, own in parts.items():
        apart = np.sort(np.linalg.norm(own[:, None] - own[None], axis=2), axis=1)
        crowding = apart[:, min(5, len(own) - 1)]
        dense = own[crowding <= np.median(crowding)]
        taken = np.array(list(places.values())).reshape(-1, 1, 2)
        clear = (np.abs(taken - dense) / text_size).max(axis=2).min(axis=0, initial=1.5)
        places[name] = dense[np.argmax(clear)]
    return places


def _smooth(values: np.ndarray) -> np.ndarray:
    """Return a running mean over about a twentieth of the curve, shorter at its ends."""
    reach = max(1, len(values) // 40)
    total = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    low, high = np.maximum(at - reach, 0), np.minimum(at + reach + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def grid(axes: Axes, axis: Literal["x", "y"]) -> None:
    """Draw faint lines behind the data, across the given axis."""
    axes.grid(axis=axis, color=INK, alpha=0.12, lw=0.6)
    axes.set_axisbelow(True)


def _svg(figure: Figure, alt: str) -> str:
    """Return the figure as an `<svg>` that scales with the page and takes its text color."""
    file = io.StringIO()
    figure.savefig(
        file,
        format="svg",
        bbox_inches="tight",
        transparent=True,
        dpi=150,
        metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
    )
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor").replace(_PAPER, "var(--paper)")
    text = re.sub(r'^<svg[^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" HEAD>', text, count=1)
    label = f'role="img" aria-label="{escape(alt)}" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return text.replace("HEAD", label, 1)
