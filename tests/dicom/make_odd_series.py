"""Series of which the whole is odd: several scans in one, copies, gaps, frames, compression."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pydicom
from dicom_kinds import MAKERS, Expected, Maker, Rng, kind, some_scan
from make_faults import LOCALIZER, both, compressed, every, without
from make_series import (
    CORONAL,
    Patient,
    enhanced,
    make_scan,
    other,
    set_pixels,
    slices_of,
    tilted,
    write,
    write_scan,
)
from pydicom.uid import ExplicitVRBigEndian, JPEG2000Lossless


@kind
def flipped(rng: Rng, folder: Path, patient: Patient) -> list[Expected]:
    scan = some_scan(rng, patient)
    scan = other(scan, step_mm=tuple(-x for x in scan.step_mm))
    write_scan(scan, folder, rng)
    return [Expected(None, scan)]


@kind
def gantry_tilt(rng: Rng, folder: Path, patient: Patient) -> list[Expected]:
    degrees = float(rng.uniform(-25, 25))
    degrees += float(np.copysign(1, degrees))
    scan = tilted(rng, degrees, patient=patient, slices=12)
    write_scan(scan, folder, rng)
    return [Expected(None, scan, f"gantry tilt {abs(degrees):.1f} degrees")]


@kind
def tilted_with_copies(rng: Rng, folder: Path, patient: Patient) -> list[Expected]:
    scan = tilted(rng, patient=patient)
    images = slices_of(scan, rng)
    again = slices_of(scan, rng)[2:4]
    write([*images, *again, images[5]], folder, rng)
    return [Expected(None, scan, "3 identical copies")]


@kind
def copies_and_gap(rng: Rng, folder: Path, patient: Patient) -> list[Expected]:
    images = slices_of(some_scan(rng, patient), rng)
    write([*images[:3], images[1], *images[4:]], folder, rng)
    return [Expected("missing_slices")]


@kind
def repeated(rng: Rng, folder: Path, patient: Patient) -> list[Expected]:
    scan = some_scan(rng, patient)
    second = other(scan, stored=scan.stored[::-1])
    write([*slices_of(scan, rng), *slices_of(second, rng)], folder, rng)
    return [Expected("repeated_positions")]


def _two(attribute: str, modality: str, values: tuple) -> Maker:
    def make(rng: Rng, folder: Path, patient: Patient) -> list[Expected]:
        scan = some_scan(rng, patient, modality=modality)
        second = other(scan, stored=np.ascontiguousarray(scan.stored[::-1]))
        for each, value in zip((scan, second), values, strict=True):
            images = slices_of(each, rng)
            every(**{attribute: value})(images, rng)
            write(images, folder, rng)
        return [Expected(None, scan), Expected(None, second)]

    return make


MAKERS |= {
    "two_acquisitions": _two("AcquisitionNumber", "CT", (1, 2)),
    "two_echoes": _two("EchoTime", "MR", (2.3, 4.6)),
    "two_b_values": _two("DiffusionBValue", "MR", (0.0, 800.0)),
    "in_and_opposed_phase": _two(
        "ImageType",
        "MR",
        (["ORIGINAL", "PRIMARY", "M", "IN_PHASE"], ["ORIGINAL", "PRIMARY", "M", "OPP_PHASE"]),
    ),
}


@kind
def interleaved_acquisitions(rng: Rng, folder: Path, patient: Patient) -> list[Expected]:
    scan = make_scan(rng, 8, patient=patient)
    between = tuple(o + s / 2 for o, s in zip(scan.origin_mm, scan.step_mm, strict=True))
    second = other(scan, origin_mm=between, stored=np.ascontiguousarray(scan.stored[::-1]))
    for number, each in enumerate((scan, second), start=1):
        images = slices_of(each, rng)
        every(AcquisitionNumber=number)(images, rng)
        write(images, folder, rng)
    return [Expected(None, scan), Expected(None, second)]


@kind
def interleaved_packages(rng: Rng, folder: Path, patient: Patient) -> list[Expected]:
    """MR takes every other slice first: one scan, whatever the acquisition number."""
    scan = some_scan(rng, patient, modality="MR")
    images = slices_of(scan, rng)
    for k, image in enumerate(images):
        image.AcquisitionNumber = k % 2 + 1
    write(images, folder, rng)
    return [Expected(None, scan)]


@kind
def step_and_shoot(rng: Rng, folder: Path, patient: Patient) -> list[Expected]:
    scan = some_scan(rng, patient, modality="CT", slices=12)
    images = slices_of(scan, rng)
    for k, image in enumerate(images):
        image.AcquisitionNumber = k // 3 + 1
    write(images, folder, rng)
    return [Expected(None, scan, "4 acquisitions in one even stack")]


@kind
def two_directions(rng: Rng, folder: Path, patient: Patient) -> list[Expected]:
    scan = make_scan(rng, 9, patient=patient)
    second = other(scan, cosines=CORONAL, step_mm=(0.0, 2.5, 0.0), stored=scan.stored[:, ::-1])
    write_scan(scan, folder, rng)
    write_scan(second, folder, rng)
    return [Expected(None, scan), Expected(None, second)]


@kind
def two_matrices(rng: Rng, folder: Path, patient: Patient) -> list[Expected]:
    scan = make_scan(rng, 9, patient=patient)
    write_scan(scan, folder, rng)
    second = other(scan, stored=scan.stored[:-3], spacing_mm=(1.25, 1.0))
    write_scan(second, folder, rng)
    return [Expected(None, scan), Expected(None, second)]


@kind
def scan_with_its_localizer(rng: Rng, folder: Path, patient: Patient) -> list[Expected]:
    scan = make_scan(rng, 9, patient=patient)
    overview = slices_of(other(scan, cosines=CORONAL, step_mm=(0.0, 2.5, 0.0)), rng)[:1]
    LOCALIZER(overview, rng)
    write([*slices_of(scan, rng), *overview], folder, rng)
    return [Expected(None, scan), Expected("localizer")]


@kind
def slopes_of_its_own(rng: Rng, folder: Path, patient: Patient) -> list[Expected]:
    scan = some_scan(rng, patient, modality="MR")
    images = slices_of(scan, rng)
    slopes = rng.uniform(0.5, 2.0, len(images)).round(6)
    for image, slope in zip(images, slopes, strict=True):
        image.RescaleSlope = f"{slope:.6f}"
    write(images, folder, rng)
    true = other(scan, stored=scan.stored * slopes)
    return [Expected(None, true, "rescale slopes or intercepts, each slice's own applied")]


@kind
def hu_without_rescale(rng: Rng, folder: Path, patient: Patient) -> list[Expected]:
    scan = some_scan(rng, patient, modality="CT", intercept=0.0)
    scan = other(scan, stored=scan.stored.astype(np.int16) - 1024)
    images = slices_of(scan, rng)
    both(without("RescaleIntercept"), without("RescaleSlope"))(images, rng)
    write(images, folder, rng)
    return [Expected(None, scan, "no rescale values")]


@kind
def padded(rng: Rng, folder: Path, patient: Patient) -> list[Expected]:
    scan = some_scan(rng, patient, modality="CT")
    stored = scan.stored.astype(np.int16)
    stored[:, :2] = -2000
    images = slices_of(other(scan, stored=stored), rng)
    every(PixelPaddingValue=-2000)(images, rng)
    write(images, folder, rng)
    return [Expected(None, other(scan, stored=stored))]


@kind
def twelve_bits_of_sixteen(rng: Rng, folder: Path, patient: Patient) -> list[Expected]:
    """Bits above the stored ones hold an overlay; they are no part of the value."""
    scan = some_scan(rng, patient, modality="CT")
    images = slices_of(scan, rng)
    for image in images:
        pixels = np.frombuffer(image.PixelData, np.uint16)[: image.Rows * image.Columns]
        marked = (pixels | 0x1000).reshape(image.Rows, image.Columns)
        set_pixels(image, marked, bits=12)
    write(images, folder, rng)
    return [Expected(None, scan)]


@kind
def big_endian(rng: Rng, folder: Path, patient: Patient) -> list[Expected]:
    scan = some_scan(rng, patient)
    images = slices_of(scan, rng)
    for image in images:
        pixels = np.frombuffer(image.PixelData, "<u2").astype(">u2")
        image.PixelData = pixels.tobytes()
        image.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    write(images, folder, rng)
    return [Expected(None, scan)]


@kind
def multi_frame(rng: Rng, folder: Path, patient: Patient) -> list[Expected]:
    scan = some_scan(rng, patient)
    write([enhanced(scan, rng)], folder, rng)
    return [Expected(None, scan)]


@kind
def multi_frame_in_time(rng: Rng, folder: Path, patient: Patient) -> list[Expected]:
    scan = some_scan(rng, patient)
    second = other(scan, stored=np.ascontiguousarray(scan.stored[::-1]))
    image, later = enhanced(scan, rng), enhanced(second, rng)
    for index, each in enumerate((image, later), start=1):
        for frame in each.PerFrameFunctionalGroupsSequence:
            frame.FrameContentSequence[0].TemporalPositionIndex = index
    image.PerFrameFunctionalGroupsSequence += later.PerFrameFunctionalGroupsSequence
    image.NumberOfFrames = 2 * scan.stored.shape[2]
    frames = [
        each.PixelData[: 2 * scan.stored.size]  # without the padding to an even length
        for each in (image, later)
    ]
    image.PixelData = b"".join(frames)
    write([image], folder, rng)
    return [Expected(None, scan), Expected(None, second)]


@kind
def frames_without_places(rng: Rng, folder: Path, patient: Patient) -> list[Expected]:
    scan = some_scan(rng, patient)
    image = slices_of(scan, rng)[0]
    set_pixels(image, np.ascontiguousarray(scan.stored.transpose(2, 1, 0)))
    image.NumberOfFrames = scan.stored.shape[2]
    write([image], folder, rng)
    return [Expected("unsupported_multiframe")]


@kind
def cut_fragments(rng: Rng, folder: Path, patient: Patient) -> list[Expected]:
    images = slices_of(some_scan(rng, patient, size=64), rng)
    compressed(JPEG2000Lossless)(images, rng)
    write(images, folder, rng)
    file = sorted(folder.iterdir())[0]
    file.write_bytes(file.read_bytes()[:-60])
    return [Expected("truncated_pixels")]


@kind
def no_preamble(rng: Rng, folder: Path, patient: Patient) -> list[Expected]:
    scan = some_scan(rng, patient)
    for n, image in enumerate(slices_of(scan, rng)):
        folder.mkdir(parents=True, exist_ok=True)
        with io.BytesIO() as out:
            del image.file_meta
            pydicom.dcmwrite(
                out, image, implicit_vr=True, little_endian=True, enforce_file_format=False
            )
            (folder / f"{n:03d}").write_bytes(out.getvalue())
    return [Expected(None, scan)]


@kind
def anonymized_uids(rng: Rng, folder: Path, patient: Patient) -> list[Expected]:
    scan = some_scan(rng, patient)
    images = slices_of(scan, rng)
    every(SeriesInstanceUID="", StudyInstanceUID="", PatientID="")(images, rng)
    write(images, folder, rng)
    return [Expected(None, scan)]
