"""The names of a label map's values inside the file: the table that Caret and 3D Slicer read."""

from __future__ import annotations

import colorsys
import re
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from sacl.files.arrays import HIGHEST_LABEL

CARET = 30
"""Code of the NIfTI extension that Caret, Workbench and 3D Slicer keep label tables in."""


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

    Raises ValueError where the table is damaged.
    """
    table = re.search(rb"<LabelTable.*</LabelTable>", content, re.DOTALL)
    if table is None:
        return None
    names: dict[str, int] = {}
    try:
        for label in ElementTree.fromstring(table[0].decode("utf-8")).iter("Label"):
            name, value = (label.text or "").strip(), int(label.attrib["Key"])
            if not 0 <= value <= HIGHEST_LABEL:
                raise ValueError(f"the value {value} of '{name[:60]}', expected 0 to 65535")
            if name and names.setdefault(name, value) != value:
                raise ValueError(f"'{name[:60]}' has the values {names[name]} and {value}")
    except (ElementTree.ParseError, KeyError) as error:
        raise ValueError(str(error)) from error
    return names


def label_color(value: int) -> tuple[float, float, float]:
    """Return red, green and blue of a label value, each from 0 to 1.

    Steps of the golden ratio keep neighboring values far apart in hue.
    """
    return colorsys.hsv_to_rgb(value * 0.618034 % 1.0, 0.75, 0.95)
