"""A record of ours that was damaged is refused in one line, whatever stands in it."""

import pytest

from sacl.cohort.manifest import read_cohort
from sacl.errors import SaclError
from sacl.files.atomic import require_own
from sacl.files.weights import read_weights
from sacl.patches.store import read_patches
from sacl.prediction.guard import read_findings
from sacl.prediction.volume import read_recipe
from sacl.run.record import read_record
from sacl.scores.summary import read_summary

DAMAGED = {
    "empty": b"",
    "cut": b'{"copies": 4',
    "another_kind": b"[1, 2]",
    "another_type": b'{"copies": "many", "doubts": 3, "runs": 1, "version": 1}',
    "deep": b"[" * 200_000,
    "no_text": b"\xff\xfe{}",
    "null": b"null",
}
READERS = {
    "recipe.json": read_recipe,
    "findings.json": read_findings,
    "run.json": read_record,
    "summary.json": lambda folder: read_summary(folder / "summary.json"),
    "cohort.json": read_cohort,
    "store.json": read_patches,
    "encoder.json": lambda folder: read_weights(folder, "encoder"),
}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_record_is_refused(tmp_path, name, damage):
    (tmp_path / name).write_bytes(DAMAGED[damage])
    with pytest.raises(SaclError) as raised:
        READERS[name](tmp_path)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_note_of_what_is_ours_makes_nothing_ours(tmp_path, damage):
    (tmp_path / ".written-by-sacl").mkdir()
    (tmp_path / ".written-by-sacl/here-1.jsonl").write_bytes(DAMAGED[damage])
    (tmp_path / "a.nii.gz").write_bytes(b"of the user")
    with pytest.raises(SaclError, match=r"a\.nii\.gz: exists and is not"):
        require_own(tmp_path, ["a.nii.gz"])
