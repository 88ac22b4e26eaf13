"""DICOM: scans in, segmentations out; the only door to pydicom and highdicom."""
