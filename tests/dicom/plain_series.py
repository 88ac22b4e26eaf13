"""A small CT series made with pydicom alone: headers as a scanner writes them, no pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pydicom
from pydicom.uid import generate_uid
from pydicom.valuerep import DSfloat
from scipy.spatial.transform import Rotation

from sacl.geometry import to_canonical
from sacl.types import Grid, LabelMap, LabelScheme

CT, ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1"
AXIAL = np.eye(3)
SAGITTAL = np.array([[0, 1, 0], [0, 0, -1], [-1, 0, 0]], float)
"""Rows of a matrix: directions of a row, of a column, and from slice to slice."""


@dataclass(frozen=True)
class Layout:
    """How a series lies: `step` is the way from slice to slice, LPS mm; sheared where tilted."""

    columns: int = 5
    rows: int = 4
    slices: int = 3
    spacing_mm: tuple[float, float] = (0.9, 0.7)
    axes: tuple[tuple[float, ...], ...] = tuple(map(tuple, AXIAL))
    distance_mm: float = 2.5
    tilt: float = 0.0
    origin_mm: tuple[float, float, float] = (-120.5, 33.25, -701.75)

    @property
    def step_mm(self) -> np.ndarray:
        _, along_column, normal = np.array(self.axes)
        tilt = self.tilt if self.slices > 1 else 0.0  # one slice alone shows none
        return self.distance_mm * (normal + tilt * along_column)

    @property
    def grid(self) -> Grid:
        """Return the grid `[column, row, slice]`, by the equation of PS3.3, C.7.6.2.1.1."""
        affine = np.eye(4)
        affine[:3, 0] = np.array(self.axes[0]) * self.spacing_mm[1]
        affine[:3, 1] = np.array(self.axes[1]) * self.spacing_mm[0]
        affine[:3, 2] = self.step_mm
        affine[:3, 3] = self.origin_mm
        return Grid((self.columns, self.rows, self.slices), np.diag([-1, -1, 1, 1]) @ affine)

    def label_map(self, native: np.ndarray, names: tuple[str, ...]) -> LabelMap:
        """Return voxels `[column, row, slice]` as a canonical label map."""
        voxels, grid = to_canonical(native, self.grid)
        return LabelMap(voxels, grid, LabelScheme("test", names))


def turned(angles: tuple[float, float, float], axes: np.ndarray = AXIAL) -> tuple:
    """Return axes turned by Euler angles in degrees, written with 16 characters at most."""
    matrix = axes @ Rotation.from_euler("xyz", angles, degrees=True).as_matrix().T
    return tuple(tuple(float(ds(x)) for x in row) for row in matrix)


def ds(number: float) -> DSfloat:
    return DSfloat(float(number), auto_format=True)


def make_series(layout: Layout, **tags) -> list[pydicom.Dataset]:
    """Return one dataset per slice, in the layout's order."""
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    images = []
    for k in range(layout.slices):
        image = pydicom.Dataset()
        image.file_meta = pydicom.dataset.FileMetaDataset()
        image.SOPClassUID, image.SOPInstanceUID = CT, generate_uid()
        image.StudyInstanceUID, image.SeriesInstanceUID = study, series
        image.FrameOfReferenceUID = frame
        image.Modality, image.Manufacturer, image.InstitutionName = "CT", "Maker", "Clinic"
        image.PatientName, image.PatientID, image.PatientSex = "Doe^Jane", "17-42", "F"
        image.PatientBirthDate, image.StudyDate, image.StudyTime = "19600203", "20240506", "070809"
        image.AccessionNumber, image.StudyID, image.StudyDescription = "A1", "S1", "Abdomen"
        image.ReferringPhysicianName = "House^G"
        image.SeriesNumber, image.InstanceNumber = 4, k + 1
        image.Rows, image.Columns = layout.rows, layout.columns
        image.PixelSpacing = [ds(s) for s in layout.spacing_mm]
        image.SliceThickness = ds(layout.distance_mm)
        image.ImageOrientationPatient = [ds(x) for axis in layout.axes[:2] for x in axis]
        image.ImagePositionPatient = [ds(x) for x in layout.origin_mm + k * layout.step_mm]
        for name, value in tags.items():
            setattr(image, name, value)
        images.append(image)
    return images


def make_enhanced(layout: Layout, order: list[int]) -> pydicom.Dataset:
    """Return one multi-frame dataset with the slices of a layout as frames in a given order."""
    images = make_series(layout)
    image = images[0]
    image.SOPClassUID = ENHANCED_CT
    frames = []
    for k in order:
        place, frame = pydicom.Dataset(), pydicom.Dataset()
        place.ImagePositionPatient = images[k].ImagePositionPatient
        frame.PlanePositionSequence = [place]
        frames.append(frame)
    shared, measures, direction = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    measures.PixelSpacing, measures.SliceThickness = image.PixelSpacing, image.SliceThickness
    direction.ImageOrientationPatient = image.ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [direction]
    for name in ("PixelSpacing", "SliceThickness", "ImageOrientationPatient"):
        del image[name]
    del image.ImagePositionPatient
    image.SharedFunctionalGroupsSequence = [shared]
    image.PerFrameFunctionalGroupsSequence = frames
    image.NumberOfFrames = len(frames)
    return image
