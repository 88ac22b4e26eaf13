"""NIfTI in and out: canonical voxels, the exact way back, label names in the file.

Every reader returns voxels in canonical (closest RAS+) order and the `NativeFrame` that leads back
to the file's own grid. Integers stay integers: a CT costs two bytes per voxel.
"""

from __future__ import annotations

import contextlib
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import Nifti1Extension
from nibabel.openers import ImageOpener
from nibabel.spatialimages import HeaderDataError, HeaderTypeError
from nibabel.wrapstruct import WrapStructError

from sacl.errors import DataError
from sacl.files.atomic import replacing
from sacl.files.gzipped import empty_for, inflate_into, write_gzip
from sacl.files.label_table import CARET, label_table, names_in_table
from sacl.files.voxel_values import intensities, label_values, require_finite
from sacl.geometry import to_canonical, to_native
from sacl.types import Grid, LabelMap, LabelScheme, NativeFrame, Volume

SUFFIXES = (".nii.gz", ".nii")
_QFORM = (
    "pixdim",
    "quatern_b",
    "quatern_c",
    "quatern_d",
    "qoffset_x",
    "qoffset_y",
    "qoffset_z",
)
_DAMAGE = (
    ImageFileError,
    HeaderDataError,
    HeaderTypeError,
    WrapStructError,
    EOFError,
    OSError,
    OverflowError,
    ValueError,
    zlib.error,
)


def is_nifti(path: Path) -> bool:
    """Tell whether a file name is that of a NIfTI file; macOS's `._*` companions are not."""
    return path.name.endswith(SUFFIXES) and not path.name.startswith(".")


def stem(path: Path) -> str:
    """Return a file's name without `.nii` or `.nii.gz`."""
    for suffix in SUFFIXES:
        if path.name.endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


def read_volume(path: Path) -> tuple[Volume, NativeFrame]:
    """Read an image: int16 where the file stores integers that fit, else float32.

    A rescale slope and intercept are honored; a fractional one makes the voxels float32.

    Raises:
        DataError: the file is missing, damaged, not NIfTI or not 3-D, its affine is not usable, or
            a voxel is NaN or infinite.
    """
    with _one_line(path):
        image, frame = _open(path)
        voxels, grid = to_canonical(intensities(*_stored(image, path)), frame.grid)
    require_finite(voxels, path.name)
    return Volume(voxels, grid), frame


def read_frame(path: Path) -> NativeFrame:
    """Read and check a file's header alone; the voxels are not read.

    Raises:
        DataError: as `read_volume`, as far as the header shows it.
    """
    with _one_line(path):
        return _open(path)[1]


def map_volume(path: Path) -> Volume:
    """Memory-map a volume that `write_volume` wrote uncompressed; nothing is read until used."""
    with _one_line(path):
        image, frame = _open(path)
        return Volume(intensities(*_stored(image, path)), frame.grid)


def read_labels(path: Path) -> tuple[np.ndarray, Grid, NativeFrame]:
    """Read integer label values `[i, j, k]`, whatever scheme they follow, and the canonical grid.

    Raises:
        DataError: as `read_volume`, or a value is not a whole number.
    """
    with _one_line(path):
        image, frame = _open(path)
        stored, slope, inter = _stored(image, path)
    voxels = label_values(stored, slope, inter, path.name)
    canonical, grid = to_canonical(voxels, frame.grid)
    return canonical, grid, frame


def read_label_map(path: Path, scheme: LabelScheme) -> tuple[LabelMap, NativeFrame]:
    """Read a label map whose values are those of `scheme`: 0 is background, n + 1 is `names[n]`.

    Raises:
        DataError: as `read_labels`, or a value lies outside the scheme.
    """
    voxels, grid, frame = read_labels(path)
    low, high = int(voxels.min()), int(voxels.max())
    if low < 0 or high > len(scheme.names):
        raise DataError(
            f"{path.name}: label values {low} to {high}, outside the scheme {scheme.name} with"
            f" {len(scheme.names)} organs; give the map in that scheme"
        )
    return LabelMap(voxels.astype(scheme.label_type, copy=False), grid, scheme), frame


def write_volume(path: Path, volume: Volume) -> None:
    """Write a volume on its own grid, whole or not at all."""
    _save(path, volume.voxels, NativeFrame(volume.grid), None)


def write_label_map(path: Path, label_map: LabelMap, native: NativeFrame | None = None) -> None:
    """Write a canonical label map, on the native grid where one is given, with its label names.

    The voxels are uint8 (uint16 beyond 255 organs). The affine and the form codes are those of the
    native frame, so that the result overlays the scan in any viewer. The names stand in a
    Caret-style LabelTable in a NIfTI extension.
    """
    scheme = label_map.scheme
    voxels = label_map.voxels.astype(scheme.label_type, copy=False)
    if native is not None:
        voxels = to_native(voxels, native.grid)
    _save(path, voxels, native or NativeFrame(label_map.grid), label_table(scheme.names))


def read_label_table(path: Path) -> dict[str, int] | None:
    """Return the label names of a file and their values, None where it has no label table."""
    with _one_line(path):
        image, _ = _open(path)
    try:
        tables = (names_in_table(extension.content) for extension in image.header.extensions)
        return next((table for table in tables if table is not None), None)
    except ValueError as error:
        raise DataError(f"{path.name}: its label table is damaged ({error})") from error


@contextlib.contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """Turn the many exceptions of a damaged file into one line without a folder's name."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path.name}: no such file") from error
    except _DAMAGE as error:
        raise DataError(
            f"{path.name}: not a readable NIfTI file, it is truncated, damaged or of another"
            f" format ({type(error).__name__}); export or copy it again"
        ) from error


def _open(path: Path) -> tuple[Any, NativeFrame]:
    """Return the image, its voxels not yet read, and its frame; the header is checked."""
    header = _raw_header(path)
    sform, qform = int(header["sform_code"]), int(header["qform_code"])
    stored = tuple(float(number) for name in _QFORM for number in np.ravel(header[name])[:4])
    usable = np.isfinite(stored).all() and 0 not in stored[1:4]
    # nibabel would quietly replace a zero spacing by 1 mm.
    if sform == 0 and not usable:
        raise DataError(
            f"{path.name}: voxel spacing {stored[1:4]}, quaternion {stored[4:7]} and offset"
            f" {stored[7:]} give no affine; repair the header"
        )
    image = nibabel.load(path)
    shape = tuple(int(n) for n in image.shape)
    if len(shape) > 3 and np.prod(shape[3:]) > 1:
        raise DataError(
            f"{path.name}: a {len(shape)}-D image of {int(np.prod(shape[3:]))} volumes, expected"
            " one; split it (for instance `fslsplit`) and choose one volume per case"
        )
    if len(shape) < 3:
        raise DataError(f"{path.name}: a {len(shape)}-D image of shape {shape}, expected 3-D")
    try:
        grid = Grid((shape[0], shape[1], shape[2]), image.affine)
    except DataError as error:
        raise DataError(f"{path.name}: {error}") from error
    units = int(header["xyzt_units"])
    return image, NativeFrame(grid, qform, sform, units, stored if usable else ())


def _raw_header(path: Path) -> Any:
    """Return the header as stored, before nibabel mends it."""
    with ImageOpener(str(path)) as file:
        start = file.read(540)
        for kind in (nibabel.Nifti1Header, nibabel.Nifti2Header):
            if kind.may_contain_header(start):
                file.seek(0)
                return kind.from_fileobj(file, check=False)
    raise ImageFileError("no NIfTI header")


def _stored(image: Any, path: Path) -> tuple[np.ndarray, float, float]:
    """Return the voxels `[i, j, k]` as stored, and the slope and intercept to be applied."""
    proxy = image.dataobj
    if proxy.dtype.kind not in "iuf":
        raise ImageFileError("voxels are not plain numbers")
    if path.suffix == ".gz":
        content = empty_for(path, int(np.prod(image.shape)) * proxy.dtype.itemsize)
        inflate_into(content, path, proxy.offset)
        voxels = content.view(proxy.dtype)
    else:
        voxels = np.asanyarray(proxy.get_unscaled())
    return voxels.reshape(image.shape[:3], order="F"), float(proxy.slope), float(proxy.inter)


def _save(path: Path, voxels: np.ndarray, frame: NativeFrame, table: bytes | None) -> None:
    image = nibabel.Nifti1Image(voxels, frame.grid.affine)
    image.set_sform(frame.grid.affine, code=frame.sform_code)
    image.set_qform(frame.grid.affine, code=frame.qform_code)
    image.update_header()
    header = image.header
    header["xyzt_units"] = frame.xyzt_units
    if frame.qform:
        header["pixdim"][:4] = frame.qform[:4]
        for name, number in zip(_QFORM[1:], frame.qform[4:], strict=True):
            header[name] = number
    if table is not None:
        header["intent_code"] = 1002  # NIFTI_INTENT_LABEL
        header.extensions.append(Nifti1Extension(CARET, table))
    header.set_slope_inter(1, 0)
    with replacing(path) as temporary:
        pieces = _pieces(header, voxels)
        if path.suffix == ".gz":
            write_gzip(temporary, pieces, runs=table is not None)
        else:
            with temporary.open("wb") as file:
                file.writelines(pieces)


def _pieces(header: Any, voxels: np.ndarray) -> Iterator[bytes]:
    """Yield a NIfTI file's bytes: the header with its extensions, then slice after slice."""
    start = io.BytesIO()
    header.write_to(start)
    yield start.getvalue().ljust(header.get_data_offset(), b"\0")
    kind = header.get_data_dtype()
    for k in range(voxels.shape[2]):
        yield voxels[:, :, k].astype(kind, copy=False).tobytes("F")
