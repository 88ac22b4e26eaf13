"""Synthetic DICOM series of which everything is known: voxels, grid, names, and what is wrong."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
ENHANCED = {"CT": f"{CT}.1", "MR": f"{MR}.1"}
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
AXIAL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
CORONAL = ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0))
AIR_HU = -1024


@dataclass(frozen=True)
class Patient:
    """Whose series it is; every value here must never leave the key."""

    name: str = "Zzyzxperson^Qwertyvorname"
    patient_id: str = "PIDX4711"
    birth_date: str = "19531224"
    study_uid: str = "1.2.826.0.1.777.1"
    study_date: str = "20190317"
    accession: str = "ACCX0815"
    institution: str = "Klinikum Xanadu"
    physician: str = "Drquux^Referrer"


@dataclass(frozen=True, eq=False)
class Scan:
    """A series before it is written: stored values `[column, row, slice]` and how they lie.

    `cosines` are the directions of a row and of a column, `step_mm` the way from slice to slice,
    `spacing_mm` between rows and between columns; all LPS.
    """

    stored: np.ndarray
    cosines: tuple[tuple[float, ...], tuple[float, ...]] = AXIAL
    spacing_mm: tuple[float, float] = (1.5, 0.75)
    step_mm: tuple[float, ...] = (0.0, 0.0, 2.5)
    origin_mm: tuple[float, ...] = (-12.5, 33.25, -701.75)
    slope: float = 1.0
    intercept: float = -1024.0
    modality: str = "CT"
    patient: Patient = field(default_factory=Patient)
    series_uid: str = ""
    number: int = 3
    description: str = "Abdomen"

    @property
    def affine(self) -> np.ndarray:
        """Return the grid's affine, RAS+, by the equation of PS3.3, C.7.6.2.1.1."""
        lps = np.eye(4)
        lps[:3, 0] = np.array(self.cosines[0]) * self.spacing_mm[1]
        lps[:3, 1] = np.array(self.cosines[1]) * self.spacing_mm[0]
        lps[:3, 2] = self.step_mm
        lps[:3, 3] = self.origin_mm
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps

    @property
    def values(self) -> np.ndarray:
        """Return what the voxels mean: HU of a CT, not below air."""
        values = self.stored * self.slope + self.intercept
        return np.maximum(values, AIR_HU) if self.modality == "CT" else values


def make_scan(rng: np.random.Generator, slices: int = 8, size: int = 16, **changes) -> Scan:
    """Return a scan of 12-bit noise with air in it; small, no two slices alike."""
    columns, rows = int(rng.integers(size, size + 9)), int(rng.integers(size, size + 9))
    stored = rng.integers(700, 1400, (columns, rows, slices)).astype(np.uint16)
    stored[:2] = rng.integers(0, 40, (2, rows, slices))
    changes.setdefault("series_uid", uid(rng))
    if changes.get("modality") == "MR":
        changes.setdefault("intercept", 0.0)
    return Scan(stored, **changes)


def uid(rng: np.random.Generator) -> str:
    """Return a UID drawn from the generator."""
    return generate_uid(prefix="1.2.826.0.1.777.", entropy_srcs=[str(rng.integers(1 << 62))])


def turned(rng: np.random.Generator) -> tuple[tuple[tuple[float, ...], ...], np.ndarray]:
    """Return cosines of an oblique plane, with 12 decimals as a header has them, and its normal."""
    matrix, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    cosines = tuple(tuple(round(float(x), 12) for x in matrix[:, n]) for n in (0, 1))
    return cosines, np.cross(*cosines)


def oblique(rng: np.random.Generator, **changes) -> Scan:
    """Return a scan of any direction, of cuboid voxels."""
    cosines, normal = turned(rng)
    step = tuple(float(x) for x in normal * 2.5)
    return make_scan(rng, cosines=cosines, step_mm=step, **changes)


def tilted(rng: np.random.Generator, degrees: float = 12.0, **changes) -> Scan:
    """Return a scan whose slices are shifted along their columns, as by a tilted gantry."""
    step = (0.0, 2.5 * float(np.tan(np.radians(degrees))), 2.5)
    return make_scan(rng, step_mm=step, **changes)


def slices_of(scan: Scan, rng: np.random.Generator) -> list[Dataset]:
    """Return a dataset per slice, in the order of k."""
    return [_slice(scan, k, rng) for k in range(scan.stored.shape[2])]


def _slice(scan: Scan, k: int, rng: np.random.Generator) -> Dataset:
    image = _described(scan, CT if scan.modality == "CT" else MR, rng)
    image.InstanceNumber = k + 1
    image.AcquisitionNumber = 1
    image.PixelSpacing = list(scan.spacing_mm)
    image.ImageOrientationPatient = _decimal([*scan.cosines[0], *scan.cosines[1]])
    image.ImagePositionPatient = _decimal(np.array(scan.origin_mm) + k * np.array(scan.step_mm))
    image.RescaleSlope, image.RescaleIntercept = _decimal([scan.slope, scan.intercept])
    set_pixels(image, scan.stored[:, :, k].T)
    return image


def _described(scan: Scan, sop_class: str, rng: np.random.Generator) -> Dataset:
    patient = scan.patient
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = sop_class
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = uid(rng)
    image.PatientName, image.PatientID = patient.name, patient.patient_id
    image.PatientBirthDate = patient.birth_date
    image.StudyInstanceUID, image.StudyDate = patient.study_uid, patient.study_date
    image.StudyTime, image.AccessionNumber = "101530", patient.accession
    image.InstitutionName, image.ReferringPhysicianName = patient.institution, patient.physician
    image.SeriesInstanceUID, image.SeriesNumber = scan.series_uid, scan.number
    image.SeriesDescription, image.Modality = scan.description, scan.modality
    image.FrameOfReferenceUID = f"{patient.study_uid[:60]}.9"
    image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    image.Manufacturer, image.ManufacturerModelName = "SIEMENS", "Synthetic 64"
    return image


def set_pixels(image: Dataset, stored: np.ndarray, bits: int | None = None) -> None:
    """Give a dataset its pixels, `[row, column]` or `[frame, row, column]`, and what says so."""
    image.Rows, image.Columns = stored.shape[-2:]
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated = 8 * stored.dtype.itemsize
    image.BitsStored = bits or image.BitsAllocated
    image.HighBit = image.BitsStored - 1
    image.PixelRepresentation = int(stored.dtype.kind == "i")
    image.PixelData = stored.tobytes() + b"\0" * (stored.nbytes % 2)
    image["PixelData"].VR = "OW"


def enhanced(scan: Scan, rng: np.random.Generator) -> Dataset:
    """Return a scan as one enhanced multi-frame object, its frames in random order."""
    image = _described(scan, ENHANCED[scan.modality], rng)
    order = rng.permutation(scan.stored.shape[2])
    set_pixels(image, np.ascontiguousarray(scan.stored.transpose(2, 1, 0)[order]))
    image.NumberOfFrames = len(order)
    shared = Dataset()
    shared.PixelMeasuresSequence = _item(PixelSpacing=list(scan.spacing_mm))
    shared.PlaneOrientationSequence = _item(
        ImageOrientationPatient=_decimal([*scan.cosines[0], *scan.cosines[1]])
    )
    slope, intercept = _decimal([scan.slope, scan.intercept])
    shared.PixelValueTransformationSequence = _item(
        RescaleSlope=slope, RescaleIntercept=intercept, RescaleType="HU"
    )
    image.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for k in order:
        frame = Dataset()
        place = np.array(scan.origin_mm) + k * np.array(scan.step_mm)
        frame.PlanePositionSequence = _item(ImagePositionPatient=_decimal(place))
        frame.FrameContentSequence = _item(StackID="1", InStackPositionNumber=int(k) + 1)
        frames.append(frame)
    image.PerFrameFunctionalGroupsSequence = Sequence(frames)
    return image


def _item(**values) -> Sequence:
    item = Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return Sequence([item])


def _decimal(numbers) -> list[str]:
    """Return numbers as decimal strings of 16 characters at most, as exactly as these can be."""
    return [_shortest(float(x)) for x in numbers]


def _shortest(number: float) -> str:
    return next(t for d in range(16, 0, -1) if len(t := f"{number:.{d}g}") <= 16)


def write(images: list[Dataset], folder: Path, rng: np.random.Generator) -> Path:
    """Write datasets into a folder, under names whose order says nothing of theirs."""
    folder.mkdir(parents=True, exist_ok=True)
    count = len(list(folder.iterdir()))
    for n, image in zip(rng.permutation(len(images)), images, strict=True):
        pydicom.dcmwrite(folder / f"IM{count + n:05d}.dcm", image, enforce_file_format=True)
    return folder


def write_scan(scan: Scan, folder: Path, rng: np.random.Generator) -> Path:
    """Write a scan as single slices."""
    return write(slices_of(scan, rng), folder, rng)


def other(scan: Scan, **changes) -> Scan:
    """Return a scan with something changed."""
    return dataclasses.replace(scan, **changes)
