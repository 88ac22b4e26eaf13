"""Read the pixels of a series, slice by slice, into a volume of HU (CT) or intensities (MR)."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Sequence
from typing import BinaryIO, cast

import numpy as np
import pydicom
from jaxtyping import Integer, Num
from pydicom import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from sacl.dicom.files import DAMAGE, Fault, Opener
from sacl.dicom.header import quiet
from sacl.dicom.slices import Slice
from sacl.dicom.stack import SliceStack
from sacl.errors import DataError
from sacl.geometry import to_canonical
from sacl.types import NativeFrame, Volume

AIR_HU = -1024
"""What CT padding becomes, and the least value that a CT keeps."""
_TISSUE_HU = (-500, 3071)
"""A padding value inside would erase tissue: it is not taken for padding."""
_INT16 = np.iinfo(np.int16)
_JPEG = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70, 80, 81))
"""JPEG and JPEG-LS; JPEG 2000 is decoded by what every installation has."""


def read_stack(stack: SliceStack, case_id: str) -> tuple[Volume, NativeFrame]:
    """Return a scan in canonical orientation and the frame that leads back to its own grid.

    Every slice's own slope and intercept are applied. Voxels are int16 where all of these are
    whole numbers and the values fit, else float32. CT padding becomes air, -1024 HU, and what is
    below, as outside the field of measurement, too; MR padding becomes 0.

    Raises:
        DataError: a slice cannot be decoded, or its file has changed.
    """
    kind = np.int16 if all(map(_is_whole, stack.slices)) else np.float32
    voxels = np.empty(stack.grid.shape, kind, order="F")
    with Opener() as opener:
        planes = stored_pixels(stack.slices, opener)
        for k, piece in enumerate(stack.slices):
            try:
                values = rescaled(next(planes), piece)
            except DAMAGE as error:
                raise DataError(
                    f"case {case_id}: slice {k + 1} of {len(stack.slices)} cannot be decoded"
                    f" ({type(error).__name__}); export the series again, or remove it"
                ) from error
            fits = values.min() >= _INT16.min and values.max() <= _INT16.max
            if voxels.dtype == np.int16 and not fits:
                voxels = voxels.astype(np.float32)
            voxels[:, :, k] = values.T
    canonical, grid = to_canonical(voxels, stack.grid)
    return Volume(canonical, grid), NativeFrame(stack.grid)


def stored_pixels(
    slices: Sequence[Slice], opener: Opener
) -> Iterator[Integer[np.ndarray, "row column"]]:
    """Yield each slice's pixels as stored, one at a time; raise `files.DAMAGE` where damaged."""
    for source, members in itertools.groupby(slices, key=lambda piece: piece.source):
        frames = [piece.frame or 0 for piece in members]
        with quiet(), opener.stream(source, whole=True) as stream:
            yield from iter_pixels(
                cast(BinaryIO, _decodable_source(stream)), indices=frames, raw=True
            )


def _decodable_source(stream: io.BufferedIOBase) -> io.BufferedIOBase | Dataset:
    """Return a stream, or of a deflated file, or one without meta information, the data set."""
    header = pydicom.dcmread(stream, stop_before_pixels=True, force=True, specific_tags=[])
    syntax = header.file_meta.get("TransferSyntaxUID")
    stream.seek(0)
    if syntax and syntax != DeflatedExplicitVRLittleEndian:
        return stream
    data = pydicom.dcmread(stream, force=True)
    if not syntax:
        implicit, _ = data.original_encoding
        data.file_meta.TransferSyntaxUID = (
            ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        )
    return data


def decoder_fault(transfer_syntax: str) -> Fault | None:
    """Return what to install where no package that is installed decodes a transfer syntax."""
    syntax = UID(transfer_syntax or "1.2.840.10008.1.2")
    try:
        if get_decoder(syntax).is_available:
            return None
    except (NotImplementedError, ValueError):
        pass
    remedy = "`pip install 'sacl[jpeg]'`, or " if syntax in _JPEG else ""
    return Fault(
        "missing_decoder",
        f"no decoder is installed for {syntax.name}; {remedy}export the series uncompressed",
    )


def rescaled(
    stored: Integer[np.ndarray, "row column"], piece: Slice
) -> Num[np.ndarray, "row column"]:
    """Return stored x slope + intercept of a slice: int32 where these are whole, else float."""
    if stored.shape != (piece.encoding.rows, piece.encoding.columns):
        raise ValueError("another matrix than the header says")
    slope, intercept = _line(piece)
    if _is_whole(piece) and stored.dtype.itemsize <= 2:
        values: np.ndarray = stored.astype(np.int32) * round(slope) + round(intercept)
    else:
        values = stored.astype(np.float64) * slope + intercept
    if padding_applies(piece):
        assert piece.encoding.padding is not None
        low, high = piece.encoding.padding
        values[(stored >= low) & (stored <= high)] = AIR_HU if piece.modality == "CT" else 0
    return np.maximum(values, AIR_HU) if piece.modality == "CT" else values


def padding_applies(piece: Slice) -> bool:
    """Tell whether the padding value is taken for padding: of a CT not where it could be tissue."""
    if piece.encoding.padding is None:
        return False
    slope, intercept = _line(piece)
    ends = [end * slope + intercept for end in piece.encoding.padding]
    outside = max(ends) <= _TISSUE_HU[0] or min(ends) > _TISSUE_HU[1]
    return piece.modality != "CT" or outside


def _line(piece: Slice) -> tuple[float, float]:
    """Return slope and intercept of a slice; 1 and 0 where the header does not say."""
    slope = 1.0 if piece.slope is None else piece.slope
    return slope, piece.intercept or 0.0


def _is_whole(piece: Slice) -> bool:
    return all(value.is_integer() for value in _line(piece))
