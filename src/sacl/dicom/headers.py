"""Read what a file says of its slices, without its pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pydicom
from pydicom import Dataset

from sacl.dicom.files import DAMAGE, Opener, Source, looks_like_dicom
from sacl.dicom.pixel_length import PixelState, pixel_state
from sacl.dicom.slices import Encoding, Identity, Slice, Traits
from sacl.dicom.values import integer, number, numbers, quiet, text

_TAGS = [
    *("SOPClassUID", "SOPInstanceUID", "ImageType", "Modality", "StudyDate", "StudyTime"),
    *("InstitutionName", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber"),
    *("AcquisitionNumber", "InstanceNumber", "TemporalPositionIdentifier", "EchoTime"),
    *("DiffusionBValue", "ConversionType", "NumberOfFrames", "Rows", "Columns", "SamplesPerPixel"),
    *("PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelSpacing"),
    *("PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope"),
    *("RescaleIntercept", "ModalityLUTSequence", "ImageOrientationPatient", "StackID"),
    *("ImagePositionPatient", "SharedFunctionalGroupsSequence"),
    *("PerFrameFunctionalGroupsSequence", "SpecificCharacterSet"),
]
_RENAMED = {
    "FrameAcquisitionNumber": "AcquisitionNumber",
    "TemporalPositionIndex": "TemporalPositionIdentifier",
    "EffectiveEchoTime": "EchoTime",
    "FrameType": "ImageType",
}
"""What enhanced multi-frame objects call by another name, and slices by this one."""
_BY_CLASS = {
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.2.1": "CT",
    "1.2.840.10008.5.1.4.1.1.4": "MR",
    "1.2.840.10008.5.1.4.1.1.4.1": "MR",
}
_DICOMDIR = "1.2.840.10008.1.3.10"

FileKind = Literal["other", "damaged", "image", "object"]
"""No DICOM; DICOM that cannot be read; an image; DICOM without pixels, such as a report."""


def read_slices(source: Source, root: Path, opener: Opener) -> tuple[FileKind, list[Slice]]:
    """Return what a file is and, of an image, a record per slice; its pixels are not read."""
    with quiet():
        try:
            with opener.stream(source) as stream:
                if not looks_like_dicom(stream.read(132)):
                    return "other", []
                stream.seek(0)
                header = pydicom.dcmread(
                    stream, stop_before_pixels=True, force=True, specific_tags=list(_TAGS)
                )
                state = pixel_state(stream, opener.size(source), header)
            if state == "none" and "Rows" not in header:
                return ("object" if _is_complete_object(header) else "damaged"), []
            return "image", list(_slices(header, source, root, state))
        except DAMAGE:
            return "damaged", []


def read_dataset(source: Source, opener: Opener) -> Dataset:
    """Return a file's whole header, without pixels.

    Raises:
        OSError, ValueError and others of `files.DAMAGE`: the file changed since it was listed.
    """
    with quiet(), opener.stream(source) as stream:
        return pydicom.dcmread(stream, stop_before_pixels=True, force=True)


def _is_complete_object(header: Dataset) -> bool:
    """Tell whether a header without an image is that of a report or the like, not one cut short."""
    sop_class = _meta(header, "SOPClassUID", "MediaStorageSOPClassUID")
    named = "Modality" in header or "SOPClassUID" in header or sop_class == _DICOMDIR
    return named and sop_class not in _BY_CLASS


def _slices(header: Dataset, source: Source, root: Path, state: PixelState) -> Iterator[Slice]:
    groups = header.get("PerFrameFunctionalGroupsSequence")
    if not groups:
        yield _slice(header, header, source, root, state)
        return
    shared = header.get("SharedFunctionalGroupsSequence") or [Dataset()]
    for index, group in enumerate(groups):
        flat = _flattened(header, shared[0], group)
        frame = _slice(flat, header, source, root, state)
        yield dataclasses.replace(frame, frame=index, frames=1)


def _flattened(header: Dataset, shared: Dataset, frame: Dataset) -> Dataset:
    """Return a frame's attributes as if it were a slice: its own, else the shared, else the file's.

    An enhanced object keeps them in one sequence of one item per purpose (functional groups).
    """
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


def _slice(header: Dataset, file: Dataset, source: Source, root: Path, state: PixelState) -> Slice:
    sop_class = _meta(file, "SOPClassUID", "MediaStorageSOPClassUID")
    return Slice(
        source=source,
        frame=None,
        identity=_identity(file, source, root),
        sop_uid=_meta(file, "SOPInstanceUID", "MediaStorageSOPInstanceUID"),
        modality=text(file, "Modality").upper() or _BY_CLASS.get(sop_class, ""),
        series_number=integer(file, "SeriesNumber"),
        traits=_traits(header),
        encoding=_encoding(file),
        spacing_mm=numbers(header, "PixelSpacing", 2),
        orientation=numbers(header, "ImageOrientationPatient", 6),
        position_mm=numbers(header, "ImagePositionPatient", 3),
        slope=number(header, "RescaleSlope"),
        intercept=number(header, "RescaleIntercept"),
        pixels=state,
        frames=integer(file, "NumberOfFrames") or 1,
        converted=sop_class.startswith("1.2.840.10008.5.1.4.1.1.7") or "ConversionType" in file,
    )


def _identity(header: Dataset, source: Source, root: Path) -> Identity:
    series_uid = text(header, "SeriesInstanceUID")
    return Identity(
        patient_id=text(header, "PatientID"),
        study_uid=text(header, "StudyInstanceUID"),
        series_uid=series_uid,
        # Only where an anonymizer emptied the UID does the folder say what belongs together.
        folder="" if series_uid else source.folder(root),
        institution=text(header, "InstitutionName"),
        study_time=text(header, "StudyDate") + text(header, "StudyTime"),
    )


def _traits(header: Dataset) -> Traits:
    kinds = tuple(word.strip().upper() for word in text(header, "ImageType").split("\\") if word)
    return Traits(
        acquisition=integer(header, "AcquisitionNumber"),
        echo_ms=number(header, "EchoTime"),
        temporal=integer(header, "TemporalPositionIdentifier"),
        b_value=number(header, "DiffusionBValue"),
        stack=text(header, "StackID"),
        image_type=kinds,
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
        signed=integer(header, "PixelRepresentation") == 1,
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


def _meta(header: Dataset, keyword: str, fallback: str) -> str:
    """Return a UID of the data set, else that of the file's meta information."""
    return text(header, keyword) or text(getattr(header, "file_meta", Dataset()), fallback)
