"""What is ours in a folder of the user's, and may be overwritten."""

import pytest

from sacl.errors import ConfigError
from sacl.files.atomic import note_own, require_own


def write_own(path, text):
    """Write a file as `replacing` does, noted before it gets its name."""
    whole = path.with_name(f".partial-1-{path.name}")
    whole.write_text(text)
    note_own(path, whole)
    whole.rename(path)


def test_a_file_that_sacl_did_not_write_or_that_was_changed_since_is_not_overwritten(tmp_path):
    (tmp_path / "a.nii.gz").write_text("drawn by hand")
    require_own(tmp_path, ["b.nii.gz"])
    with pytest.raises(ConfigError, match=r"a\.nii\.gz: is there already"):
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
    with pytest.raises(ConfigError, match=r"a\.nii\.gz: is there already"):
        require_own(tmp_path, ["a.nii.gz"])
