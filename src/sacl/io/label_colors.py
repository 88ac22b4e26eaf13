"""One color per label value, the same in every file that carries colors."""

from __future__ import annotations

import colorsys


def label_color(value: int) -> tuple[float, float, float]:
    """Return red, green and blue of a label value, each from 0 to 1.

    Steps of the golden ratio keep neighboring values far apart in hue.
    """
    return colorsys.hsv_to_rgb(value * 0.618034 % 1.0, 0.75, 0.95)
