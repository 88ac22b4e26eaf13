"""The headers of a file's slices, without pixels, as small records of which many fit in memory."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pydicom
from pydicom import Dataset
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian

from sacl.dicom.files import DAMAGE, Opener, Source, looks_like_dicom
from sacl.dicom.header import Numbers, integer, numbers, one_number, quiet, text

_RENAMED = {
    "FrameAcquisitionNumber": "AcquisitionNumber",
    "TemporalPositionIndex": "TemporalPositionIdentifier",
    "EffectiveEchoTime": "EchoTime",
    "NominalCardiacTriggerDelayTime": "TriggerTime",
    "FrameType": "ImageType",
}
"""What enhanced multi-frame objects call by another name, and slices by this one."""
_BY_CLASS = {
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.2.1": "CT",
    "1.2.840.10008.5.1.4.1.1.4": "MR",
    "1.2.840.10008.5.1.4.1.1.4.1": "MR",
}
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_DICOMDIR = "1.2.840.10008.1.3.10"
_INTEGERS = b"\xe0\x7f\x10\x00"
_FLOATS = (b"\xe0\x7f\x08\x00", b"\xe0\x7f\x09\x00")
_LONG_FORMS = (b"OB", b"OW", b"UN")
_ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_UNDEFINED = 0xFFFFFFFF

FileKind = Literal["other", "damaged", "locked", "image", "object"]
"""No DICOM; DICOM that cannot be read, or may not; an image; DICOM without pixels (a report)."""
PixelState = Literal["whole", "truncated", "none", "float"]
"""All pixels are there; the file ends before them; it has none; they are no integers."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose a slice is, as the hospital says it; empty where it does not. Never leaves the key."""

    patient_id: str
    study_uid: str
    series_uid: str
    folder: str
    institution: str
    study_time: str

    @property
    def scan(self) -> tuple[str, str, str, str]:
        """Return what slices of one series share."""
        return self.patient_id, self.study_uid, self.series_uid, self.folder


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a slice's pixels are stored; `padding` is an inclusive range of stored values."""

    rows: int
    columns: int
    samples: int
    photometric: str
    bits_allocated: int
    bits_stored: int
    transfer_syntax: str
    has_lut: bool
    padding: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Slice:
    """One image plane: a file, or a frame of one. None is what a header lacks or garbles.

    `frame` counts from 0. `spacing_mm` is (between rows, between columns) as DICOM has it;
    orientation and position are in the patient's LPS system. A slope or intercept that is there
    and no number is NaN. `image_type` to `trigger_ms` tell apart scans put into one series.
    """

    source: Source
    frame: int | None
    identity: Identity
    sop_uid: str
    modality: str
    series_number: int | None
    encoding: Encoding
    spacing_mm: Numbers | None
    orientation: Numbers | None
    position_mm: Numbers | None
    slope: float | None
    intercept: float | None
    pixels: PixelState
    frames: int
    converted: bool
    image_type: tuple[str, ...] = ()
    stack_id: str = ""
    acquisition: int | None = None
    temporal: int | None = None
    echo_ms: float | None = None
    b_value: float | None = None
    trigger_ms: float | None = None
    thickness_mm: float | None = None
    distance_mm: float | None = None


def read_slices(source: Source, root: Path, opener: Opener) -> tuple[FileKind, list[Slice]]:
    """Return what a file is and, of an image, a record per slice; its pixels are not read."""
    if source.is_empty:
        return "other", []
    with quiet():
        try:
            with opener.stream(source) as stream:
                if not looks_like_dicom(stream.read(132)):
                    return "other", []
                stream.seek(0)
                header = pydicom.dcmread(stream, stop_before_pixels=True, force=True)
                state = _pixel_state(stream, opener.size(source), header)
            if state == "none" and "Rows" not in header:
                return ("object" if _is_complete_object(header) else "damaged"), []
            return "image", list(slices_in(header, source, source.folder(root), state))
        except PermissionError:
            return "locked", []
        except DAMAGE:
            return "damaged", []


def read_dataset(source: Source, opener: Opener) -> Dataset:
    """Return a file's header without pixels; one of `files.DAMAGE` is raised where it changed."""
    with quiet(), opener.stream(source) as stream:
        return pydicom.dcmread(stream, stop_before_pixels=True, force=True)


def slices_in(
    header: Dataset, source: Source, folder: str = "", state: PixelState = "whole"
) -> Iterator[Slice]:
    """Yield a record per slice of an image: itself, or one per frame of a multi-frame image.

    `state` is that of its pixels, which the header lacks; `folder` is where the file lies.
    """
    groups = header.get("PerFrameFunctionalGroupsSequence") or ()
    shared = (header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    sop_class = meta_text(header, "SOPClassUID")
    of_file = functools.partial(
        Slice,
        source=source,
        identity=_identity(header, folder),
        sop_uid=meta_text(header, "SOPInstanceUID"),
        modality=text(header, "Modality").upper() or _BY_CLASS.get(sop_class, ""),
        series_number=integer(header, "SeriesNumber"),
        encoding=_encoding(header),
        pixels=state,
        frames=1 if groups else integer(header, "NumberOfFrames") or 1,
        converted=sop_class.startswith(_SECONDARY_CAPTURE) or "ConversionType" in header,
    )
    for number, group in enumerate(groups or [None]):
        frame = header if group is None else _flattened(header, shared, group)
        kinds = text(frame, "ImageType").upper()
        yield of_file(
            frame=None if group is None else number,
            image_type=tuple(kind.strip() for kind in kinds.split("\\") if kind),
            stack_id=text(frame, "StackID"),
            acquisition=integer(frame, "AcquisitionNumber"),
            temporal=integer(frame, "TemporalPositionIdentifier"),
            echo_ms=one_number(frame, "EchoTime"),
            b_value=one_number(frame, "DiffusionBValue"),
            trigger_ms=one_number(frame, "TriggerTime"),
            spacing_mm=numbers(frame, "PixelSpacing", 2),
            orientation=numbers(frame, "ImageOrientationPatient", 6),
            position_mm=numbers(frame, "ImagePositionPatient", 3),
            slope=_rescale(frame, "RescaleSlope"),
            intercept=_rescale(frame, "RescaleIntercept"),
            thickness_mm=one_number(frame, "SliceThickness"),
            distance_mm=one_number(frame, "SpacingBetweenSlices"),
        )


def _flattened(header: Dataset, shared: Dataset, frame: Dataset) -> Dataset:
    """Return a frame's attributes as if it were a slice: its own, the shared, or the file's."""
    flat = Dataset()
    for keyword in ("ImageType", "AcquisitionNumber", "Modality"):
        if keyword in header:
            flat[keyword] = header[keyword]
    for group in (shared, frame):
        for purpose in group:
            if purpose.VR == "SQ" and purpose.value:
                flat.update(purpose.value[0])
    for name, known in _RENAMED.items():
        if name in flat:
            setattr(flat, known, flat[name].value)
    return flat


def meta_text(header: Dataset, keyword: str) -> str:
    """Return the UID of an object or of its class, from the file's meta information where empty."""
    meta = getattr(header, "file_meta", None) or Dataset()
    return text(header, keyword) or text(meta, f"MediaStorage{keyword}")


def _pixel_state(stream: io.BufferedIOBase, size: int, header: Dataset) -> PixelState:
    """Tell by lengths alone whether the pixels at which reading the header stopped are whole.

    Native pixels are whole where all their bytes are left in a file of this `size`, compressed ones
    where every fragment is, up to the end mark. Of a deflated or big-endian file decoding tells.
    """
    syntax = UID(header.file_meta.get("TransferSyntaxUID") or "1.2.840.10008.1.2")
    if syntax in (DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian):
        return "whole"
    tag = stream.read(4)
    if tag in _FLOATS:
        return "float"
    if tag != _INTEGERS:
        return "truncated" if 0 < len(tag) < 4 else "none"
    field = stream.read(8)
    start = stream.tell()
    if field[:2] in _LONG_FORMS and not header.original_encoding[0]:
        length = int.from_bytes(field[4:], "little")
    else:
        length, start = int.from_bytes(field[:4], "little"), start - 4
    if length == _UNDEFINED or syntax.is_encapsulated:
        stream.seek(start)
        return _fragments(stream)
    bits = math.prod(integer(header, k) or 0 for k in ("Rows", "Columns", "BitsAllocated"))
    bits *= math.prod(integer(header, k) or 1 for k in ("NumberOfFrames", "SamplesPerPixel"))
    return "whole" if min(length, size - start) >= bits // 8 else "truncated"


def _fragments(stream: io.BufferedIOBase) -> PixelState:
    """Step over the fragments of compressed pixels to the end mark (PS3.5, A.4)."""
    while len(mark := stream.read(8)) == 8:
        if mark[:4] == _END:
            return "whole"
        if mark[:4] != _ITEM:
            break
        stream.seek(int.from_bytes(mark[4:], "little"), 1)
    return "truncated"


def _is_complete_object(header: Dataset) -> bool:
    """Tell whether a header without an image is that of a report or the like, not one cut short."""
    sop_class = meta_text(header, "SOPClassUID")
    named = "Modality" in header or "SOPClassUID" in header or sop_class == _DICOMDIR
    return named and sop_class not in _BY_CLASS


def _identity(header: Dataset, folder: str) -> Identity:
    series_uid = text(header, "SeriesInstanceUID")
    return Identity(
        patient_id=text(header, "PatientID"),
        study_uid=text(header, "StudyInstanceUID"),
        series_uid=series_uid,
        # Only where an anonymizer emptied the UID does the folder say what belongs together.
        folder="" if series_uid else folder,
        institution=text(header, "InstitutionName"),
        study_time=text(header, "StudyDate") + text(header, "StudyTime"),
    )


def _encoding(header: Dataset) -> Encoding:
    meta = getattr(header, "file_meta", Dataset())
    return Encoding(
        rows=integer(header, "Rows") or 0,
        columns=integer(header, "Columns") or 0,
        samples=integer(header, "SamplesPerPixel") or 1,
        photometric=text(header, "PhotometricInterpretation").upper(),
        bits_allocated=integer(header, "BitsAllocated") or 0,
        bits_stored=integer(header, "BitsStored") or 0,
        transfer_syntax=text(meta, "TransferSyntaxUID"),
        has_lut=bool(header.get("ModalityLUTSequence")),
        padding=_padding(header),
    )


def _padding(header: Dataset) -> tuple[int, int] | None:
    """Return the stored values that mean no measurement, first and last."""
    value = integer(header, "PixelPaddingValue")
    if value is None:
        return None
    limit = integer(header, "PixelPaddingRangeLimit")
    ends = [value, value if limit is None else limit]
    if integer(header, "PixelRepresentation") == 1:
        bits = integer(header, "BitsAllocated") or 16
        # Some scanners write a negative value as an unsigned one.
        ends = [end - (1 << bits) if end >= 1 << (bits - 1) else end for end in ends]
    return min(ends), max(ends)


def _rescale(header: Dataset, keyword: str) -> float | None:
    """Return a slope or intercept, None where it is missing, NaN where it is no finite number."""
    value = one_number(header, keyword)
    return math.nan if value is None and text(header, keyword) else value
