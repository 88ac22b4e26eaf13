"""What is known of a slice before its pixels are read: small records, many fit into memory."""

from __future__ import annotations

from dataclasses import dataclass

from sacl.dicom.files import Source
from sacl.dicom.pixel_length import PixelState
from sacl.dicom.values import Numbers


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
    signed: bool
    transfer_syntax: str
    has_lut: bool
    padding: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class Traits:
    """What tells apart several scans that were put into one series."""

    acquisition: int | None
    echo_ms: float | None
    temporal: int | None
    b_value: float | None
    stack: str
    image_type: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Slice:
    """One image plane: a file, or a frame of one. None is what a header lacks or garbles.

    `spacing_mm` is (between rows, between columns) as DICOM has it; orientation and position are in
    the patient's LPS system.
    """

    source: Source
    frame: int | None
    identity: Identity
    sop_uid: str
    modality: str
    series_number: int | None
    traits: Traits
    encoding: Encoding
    spacing_mm: Numbers | None
    orientation: Numbers | None
    position_mm: Numbers | None
    slope: float | None
    intercept: float | None
    pixels: PixelState
    frames: int
    converted: bool
