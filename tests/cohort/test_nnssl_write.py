from __future__ import annotations

import json
import string

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sacl.cohort.layouts import nnssl
from sacl.cohort.layouts.listing import find
from sacl.cohort.layouts.nnssl import anatomy_masks, write_collection
from sacl.types import Case, Cohort, Grid, LabelScheme, NativeFrame

FRAME = NativeFrame(Grid((2, 2, 2), np.eye(4)))
WORD = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=8)


def case_in(path):
    """Return the case whose scan or coarse map `write` has put into a file."""
    return nibabel.load(path).header["descrip"].item().decode()


def write(folder, rows, modality="ct", force=False):
    """Write a cohort of (case, subject, labels, has a coarse map) as nnssl reads it."""
    home, maps = folder / "work" / "1-cohort", folder / "work" / "2-coarse"
    cases = []
    for case_id, subject_id, labels, has_map in rows:
        for path in [home / f"images/{case_id}.nii"] + [maps / f"{case_id}.nii.gz"] * has_map:
            path.parent.mkdir(parents=True, exist_ok=True)
            scan = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4))
            scan.header["descrip"] = case_id.encode()
            nibabel.save(scan, path)
        image = f"images/{case_id}.nii"
        cases.append(Case(case_id, subject_id, image, None, "train", FRAME, (0, 1), labels))
    cohort = Cohort("clinic", LabelScheme("clinic", ("liver",)), tuple(cases), modality)
    return write_collection(folder / "out", cohort, cases, home, maps, force)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.dictionaries(
        st.text(string.ascii_letters + string.digits + "_- ", min_size=1, max_size=8).filter(
            str.strip
        ),
        st.tuples(WORD, st.dictionaries(WORD, WORD, max_size=3), st.booleans()),
        min_size=1,
        max_size=6,
    ),
    modality=st.sampled_from(["ct", "mr"]),
)
def test_a_cohort_comes_back_as_it_was_written(tmp_path_factory, rows, modality):
    folder = tmp_path_factory.mktemp("nnssl")
    path = write(folder, [(case_id, *row) for case_id, row in rows.items()], modality)
    found, _ = find(path)
    assert (found.layout, found.name, found.modality) == ("nnssl", "clinic", modality)
    assert {c.case_id: (c.subject_id, c.scan_labels) for c in found.cases} == {
        case_id: (subject, labels) for case_id, (subject, labels, _) in rows.items()
    }
    assert all(case_in(c.image) == c.case_id for c in found.cases)
    masks = anatomy_masks(path)
    assert set(masks) == {case_id for case_id, (_, _, has_map) in rows.items() if has_map}
    assert all(case_in(mask) == case_id for case_id, mask in masks.items())


def test_the_json_has_nnssls_fields_and_relative_paths_only(tmp_path):
    rows = [("a", "anna", {"phase": "native"}, True), ("b", "anna", {}, False)]
    path = write(tmp_path, rows)
    text = path.read_text()
    assert str(tmp_path) not in text
    document = json.loads(text)
    assert set(document) == {"collection_index", "collection_name", "datasets"}
    dataset = document["datasets"]["clinic"]
    assert set(dataset) == {"dataset_index", "name", "dataset_info", "subjects"}
    assert set(dataset["subjects"]) == {"anna"}
    assert set(dataset["subjects"]["anna"]) == {"subject_id", "subject_info", "sessions"}
    session = dataset["subjects"]["anna"]["sessions"]["ses-DEFAULT"]
    assert set(session) == {"session_id", "session_info", "images"}
    assert session["images"] == [
        {
            "name": "a.nii",
            "image_path": "images/a.nii",
            "modality": "CT",
            "image_info": {"phase": "native"},
            "associated_masks": {
                "anonymization_mask": None,
                "anatomy_mask": "anatomy/a.nii.gz",
            },
        },
        {
            "name": "b.nii",
            "image_path": "images/b.nii",
            "modality": "CT",
            "image_info": {},
            "associated_masks": {"anonymization_mask": None, "anatomy_mask": None},
        },
    ]


def test_images_are_linked_and_copied_where_that_is_not_possible(tmp_path, monkeypatch):
    rows = [("a", "anna", {}, False)]
    write(tmp_path, rows)
    source, target = tmp_path / "work/1-cohort/images/a.nii", tmp_path / "out/images/a.nii"
    assert target.samefile(source)

    def refuse(*_):
        raise OSError("cross-device link")

    monkeypatch.setattr(nnssl.os, "link", refuse)
    write(tmp_path, rows, force=True)
    assert not target.samefile(source)
    assert case_in(target) == "a"
    before = target.stat().st_mtime_ns
    write(tmp_path, rows)
    assert target.stat().st_mtime_ns == before


def test_a_disk_that_is_full_leaves_no_half_image(tmp_path, monkeypatch):
    def full(source, target):
        target.write_text("h")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nnssl.os, "link", lambda *_: (_ for _ in ()).throw(OSError()))
    monkeypatch.setattr(nnssl.shutil, "copyfile", full)
    with pytest.raises(Exception, match="No space left"):
        write(tmp_path, [("a", "anna", {}, False)])
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
