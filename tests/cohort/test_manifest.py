from __future__ import annotations

import json

import numpy as np
import pytest

from sacl.cohort.manifest import MANIFEST, read_cohort, read_image, read_reference, write_cohort
from sacl.errors import DataError
from sacl.files.nifti import write_label_map, write_volume
from sacl.types import Case, Cohort, Grid, LabelMap, LabelScheme, NativeFrame, Volume

SCHEME = LabelScheme("two", ("liver", "spleen"))
AFFINE = np.array([[0.7, -0.1, 0, 1 / 3], [0.1, 0.7, 0.3, -71.9], [0, 0.2, 3.1, 1e3], [0, 0, 0, 1]])
GRID = Grid((3, 4, 5), AFFINE)


def cohort():
    native = NativeFrame(GRID, 1, 2, 10, (-1.0, 0.7, 0.7, 3.0, 0.1, 0.2, 0.3, 4.0, 5.0, 6.0))
    seen = Case(
        case_id="a",
        subject_id="s1",
        image="images/a.nii",
        reference="references/a.nii.gz",
        split="train",
        native=native,
        window=(-175.0, 275.0),
        scan_labels={"phase": "native"},
        annotated=SCHEME.names,
    )
    hidden = Case("b", "s2", "images/b.nii", None, "test", native, (0.0, 1.5))
    return Cohort("made", SCHEME, (seen, hidden), "mr")


def test_a_cohort_comes_back_as_it_was(tmp_path):
    write_cohort(tmp_path, cohort())
    read = read_cohort(tmp_path)
    assert (read.name, read.scheme, read.modality) == ("made", SCHEME, "mr")
    for case, original in zip(read.cases, cohort().cases, strict=True):
        assert case.native.grid.affine.tobytes() == original.native.grid.affine.tobytes()
        for name in ("case_id", "subject_id", "image", "reference", "split", "window"):
            assert getattr(case, name) == getattr(original, name)
        assert case.scan_labels == original.scan_labels
        assert case.annotated == original.annotated
        for name in ("qform_code", "sform_code", "xyzt_units", "qform"):
            assert getattr(case.native, name) == getattr(original.native, name)


def test_images_are_mapped_and_references_read(tmp_path):
    write_cohort(tmp_path, cohort())
    voxels = np.arange(60, dtype=np.int16).reshape(GRID.shape)
    write_volume(tmp_path / "images/a.nii", Volume(voxels, GRID))
    labels = LabelMap((voxels % 3).astype(np.uint8), GRID, SCHEME)
    write_label_map(tmp_path / "references/a.nii.gz", labels)
    first, second = read_cohort(tmp_path).cases
    image = read_image(tmp_path, first)
    assert isinstance(image.voxels, np.memmap)
    np.testing.assert_array_equal(image.voxels, voxels)
    reference = read_reference(tmp_path, first, SCHEME)
    np.testing.assert_array_equal(reference.voxels, labels.voxels)
    assert read_reference(tmp_path, second, SCHEME) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 0}, "version 0, expected 2"),
        ({"cases": [{}]}, "damaged, Object missing required field `case_id`"),
        ({"scheme": None}, "damaged, Expected `object`, got `null`"),
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path, change, message):
    write_cohort(tmp_path, cohort())
    document = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps(document | change))
    with pytest.raises(DataError, match=f"{MANIFEST}: {message}"):
        read_cohort(tmp_path)


def test_a_missing_or_cut_manifest_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such file; run `sacl ingest` first"):
        read_cohort(tmp_path)
    (tmp_path / MANIFEST).write_text('{"version"')
    with pytest.raises(DataError, match="not a JSON object"):
        read_cohort(tmp_path)
