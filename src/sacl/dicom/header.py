"""What a DICOM result says of the scan it belongs to: patient, study and the images referred to."""

from __future__ import annotations

import copy
import uuid
from collections.abc import Sequence

from pydicom import Dataset

from sacl.errors import DataError

PATIENT_AND_STUDY = (
    "SpecificCharacterSet",
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "OtherPatientIDsSequence",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "IssuerOfAccessionNumberSequence",
    "ReferringPhysicianName",
    "StudyID",
    "StudyDescription",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
)
"""All that is copied from the source: a result files itself under the patient and the study."""
_ALWAYS = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyID"),
)
"""Attributes of type 2: empty where the source lacks them, but there."""
_SHARED_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")


def new_uid() -> str:
    """Return a UID that nobody else has: a random UUID under 2.25, no seed (PS3.5, B.2)."""
    return f"2.25.{uuid.uuid4().int}"


def shared_uids(source: Sequence[Dataset]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the UIDs that all images of a series share, and the names of those made up.

    De-identification may have emptied them. Then one is derived from the images' own UIDs, so
    that all results of the scan agree; the source has to be given the same for a viewer to match.

    Raises:
        DataError: the images are of several series.
    """
    instances = "|".join(sorted(sop_instance_uid(image) for image in source))
    uids, made_up = {}, []
    for name in _SHARED_UIDS:
        values = {str(image.get(name) or "") for image in source}
        if len(values) > 1:
            raise DataError(
                f"source series: its images have {len(values)} different values of {name}; give"
                " the images of one series"
            )
        (value,) = values
        if not value:
            value = f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, f'{name}|{instances}').int}"
            made_up.append(name)
        uids[name] = value
    return uids, tuple(made_up)


def sop_instance_uid(image: Dataset) -> str:
    """Return an image's own UID, from the file's meta information where the image lacks it.

    Raises:
        DataError: it is in neither place.
    """
    return _own(image, "SOPInstanceUID", "MediaStorageSOPInstanceUID")


def image_header(image: Dataset, uids: dict[str, str]) -> Dataset:
    """Return what a result needs to refer to an image, and nothing of its patient.

    Raises:
        DataError: the image says neither in its header nor in its file which one it is.
    """
    header = Dataset()
    header.SOPClassUID = _own(image, "SOPClassUID", "MediaStorageSOPClassUID")
    header.SOPInstanceUID = sop_instance_uid(image)
    for name, value in uids.items():
        setattr(header, name, value)
    for name in ("Modality", "LossyImageCompression", "LossyImageCompressionRatio"):
        if name in image:
            header[name] = image[name]
    if "LossyImageCompressionRatio" in header and "LossyImageCompressionMethod" in image:
        header["LossyImageCompressionMethod"] = image["LossyImageCompressionMethod"]
    for name in _ALWAYS:
        setattr(header, name, None)
    return header


def copy_patient_and_study(source: Dataset, target: Dataset, texts: Sequence[str]) -> None:
    """Set the patient and study of a result to those of the source, as they are there.

    The character set stays the source's, unless one of the result's own texts needs Unicode.
    """
    for name in PATIENT_AND_STUDY:
        if name in target:
            del target[name]
        if name in source:
            target[name] = copy.deepcopy(source[name])
        elif name in _ALWAYS:
            setattr(target, name, None)
    if not all(text.isascii() for text in texts):
        target.SpecificCharacterSet = "ISO_IR 192"


def _own(image: Dataset, name: str, in_file: str) -> str:
    meta = getattr(image, "file_meta", None) or Dataset()
    value = str(image.get(name) or meta.get(in_file) or "")
    if not value:
        raise DataError(
            f"source series: an image has no {name}, so that no result can refer to it; export the"
            " series again"
        )
    return value
