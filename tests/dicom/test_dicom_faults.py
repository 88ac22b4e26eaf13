"""What hospitals and people do wrong: each is named as what it is, and the rest goes on."""

from __future__ import annotations

import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from make_faults import every, without
from make_series import enhanced, make_scan, other, slices_of, write, write_scan

from sacl.cli import main
from sacl.cohort.layouts import dicom
from sacl.dicom.intake import take_in
from sacl.dicom.pseudonyms import read_key
from sacl.dicom.stack import read_stack
from sacl.errors import DataError
from sacl.run.workspace import KEY


@pytest.fixture
def rng():
    return np.random.default_rng(23)


def cine(rng, phases=4, slices=8, jitter_ms=0.0):
    """Return images by phase; nothing but TriggerTime tells the phases apart."""
    scan = make_scan(rng, slices, modality="MR")
    series = []
    for n in range(phases):
        images = slices_of(other(scan, stored=np.roll(scan.stored, n, axis=0)), rng)
        for image in images:
            image.TriggerTime = f"{n * 45 + rng.uniform(0, jitter_ms):.2f}"
        series.append(images)
    return series


@pytest.mark.parametrize("jitter_ms", [0.0, 20.0])
def test_a_cine_is_told_apart_by_trigger_time_alone(tmp_path, rng, jitter_ms):
    series = cine(rng, jitter_ms=jitter_ms)
    write([image for images in series for image in images], tmp_path, rng)
    verdicts = take_in(tmp_path).verdicts
    assert [verdict.accepted for verdict in verdicts] == [True] * 4
    assert [verdict.stack.grid.shape[2] for verdict in verdicts] == [8] * 4
    assert all("trigger time" in verdict.series.part for verdict in verdicts)
    first = [read_stack(verdict.stack, "x")[0].voxels[0, 0] for verdict in verdicts]
    assert len({tuple(column) for column in first}) == 4, "every phase has voxels of its own"
    assert not any(verdict.notes for verdict in verdicts)


def test_a_phase_with_fewer_slices_than_the_others_gets_a_note(tmp_path, rng):
    series = cine(rng, phases=3)
    del series[1][-1]
    write([image for images in series for image in images], tmp_path, rng)
    notes = {len(v.stack.slices): v.notes for v in take_in(tmp_path).verdicts}
    assert notes[7] == ("7 slices, where another scan of its series has 8",)
    assert notes[8] == ()


def test_a_phase_with_a_gap_is_rejected_alone(tmp_path, rng):
    series = cine(rng, phases=3, slices=9, jitter_ms=15.0)
    del series[1][4]
    write([image for images in series for image in images], tmp_path, rng)
    codes = [verdict.fault and verdict.fault.code for verdict in take_in(tmp_path).verdicts]
    assert sorted(map(str, codes)) == ["None", "None", "missing_slices"]


def test_another_distance_of_slices_is_no_gap(tmp_path, rng):
    images = slices_of(make_scan(rng, 44), rng)
    kept = [*images[:23], *images[25::3]]
    write(kept, tmp_path, rng)
    fault = take_in(tmp_path).verdicts[0].fault
    assert fault.code == "uneven_slices"
    assert "steps of 2.5 to 7.5 mm" in fault.sentence


def test_single_gaps_are_counted_as_missing_slices(tmp_path, rng):
    images = slices_of(make_scan(rng, 20), rng)
    for n in (15, 11, 10, 4):
        del images[n]
    write(images, tmp_path, rng)
    fault = take_in(tmp_path).verdicts[0].fault
    assert fault.code == "missing_slices"
    assert fault.sentence.startswith("4 of 20 slices are missing: gaps of 7.5 mm")


def zip_of(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_a_zip_of_empty_members_is_refused_soon_and_in_one_line(tmp_path, capsys):
    path = zip_of(tmp_path / "a.zip", {f"f{n}": b"" for n in range(20_000)})
    start = time.process_time()
    assert main(["ingest", str(path), "--work", str(tmp_path / "w")]) == 2
    assert time.process_time() - start < 10
    told = capsys.readouterr().err.strip().splitlines()
    assert "20000 files that are no DICOM skipped" in told[-1]
    assert len([line for line in told if line.startswith("sacl:")]) == 1


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("../up", None, "unsafe_archive: a member has an absolute name or one with '..'"),
        (None, b"PK no zip at all", "damaged_archive: the zip cannot be read"),
    ],
)
@pytest.mark.parametrize("in_folder", [False, True])
def test_a_refused_zip_is_named_not_an_unknown_layout(
    tmp_path, capsys, name, content, why, in_folder
):
    folder = tmp_path / "export"
    folder.mkdir()
    path = folder / "scans.zip"
    if name is None:
        path.write_bytes(content)
    else:
        zip_of(path, {name: b"x"})
    root = folder if in_folder else path
    assert main(["ingest", str(root), "--work", str(tmp_path / "w")]) == 2
    assert why in capsys.readouterr().err
    assert main(["ingest", str(root), "--explain", "--work", str(tmp_path / "w")]) == 0
    told = capsys.readouterr().out
    assert why in told
    assert "rejected" in told


@pytest.mark.parametrize("name", ["Rows", "Columns", "BitsAllocated"])
@pytest.mark.parametrize("as_frames", [False, True])
def test_a_series_without_its_matrix_is_rejected_and_the_rest_goes_on(
    tmp_path, rng, name, as_frames
):
    write_scan(make_scan(rng), tmp_path / "export" / "a", rng)
    scan = make_scan(rng)
    images = [enhanced(scan, rng)] if as_frames else slices_of(scan, rng)
    without(name)(images, rng)
    write(images, tmp_path / "export" / "b", rng)
    verdicts = take_in(tmp_path / "export").verdicts
    (fault,) = [verdict.fault for verdict in verdicts if verdict.fault is not None]
    assert fault.code == "missing_tags"
    assert name in fault.sentence
    assert len(dicom.read_export(tmp_path / "export").cases) == 1


def test_one_slice_without_rows_leaves_no_scan_with_a_hole(tmp_path, rng):
    images = slices_of(make_scan(rng, 9), rng)
    del images[4].Rows
    write(images, tmp_path, rng)
    verdicts = take_in(tmp_path).verdicts
    assert not any(verdict.accepted for verdict in verdicts)


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
@pytest.mark.parametrize("name", ["RescaleIntercept", "RescaleSlope"])
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_a_slope_that_is_no_number_is_named(tmp_path, rng, name, modality):
    images = slices_of(make_scan(rng, modality=modality), rng)
    every(**{name: "NaN"})(images, rng)
    write(images, tmp_path, rng)
    fault = take_in(tmp_path).verdicts[0].fault
    assert fault.code == "unsupported_pixels"
    assert "is no finite number" in fault.sentence


def test_what_may_not_be_read_is_told_and_the_rest_goes_on(tmp_path, rng, monkeypatch):
    """Not by modes: a test may run as an administrator, who reads everything."""
    write_scan(make_scan(rng), tmp_path / "export", rng)
    for name in ("locked.dcm", "locked.zip"):
        (tmp_path / "export" / name).write_bytes(b"x")
    whole = Path.open

    def guarded(self, *rest, **words):
        if self.name.startswith("locked"):
            raise PermissionError(13, "Permission denied", str(self))
        return whole(self, *rest, **words)

    def no_zip(path, *rest):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", guarded)
    monkeypatch.setattr(zipfile, "ZipFile", no_zip)
    intake = take_in(tmp_path / "export")
    assert [verdict.accepted for verdict in intake.verdicts] == [True]
    assert "2 files or folders skipped: no permission to read them" in intake.notes


def test_a_grid_that_cannot_be_is_bad_geometry(tmp_path, rng):
    images = slices_of(make_scan(rng), rng)
    every(PixelSpacing=[1e-7, 1e-7])(images, rng)
    write(images, tmp_path, rng)
    assert take_in(tmp_path).verdicts[0].fault.code == "bad_geometry"


def test_a_key_with_another_kind_of_pseudonym_is_refused(tmp_path):
    row = "case_id,subject_id,site,patient_id,study_uid,series_uid,part,folder,institution"
    (tmp_path / KEY).write_text(f"{row}\np0001,p0001,,X,1,2,,,\n")
    with pytest.raises(DataError, match="'p0001' is not a pseudonym of a scan, such as p0001-s01"):
        read_key(tmp_path / KEY)
