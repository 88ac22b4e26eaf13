"""What DICOM results have in common: patient, study, images, and an organ's name, code and color.

A result refers to the images of its source series and files itself under their patient and study;
nothing else of them is copied.
"""

from __future__ import annotations

import copy
import math
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from highdicom.sr import CodedConcept
from jaxtyping import Shaped
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.valuerep import DSfloat

from sacl.dicom.files import Fault, Source
from sacl.dicom.header import quiet
from sacl.dicom.slices import Slice, meta_text, slices_in
from sacl.dicom.snomed import SCHEME, code_of
from sacl.dicom.stack import SliceStack, mixed_fault, plane_fault, stack
from sacl.errors import DataError
from sacl.files.atomic import replacing
from sacl.files.label_table import label_color
from sacl.geometry import canonical_grid, require_same_grid, to_canonical, to_native
from sacl.organs import readable
from sacl.types import LabelMap

PRIVATE_SCHEME = "99SACL"
"""Designator of the codes of organs without a SNOMED CT code: their code is their name."""
PATIENT_AND_STUDY = (
    *("SpecificCharacterSet", "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate"),
    *("PatientSex", "OtherPatientIDsSequence", "PatientIdentityRemoved", "DeidentificationMethod"),
    *("DeidentificationMethodCodeSequence", "StudyDate", "StudyTime", "AccessionNumber"),
    *("IssuerOfAccessionNumberSequence", "ReferringPhysicianName", "StudyID", "StudyDescription"),
    *("PatientAge", "PatientSize", "PatientWeight"),
)
"""All that is copied from the source: a result files itself under the patient and the study."""
_ALWAYS = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyID"),
)
"""Attributes of type 2: empty where the source lacks them, but there."""
_SHARED_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
_LONGEST = 64
"""Of segment labels, structure names and code meanings: DICOM's value representation LO."""
_WHERE = "source series"
_TILT_MM = 5e-3
"""How far rounding may shift the slices of a stack against each other, in all."""


@dataclass(frozen=True, eq=False)
class SourceSeries:
    """The images that a result refers to: their stack, and of each by its UID the reference to it.

    `made_up` names the UIDs that the source lacks.
    """

    stack: SliceStack
    references: Mapping[str, Dataset]
    made_up: tuple[str, ...]

    @property
    def first(self) -> Dataset:
        """The reference to the first image."""
        return self.references[self.stack.slices[0].sop_uid]

    @property
    def distance_mm(self) -> float | None:
        """Distance of neighboring slices; None for a single one, and where the stack is tilted."""
        count, tilt = len(self.stack.slices), math.radians(self.stack.tilt_deg)
        distance = self.stack.grid.spacing_mm[2] * math.cos(tilt)
        is_even = count > 1 and distance * math.tan(tilt) * count < _TILT_MM
        return distance if is_even else None


Planes = Shaped[np.ndarray, "k row column"]
"""Label values on the slices of a series."""
Build = Callable[[Planes, Sequence[str], SourceSeries, str], Dataset]
"""Makes an object of labels, organ names, their source and a title."""


def write_result(
    path: Path,
    label_map: LabelMap,
    source: Sequence[Dataset],
    run: str,
    build: Build,
    made_by: str = "",
) -> tuple[str, ...]:
    """Write a label map as a DICOM object on its source series, whole or not at all.

    The map has to lie on the canonical grid of the source, datasets in any order without pixels.
    The new series is described by the organs found, its content by the name of the run. Its UIDs
    are new, or the same each time for the same source and `made_by`, if given. Returns the names of
    the UIDs that the source lacks and that were made up.
    """
    names, title = label_map.scheme.names, f"sacl {run}".replace("\\", "/")[:_LONGEST].strip()
    for name in names:
        if max(len(name), len(readable(name))) > _LONGEST or "\\" in name or not name.isprintable():
            raise DataError(
                f"organ '{name}': DICOM names have at most {_LONGEST} characters and no backslash;"
                " rename the organ"
            )
    with quiet():
        images = _source_series(source)
        canonical, grid = to_canonical(label_map.voxels, label_map.grid)
        remedy = "give the map that was predicted from this series"
        require_same_grid(canonical_grid(images.stack.grid), grid, _WHERE, remedy)
        voxels = to_native(canonical, images.stack.grid).transpose(2, 1, 0)
        result = build(voxels, names, images, title)
        found = [names[label - 1] for label in np.unique(voxels) if label]
        result.SeriesDescription = series_description(found)
        result.CodingSchemeIdentificationSequence = [
            item(
                CodingSchemeDesignator=PRIVATE_SCHEME,
                CodingSchemeName="Organ names of the sacl program",
                CodingSchemeResponsibleOrganization="sacl",
            )
        ]
        _file_under(result, source[0], (title, *names))
        if made_by:
            origin = f"{images.first.SeriesInstanceUID}|{made_by}"
            for name in ("SOPInstanceUID", "SeriesInstanceUID"):
                setattr(result, name, _derived_uid(name, origin))
            result.file_meta.MediaStorageSOPInstanceUID = result.SOPInstanceUID
        with replacing(path) as temporary:
            result.save_as(temporary, enforce_file_format=True)
    return images.made_up


def series_description(organs: Sequence[str]) -> str:
    """Return what a new series is called in a viewer's list: the first organs, how many more.

    Example:
        >>> series_description(["kidney_right", "liver"])
        'sacl: right kidney, liver'
    """
    for count in range(len(organs), 0, -1):
        more = f" and {len(organs) - count} more" if count < len(organs) else ""
        named = [readable(organ) for organ in organs[:count]]
        text = f"sacl: {', '.join(name[:1].lower() + name[1:] for name in named)}{more}"
        if len(text) <= _LONGEST:
            return text
    return f"sacl: {len(organs)} organs" if organs else "sacl: no organ found"


def item(*parts: Dataset, **values: Any) -> Dataset:
    """Return a dataset with the attributes of others and these."""
    data = Dataset()
    for part in parts:
        data.update(part)
    for name, value in values.items():
        setattr(data, name, value)
    return data


def decimal_strings(numbers: Iterable[float]) -> list[DSfloat]:
    """Return numbers as DICOM's decimal strings, which have at most 16 characters."""
    return [DSfloat(float(number), auto_format=True) for number in numbers]


def source_images(source: SourceSeries) -> tuple[list[Dataset], list[int]]:
    """Return the source's images as highdicom takes them, and which slice each of their frames is.

    That is one dataset per image in the stack's order, or a multi-frame image with its frames in
    their own order; nothing of the patient is in them. All get the direction of the first slice.
    """
    slices, first = source.stack.slices, source.stack.slices[0]
    size = {"Rows": first.encoding.rows, "Columns": first.encoding.columns}
    spacing, (thickness,) = map(decimal_strings, (first.spacing_mm or (), [_thickness(first)]))
    measures = {"PixelSpacing": spacing, "SliceThickness": thickness}
    direction = {"ImageOrientationPatient": decimal_strings(first.orientation or ())}
    places = [{"ImagePositionPatient": decimal_strings(s.position_mm or ())} for s in slices]
    if first.frame is None:
        images = [
            item(source.references[piece.sop_uid], **size, **measures, **direction, **place)
            for piece, place in zip(slices, places, strict=True)
        ]
        return images, list(range(len(slices)))
    order = sorted(range(len(slices)), key=lambda n: slices[n].frame or 0)
    planes = [item(PlanePositionSequence=[item(**places[n])]) for n in order]
    shared = item(
        PixelMeasuresSequence=[item(**measures)], PlaneOrientationSequence=[item(**direction)]
    )
    image = item(
        source.first,
        **size,
        NumberOfFrames=len(order),
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=planes,
    )
    return [image], order


def category_of(organ: str) -> CodedConcept:
    """Return what an organ is, of CID 7150: a structure of the body, or an abnormal one."""
    known = code_of(organ)
    if known and known.is_abnormal:
        return CodedConcept.from_code(codes.SCT.MorphologicallyAbnormalStructure)
    return CodedConcept.from_code(codes.SCT.AnatomicalStructure)


def organ_code(organ: str) -> CodedConcept:
    """Return an organ's code with its side as a modifier; a private one where there is no other."""
    known = code_of(organ)
    if known is None:
        return CodedConcept(organ, PRIVATE_SCHEME, readable(organ))
    concept = CodedConcept(known.value, SCHEME, known.meaning)
    if known.laterality is not None:
        side = CodedConcept.from_code(getattr(codes.SCT, known.laterality.capitalize()))
        concept.SegmentedPropertyTypeModifierCodeSequence = [side]
    return concept


def rgb(label: int) -> tuple[int, int, int]:
    """Return the color of a label value, 0 to 255 each: the same as in the NIfTI label table."""
    red, green, blue = label_color(label)
    return round(255 * red), round(255 * green), round(255 * blue)


def _source_series(source: Sequence[Dataset]) -> SourceSeries:
    """Return the images of a source series as a stack, in whatever order they come."""
    if not source:
        raise DataError(f"{_WHERE}: it has no image")
    uids, made_up = _shared_uids(source)
    references = {meta_text(image, "SOPInstanceUID"): _reference(image, uids) for image in source}
    slices = [piece for image in source for piece in slices_in(image, Source(Path()))]
    fault = next(filter(None, map(plane_fault, slices)), None) or mixed_fault(slices)
    stacked = fault or stack(slices, _thickness(slices[0]))
    if isinstance(stacked, Fault):
        raise DataError(f"{_WHERE}: {stacked.sentence}")
    return SourceSeries(stacked, references, made_up)


def _file_under(result: Dataset, source: Dataset, texts: Sequence[str]) -> None:
    """Set the patient and study of a result to those of its source, as they are there.

    The character set stays the source's, unless one of the result's own texts needs Unicode.
    """
    for name in PATIENT_AND_STUDY:
        if name in result:
            del result[name]
        if name in source:
            result[name] = copy.deepcopy(source[name])
        elif name in _ALWAYS:
            setattr(result, name, None)
    if not all(text.isascii() for text in texts):
        result.SpecificCharacterSet = "ISO_IR 192"


def _thickness(piece: Slice) -> float:
    """Return how thick a slice is, mm; 1 where its header does not say."""
    return abs(piece.thickness_mm or piece.distance_mm or 1.0)


def _shared_uids(source: Sequence[Dataset]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the UIDs that all images of a series share, and the names of those made up.

    Where de-identification emptied one, it is derived from the images' own UIDs, so that all
    results of the scan agree.
    """
    instances = "|".join(sorted(_uid(image, "SOPInstanceUID") for image in source))
    uids, made_up = {}, []
    for name in _SHARED_UIDS:
        values = {str(image.get(name) or "") for image in source}
        if len(values) > 1:
            raise DataError(
                f"{_WHERE}: its images have {len(values)} different values of {name}; give"
                " the images of one series"
            )
        (value,) = values
        if not value:
            value = _derived_uid(name, instances)
            made_up.append(name)
        uids[name] = value
    return uids, tuple(made_up)


def _derived_uid(name: str, origin: str) -> str:
    """Return a UID that is the same for the same text (PS3.5, B.2)."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, f'{name}|{origin}').int}"


def _reference(image: Dataset, uids: Mapping[str, str]) -> Dataset:
    """Return what a result needs to refer to an image, and nothing of its patient."""
    uids = {name: _uid(image, name) for name in ("SOPClassUID", "SOPInstanceUID")} | dict(uids)
    reference = item(**uids, **dict.fromkeys(_ALWAYS))
    copied = ["Modality", "LossyImageCompression", "LossyImageCompressionRatio"]
    if "LossyImageCompressionRatio" in image:
        copied.append("LossyImageCompressionMethod")
    for name in filter(image.__contains__, copied):
        reference[name] = image[name]
    return reference


def _uid(image: Dataset, name: str) -> str:
    value = meta_text(image, name)
    if not value:
        raise DataError(
            f"{_WHERE}: an image has no {name}, so that no result can refer to it; export the"
            " series again"
        )
    return value
