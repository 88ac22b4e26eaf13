"""Names and colors of label values, and the table in the file that Caret and Slicer read."""

from __future__ import annotations

import functools
import itertools
import re
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import numpy as np
from jaxtyping import Float

from sacl.files.arrays import HIGHEST_LABEL

CARET = 30
"""Code of the NIfTI extension that Caret, Workbench and 3D Slicer keep label tables in."""
_COUNT = 255
_FIRST = np.divide(
    [
        *((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167)),
        *((213, 94, 0), (86, 180, 233), (184, 169, 0)),
    ],
    255,
)
"""Okabe and Ito's palette without black; its yellow darker, to be seen on white."""
_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def label_table(names: tuple[str, ...]) -> bytes:
    """Return the names of the values from 1 on as a Caret volume extension, each with a color."""
    rows = []
    for value, name in enumerate(names, start=1):
        red, green, blue = label_color(value)
        rows.append(
            f'<Label Key="{value}" Red="{red:.3f}" Green="{green:.3f}" Blue="{blue:.3f}"'
            f' Alpha="1">{escape(name)}</Label>'
        )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<CaretExtension><VolumeInformation Index="0">'
        f"<LabelTable>{''.join(rows)}</LabelTable><VolumeType>Label</VolumeType>"
        "</VolumeInformation></CaretExtension>\n"
    ).encode()


def names_in_table(content: bytes) -> dict[str, int] | None:
    """Return the names in an extension and their values, None where it holds no label table.

    Raises ValueError, KeyError or SyntaxError where the table is damaged.
    """
    table = re.search(rb"<LabelTable.*</LabelTable>", content, re.DOTALL)
    if table is None:
        return None
    names: dict[str, int] = {}
    for label in ElementTree.fromstring(table[0].decode("utf-8")).iter("Label"):
        name, value = (label.text or "").strip(), int(label.attrib["Key"])
        if not 0 <= value <= HIGHEST_LABEL:
            raise ValueError(f"the value {value} of '{name[:60]}', expected 0 to 65535")
        if name and names.setdefault(name, value) != value:
            raise ValueError(f"'{name[:60]}' has the values {names[name]} and {value}")
    return names


def label_color(value: int) -> tuple[float, float, float]:
    """Return red, green and blue of a label value from 1 on, each from 0 to 1.

    All that shows an organ takes its color from here: pictures, label tables and DICOM. The first
    seven are Okabe and Ito's, safe for color-blind readers; 255 values differ, then they repeat.
    """
    red, green, blue = _colors()[(value - 1) % _COUNT]
    return float(red), float(green), float(blue)


def hex_color(value: int) -> str:
    """Return the color of a label value as `#rrggbb`."""
    return "#" + "".join(f"{round(255 * part):02x}" for part in label_color(value))


@functools.cache
def _colors() -> Float[np.ndarray, "color rgb"]:
    """Return colors of which each is the furthest in CIELAB from all before it.

    So Glasbey et al. choose them ("Colour displays for categorical images", Color Research and
    Application 32(4), 2007). Near black, white and gray, as the scan is, there is none.
    """
    cube = itertools.product(np.linspace(0.0, 1.0, 12), repeat=3)
    rgb = np.array([*_FIRST, *cube])
    lab = _lab(rgb)
    vivid = (np.abs(lab[:, 0] - 64) < 24) & (np.hypot(lab[:, 1], lab[:, 2]) > 25)
    vivid[: len(_FIRST)] = True
    rgb, lab = rgb[vivid], lab[vivid]
    chosen: list[int] = []
    distance = np.full(len(rgb), np.inf)
    for n in range(_COUNT):
        chosen.append(n if n < len(_FIRST) else int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(lab - lab[chosen[-1]], axis=1))
    return rgb[chosen]


def _lab(rgb: Float[np.ndarray, "color rgb"]) -> Float[np.ndarray, "color lab"]:
    """Return sRGB colors, 0 to 1, in CIELAB under daylight (IEC 61966-2-1, D65)."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _TO_XYZ.T / _TO_XYZ.sum(axis=1)
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = root.T
    return np.column_stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])
