"""DICOM: scans in, segmentations out; the only door to pydicom and highdicom."""

from sacl.dicom.source import source_series

__all__ = ["source_series"]
