"""What is ours in a folder of the user's, and may be overwritten."""

from dataclasses import asdict, dataclass

import pytest

from sacl.errors import ConfigError
from sacl.files.atomic import append_line, note_own, read_lines, require_own


def write_own(path, text):
    """Write a file as `replacing` does, noted before it gets its name."""
    whole = path.with_name(f".partial-1-{path.name}")
    whole.write_text(text)
    note_own(path, whole)
    whole.rename(path)


def test_a_file_that_sacl_did_not_write_or_that_was_changed_since_is_not_overwritten(tmp_path):
    (tmp_path / "a.nii.gz").write_text("drawn by hand")
    require_own(tmp_path, ["b.nii.gz"])
    with pytest.raises(ConfigError, match=r"a\.nii\.gz: exists and is not"):
        require_own(tmp_path, ["b.nii.gz", "a.nii.gz"])
    require_own(tmp_path, ["a.nii.gz"], force=True)
    write_own(tmp_path / "b.nii.gz", "predicted")
    require_own(tmp_path, ["b.nii.gz"])
    (tmp_path / "b.nii.gz").write_text("corrected by hand")
    with pytest.raises(ConfigError, match="--force to overwrite it"):
        require_own(tmp_path, ["b.nii.gz"])


def test_a_file_is_ours_until_the_one_that_was_noted_after_it_has_its_name(tmp_path):
    write_own(tmp_path / "a.nii.gz", "predicted")
    for text in ("predicted again, and killed", "and once more"):
        (tmp_path / "whole").write_text(text)
        note_own(tmp_path / "a.nii.gz", tmp_path / "whole")
        require_own(tmp_path, ["a.nii.gz"])


def test_a_file_of_the_user_is_not_ours_by_a_note_of_what_was_to_replace_it(tmp_path):
    (tmp_path / "a.nii.gz").write_text("drawn by hand")
    (tmp_path / "whole").write_text("predicted with --force, and killed")
    note_own(tmp_path / "a.nii.gz", tmp_path / "whole")
    with pytest.raises(ConfigError, match=r"a\.nii\.gz: exists and is not"):
        require_own(tmp_path, ["a.nii.gz"])


@dataclass(frozen=True)
class Noted:
    name: str
    value: float


def test_lines_are_read_with_nan_and_odd_names_and_without_what_is_damaged(tmp_path):
    lines = [Noted("a", 1.0), Noted("\udcff", 2.0), Noted("c", float("nan"))]
    for line in lines:
        append_line(tmp_path, asdict(line))
    (tmp_path / "other.jsonl").write_bytes(b'{"name": "d", "val\n{"name": 4, "value": 1}\n\xff\n')
    assert repr(read_lines(tmp_path, Noted)) == repr(lines)
