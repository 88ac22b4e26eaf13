"""All drawings: charts as inline SVG in the page's own text color, scans as PNG.

The only module that knows matplotlib. Nothing here opens a window or a file.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Float32, Integer, Shaped
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure

from sacl.files.label_table import hex_color
from sacl.types import LabelMap, Volume

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


@dataclass(frozen=True, eq=False)
class ShownScan:
    """A scan to show, such as the worst: its heading, its caption, and all that is drawn."""

    heading: str
    caption: str
    image: Volume
    window: tuple[float, float]
    reference: LabelMap
    predicted: LabelMap


@dataclass(frozen=True)
class Pictures:
    """Slices side by side (heading, caption, data URI), and the colors of their outlines."""

    items: tuple[tuple[str, str, str], ...]
    colors: Mapping[str, str]


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


def box_plots(
    values: Mapping[str, Mapping[str, Sequence[float]]], colors: Mapping[str, str], label: str
) -> Markup:
    """Return boxes of every run (inner key) within every group (outer key), one group per row.

    A box spans the quartiles, its line is the median, the whiskers reach 1.5 times the box; every
    scan is a dot.
    """
    step = 0.8 / len(colors)

    def draw(figure: Figure) -> None:
        axes = _rows(figure, list(values), label)
        for row, group in enumerate(values.values()):
            for n, (run, color) in enumerate(colors.items()):
                value = np.asarray(group.get(run, ()), dtype=np.float64)
                value = value[np.isfinite(value)]
                if value.size:
                    _box(axes, value, row - 0.4 + (n + 0.5) * step, step, color)
        axes.set_xlim(-0.02, 1.02)

    size = (8.6, 0.5 + len(values) * (0.12 + 0.17 * len(colors)))
    return drawn(size, f"Box plots of {label} by organ and run", draw)


def dot_rows(values: Mapping[str, Sequence[float]], label: str) -> Markup:
    """Return a row of dots (> 0) per group on a logarithmic axis, with a line at the median."""

    def draw(figure: Figure) -> None:
        axes = _rows(figure, list(values), label)
        for row, group in enumerate(values.values()):
            axes.plot(group, [row] * len(group), "o", color=hex_color(1), ms=4, alpha=0.4, mew=0)
            axes.plot([float(np.median(group))] * 2, [row - 0.3, row + 0.3], color=INK, lw=1.4)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        low, high = (end([v for group in values.values() for v in group]) for end in (min, max))
        axes.xaxis.set_minor_formatter("{x:g}" if high < 10 * low else "")

    return drawn((8.6, 0.6 + 0.26 * len(values)), f"Dots of {label}, one row per organ", draw)


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


def pictures(scans: Sequence[ShownScan]) -> Pictures:
    """Return one slice of each scan with the outlines of reference and prediction."""
    organs = scans[0].reference.scheme.names
    colors = palette(organs)
    by_label = {n + 1: colors[name] for n, name in enumerate(organs)}
    shown: set[int] = set()
    items = []
    for scan in scans:
        reference, predicted = scan.reference.voxels, scan.predicted.voxels
        k = telling_slice(reference, predicted)
        low, high = scan.window
        gray = (np.asarray(scan.image.voxels[:, :, k], np.float32) - low) / (high - low)
        seen_r, seen_p = as_seen(reference[:, :, k]), as_seen(predicted[:, :, k])
        spacing = scan.image.grid.spacing_mm
        gray = np.clip(as_seen(gray), 0, 1).astype(np.float32)
        uri = overlay(gray, seen_r, seen_p, by_label, spacing[1] / spacing[0])
        items.append((scan.heading, scan.caption, uri))
        shown |= {int(n) for n in np.union1d(seen_r, seen_p) if n}
    key = {organs[n - 1].replace("_", " "): colors[organs[n - 1]] for n in sorted(shown)}
    return Pictures(tuple(items), {"reference (white)": "#ffffff", **key})


def telling_slice(
    reference: Integer[np.ndarray, "i j k"], predicted: Integer[np.ndarray, "i j k"]
) -> int:
    """Return the axial slice k in which most pixels are wrong, or of a perfect map the fullest."""
    area = np.count_nonzero(reference != predicted, axis=(0, 1))
    if not area.any():
        area = np.count_nonzero(reference, axis=(0, 1))
    return int(np.argmax(area))


def only_annotated(predicted: LabelMap, annotated: Collection[str]) -> LabelMap:
    """Return a prediction without the organs that its scan's reference cannot have."""
    scheme = predicted.scheme
    kept = np.array([0, *((organ in annotated) * scheme.label_of(organ) for organ in scheme.names)])
    return LabelMap(kept.astype(predicted.voxels.dtype)[predicted.voxels], predicted.grid, scheme)


def overlay(
    image: Float32[np.ndarray, "row column"],
    reference: Integer[np.ndarray, "row column"],
    predicted: Integer[np.ndarray, "row column"],
    colors: Mapping[int, str],
    pixel_aspect: float,
) -> str:
    """Return a data URI of a gray slice with outlines: reference white, predicted in color.

    All arrays are as shown, `image` in [0, 1]; `pixel_aspect` is the height of a pixel in units of
    its width.
    """
    rows, columns = image.shape
    width = 4.0
    height = min(max(width * rows * pixel_aspect / columns, 1.5), 8.0)
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.imshow(image, cmap="gray", vmin=0, vmax=1, aspect=pixel_aspect, interpolation="bilinear")
    for label in colors:
        _outline(axes, np.asarray(reference == label), "white", 1.7)
    for label, color in colors.items():
        _outline(axes, np.asarray(predicted == label), color, 1.3)
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    axes.text(0.02, 0.5, "R", color="white", transform=axes.transAxes, va="center")
    axes.text(0.98, 0.5, "L", color="white", transform=axes.transAxes, va="center", ha="right")
    axes.set_axis_off()
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, facecolor="black")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def as_seen(plane: Shaped[np.ndarray, "i j"]) -> Shaped[np.ndarray, "j i"]:
    """Return a canonical axial plane as an image `[row, column]` for radiologists.

    The patient's right (high i) is on the left and the front (high j) at the top of the screen, so
    both axes are reversed.
    """
    return np.asarray(plane.T[::-1, ::-1])


def grid(axes: Any, axis: Literal["x", "y"]) -> None:
    """Draw faint lines behind the data, across the given axis."""
    axes.grid(axis=axis, color=INK, alpha=0.12, lw=0.6)
    axes.set_axisbelow(True)


def _rows(figure: Figure, names: Sequence[str], label: str) -> Any:
    """Return axes with a named row for every group, from the top."""
    axes = figure.subplots()
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(label)
    grid(axes, "x")
    return axes


def _box(axes: Any, value: Float[np.ndarray, " n"], at: float, step: float, color: str) -> None:
    line = {"color": color, "lw": 1.2}
    axes.boxplot(
        value,
        positions=[at],
        widths=step * 0.7,
        orientation="horizontal",
        manage_ticks=False,
        showfliers=False,
        patch_artist=True,
        boxprops={"facecolor": color + "40", "edgecolor": color, "lw": 1.0},
        medianprops={"color": color, "lw": 2.2},
        whiskerprops=line,
        capprops=line,
    )
    axes.plot(value, np.full(value.size, at), ".", color=color, ms=2.5, alpha=0.6)


def _outline(axes: Any, mask: Bool[np.ndarray, "row column"], color: str, width: float) -> None:
    if not mask.any():
        return
    rows, columns = mask.shape
    # a rim of zeros closes the outline of an organ at the edge
    at = np.meshgrid(np.arange(-1, columns + 1), np.arange(-1, rows + 1))
    rimmed = np.pad(mask, 1).astype(float)
    axes.contour(*at, rimmed, levels=[0.5], colors=[color], linewidths=width)
