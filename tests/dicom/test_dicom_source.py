from __future__ import annotations

import numpy as np
import pydicom
import pytest
from make_faults import every
from make_series import Patient, enhanced, make_scan, oblique, other, slices_of, write, write_scan

from sacl.cli import main
from sacl.cohort.layouts import dicom
from sacl.dicom.intake import ingested_series
from sacl.dicom.verdict import DicomExport
from sacl.errors import NoSeriesError
from sacl.run.workspace import KEY, Workspace
from sacl.settings import IngestSettings
from sacl.stages import ingest as ingest_stage


@pytest.fixture
def rng():
    return np.random.default_rng(17)


@pytest.fixture
def key(tmp_path):
    return tmp_path / KEY


def test_source_images_come_in_the_order_of_the_native_grid(tmp_path, rng, key):
    root = tmp_path / "export"
    scan = oblique(rng, slices=9)
    scan = other(scan, step_mm=tuple(-x for x in scan.step_mm))
    write_scan(scan, root, rng)
    write_scan(make_scan(rng, patient=Patient(patient_id="PIDX2")), root, rng)
    found = dicom.read_export(root, DicomExport(key=key))
    for case in found.cases:
        _, native = case.load()
        images = ingested_series([root], key)(case.case_id)
        assert len(images) == native.grid.shape[2]
        for k, image in enumerate(images):
            x, y, z = (float(v) for v in image.ImagePositionPatient)
            np.testing.assert_allclose(native.grid.affine @ (0, 0, k, 1), (-x, -y, z, 1), atol=1e-6)
        assert "PixelData" not in images[0]
        assert {"PatientName", "StudyDate", "FrameOfReferenceUID"} <= set(images[0].dir())


def test_a_work_directory_in_an_export_is_no_part_of_it(tmp_path, rng):
    root = write_scan(make_scan(rng), tmp_path / "export", rng)
    work = root / "work" / "export"
    settings = IngestSettings(data=(root,), organs=("liver",))
    for _ in range(2):
        workspace = Workspace(work)
        before = ingest_stage.inputs(settings, workspace)
        ingest_stage.ingest(settings, workspace)
        assert ingest_stage.inputs(settings, workspace) == before


def test_only_the_scans_own_slices_are_returned_without_copies(tmp_path, rng, key):
    root = tmp_path / "export"
    scan = make_scan(rng)
    for number, each in enumerate((scan, other(scan, stored=scan.stored[::-1])), start=1):
        images = slices_of(each, rng)
        images.append(images[3])
        every(AcquisitionNumber=number)(images, rng)
        write(images, root, rng)
    dicom.read_export(root, DicomExport(key=key))
    for number in (1, 2):
        images = ingested_series([root], key)(f"p0001-s0{number}")
        assert len(images) == 8
        assert {int(image.AcquisitionNumber) for image in images} == {number}


def test_a_multi_frame_scan_has_one_source(tmp_path, rng, key):
    root = tmp_path / "export"
    write([enhanced(make_scan(rng), rng)], root, rng)
    dicom.read_export(root, DicomExport(key=key))
    (image,) = ingested_series([root], key)("p0001-s01")
    assert image.NumberOfFrames == 8


def test_emptied_uids_are_filled_from_the_files_meta_information(tmp_path, rng, key):
    root = tmp_path / "export"
    images = slices_of(make_scan(rng), rng)
    true = {str(image.SOPInstanceUID) for image in images}
    every(SOPInstanceUID="", SOPClassUID="", SeriesInstanceUID="", PatientID="")(images, rng)
    root.mkdir()
    for n, image in enumerate(images):
        pydicom.dcmwrite(root / str(n), image, enforce_file_format=False)
    dicom.read_export(root, DicomExport(key=key))
    sources = ingested_series([root], key)("p0001-s01")
    assert {str(image.SOPInstanceUID) for image in sources} == true
    assert sources[0].SOPClassUID == "1.2.840.10008.5.1.4.1.1.2"


def test_a_case_that_the_key_or_the_folder_does_not_have_is_refused(tmp_path, rng, key):
    root = write_scan(make_scan(rng), tmp_path / "export", rng)
    dicom.read_export(root, DicomExport(key=key))
    with pytest.raises(NoSeriesError, match=r"^not in dicom-key.csv, so not ingested from DICOM"):
        ingested_series([root], key)("p0009-s01")
    elsewhere = write_scan(make_scan(rng), tmp_path / "elsewhere", rng)
    with pytest.raises(NoSeriesError, match=r"^the series is not in the folder given"):
        ingested_series([elsewhere], key)("p0001-s01")


def test_another_layout_is_explained_by_its_cases(tmp_path, capsys):
    folder = tmp_path / "imagesTr"
    folder.mkdir()
    for name in ("a_0000", "b_0000"):
        (folder / f"{name}.nii.gz").touch()
    (tmp_path / "labelsTr").mkdir()
    (tmp_path / "labelsTr" / "a.nii.gz").touch()
    (tmp_path / "dataset.json").write_text(
        '{"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1},'
        ' "file_ending": ".nii.gz"}'
    )
    assert main(["ingest", str(tmp_path), "--explain", "--work", str(tmp_path / "work")]) == 0
    told = capsys.readouterr().out
    assert "layout nnunet, by" in told
    assert "train: 2 cases, 1 with a reference" in told
    assert "pairs, such as imagesTr/a_0000.nii.gz with labelsTr/a.nii.gz\n" in told
    assert not (tmp_path / "work").exists()


def test_masks_are_explained_with_the_image_that_they_belong_to(tmp_path, capsys):
    for case in ("s0001", "s0002", "s0003", "s0004"):
        (tmp_path / case / "segmentations").mkdir(parents=True)
        for name in ("ct", "segmentations/liver", "segmentations/spleen"):
            (tmp_path / case / f"{name}.nii.gz").touch()
    assert main(["ingest", str(tmp_path), "--explain", "--work", str(tmp_path / "work")]) == 0
    shown = [
        f"{case}/ct.nii.gz with 2 masks such as {case}/segmentations/liver.nii.gz"
        for case in ("s0001", "s0002", "s0003")
    ]
    assert f"pairs, such as {'; '.join(shown)}\n" in capsys.readouterr().out


def test_an_export_without_any_scan_is_explained_not_refused(tmp_path, rng, capsys):
    root = write_scan(make_scan(rng, 2), tmp_path / "export", rng)
    assert main(["ingest", str(root), "--explain", "--work", str(tmp_path / "work")]) == 0
    assert "too_few_slices" in capsys.readouterr().out
