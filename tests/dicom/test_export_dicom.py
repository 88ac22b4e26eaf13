"""From a hospital's folder to a run's predictions and back onto the hospital's images."""

import io
import json
import shutil
import zipfile

import highdicom
import numpy as np
import pydicom
import pytest
from make_series import Patient, enhanced, make_scan, oblique, slices_of, tilted, write, write_scan
from matplotlib.path import Path as Polygon

from sacl.cli import main
from sacl.cohort.layouts import dicom
from sacl.cohort.manifest import write_cohort
from sacl.dicom.segmentation import read_segmentation
from sacl.dicom.verdict import DicomExport
from sacl.errors import ConfigError, DataError
from sacl.files.nifti import read_label_map, write_label_map
from sacl.geometry import to_canonical
from sacl.run.record import recorded
from sacl.run.workspace import KEY, Workspace
from sacl.settings import FinetuneSettings, IngestSettings, PredictSettings
from sacl.stages.export import export, export_folder
from sacl.types import Case, Cohort, Grid, LabelMap, LabelScheme

SCHEME = LabelScheme("two", ("liver", "kidney_left"))
FORMS = {
    "dicom-seg": "1.2.840.10008.5.1.4.1.1.66.4",
    "dicom-seg-labelmap": "1.2.840.10008.5.1.4.1.1.66.7",
    "rtstruct": "1.2.840.10008.5.1.4.1.1.481.3",
}


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    """Return a folder with an axial, an oblique, a tilted and a multi-frame scan."""
    rng = np.random.default_rng(5)
    root = tmp_path_factory.mktemp("hospital") / "export"
    for n, make in enumerate((make_scan, oblique, tilted)):
        write_scan(make(rng, patient=_patient(n)), root, rng)
    write([enhanced(make_scan(rng, patient=_patient(3)), rng)], root, rng)
    return root


def _patient(n):
    return Patient(patient_id=f"PIDX{n}", study_uid=f"1.2.826.0.1.777.{n + 1}")


@pytest.fixture(scope="module")
def work(hospital, tmp_path_factory):
    """Return a work directory in which the scans were ingested and predicted."""
    workspace = Workspace(tmp_path_factory.mktemp("work"), "clinic run")
    found = dicom.read_export(hospital, DicomExport(key=workspace.root / KEY))
    rng = np.random.default_rng(6)
    with (
        recorded(workspace, "ingest", IngestSettings(), {}) as (ingested, _),
        recorded(workspace, "finetune", FinetuneSettings(), {}) as (_, results),
        recorded(workspace, "predict", PredictSettings(), {}) as (predicted, _),
    ):
        results["arms"] = ["semantic"]
        cases = []
        for each in found.cases:
            volume, native = each.load()
            labels = rng.integers(0, 3, volume.voxels.shape).astype(np.uint8)
            label_map = LabelMap(labels, volume.grid, SCHEME)
            path = predicted / "semantic" / f"{each.case_id}.nii.gz"
            write_label_map(path, label_map, native)
            case = Case(each.case_id, each.case_id, "i.nii", None, "train", native, (0, 1))
            cases.append(case)
        write_cohort(ingested, Cohort("dicom", SCHEME, tuple(cases)))
    return workspace


@pytest.mark.parametrize("form", FORMS)
def test_every_scan_gets_a_result_on_its_own_images(work, hospital, tmp_path, form):
    done = export(work, tmp_path / "out", form, sources=[hospital])
    assert done.written == 4
    results = sorted((tmp_path / "out").glob("*.dcm"))
    assert len(results) == 4
    patients = set()
    for path in results:
        result = pydicom.dcmread(path)
        assert result.SOPClassUID == FORMS[form]
        assert result.SeriesDescription == "sacl: liver, left kidney"
        patients.add((result.PatientID, result.StudyInstanceUID))
    assert patients == {(p.patient_id, p.study_uid) for p in map(_patient, range(4))}


@pytest.fixture
def merged(work, tmp_path):
    """Return the work directory, two of whose four scans were not ingested from DICOM."""
    workspace = Workspace(shutil.copytree(work.root, tmp_path / "merged"), work.name)
    key = workspace.root / KEY
    key.write_text("".join(key.read_text().splitlines(keepends=True)[:3]))
    return workspace


def test_scans_without_a_series_are_left_out_by_name(merged, hospital, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["export", str(merged.root), "--form", "dicom-seg", "--source", str(hospital)]
    for written in (2, 0):  # the second export finds all that can be written there
        capsys.readouterr()
        assert main([*words, "--out", str(out), "--json"]) == 0
        told = capsys.readouterr()
        done = json.loads(told.out)
        assert (done["scans"], done["written"], len(done["left_out"])) == (2, written, 2)
        names = ", ".join(done["left_out"])
        line = f"2 of 4 scans are left out (not in {KEY}, so not ingested from DICOM: {names})"
        assert line in told.err
    there = {path.name.removesuffix(".seg.dcm") for path in out.glob("*.dcm")}
    assert len(there) == 2
    assert not there & set(done["left_out"])
    assert set(json.loads((out / "export.json").read_text())["files"]) == {
        f"{name}.seg.dcm" for name in there
    }


def test_an_export_of_scans_without_any_series_is_refused(merged, tmp_path, capsys):
    rng = np.random.default_rng(11)
    foreign = write_scan(make_scan(rng, patient=_patient(9)), tmp_path / "foreign", rng)
    words = ["export", str(merged.root), "--form", "rtstruct", "--source", str(foreign)]
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("sacl: no scan has a DICOM series to refer to (")
    assert "the series is not in the folder given" in told
    assert f"not in {KEY}, so not ingested from DICOM: " in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["dicom-seg", "dicom-seg-labelmap"])
def test_segmentations_hold_the_predicted_voxels(work, hospital, tmp_path, form):
    export(work, tmp_path / "out", form, sources=[hospital])
    for path in (tmp_path / "out").glob("*.dcm"):
        name = path.name.removesuffix(".seg.dcm")
        nifti = work.folder("predict") / "semantic" / f"{name}.nii.gz"
        predicted, _ = read_label_map(nifti, SCHEME)
        read = read_segmentation(path, predicted.grid)
        assert read.scheme.names == SCHEME.names
        np.testing.assert_array_equal(read.voxels, predicted.voxels)


def test_an_export_names_no_patient_but_in_the_dicom_files(work, hospital, tmp_path, capsys):
    export(work, tmp_path / "out", "dicom-seg", sources=[hospital])
    told = capsys.readouterr()
    text = told.out + told.err + (tmp_path / "out" / "export.json").read_text()
    patient = Patient()
    for word in (patient.name, "PIDX", patient.institution, str(hospital), str(tmp_path)):
        assert word not in text


def test_label_maps_of_any_program_go_onto_the_series_of_their_name(tmp_path):
    rng = np.random.default_rng(8)
    scan = oblique(rng)
    write_scan(scan, tmp_path / "scans" / "case-1", rng)
    (case,) = dicom.read_export(tmp_path / "scans" / "case-1").cases
    volume, native = case.load()
    label_map = LabelMap((volume.voxels > 0).astype(np.uint8), volume.grid, SCHEME)
    write_label_map(tmp_path / "maps" / "case-1.nii.gz", label_map, native)
    arguments = ("--predicted", tmp_path / "maps", "--source", tmp_path / "scans")
    arguments += ("--out", tmp_path / "out", "--form", "dicom-seg")
    assert main(["export", *map(str, arguments)]) == 0
    read = read_segmentation(tmp_path / "out" / "case-1.seg.dcm", volume.grid)
    np.testing.assert_array_equal(read.voxels, label_map.voxels)
    result = pydicom.dcmread(tmp_path / "out" / "case-1.seg.dcm")
    assert (result.SeriesDescription, result.ContentDescription) == ("sacl: liver", "sacl maps")


def test_a_case_with_several_series_or_none_is_refused(tmp_path):
    rng = np.random.default_rng(9)
    scan = make_scan(rng)
    label_map, grid = to_canonical(scan.stored % 2, _grid(scan))
    label_map = LabelMap(label_map, grid, SCHEME)
    for name in ("none", "two"):
        write_label_map(tmp_path / name / "case-1.nii.gz", label_map)
    for each in (scan, make_scan(rng)):
        write_scan(each, tmp_path / "scans" / "case-1", rng)
    with pytest.raises(DataError, match=r"2 DICOM series are accepted .*: case-1\)"):
        export_folder(tmp_path / "two", tmp_path / "out", "dicom-seg", source=tmp_path / "scans")
    with pytest.raises(DataError, match=r"two has no folder or zip of this name.*: case-1\)"):
        export_folder(tmp_path / "none", tmp_path / "more", "dicom-seg", source=tmp_path / "two")


def _grid(scan):
    return Grid(scan.stored.shape, scan.affine)


def test_says_which_uids_were_made_up(tmp_path, capsys):
    rng = np.random.default_rng(10)
    scan = make_scan(rng)
    images = slices_of(scan, rng)
    for image in images:
        image.StudyInstanceUID = image.SeriesInstanceUID = ""
    write(images, tmp_path / "scans" / "a", rng)
    voxels, grid = to_canonical((scan.stored % 2).astype(np.uint8), _grid(scan))
    write_label_map(tmp_path / "maps" / "a.nii.gz", LabelMap(voxels, grid, SCHEME))
    export_folder(tmp_path / "maps", tmp_path / "out", "rtstruct", source=tmp_path / "scans")
    told = capsys.readouterr().err
    assert "case a: its images have no StudyInstanceUID and no SeriesInstanceUID" in told


def test_wants_the_images_exactly_where_a_form_refers_to_them(work, hospital, tmp_path):
    with pytest.raises(ConfigError, match="refers to the scans' own DICOM images"):
        export(work, tmp_path / "out", "rtstruct")
    with pytest.raises(ConfigError, match="uses no DICOM images; leave out --source"):
        export(work, tmp_path / "out", "nifti", sources=[hospital])


@pytest.mark.real_data
@pytest.mark.parametrize("form", FORMS)
def test_a_real_series_gets_its_segmentation_back(real_data, tmp_path, form):
    folder = real_data / "TotalSegmentator_CT"
    for name in ("scans", "maps"):
        (tmp_path / name).mkdir()
    (tmp_path / "scans" / "ct.zip").symlink_to(folder / "dicom_series.zip")
    named = json.loads((folder / "labels.json").read_text())
    scheme = LabelScheme("ts", tuple(named[str(n)] for n in range(1, len(named) + 1)))
    reference, native = read_label_map(folder / "segmentation_dicom.nii.gz", scheme)
    write_label_map(tmp_path / "maps" / "ct.nii.gz", reference, native)

    export_folder(tmp_path / "maps", tmp_path / "out", form, source=tmp_path / "scans")
    (path,) = (tmp_path / "out").glob("*.dcm")
    images = _images(folder / "dicom_series.zip")
    if form == "rtstruct":
        _require_contours_on(images, path, reference)
        return
    read = read_segmentation(path, reference.grid)
    assert read.scheme.names == scheme.names
    np.testing.assert_array_equal(read.voxels, reference.voxels)
    seen = highdicom.seg.segread(path).get_pixels_by_source_instance(
        list(images), combine_segments=True, assert_missing_frames_are_empty=True
    )
    for pixels, place in zip(seen, images.values(), strict=True):
        x, y, z = place
        i, j, k = np.rint(np.linalg.inv(reference.grid.affine) @ (-x, -y, z, 1))[:3].astype(int)
        assert (i, j) == (511, 511), "LPS against RAS: the first pixel is the last voxel"
        np.testing.assert_array_equal(pixels[::-1, ::-1].T, reference.voxels[:, :, k])


def _images(archive):
    """Return the place of each image by its UID, from the files' meta information."""
    places = {}
    with zipfile.ZipFile(archive) as members:
        for name in members.namelist():
            if name.endswith(".dcm"):
                image = pydicom.dcmread(io.BytesIO(members.read(name)), stop_before_pixels=True)
                uid = image.file_meta.MediaStorageSOPInstanceUID
                places[uid] = [float(x) for x in image.ImagePositionPatient]
    return places


def _require_contours_on(images, path, reference):
    to_index = np.linalg.inv(reference.grid.affine) @ np.diag([-1, -1, 1, 1])
    labels = np.zeros_like(reference.voxels)
    for organ in pydicom.dcmread(path).ROIContourSequence:
        for contour in organ.get("ContourSequence", []):
            points = np.reshape(np.array(contour.ContourData, float), (-1, 3))
            uid = contour.ContourImageSequence[0].ReferencedSOPInstanceUID
            assert np.abs(points[:, 2] - images[uid][2]).max() < 1e-4
            i, j, k = (to_index @ np.c_[points, np.ones(len(points))].T)[:3]
            low, high = np.floor([i.min(), j.min()]).astype(int), np.ceil([i.max(), j.max()])
            box = [np.arange(a, b + 1, dtype=int) for a, b in zip(low, high, strict=True)]
            centers = np.stack(np.meshgrid(*box, indexing="ij"), axis=-1).reshape(-1, 2)
            inside = centers[Polygon(np.c_[i, j]).contains_points(centers)]
            labels[inside[:, 0], inside[:, 1], round(k[0])] = organ.ReferencedROINumber
    np.testing.assert_array_equal(labels, reference.voxels)
