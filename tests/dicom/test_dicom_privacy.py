from __future__ import annotations

import csv
import json
import re
import stat
import zipfile

import nibabel
import numpy as np
import pytest
from make_faults import MONO1, every, gap
from make_series import Patient, make_scan, oblique, other, slices_of, tilted, write, write_scan

from sacl.cli import main
from sacl.cohort.layouts import dicom
from sacl.cohort.manifest import read_cohort, read_image
from sacl.dicom.pseudonyms import read_key
from sacl.dicom.verdict import DicomExport
from sacl.errors import DataError
from sacl.geometry import to_canonical
from sacl.run.workspace import KEY, Workspace
from sacl.settings import IngestSettings
from sacl.stages.ingest import ingest
from sacl.types import Grid

ORGANS = ("liver",)
FIRST = Patient()
SECOND = Patient(
    name="Grünspecht^Käthe",
    patient_id="PIDX9988",
    birth_date="19440102",
    study_uid="1.2.826.0.1.777.2",
    study_date="20200229",
    accession="ACCX0999",
    institution="Spital Atlantis",
    physician="Drfoo^Sender",
)


@pytest.fixture
def rng():
    return np.random.default_rng(5)


@pytest.fixture
def export(tmp_path, rng):
    """Write two patients with three scans and two rejected series, names in every free text."""
    root = tmp_path / "export"
    for patient in (FIRST, SECOND):
        surname, _, first = patient.name.partition("^")
        folder = root / f"{surname}_{first}" / patient.patient_id
        told = f"Abd ven {surname} {patient.patient_id} {patient.birth_date}"
        write_scan(make_scan(rng, patient=patient, description=told), folder / "1", rng)
        images = slices_of(make_scan(rng, patient=patient, description=told), rng)
        (gap if patient is FIRST else MONO1)(images, rng)
        every(ProtocolName=f"{surname}", StationName="STATIONX", OperatorsName="Operx^Anna")(
            images, rng
        )
        write(images, folder / "2", rng)
    write_scan(oblique(rng, patient=SECOND, description="Leber nativ"), folder / "3", rng)
    (root / "liesmich.txt").write_text("no DICOM")
    return root


def identifiers(root):
    """Return everything planted that names somebody or leads back, as it stands in the files."""
    from pydicom import dcmread

    found = {"STATIONX", "Operx", "Anna", "Zzyzxperson", "Grünspecht"}
    for path in root.rglob("*.dcm"):
        header = dcmread(path, stop_before_pixels=True)
        found |= {str(header.get(name)) for name in ("PatientID", "PatientBirthDate", "StudyDate")}
        found |= {str(header.get(name)) for name in ("StudyInstanceUID", "SeriesInstanceUID")}
        found |= {str(header.get(name)) for name in ("SOPInstanceUID", "AccessionNumber")}
        found |= {str(header.get(name)) for name in ("FrameOfReferenceUID", "InstitutionName")}
        for name in ("PatientName", "ReferringPhysicianName", "InstitutionName"):
            found |= set(re.split(r"[\W_]+", str(header.get(name))))
        found |= {path.name, path.parent.parent.name, path.parent.parent.parent.name}
    return {word for word in found - {"None"} if len(word) > 2}


def written(folder):
    """Return the bytes of every file below a folder but the key, and all file names."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != KEY]
    names = "\n".join(str(path.relative_to(folder)) for path in folder.rglob("*"))
    return b"\n".join([names.encode(), *(path.read_bytes() for path in files)])


def test_no_identifier_leaves_the_key(tmp_path, export, capfd):
    work = tmp_path / "work"
    assert main(["ingest", str(export), "--work", str(work), "--ingest.organs", "liver"]) == 0
    told = "".join(capfd.readouterr()).encode() + written(work)
    planted = identifiers(export)
    assert len(planted) > 60
    assert [word for word in planted if word.lower().encode() in told.lower()] == []
    key = (work / KEY).read_text(encoding="utf-8")
    assert FIRST.patient_id in key
    assert SECOND.study_uid in key
    assert "p0001-s01" in key


def test_the_search_would_find_what_leaks(export, tmp_path):
    (tmp_path / "leak").mkdir()
    (tmp_path / "leak" / "cohort.json").write_text(json.dumps({"patient": FIRST.patient_id}))
    assert any(word.encode() in written(tmp_path / "leak") for word in identifiers(export))


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_the_explanation_names_nobody_and_writes_nothing(tmp_path, export, capfd, flags):
    work = tmp_path / "work"
    assert main(["ingest", str(export), "--explain", "--work", str(work), *flags]) == 0
    told = "".join(capfd.readouterr())
    assert not work.exists()
    assert [word for word in identifiers(export) if word.lower() in told.lower()] == []
    assert "Abd ven ***" in told
    assert "missing_slices" in told
    assert "inverted_gray" in told


def test_the_explanation_is_a_table_of_every_series(export, capfd, tmp_path):
    assert main(["ingest", str(export), "--explain", "--json", "--work", str(tmp_path / "w")]) == 0
    (source,) = json.loads(capfd.readouterr().out)["sources"]
    assert source["layout"] == "dicom"
    rows = source["series"]
    assert [row["verdict"] for row in rows].count("accepted") == 3
    rejected = {row["code"]: row for row in rows if row["verdict"] == "rejected"}
    assert set(rejected) == {"missing_slices", "inverted_gray"}
    assert rejected["missing_slices"]["slices"] == 7
    accepted = next(row for row in rows if row["phase"] == "native")
    assert accepted["spacing_mm"] == [0.75, 1.5, 2.5]
    assert accepted["modality"] == "CT"
    assert accepted["phase_reason"] == "description says 'nativ'"
    assert len({row["subject"] for row in rows}) == 2


def test_the_key_is_readable_by_its_owner_alone_and_outside_of_the_stages(tmp_path, export):
    work = tmp_path / "work"
    ingest(IngestSettings(data=export, organs=ORGANS), Workspace(work))
    assert stat.S_IMODE((work / KEY).stat().st_mode) == 0o600
    with (work / KEY).open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["patient_id"] for row in rows} == {"PIDX4711", "PIDX9988"}
    assert {row["case_id"] for row in rows} == {
        c.case_id for c in read_cohort(work / "1-cohort").cases
    }


def test_pseudonyms_stay_and_new_ones_are_added(tmp_path, export, rng):
    key = tmp_path / KEY
    before = {row.scan: row for row in read_key(key)}
    assert before == {}
    dicom.read_export(export, DicomExport(key=key))
    before = {row.scan: row for row in read_key(key)}
    third = other_patient()
    write_scan(make_scan(rng, patient=third), export / "new", rng)
    write_scan(make_scan(rng, patient=FIRST), export / "again", rng)
    found = dicom.read_export(export, DicomExport(key=key))
    after = {row.scan: row for row in read_key(key)}
    assert {scan: after[scan] for scan in before} == before
    assert len(after) == len(before) + 2
    added = {row.patient_id: row for scan, row in after.items() if scan not in before}
    of_first = next(row for row in before.values() if row.patient_id == FIRST.patient_id)
    assert added["PIDX4711"].subject_id == of_first.subject_id
    assert added["PIDX4711"].case_id == f"{of_first.subject_id}-s02"
    assert added["PIDX0001"].subject_id == "p0003"
    assert len({case.case_id for case in found.cases}) == 5
    assert [case.case_id for case in dicom.read_export(export, DicomExport(key=key)).cases] == [
        case.case_id for case in found.cases
    ]


def other_patient():
    return Patient(
        name="Dritter^X", patient_id="PIDX0001", study_uid="1.2.826.0.1.777.3", institution="Neu"
    )


def test_scans_of_a_subject_stay_when_some_are_gone(tmp_path, export):
    key = tmp_path / KEY
    dicom.read_export(export, DicomExport(key=key))
    rows = read_key(key)
    for path in (export / "Grünspecht_Käthe").rglob("*.dcm"):
        path.unlink()
    found = dicom.read_export(export, DicomExport(key=key))
    assert len(found.cases) == 1
    assert read_key(key) == rows


def test_pseudonyms_are_drawn_not_computed(tmp_path, export):
    """Two people are numbered in an order of chance: in 40 draws both orders come up."""
    firsts = set()
    for n in range(40):
        dicom.read_export(export, DicomExport(key=tmp_path / f"{n}.csv"))
        rows = read_key(tmp_path / f"{n}.csv")
        firsts.add(next(row.patient_id for row in rows if row.subject_id == "p0001"))
        if len(firsts) == 2:
            break
    assert firsts == {"PIDX4711", "PIDX9988"}


def test_sites_are_pseudonyms_too(tmp_path, export):
    found = dicom.read_export(export, DicomExport(key=tmp_path / KEY))
    by_subject = {case.subject_id: case.scan_labels["site"] for case in found.cases}
    assert set(by_subject.values()) == {"site-01", "site-02"}


def test_a_damaged_key_is_not_overwritten(tmp_path, export):
    key = tmp_path / KEY
    key.write_text("this,is\nno,key\n")
    with pytest.raises(DataError, match=f"{KEY}: not readable as a key; restore it"):
        dicom.read_export(export, DicomExport(key=key))
    assert key.read_text() == "this,is\nno,key\n"


@pytest.mark.parametrize("name", ["CT Zzyzxperson", "PIDX4711", "export_qwertyvorname_1"])
def test_a_folder_that_is_called_after_a_patient_is_refused(tmp_path, rng, name):
    write_scan(make_scan(rng), tmp_path / name, rng)
    with pytest.raises(DataError, match="named after a patient, and records") as caught:
        dicom.read_export(tmp_path / name)
    assert name not in str(caught.value)
    (tmp_path / name).rename(tmp_path / "export")
    assert len(dicom.read_export(tmp_path / "export").cases) == 1


def test_a_folder_called_after_the_hospital_or_a_made_up_name_is_read(tmp_path, rng):
    write_scan(make_scan(rng), tmp_path / "klinikum_export", rng)
    assert len(dicom.read_export(tmp_path / "klinikum_export").cases) == 1
    images = slices_of(make_scan(rng), rng)
    every(PatientIdentityRemoved="YES")(images, rng)
    write(images, tmp_path / "PIDX4711", rng)
    assert len(dicom.read_export(tmp_path / "PIDX4711").cases) == 1


def test_remarks_are_told_once_with_the_number_of_scans(tmp_path, rng):
    for degrees in (5, 9, 13):
        write_scan(tilted(rng, degrees), tmp_path, rng)
    notes = dicom.read_export(tmp_path).notes
    (tilt,) = [note for note in notes if "gantry tilt" in note]
    assert re.fullmatch(r"p0001-s01: gantry tilt .* grid; 2 more scans likewise", tilt)


def test_patients_without_an_id_are_told(tmp_path, rng):
    nameless = Patient(patient_id="", study_uid="1.2.3.4")
    write_scan(make_scan(rng, patient=nameless), tmp_path / "export" / "a", rng)
    again = Patient(patient_id="", study_uid="1.2.3.5")
    write_scan(make_scan(rng, patient=again), tmp_path / "export" / "b", rng)
    found = dicom.read_export(tmp_path / "export")
    assert {case.subject_id for case in found.cases} == {"p0001", "p0002"}
    assert any("2 scans without PatientID" in note for note in found.notes)


def test_ingested_scans_are_canonical_and_know_their_dicom_grid(tmp_path, rng):
    scan = oblique(rng, slices=9)
    folder = write_scan(scan, tmp_path / "export", rng)
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, path.name)
    work = tmp_path / "work"
    settings = IngestSettings(data=tmp_path / "export.zip", organs=ORGANS)
    cohort = read_cohort(ingest(settings, Workspace(work)))
    (case,) = cohort.cases
    assert (case.case_id, case.subject_id, cohort.modality) == ("p0001-s01", "p0001", "ct")
    np.testing.assert_allclose(case.native.grid.affine, scan.affine, rtol=0, atol=1e-6)
    voxels, grid = to_canonical(scan.values, Grid(scan.stored.shape, scan.affine))
    image = read_image(work / "1-cohort", case)
    np.testing.assert_array_equal(image.voxels, voxels)
    np.testing.assert_allclose(image.grid.affine, grid.affine, atol=1e-3)
    assert nibabel.load(work / "1-cohort" / case.image).get_data_dtype() == np.int16


def test_one_person_in_two_exports_is_one_subject(tmp_path, rng):
    for name in ("a", "b"):
        write_scan(make_scan(rng, patient=FIRST), tmp_path / name, rng)
    write_scan(make_scan(rng, patient=SECOND), tmp_path / "b", rng)
    settings = IngestSettings(data=(tmp_path / "a", tmp_path / "b"), organs=ORGANS)
    cohort = read_cohort(ingest(settings, Workspace(tmp_path / "work")))
    assert len(cohort.cases) == 3
    assert {case.subject_id for case in cohort.cases} == {"p0001", "p0002"}


def test_scans_of_one_series_have_each_their_pseudonym(tmp_path, rng):
    scan = make_scan(rng)
    for number, each in enumerate((scan, other(scan, stored=scan.stored[::-1])), start=1):
        images = slices_of(each, rng)
        every(AcquisitionNumber=number)(images, rng)
        write(images, tmp_path / "export", rng)
    key = tmp_path / KEY
    found = dicom.read_export(tmp_path / "export", DicomExport(key=key))
    assert [case.case_id for case in found.cases] == ["p0001-s01", "p0001-s02"]
    assert [row.part for row in read_key(key)] == ["acquisition 1", "acquisition 2"]
