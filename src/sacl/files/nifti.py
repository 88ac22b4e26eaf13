"""NIfTI in and out: canonical voxels, the exact way back, label names in the file.

Integers stay integers: a CT costs two bytes per voxel. Gzip goes straight from the file into the
array.
"""

from __future__ import annotations

import contextlib
import gzip
import logging
import math
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from jaxtyping import Integer, Num, Shaped, UInt8
from nibabel.filebasedimages import ImageFileError
from nibabel.nifti1 import Nifti1Extension
from nibabel.openers import ImageOpener
from nibabel.spatialimages import HeaderDataError, HeaderTypeError, SpatialImage
from nibabel.wrapstruct import WrapStructError

from sacl.errors import DataError
from sacl.files.arrays import (
    LARGEST_RATIO,
    intensities,
    label_map_of,
    label_numbers,
    require_finite,
)
from sacl.files.atomic import replacing
from sacl.files.label_table import CARET, label_table, names_in_table
from sacl.geometry import to_canonical, to_native
from sacl.types import Grid, LabelMap, LabelScheme, NativeFrame, Volume

logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # headers are judged here
SUFFIXES = (".nii.gz", ".nii")
_QFORM = ("pixdim", *(f"quatern_{n}" for n in "bcd"), *(f"qoffset_{n}" for n in "xyz"))
_OF_NIBABEL = (ImageFileError, HeaderDataError, HeaderTypeError, WrapStructError)
_DAMAGE = (*_OF_NIBABEL, EOFError, MemoryError, OSError, OverflowError, ValueError, zlib.error)
_KINDS = (
    (0, b"PK\x03\x04", "a zip archive; unpack it"),
    (0, b"NRRD", "an NRRD file; convert it"),
    (0, b"ObjectType", "a MetaImage (.mha); convert it"),
    (0, b"version https://git-lfs", "a pointer of Git LFS; fetch the file itself"),
    (128, b"DICM", "a DICOM file; give its folder as --data"),
)
"""What else a file may be: where its mark stands, the mark, what to say."""
_STEP = 1 << 20
_CODES, _LAST_CODE = ("sform_code", "qform_code"), 5
_OTHER_SPACING = 0.01
"""Share by which the two spacings of a header may differ: rounding, not contradiction."""
_OTHER_ANGLE_DEG, _OTHER_PLACE_MM = 1.0, 1.0


def is_nifti(path: Path) -> bool:
    """Tell whether a file name is that of a NIfTI file; macOS's `._*` companions are not."""
    return path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".")


def stem(path: Path) -> str:
    """Return a file's name without `.nii` or `.nii.gz`, in capitals or not."""
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


def read_volume(path: Path, *, several: bool = False) -> tuple[Volume, NativeFrame]:
    """Read an image: int16 where rescaled values are integers that fit, else float32.

    Of `several` volumes in the file, which are channels of one scan, the first is read.

    Raises:
        DataError: the file is missing, damaged, not NIfTI or not 3-D, its affine is not usable, or
            a voxel is NaN or infinite.
    """
    with _one_line(path):
        image, frame = _open(path, several)
        return volume_of(*_stored(image, path), frame.grid, path.name), frame


def is_image(image: object) -> bool:
    """Tell whether something is an image as nibabel reads and makes them."""
    return isinstance(image, SpatialImage)


def volume_of_image(image: Any, where: str) -> tuple[Volume, NativeFrame]:
    """Return the volume of nibabel's image, as `read_volume` reads it from a file.

    Raises:
        DataError: as `read_volume` does; `where` names the image.
    """
    stored, slope, inter, grid = image.dataobj, 1.0, 0.0, _grid_of(image, where)
    if hasattr(stored, "get_unscaled"):
        slope, inter = float(stored.slope), float(stored.inter)
        stored = stored.get_unscaled()
    voxels = np.asanyarray(stored).reshape(grid.shape, order="F")
    is_nifti = isinstance(image.header, nibabel.Nifti1Header)
    frame = _frame_of(image.header, grid) if is_nifti else NativeFrame(grid)
    return volume_of(voxels, slope, inter, grid, where), frame


def volume_of(
    stored: Shaped[np.ndarray, "i j k"], slope: float, inter: float, native: Grid, where: str
) -> Volume:
    """Return `stored * slope + inter`, on any grid, as a canonical volume.

    Raises:
        DataError: voxels are not plain numbers, or one is NaN or infinite; `where` names them.
    """
    if stored.dtype.kind not in "biuf":
        raise DataError(f"{where}: voxels of type {stored.dtype}, expected plain numbers")
    voxels, grid = to_canonical(intensities(stored, slope, inter), native)
    require_finite(voxels, where)
    return Volume(voxels, grid)


def image_of_labels(label_map: LabelMap, native: NativeFrame) -> Any:
    """Return a canonical label map as nibabel's NIfTI image, as `write_label_map` writes it."""
    return _labeled_image(label_map, native, native.grid.affine)


def read_frame(path: Path) -> NativeFrame:
    """Read and check a file's header alone; the voxels are not read."""
    with _one_line(path):
        return _open(path)[1]


def map_volume(path: Path) -> Volume:
    """Memory-map a volume that `write_volume` wrote uncompressed; nothing is read until used."""
    with _one_line(path):
        image, frame = _open(path)
        return Volume(intensities(*_stored(image, path)), frame.grid)


def read_labels(path: Path) -> tuple[Integer[np.ndarray, "i j k"], Grid, NativeFrame]:
    """Read integer label values, whatever scheme they follow, and the canonical grid."""
    with _one_line(path):
        image, frame = _open(path)
        stored, slope, inter = _stored(image, path)
    voxels = label_numbers(stored, slope, inter, path.name)
    canonical, grid = to_canonical(voxels, frame.grid)
    return canonical, grid, frame


def read_label_map(path: Path, scheme: LabelScheme) -> tuple[LabelMap, NativeFrame]:
    """Read a label map whose values are those of `scheme`; others are refused."""
    voxels, grid, frame = read_labels(path)
    return label_map_of(voxels, grid, scheme, path.name), frame


def write_volume(path: Path, volume: Volume, inter: int = 0) -> None:
    """Write a volume on its own grid, whole or not at all, stored as its voxels less `inter`."""
    image = _image(volume.voxels - inter if inter else volume.voxels, NativeFrame(volume.grid))
    image.header.set_slope_inter(1, inter)
    _save(path, image)


def write_label_map(path: Path, label_map: LabelMap, native: NativeFrame | None = None) -> None:
    """Write a canonical label map, on the native grid where one is given, with its label names.

    The voxels are uint8 (uint16 beyond 255 organs). The affine and the form codes are those of the
    native frame, so that the result overlays the scan in any viewer. The names stand in a
    Caret-style LabelTable in a NIfTI extension.
    """
    _save(path, _labeled_image(label_map, native))


def read_label_table(path: Path) -> dict[str, int] | None:
    """Return the label names of a file and their values, None where it has no label table."""
    with _one_line(path):
        image, _ = _open(path)
    try:
        tables = (names_in_table(extension.content) for extension in image.header.extensions)
        return next((table for table in tables if table is not None), None)
    except (ValueError, KeyError, SyntaxError) as error:
        raise DataError(f"{path.name}: its label table is damaged ({error})") from error


@contextlib.contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """Turn the many exceptions of a damaged file into one line without a folder's name."""
    try:
        with np.errstate(over="ignore"):  # an affine of huge numbers is judged, not warned of
            yield
    except FileNotFoundError as error:
        raise DataError(f"{path.name}: no such file") from error
    except _DAMAGE as error:
        raise DataError(f"{path.name}: {_what_is_wrong(path, error)}") from error


def _what_is_wrong(path: Path, error: BaseException) -> str:
    """Say why a file is no readable NIfTI file: what it is instead, or that it is damaged."""
    try:
        with path.open("rb") as file:
            start = file.read(256)
    except OSError as reason:
        return f"cannot be read, {reason.strerror}"
    if not start:
        return "not a readable NIfTI file, it is empty; export or copy it again"
    for place, mark, words in _KINDS:
        if start[place:].startswith(mark):
            return f"expected NIfTI, but this is {words}"
    return (
        "not a readable NIfTI file, it is truncated, damaged or of another format"
        f" ({type(error).__name__}); export or copy it again"
    )


def _open(path: Path, several: bool = False) -> tuple[Any, NativeFrame]:
    """Return the image, its voxels not yet read, and its frame; the header is checked."""
    if path.exists() and not path.is_file():
        raise DataError(f"{path.name}: a folder or a pipe, expected a NIfTI file")
    header = _raw_header(path)
    strange = {name: int(header[name]) for name in _CODES if not 0 <= header[name] <= _LAST_CODE}
    for name in strange:  # nibabel does so too
        header[name] = 0
    stored = _qform_in(header)
    # nibabel would quietly replace a zero spacing by 1 mm.
    if header["sform_code"] == 0 and not _is_usable(stored):
        raise DataError(
            f"{path.name}: voxel spacing {stored[1:4]}, quaternion {stored[4:7]} and offset"
            f" {stored[7:]} give no affine; repair the header"
        )
    image = nibabel.load(path)
    frame = _frame_of(header, _grid_of(image, path.name, several))
    if strange:
        words = " and ".join(f"{name} {code}" for name, code in strange.items())
        doubt = f"{words}: no code of NIfTI, read as 0, which others may use; repair the header"
        frame = replace(frame, contradiction=doubt)
    return image, frame


def _frame_of(header: Any, grid: Grid) -> NativeFrame:
    """Return how a scan of this header and grid lies in its file."""
    sform, qform = (int(header[name]) for name in _CODES)
    stored, doubt = _qform_in(header), _contradiction(header, grid)
    usable = stored if _is_usable(stored) else ()
    return NativeFrame(grid, qform, sform, int(header["xyzt_units"]), usable, doubt)


def _qform_in(header: Any) -> tuple[float, ...]:
    return tuple(float(number) for name in _QFORM for number in np.ravel(header[name])[:4])


def _is_usable(qform: tuple[float, ...]) -> bool:
    return bool(np.isfinite(qform).all()) and 0 not in qform[1:4]


def _grid_of(image: Any, where: str, several: bool = False) -> Grid:
    shape = tuple(int(n) for n in image.shape)
    if len(shape) > 3 and math.prod(shape[3:]) > 1 and not several:
        raise DataError(
            f"{where}: a {len(shape)}-D image of {math.prod(shape[3:])} volumes, expected"
            " one; split it (for instance `fslsplit`) and choose one volume per case"
        )
    if len(shape) < 3:
        raise DataError(f"{where}: a {len(shape)}-D image of shape {shape}, expected 3-D")
    try:
        return Grid((shape[0], shape[1], shape[2]), image.affine)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _contradiction(header: Any, grid: Grid) -> str:
    """Say how sform, qform and pixdim contradict each other, nothing where they agree."""
    pixdim = np.asarray(header["pixdim"][1:4], dtype=np.float64)
    sizes, spacing = (" x ".join(f"{mm:.4g}" for mm in mms) for mms in (pixdim, grid.spacing_mm))
    if not (pixdim > 0).all():
        return (
            f"pixdim is {sizes} mm, not positive: other programs mirror the scan, or take 1 mm;"
            " repair the header"
        )
    if int(header["sform_code"]) == 0:
        return ""
    if not np.allclose(grid.spacing_mm, pixdim, rtol=_OTHER_SPACING):
        return (
            f"the spacing is {spacing} mm by the sform, which is used, and {sizes} mm by pixdim,"
            " which other programs use; repair the header"
        )
    if int(header["qform_code"]) == 0 or not np.isfinite(header["quatern_b"]):
        return ""
    return _between(grid.affine, header.get_qform())


def _between(sform: Shaped[np.ndarray, "4 4"], qform: Shaped[np.ndarray, "4 4"]) -> str:
    """Say how two affines of one header differ: mirrored, turned, moved, or not at all."""
    remedy = "the sform is used, other programs use the qform; repair the header"
    cosine_s, cosine_q = (a[:3, :3] / np.linalg.norm(a[:3, :3], axis=0) for a in (sform, qform))
    if np.linalg.det(cosine_s) * np.linalg.det(cosine_q) < 0:
        return f"sform and qform are mirror images of each other; {remedy}"
    # A sheared sform has no equal among qforms: its nearest rotation is what they are to share.
    u, _, v = np.linalg.svd(cosine_s)
    cosine = (np.trace((u @ v).T @ cosine_q) - 1) / 2
    angle = float(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))))
    if angle > _OTHER_ANGLE_DEG:
        return f"sform and qform are {angle:.3g} degrees apart; {remedy}"
    apart = float(np.linalg.norm((sform - qform)[:3, 3]))
    if apart > _OTHER_PLACE_MM:
        return f"sform and qform lie {apart:.4g} mm apart; {remedy}"
    return ""


def _raw_header(path: Path) -> Any:
    """Return the header as stored, before nibabel mends it."""
    with ImageOpener(str(path)) as file:
        start = file.read(540)
        for kind in (nibabel.Nifti1Header, nibabel.Nifti2Header):
            if kind.may_contain_header(start):
                file.seek(0)
                return kind.from_fileobj(file, check=False)
    raise ImageFileError("no NIfTI header")


def _stored(image: Any, path: Path) -> tuple[Num[np.ndarray, "i j k"], float, float]:
    """Return the voxels of the first volume as stored, and slope and intercept to be applied."""
    proxy, shape = image.dataobj, image.shape[:3]
    if proxy.dtype.kind not in "iuf":
        raise DataError(
            f"{path.name}: voxels are colors or complex numbers, expected one number each; export"
            " the scan in gray values"
        )
    if path.suffix.lower() == ".gz":
        size = math.prod(shape) * proxy.dtype.itemsize
        voxels = _inflated(path, proxy.offset, size).view(proxy.dtype).reshape(shape, order="F")
    else:
        voxels = np.asanyarray(proxy.get_unscaled())
        voxels = voxels.reshape(*shape, -1, order="F")[..., 0]
    return voxels, float(proxy.slope), float(proxy.inter)


def _inflated(path: Path, start: int, size: int) -> UInt8[np.ndarray, " byte"]:
    """Return `size` decompressed bytes from `start` on, refusing more than the file can hold."""
    if size > LARGEST_RATIO * path.stat().st_size:
        raise EOFError("the file is too short for what its header promises")
    content = np.empty(size, np.uint8)
    view, filled = content.data, 0
    with gzip.open(path) as file:
        file.seek(start)
        while filled < size:
            got = file.readinto(view[filled : filled + _STEP])
            if not got:
                raise EOFError("the file ends too early")
            filled += got
        try:
            while file.read(_STEP):
                pass
        except gzip.BadGzipFile as error:
            if "Not a gzipped file" not in str(error):  # what follows the last member is no content
                raise
    return content


def _labeled_image(
    label_map: LabelMap, native: NativeFrame | None, affine: Shaped[np.ndarray, "4 4"] | None = None
) -> Any:
    scheme = label_map.scheme
    voxels = label_map.voxels.astype(scheme.label_type, copy=False)
    if native is not None:
        voxels = to_native(voxels, native.grid)
    frame = native or NativeFrame(label_map.grid)
    return _image(voxels, frame, label_table(scheme.names), affine)


def _image(
    voxels: Shaped[np.ndarray, "i j k"],
    frame: NativeFrame,
    table: bytes | None = None,
    affine: Shaped[np.ndarray, "4 4"] | None = None,
) -> Any:
    """Return an image; its affine is that of its header, in float32, where none is given."""
    header = nibabel.Nifti1Header()
    header.set_data_dtype(voxels.dtype)
    header.set_data_shape(voxels.shape)
    header.set_sform(frame.grid.affine, code=frame.sform_code)
    header.set_qform(frame.grid.affine, code=frame.qform_code)
    header["xyzt_units"] = frame.xyzt_units
    if frame.qform:
        header["pixdim"][:4] = frame.qform[:4]
        for name, number in zip(_QFORM[1:], frame.qform[4:], strict=True):
            header[name] = number
    if table is not None:
        header["intent_code"] = 1002  # NIFTI_INTENT_LABEL
        header.extensions.append(Nifti1Extension(CARET, table))
    header.set_slope_inter(1, 0)
    return nibabel.Nifti1Image(voxels, affine, header)


def _save(path: Path, image: Any) -> None:
    with replacing(path) as temporary:
        nibabel.save(image, temporary)
