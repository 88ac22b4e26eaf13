"""NRRD and MetaImage in and out, by SimpleITK; what is a segmentation opens as one in 3D Slicer.

A scan of a dataset may have any of these formats or NIfTI: what reads it asks for its name.
SimpleITK's world is LPS, whatever space an NRRD header names; ours is RAS: x and y change sign.
"""

from __future__ import annotations

import contextlib
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from jaxtyping import Integer

from sacl.errors import DataError
from sacl.files import nifti
from sacl.files.arrays import LARGEST_RATIO, label_numbers
from sacl.files.atomic import replacing
from sacl.files.label_table import label_color
from sacl.files.nifti import is_nifti, volume_of
from sacl.geometry import to_canonical, to_native
from sacl.types import Grid, LabelMap, NativeFrame, Volume

SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
SUFFIXES = {".nrrd": ".seg.nrrd", ".nhdr": ".seg.nrrd", ".mha": ".mha", ".mhd": ".mha"}
"""Names of files that are read, and of the label map of each; 3D Slicer knows `.seg.nrrd`."""
_GZIP_MARK, _ZLIB_OR_GZIP = b"\x1f\x8b", 47
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
_SPACES = ("posterior", "anterior", "lps", "ras", "las")
_BITS = {"Int": (8, 16, 32, 64), "UInt": (8, 16, 32, 64), "Float": (32, 64)}
_BYTES = {getattr(SimpleITK, f"sitk{k}{n}"): n // 8 for k, bits in _BITS.items() for n in bits}
"""Bytes of the kinds of voxels that are plain numbers."""
_HEADER_BYTES, _CHUNK, _LONGEST = 1 << 20, 1 << 16, 1 << 31
_SEGMENT = re.compile(r"Segment(\d{1,5})_Name")
_NEEDED = {"NRRD": ("type", "dimension", "sizes"), "MetaImage": ("NDims", "DimSize", "ElementType")}
_DATA = {"NRRD": ("data file", "datafile"), "MetaImage": ("ElementDataFile",)}
"""What a header has to say, and where it names a data file."""
_OF_META = {
    "ObjectType": "Image",
    "NDims": "[2-9]",
    "ElementType": "MET_(U?(CHAR|SHORT|INT|LONG|LONG_LONG)|FLOAT|DOUBLE)",
    "ElementNumberOfChannels": "[1-9]",
    "HeaderSize": r"-1|\d{1,9}",
    "CompressedDataSize": r"\d{1,15}",
    "CompressedDataSeekTable": "False",
    **dict.fromkeys(("BinaryData", "CompressedData"), "True|False"),
    **dict.fromkeys(("BinaryDataByteOrderMSB", "ElementByteOrderMSB"), "True|False"),
}
"""What a MetaImage header may say; SimpleITK believes anything, and crashes."""
_VECTORS = {
    **dict.fromkeys(("DimSize", "ElementSpacing", "ElementSize", "CenterOfRotation"), 1),
    **dict.fromkeys(("Offset", "Origin", "Position"), 1),
    **dict.fromkeys(("TransformMatrix", "Orientation", "Rotation"), 2),
}
"""Fields of a number per dimension (1), or per pair of them (2)."""


def is_itk(path: Path) -> bool:
    """Tell whether a file name is that of an NRRD or MetaImage file with a header."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def is_scan(path: Path) -> bool:
    """Tell whether a file name is that of a scan or label map of any format but DICOM."""
    return is_nifti(path) or is_itk(path)


def stem_of(path: Path) -> str:
    """Return a file's name without its format; `.seg.nrrd` leaves `.seg`."""
    return path.name[: -len(path.suffix)] if is_itk(path) else nifti.stem(path)


def volume_in(path: Path) -> tuple[Volume, NativeFrame]:
    """Read an image of any format: int16 where its values are integers that fit, else float32.

    Raises:
        DataError: the file or its data file is missing, damaged, not 3-D or has several values per
            voxel, its directions are not usable, or a voxel is NaN or infinite.
    """
    if not is_itk(path):
        return nifti.read_volume(path)
    image, frame = _read(path)
    return volume_of_itk(image, path.name), frame


def frame_in(path: Path) -> NativeFrame:
    """Read and check the header alone of a file of any format."""
    if not is_itk(path):
        return nifti.read_frame(path)
    with _one_line(path):
        return _open(path)[1]


def labels_in(path: Path) -> tuple[Integer[np.ndarray, "i j k"], Grid, NativeFrame]:
    """Read integer label values of any format and their canonical grid (`nifti.read_labels`)."""
    if not is_itk(path):
        return nifti.read_labels(path)
    image, frame = _read(path)
    stored = SimpleITK.GetArrayFromImage(image).T.reshape(frame.grid.shape, order="F")
    voxels = label_numbers(stored, 1.0, 0.0, path.name)
    return *to_canonical(voxels, frame.grid), frame


def label_table_in(path: Path) -> dict[str, int] | None:
    """Return the label names of a file and their values, None where it names none."""
    if not is_itk(path):
        return nifti.read_label_table(path)
    with _one_line(path):
        fields = _header(path)[1]
        numbers = sorted(int(m[1]) for m in map(_SEGMENT.fullmatch, fields) if m)
        named = {
            fields[f"Segment{n}_Name"]: int(fields.get(f"Segment{n}_LabelValue", n + 1))
            for n in numbers
        }
    return named or None


def write_itk(path: Path, label_map: LabelMap, native: NativeFrame) -> None:
    """Write a canonical label map on its native grid as NRRD or MetaImage, by the path's suffix.

    Names and colors stand in the header as 3D Slicer writes them for a segmentation.
    """
    image = itk_of_labels(label_map, native.grid)
    lps, spacing = _LPS_TO_RAS @ native.grid.affine[:3], native.grid.spacing_mm
    image.SetSpacing(spacing)
    image.SetOrigin((lps[:, 3] + 0.0).tolist())  # no -0.0
    image.SetDirection((lps[:, :3] / spacing + 0.0).ravel().tolist())
    for key, value in _segments(label_map.scheme.names, native.grid.shape).items():
        image.SetMetaData(key, value)
    with _one_line(path), replacing(path) as temporary:
        SimpleITK.WriteImage(image, str(temporary), useCompression=True)


def is_itk_image(image: object) -> bool:
    """Tell whether something is an image of SimpleITK."""
    return isinstance(image, SimpleITK.Image)


def grid_of_itk(image: Any, where: str) -> Grid:
    """Return the grid of an image, or of a reader that has read its header; refuse what is no scan.

    Raises:
        DataError: it is not one 3-D image of plain numbers; `where` names it.
    """
    size, count = image.GetSize(), image.GetDimension()
    volumes = math.prod(size[3:])
    if count < 3 or volumes > 1:
        many = f" of {volumes} volumes, expected one; split it" if volumes > 1 else ", expected 3-D"
        raise DataError(f"{where}: a {count}-D image{many}")
    if image.GetPixelID() not in _BYTES:
        kind = SimpleITK.GetPixelIDValueAsString(image.GetPixelID())
        raise DataError(f"{where}: voxels of {kind}, expected one number each; give one channel")
    directions = np.reshape(image.GetDirection(), (count, count))[:3, :3]
    lps = np.column_stack([directions * image.GetSpacing()[:3], image.GetOrigin()[:3]])
    try:
        affine = np.vstack([_LPS_TO_RAS @ lps + 0.0, [0, 0, 0, 1]])
        return Grid((size[0], size[1], size[2]), affine)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def volume_of_itk(image: Any, where: str) -> Volume:
    """Return an image as a canonical volume; refused as by `grid_of_itk` and `nifti.volume_of`."""
    grid = grid_of_itk(image, where)
    stored = SimpleITK.GetArrayFromImage(image).T.reshape(grid.shape, order="F")
    return volume_of(stored, 1.0, 0.0, grid, where)


def itk_of_labels(label_map: LabelMap, native: Grid, like: Any = None) -> Any:
    """Return a canonical label map as an image, lying like another of its native grid."""
    voxels = to_native(label_map.voxels.astype(label_map.scheme.label_type), native)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(voxels.T))
    if like is not None and like.GetDimension() == 3:
        image.CopyInformation(like)
    return image


def _segments(names: tuple[str, ...], shape: tuple[int, int, int]) -> dict[str, str]:
    """Return the header fields of a segmentation in which 3D Slicer finds its segments."""
    whole = " ".join(f"0 {n - 1}" for n in shape)
    fields = {
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_MasterRepresentation": "Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    for n, name in enumerate(names):
        fields |= {
            f"Segment{n}_ID": f"Segment_{n + 1}",
            f"Segment{n}_Name": " ".join(name.split()),
            f"Segment{n}_NameAutoGenerated": "0",
            f"Segment{n}_Color": " ".join(f"{part:.6f}" for part in label_color(n + 1)),
            f"Segment{n}_ColorAutoGenerated": "0",
            f"Segment{n}_Extent": whole,
            f"Segment{n}_LabelValue": f"{n + 1}",
            f"Segment{n}_Layer": "0",
        }
    return fields


@contextlib.contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """Turn what SimpleITK raises, in many lines with folders' names, into one line."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path.name}: no such file") from error
    except (RuntimeError, MemoryError, OSError, ValueError, zlib.error) as error:
        reason = f" ({error.strerror})" if isinstance(error, OSError) else ""
        raise DataError(
            f"{path.name}: not a readable NRRD or MetaImage file, it is truncated, damaged or of"
            f" another format{reason}; export or copy it again"
        ) from error


def _read(path: Path) -> tuple[Any, NativeFrame]:
    with _one_line(path):
        reader, frame = _open(path, checks_voxels=True)
        return reader.Execute(), frame


def _open(path: Path, checks_voxels: bool = False) -> tuple[Any, NativeFrame]:
    """Return a reader, which has read the header alone, and the frame."""
    if path.exists() and not path.is_file():
        raise DataError(f"{path.name}: a folder or a pipe, expected an NRRD or MetaImage file")
    kind, fields, start = _header(path)
    if not all(name in fields for name in _NEEDED[kind]):
        raise RuntimeError("no header")
    if kind == "MetaImage":
        _require_sound(fields)
    data = _data_of(path, kind, fields)
    begin = start if data == path else 0
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("NrrdImageIO" if kind == "NRRD" else "MetaImageIO")
    reader.ReadImageInformation()
    grid = grid_of_itk(reader, path.name)
    size = math.prod(grid.shape) * _BYTES[reader.GetPixelID()]
    if data.stat().st_size - begin < _least_bytes(fields, size):
        raise RuntimeError("shorter than its header says")
    if checks_voxels and _is_packed(fields):
        _require_inflatable(data, begin, kind, fields, size)
    space = fields.get("space", "").lower()
    if kind == "MetaImage" or any(word in space for word in _SPACES):
        return reader, NativeFrame(grid)
    what = f"the space '{space[:40]}'" if space else "no space"
    doubt = (
        f"its header names {what}, read as left-posterior-superior; other programs may mirror the"
        " scan; repair the header"
    )
    return reader, NativeFrame(grid, contradiction=doubt)


def _require_sound(fields: Mapping[str, str]) -> None:
    """Refuse a MetaImage header with an odd value; RuntimeError or ValueError says so."""
    bad = [n for n, form in _OF_META.items() if n in fields and not re.fullmatch(form, fields[n])]
    if bad or not all(0 < int(part) < _LONGEST for part in fields["DimSize"].split()):
        raise RuntimeError(f"odd {bad}")
    if fields.get("CompressedData") == "True" and "CompressedDataSize" not in fields:
        raise RuntimeError("no CompressedDataSize")
    names = list(fields)
    for name in filter(fields.__contains__, _VECTORS):
        numbers = [float(part) for part in fields[name].split()]
        is_late = names.index(name) > names.index("NDims")
        is_full = len(numbers) == int(fields["NDims"]) ** _VECTORS[name]
        if not (is_late and is_full and all(map(math.isfinite, numbers))):
            raise RuntimeError(f"odd {name}")


def _is_packed(fields: Mapping[str, str]) -> bool:
    is_gzip = fields.get("encoding", "").lower() in ("gzip", "gz")
    return is_gzip or fields.get("CompressedData") == "True"


def _least_bytes(fields: Mapping[str, str], size: int) -> float:
    """Return how many bytes voxels of a size take at least as they are stored."""
    if _is_packed(fields):
        return max(int(fields.get("CompressedDataSize", 0)), size / LARGEST_RATIO)
    return size if fields.get("encoding", "raw").lower() == "raw" else 0.0


def _require_inflatable(
    data: Path, begin: int, kind: str, fields: Mapping[str, str], size: int
) -> None:
    """Refuse damaged compressed voxels: SimpleITK reads them without their checksum."""
    inflater, length = zlib.decompressobj(_ZLIB_OR_GZIP), 0
    with data.open("rb") as file:
        file.seek(begin)
        if kind == "NRRD" and file.read(2) != _GZIP_MARK:
            return  # what is not compressed, or not from the first byte on, teem reads as it is
        file.seek(begin)
        while not inflater.eof and (chunk := file.read(_CHUNK)):
            length += len(inflater.decompress(chunk))
        read = file.tell() - begin - len(inflater.unused_data)
    if not inflater.eof or length < size or read > int(fields.get("CompressedDataSize", read)):
        raise RuntimeError("another size than its header says")


def _header(path: Path) -> tuple[str, Mapping[str, str], int]:
    """Return the format, the fields of a header as text, and where it ends."""
    with path.open("rb") as file:
        start = file.read(_HEADER_BYTES)
    if start.startswith(b"NRRD"):
        text, blank, _ = start.partition(b"\n\n")
        text, blank = (text, blank) if blank else start.partition(b"\r\n\r\n")[:2]
        pairs = re.findall(rb"^([^#:\r\n]+):=? ?([^\r\n]*)", text, re.MULTILINE)
        kind, end = "NRRD", len(text) + len(blank)
    else:
        last = re.search(rb"^ElementDataFile *= *[^\r\n]*\r?\n?", start, re.MULTILINE)
        end = last.end() if last else 0
        pairs = re.findall(rb"^(\w+) *= *([^\r\n]*)", start[:end], re.MULTILINE)
        kind = "MetaImage"
    fields = {_text(key): _text(value).strip() for key, value in pairs}
    if len(fields) < len(pairs):
        raise RuntimeError("a field twice")
    return kind, fields, end


def _text(field: bytes) -> str:
    """Decode what stands in a header: UTF-8, as names of files are, or else Latin-1."""
    try:
        return field.decode()
    except UnicodeDecodeError:
        return field.decode("latin-1")


def _data_of(path: Path, kind: str, fields: Mapping[str, str]) -> Path:
    """Return the file in which the voxels lie.

    A pattern of several files' names is refused: SimpleITK would run it through C's printf.
    """
    data = next(filter(None, map(fields.get, _DATA[kind])), "LOCAL")
    if data.startswith("LIST") or "%" in data:
        raise DataError(
            f"{path.name}: its voxels lie in several files; write it as one, .nrrd or .mha"
        )
    file = path if data == "LOCAL" else path.parent / data
    if not file.is_file():
        raise DataError(
            f"{path.name}: its data file {file.name} is missing; put it beside the header"
        )
    return file
