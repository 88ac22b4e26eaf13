"""Scans as pictures: a strip of three planes with outlines, and reels of slices to scroll through.

The only module that knows Pillow. Planes are shown as radiologists see them: the patient's right
or front on the left of the picture, head or front at the top.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Integer, Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont

from sacl.files.label_table import hex_color, label_color
from sacl.types import LabelMap

PLANES = ("sagittal", "coronal", "axial")
"""What one sees along the axes i, j and k."""
_ORDER = (2, 1, 0)
_GAP = 4
_SHADES = 256
_PALETTE = bytes(
    round(255 * part) for n in range(_SHADES) for part in (label_color(n) if n else (0.0, 0.0, 0.0))
)
_KEY_COLUMNS, _KEY_ROW = 4, 22
_WHITE = bytes([0] * 3 + [255] * 3 * (_SHADES - 1))

Triple = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class ShownScan:
    """A canonical scan to show: voxels `[i, j, k]`, what becomes black and white, label values."""

    image: np.ndarray
    spacing_mm: tuple[float, float, float]
    window: tuple[float, float]
    predicted: np.ndarray | None = None
    reference: np.ndarray | None = None


@dataclass(frozen=True)
class Reel:
    """Slices along an axis, one below the other, each `width` x `height` pixels.

    `layers` are data URIs by name: the scan, and outlines that lie over it. `slices` are indices
    of the volume's `depth` slices; the one at `first` is shown first.
    """

    plane: str
    width: int
    height: int
    slices: tuple[int, ...]
    first: int
    depth: int
    layers: Mapping[str, str]


def telling_slices(where: Bool[np.ndarray, "i j k"]) -> Triple:
    """Return the slice along each axis in which a mask is fullest; the middle where it is empty."""
    if not where.any():
        i, j, k = (n // 2 for n in where.shape)
        return i, j, k
    i, j, k = (
        int(np.count_nonzero(where, axis=tuple({0, 1, 2} - {axis})).argmax()) for axis in range(3)
    )
    return i, j, k


def only_annotated(predicted: LabelMap, annotated: Collection[str]) -> LabelMap:
    """Return a prediction without the organs that its scan's reference cannot have."""
    scheme = predicted.scheme
    kept = np.array([0, *((organ in annotated) * scheme.label_of(organ) for organ in scheme.names)])
    return LabelMap(kept.astype(predicted.voxels.dtype)[predicted.voxels], predicted.grid, scheme)


def strip(scan: ShownScan, at: Triple, side: int = 256, quality: int = 80) -> bytes:
    """Return axial, coronal and sagittal slices side by side as WebP, `3 side` x `side` pixels.

    The prediction is outlined in its organs' colors, over the reference in white.
    """
    return _encoded(_side_by_side(scan, at, side), "WEBP", quality=quality)


def preview(scan: ShownScan, names: Sequence[str], side: int = 384) -> bytes:
    """Return a strip of a prediction's fullest slices as PNG, with a key of the organs in them.

    `names` are those of the label values from 1 on. R is the patient's right, A the front.
    """
    labels = scan.predicted
    assert labels is not None
    at = telling_slices(labels > 0)
    planes = (plane_seen(labels, axis, at[axis]) for axis in _ORDER)
    seen = sorted({int(n) for plane in planes for n in np.unique(plane)} - {0})
    width = len(_ORDER) * side
    image = Image.new("RGB", (width, side + _KEY_ROW * -(-len(seen) // _KEY_COLUMNS)))
    image.paste(_side_by_side(scan, at, side))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    for n, letter in enumerate("RRA"):
        draw.text((n * side + 6, side // 2 - 8), letter, "white", font)
    for n, label in enumerate(seen):
        left, top = n % _KEY_COLUMNS * width // _KEY_COLUMNS, side + n // _KEY_COLUMNS * _KEY_ROW
        draw.rectangle((left + 8, top + 5, left + 20, top + 17), hex_color(label))
        draw.text((left + 28, top + 2), names[label - 1].replace("_", " "), "white", font)
    return _encoded(image, "PNG")


def _side_by_side(scan: ShownScan, at: Triple, side: int) -> Image.Image:
    canvas = np.zeros((side, len(_ORDER) * side, 3), np.uint8)
    for n, axis in enumerate(_ORDER):
        gray = _gray(scan, axis, at[axis], side - _GAP)
        painted = np.repeat(gray[..., None], 3, axis=2)
        for labels, palette in ((scan.reference, _WHITE), (scan.predicted, _PALETTE)):
            if labels is not None:
                lines = _lines(plane_seen(labels, axis, at[axis]), painted.shape[:2])
                colors = np.frombuffer(palette, np.uint8).reshape(-1, 3)
                painted[lines > 0] = colors[lines[lines > 0]]
        rows, columns = painted.shape[:2]
        top, left = (side - rows) // 2, n * side + (side - columns) // 2
        canvas[top : top + rows, left : left + columns] = painted
    return Image.fromarray(canvas)


def reels(scan: ShownScan, at: Triple, side: int = 320, most: int = 24) -> list[Reel]:
    """Return a reel per plane, axial first, of `most` slices or one more, among them those given.

    A slice's longer side has `side` pixels.
    """
    return [_reel(scan, axis, at[axis], side, most) for axis in _ORDER]


def data_uri(content: bytes, kind: str = "webp") -> str:
    """Return an encoded picture as a page holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def reduced(voxels: Shaped[np.ndarray, "i j k"], most: int) -> Shaped[np.ndarray, "a b c"]:
    """Return every n-th voxel along each axis, so that at most so many are left along it."""
    i, j, k = (slice(None, None, -(-n // most)) for n in voxels.shape)
    return voxels[i, j, k]


def plane_seen(
    voxels: Shaped[np.ndarray, "i j k"], axis: int, at: int
) -> Shaped[np.ndarray, "row column"]:
    """Return a plane of a canonical volume, across an axis, as it is seen on the screen.

    Right (high i), front (high j) and head (high k) are on the left or at the top, so the two other
    axes, in their order, are reversed.
    """
    return np.moveaxis(voxels, axis, 0)[at].T[::-1, ::-1]


def _reel(scan: ShownScan, axis: int, at: int, side: int, most: int) -> Reel:
    depth = scan.image.shape[axis]
    evenly = np.linspace(0, depth - 1, min(most, depth)).round().astype(int)
    slices = tuple(int(n) for n in np.unique([*evenly, at]))
    grays = [_gray(scan, axis, n, side) for n in slices]
    shape = grays[0].shape
    layers = {"scan": data_uri(_encoded(Image.fromarray(_stacked(grays)), "WEBP", quality=70))}
    maps = {"reference": (scan.reference, _WHITE), "prediction": (scan.predicted, _PALETTE)}
    for name, (labels, palette) in maps.items():
        if labels is not None:
            seen = (plane_seen(labels, axis, n) for n in slices)
            lines = Image.fromarray(_stacked([_lines(plane, shape) for plane in seen]))
            lines.putpalette(palette)
            layers[name] = data_uri(_encoded(lines, "PNG", transparency=0), "png")
    height, width = (n + 2 for n in shape)
    return Reel(PLANES[axis], width, height, slices, slices.index(at), depth, layers)


def _stacked(tiles: Sequence[UInt8[np.ndarray, "row column"]]) -> UInt8[np.ndarray, "y x"]:
    """Return tiles one below the other, each with a rim, so that none shows at another's edge."""
    return np.vstack([np.pad(tile, 1) for tile in tiles])


def _gray(scan: ShownScan, axis: int, at: int, side: int) -> UInt8[np.ndarray, "row column"]:
    """Return a slice in its window, its pixels square and the longer side as long as given."""
    low, high = scan.window
    plane = plane_seen(scan.image, axis, at).astype(np.float32)
    gray = Image.fromarray((255 * np.clip((plane - low) / (high - low), 0, 1)).astype(np.uint8))
    across, along = (n for n in range(3) if n != axis)
    shape, spacing = scan.image.shape, scan.spacing_mm
    width_mm, height_mm = shape[across] * spacing[across], shape[along] * spacing[along]
    scale = side / max(width_mm, height_mm)
    size = max(1, round(width_mm * scale)), max(1, round(height_mm * scale))
    return np.asarray(gray.resize(size, Image.Resampling.BICUBIC))


def _lines(
    labels: Integer[np.ndarray, "row column"], shape: tuple[int, int]
) -> UInt8[np.ndarray, "y x"]:
    """Return a label plane's outlines at another resolution, smoothed if finer, 0 between them.

    Beyond 255 labels their numbers begin again from 1, as their colors do.
    """
    numbers = np.where(labels > 0, (labels - 1) % (_SHADES - 1) + 1, 0).astype(np.uint8)
    size = shape[::-1]
    shown = np.asarray(Image.fromarray(numbers).resize(size, Image.Resampling.NEAREST)).copy()
    if any(fine > coarse for fine, coarse in zip(shape, labels.shape, strict=True)):
        shown[:] = 0
        for number in np.unique(numbers[numbers > 0]):
            mask = Image.fromarray(np.where(numbers == number, 255, 0).astype(np.uint8))
            inside = np.asarray(mask.resize(size, Image.Resampling.BILINEAR)) > 127
            shown[inside] = number
    rimmed = np.pad(shown, 1)  # a rim closes what the edge cuts off
    beside = (rimmed[:-2, 1:-1], rimmed[2:, 1:-1], rimmed[1:-1, :-2], rimmed[1:-1, 2:])
    return np.where(np.logical_and.reduce([shown == other for other in beside]), 0, shown)


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, method=2, **options)  # of WebP: half the time for 7 % more bytes
    return file.getvalue()
