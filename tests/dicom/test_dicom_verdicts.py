from __future__ import annotations

import tracemalloc
import zlib
from pathlib import Path

import make_odd_series  # noqa: F401  (adds its kinds)
import numpy as np
import pydicom
import pytest
from dicom_kinds import MAKERS, differences, new_patient
from hypothesis import given, settings
from hypothesis import strategies as st
from make_faults import every
from make_series import make_scan, other, slices_of, turned, write, write_scan

from sacl.dicom import stack as volumes
from sacl.dicom.files import CODES, Source
from sacl.dicom.intake import take_in
from sacl.dicom.slices import Encoding, Identity, Slice
from sacl.dicom.stack import SliceStack, read_stack, stack
from sacl.dicom.verdict import DicomExport
from sacl.errors import DataError


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.mark.parametrize("kind", MAKERS)
def test_every_kind_of_series_is_judged_rightly_and_read_to_the_voxel(tmp_path, kind):
    rng = np.random.default_rng([3, zlib.crc32(kind.encode())])
    expected = MAKERS[kind](rng, tmp_path / "series", new_patient(rng, 1))
    verdicts = take_in(tmp_path).verdicts
    assert differences(verdicts, expected) == []
    for verdict in verdicts:
        if verdict.fault is not None:
            assert verdict.fault.code in CODES
            assert "\n" not in verdict.fault.sentence


def test_only_the_wanted_modality_is_accepted(tmp_path, rng):
    write_scan(make_scan(rng), tmp_path / "ct", rng)
    write_scan(make_scan(rng, modality="MR"), tmp_path / "mr", rng)
    codes = {
        wanted: [v.fault and v.fault.code for v in take_in(tmp_path, DicomExport(wanted)).verdicts]
        for wanted in ("auto", "ct", "mr")
    }
    assert codes["auto"] == [None, None]
    assert (
        sorted(map(str, codes["ct"])) == sorted(map(str, codes["mr"])) == ["None", "wrong_modality"]
    )


def test_of_each_study_the_largest_series_can_be_kept_alone(tmp_path, rng):
    for slices in (8, 14, 11):
        write_scan(make_scan(rng, slices), tmp_path, rng)
    other_study = new_patient(rng, 2)
    write_scan(make_scan(rng, 6, patient=other_study), tmp_path, rng)
    verdicts = take_in(tmp_path, DicomExport(series="largest")).verdicts
    kept = [verdict.stack.grid.shape[2] for verdict in verdicts if verdict.accepted]
    assert sorted(kept) == [6, 14]
    assert [v.fault.code for v in verdicts if not v.accepted] == ["not_largest"] * 2
    told = [v.fault.sentence for v in verdicts if v.fault is not None]
    assert all("another series of the study has 14" in sentence for sentence in told)


def test_fewer_than_five_slices_are_no_scan(tmp_path, rng):
    write_scan(make_scan(rng, 4), tmp_path / "four", rng)
    write_scan(make_scan(rng, 5), tmp_path / "five", rng)
    codes = [v.fault and v.fault.code for v in take_in(tmp_path).verdicts]
    assert sorted(map(str, codes)) == ["None", "too_few_slices"]


@pytest.mark.parametrize(("share", "accepted"), [(0.09, True), (0.11, False)])
def test_a_slice_may_lie_a_tenth_of_the_distance_off_its_place(tmp_path, rng, share, accepted):
    images = slices_of(make_scan(rng, 9), rng)
    images[4].ImagePositionPatient[2] += share * 2.5
    write(images, tmp_path, rng)
    assert take_in(tmp_path).verdicts[0].accepted == accepted


def test_a_missing_decoder_names_what_to_install(tmp_path, rng, monkeypatch):
    images = slices_of(make_scan(rng), rng)
    for image in images:
        image.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
        image.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLosslessSV1
    write(images, tmp_path, rng)
    missing = type("", (), {"is_available": False})
    monkeypatch.setattr(volumes, "get_decoder", lambda syntax: missing)
    fault = take_in(tmp_path).verdicts[0].fault
    assert fault.code == "missing_decoder"
    assert "JPEG Lossless" in fault.sentence
    assert "pip install 'sacl[jpeg]'" in fault.sentence


def test_pixels_that_cannot_be_decoded_are_told_in_one_line(tmp_path, rng):
    images = slices_of(make_scan(rng, size=64), rng)
    for image in images:
        image.compress(pydicom.uid.JPEG2000Lossless, generate_instance_uid=False)
    middle = bytearray(images[3].PixelData)
    middle[40:120] = bytes(80)
    images[3].PixelData = bytes(middle)
    write(images, tmp_path, rng)
    (verdict,) = take_in(tmp_path).verdicts
    with pytest.raises(DataError, match=r"case p0001-s01: slice 4 of 8 cannot be decoded"):
        read_stack(verdict.stack, "p0001-s01")


def test_padding_that_could_be_tissue_is_not_taken_for_padding(tmp_path, rng):
    scan = make_scan(rng)
    images = slices_of(scan, rng)
    every(PixelPaddingValue=1064)(images, rng)
    write(images, tmp_path, rng)
    (verdict,) = take_in(tmp_path).verdicts
    assert any("could be tissue" in note for note in verdict.notes)
    volume, _ = read_stack(verdict.stack, "x")
    np.testing.assert_array_equal(np.sort(volume.voxels, None), np.sort(scan.values, None))


def test_a_range_of_padding_becomes_air_also_above_all_tissue(tmp_path, rng):
    scan = make_scan(rng, intercept=0.0)
    stored = scan.stored.copy()
    stored[3], stored[4], stored[5] = 4095, 4090, 4087
    images = slices_of(other(scan, stored=stored), rng)
    every(PixelPaddingValue=4095, PixelPaddingRangeLimit=4088)(images, rng)
    write(images, tmp_path, rng)
    (verdict,) = take_in(tmp_path).verdicts
    volume, _ = read_stack(verdict.stack, "x")
    assert np.count_nonzero(volume.voxels == -1024) == 2 * stored[0].size
    assert np.count_nonzero(volume.voxels == 4087) == stored[0].size


def test_a_negative_padding_value_may_be_written_as_unsigned(tmp_path, rng):
    scan = make_scan(rng, modality="MR")
    stored = scan.stored.astype(np.int16)
    stored[3] = -2000
    images = slices_of(other(scan, stored=stored), rng)
    for image in images:
        image.add_new("PixelPaddingValue", "US", 65536 - 2000)
    write(images, tmp_path, rng)
    (verdict,) = take_in(tmp_path).verdicts
    volume, _ = read_stack(verdict.stack, "x")
    assert volume.voxels.min() == 0


def test_values_beyond_int16_stay_exact(tmp_path, rng):
    scan = make_scan(rng, modality="MR")
    stored = scan.stored.copy()
    stored[0, 0, 0] = 65535
    write_scan(other(scan, stored=stored), tmp_path, rng)
    (verdict,) = take_in(tmp_path).verdicts
    volume, _ = read_stack(verdict.stack, "x")
    assert volume.voxels.dtype == np.float32
    assert volume.voxels.max() == 65535


def test_reading_needs_less_memory_than_two_scans(tmp_path, rng):
    scan = make_scan(rng, 40, size=128)
    write_scan(scan, tmp_path, rng)
    (verdict,) = take_in(tmp_path).verdicts
    tracemalloc.start()
    try:
        volume, _ = read_stack(verdict.stack, "x")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert volume.voxels.dtype == np.int16
    assert peak < 2 * volume.voxels.nbytes


def test_what_is_no_image_is_counted_not_judged(tmp_path, rng):
    write_scan(make_scan(rng), tmp_path / "a", rng)
    (tmp_path / "readme.txt").write_text("nothing here")
    (tmp_path / "empty").write_bytes(b"")
    report = slices_of(make_scan(rng), rng)[0]
    for name in ("PixelData", "Rows", "Columns"):
        delattr(report, name)
    report.Modality, report.SOPClassUID = "SR", "1.2.840.10008.5.1.4.1.1.88.11"
    write([report], tmp_path / "b", rng)
    directory = slices_of(make_scan(rng), rng)[0]
    directory.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    for name in ("PixelData", "Rows", "Columns", "Modality", "SOPClassUID"):
        delattr(directory, name)
    write([directory], tmp_path / "c", rng)
    file = sorted((tmp_path / "a").iterdir())[0]
    (tmp_path / "damaged").write_bytes(file.read_bytes()[:200])
    (tmp_path / "cut").write_bytes(file.read_bytes()[:900])
    intake = take_in(tmp_path)
    assert (intake.files["other"], intake.files["object"], intake.files["image"]) == (2, 2, 8)
    assert intake.files["damaged"] == 2
    assert "2 DICOM files with a damaged header skipped" in intake.notes


def test_the_page_explains_every_reason():
    page = Path(__file__).parents[2] / "docs" / "how-to" / "dicom.md"
    words = page.read_text(encoding="utf-8")
    assert [code for code in CODES if f"`{code}`" not in words] == []


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(5, 40), degrees=st.floats(-30, 30))
def test_any_order_of_slices_gives_their_grid(seed, count, degrees):
    """Slices of any direction, spacing, tilt and order: positions are where their headers say."""
    rng = np.random.default_rng(seed)
    cosines, normal = turned(rng)
    spacing = tuple(float(x) for x in rng.uniform(0.3, 4.0, 2))
    distance = float(rng.uniform(0.3, 8.0))
    step = distance * (normal + np.tan(np.radians(degrees)) * np.array(cosines[1]))
    origin = rng.uniform(-900, 900, 3)
    places = [tuple(origin + k * step) for k in range(count)]
    encoding = Encoding(7, 5, 1, "MONOCHROME2", 16, 16, "", False, None)
    order = rng.permutation(count)
    found = stack([slice_at(places[k], cosines, spacing, encoding) for k in order])
    assert isinstance(found, SliceStack)
    assert found.grid.shape == (5, 7, count)
    assert found.tilt_deg == pytest.approx(abs(degrees), abs=1e-3)
    for k, piece in enumerate(found.slices):
        for i, j in ((0, 0), (4, 0), (0, 6)):
            lps = np.array(piece.position_mm)
            lps = (
                lps + i * spacing[1] * np.array(cosines[0]) + j * spacing[0] * np.array(cosines[1])
            )
            x, y, z, _ = found.grid.affine @ (i, j, k, 1)
            np.testing.assert_allclose((-x, -y, z), lps, rtol=0, atol=1e-6)


def slice_at(place, cosines, spacing, encoding):
    return Slice(
        source=Source(Path("x")),
        frame=None,
        identity=Identity("", "", "", "", "", ""),
        sop_uid="",
        modality="CT",
        series_number=None,
        encoding=encoding,
        spacing_mm=spacing,
        orientation=(*cosines[0], *cosines[1]),
        position_mm=place,
        slope=1.0,
        intercept=0.0,
        pixels="whole",
        frames=1,
        converted=False,
    )
