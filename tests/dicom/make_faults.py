"""Series with every fault that single headers have, made by changing those of a good one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from dicom_kinds import MAKERS, Expected, Maker, Rng, kind, some_scan
from make_series import SECONDARY_CAPTURE, Patient, slices_of, turned, write
from pydicom import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    MPEG2MPML,
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

Change = Callable[[list[Dataset], Rng], None]
"""Changes the datasets of a series in place."""


def changed(code: str | None, change: Change, **changes) -> Maker:
    """Return a maker of a scan whose datasets are changed; whether it is still accepted."""

    def make(rng: Rng, folder: Path, patient: Patient) -> list[Expected]:
        scan = some_scan(rng, patient, **changes)
        images = slices_of(scan, rng)
        change(images, rng)
        write(images, folder, rng)
        return [Expected(code, scan if code is None else None)]

    return make


def every(**values) -> Change:
    """Return a change that sets attributes of all slices."""

    def change(images: list[Dataset], rng: Rng) -> None:
        for image in images:
            for name, value in values.items():
                setattr(image, name, value)

    return change


def without(name: str, some: bool = False) -> Change:
    """Return a change that takes an attribute from all slices, or from one."""

    def change(images: list[Dataset], rng: Rng) -> None:
        for image in [images[rng.integers(len(images))]] if some else images:
            delattr(image, name)

    return change


def gap(images: list[Dataset], rng: Rng) -> None:
    del images[int(rng.integers(1, len(images) - 1))]


def _moved(images: list[Dataset], axis: int, mm: float, n: int) -> None:
    place = [float(x) for x in images[n].ImagePositionPatient]
    place[axis] += mm
    images[n].ImagePositionPatient = [f"{x:.6f}" for x in place]


def radial(images: list[Dataset], rng: Rng) -> None:
    for image in images:
        cosines, _ = turned(rng)
        image.ImageOrientationPatient = [f"{x:.10f}" for x in (*cosines[0], *cosines[1])]


def truncated(images: list[Dataset], rng: Rng) -> None:
    image = images[int(rng.integers(len(images)))]
    image.PixelData = image.PixelData[: len(image.PixelData) // 2]


def compressed(syntax: str) -> Change:
    def change(images: list[Dataset], rng: Rng) -> None:
        for image in images:
            image.compress(syntax, generate_instance_uid=False)

    return change


def written_as(syntax: str) -> Change:
    def change(images: list[Dataset], rng: Rng) -> None:
        for image in images:
            image.file_meta.TransferSyntaxUID = syntax

    return change


def claims(syntax: str) -> Change:
    """Return a change that says a compression which nothing here decodes."""

    def change(images: list[Dataset], rng: Rng) -> None:
        compressed(RLELossless)(images, rng)
        written_as(syntax)(images, rng)

    return change


def color(images: list[Dataset], rng: Rng) -> None:
    for image in images:
        image.SamplesPerPixel, image.PhotometricInterpretation = 3, "RGB"
        image.PlanarConfiguration, image.BitsAllocated, image.BitsStored, image.HighBit = 0, 8, 8, 7
        image.PixelData = bytes(image.Rows * image.Columns * 3 + image.Rows * image.Columns % 2)


def floating(images: list[Dataset], rng: Rng) -> None:
    for image in images:
        del image.PixelData
        image.FloatPixelData = np.zeros((image.Rows, image.Columns), np.float32).tobytes()


def lut(images: list[Dataset], rng: Rng) -> None:
    for image in images:
        item = Dataset()
        item.LUTDescriptor, item.ModalityLUTType = [2, 0, 16], "HU"
        item.add_new("LUTData", "OW", bytes(4))
        image.ModalityLUTSequence = Sequence([item])


def both(*changes: Change) -> Change:
    def change(images: list[Dataset], rng: Rng) -> None:
        for one in changes:
            one(images, rng)

    return change


def _uneven(images: list[Dataset], rng: Rng) -> None:
    _moved(images, 2, 0.6, len(images) // 2)


def _shifted(images: list[Dataset], rng: Rng) -> None:
    _moved(images, 0, 1.5, len(images) // 2)


def _jitter(images: list[Dataset], rng: Rng) -> None:
    _moved(images, 2, 0.1, len(images) // 2)


LOCALIZER = every(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
MONO1 = every(PhotometricInterpretation="MONOCHROME1")
CT_ONLY = {"modality": "CT"}

MAKERS |= {
    "clean": changed(None, every()),
    "implicit_vr": changed(None, written_as(ImplicitVRLittleEndian)),
    "deflated": changed(None, written_as(DeflatedExplicitVRLittleEndian)),
    "run_length": changed(None, compressed(RLELossless)),
    "jpeg_2000": changed(None, compressed(JPEG2000Lossless), size=64),
    "jpeg_ls": changed(None, compressed(JPEGLSLossless), size=64),
    "derived_but_primary": changed(None, every(ImageType=["DERIVED", "PRIMARY", "AXIAL"])),
    "nearly_even": changed(None, _jitter, modality="CT", slices=11),
    "localizer": changed("localizer", LOCALIZER),
    "projection": changed("derived", every(ImageType=["DERIVED", "PRIMARY", "MIP"])),
    "reformat": changed(
        "derived", every(ImageType=["DERIVED", "SECONDARY", "AXIAL", "CT_SOM5 MPR"])
    ),
    "screenshot": changed("secondary_capture", every(SOPClassUID=SECONDARY_CAPTURE)),
    "scanned": changed("secondary_capture", every(ConversionType="SD")),
    "ultrasound": changed("wrong_modality", every(Modality="US")),
    "positron": changed("wrong_modality", every(Modality="PT")),
    "color": changed("color", color),
    "inverted": changed("inverted_gray", MONO1),
    "too_few": changed("too_few_slices", every(), slices=4),
    "gap": changed("missing_slices", gap),
    "uneven": changed("uneven_slices", _uneven),
    "shifted": changed("uneven_slices", _shifted),
    "radial": changed("mixed_orientation", radial),
    "no_position": changed("missing_tags", without("ImagePositionPatient")),
    "one_without_position": changed("missing_tags", without("ImagePositionPatient", some=True)),
    "no_orientation": changed("missing_tags", without("ImageOrientationPatient")),
    "no_spacing": changed("missing_tags", without("PixelSpacing")),
    "no_pixels": changed("missing_tags", without("PixelData")),
    "zero_spacing": changed("bad_geometry", every(PixelSpacing=[0, 0.7])),
    "long_vectors": changed("bad_geometry", every(ImageOrientationPatient=[2, 0, 0, 0, 1, 0])),
    "skew_vectors": changed("bad_geometry", every(ImageOrientationPatient=[1, 0, 0, 0.6, 0.8, 0])),
    "truncated": changed("truncated_pixels", truncated),
    "no_decoder": changed("missing_decoder", claims(MPEG2MPML)),
    "floating": changed("unsupported_pixels", floating),
    "lookup_table": changed("unsupported_pixels", lut),
    "zero_slope": changed("unsupported_pixels", every(RescaleSlope=0)),
    "no_rescale": changed(
        "no_rescale", both(without("RescaleIntercept"), without("RescaleSlope")), **CT_ONLY
    ),
    "inverted_and_gap": changed("inverted_gray", both(MONO1, gap)),
    "localizer_and_few": changed("localizer", LOCALIZER, slices=2),
    "gap_and_truncated": changed("truncated_pixels", both(gap, truncated)),
    "ultrasound_in_color": changed("wrong_modality", both(every(Modality="US"), color)),
    "gap_and_derived": changed("derived", both(gap, every(ImageType=["DERIVED", "SECONDARY"]))),
}

RANKED: tuple[tuple[str, Change], ...] = (
    ("wrong_modality", every(Modality="US")),
    ("localizer", LOCALIZER),
    ("secondary_capture", every(SOPClassUID=SECONDARY_CAPTURE)),
    ("inverted_gray", MONO1),
    ("derived", every(ImageType=["DERIVED", "PRIMARY", "MIP"])),
    ("missing_tags", without("ImagePositionPatient")),
    ("unsupported_pixels", every(RescaleSlope=0)),
    ("truncated_pixels", truncated),
    ("bad_geometry", every(PixelSpacing=[0, 0.7])),
    ("mixed_orientation", radial),
    ("missing_slices", gap),
)
"""Faults in the order in which one is the reason where a series has two."""


@kind
def two_faults(rng: Rng, folder: Path, patient: Patient) -> list[Expected]:
    first, second = sorted(rng.choice(len(RANKED), 2, replace=False))
    code, change = RANKED[first]
    return changed(code, both(RANKED[second][1], change))(rng, folder, patient)
