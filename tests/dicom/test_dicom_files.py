from __future__ import annotations

import stat
import zipfile

import numpy as np
import pytest
from make_series import make_scan, write_scan

from sacl.cohort.layouts import dicom
from sacl.dicom import files
from sacl.dicom.files import archive_fault, looks_like_dicom
from sacl.dicom.intake import take_in, what_is_dicom
from sacl.dicom.stack import read_stack
from sacl.errors import DataError


@pytest.fixture
def rng():
    return np.random.default_rng(11)


@pytest.fixture
def folder(tmp_path, rng):
    return write_scan(make_scan(rng), tmp_path / "series", rng)


def zipped(folder, path, method=zipfile.ZIP_STORED, also=()):
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"a/{file.name}")
        for name, data in also:
            archive.writestr(name, data)
    return path


def test_a_tree_a_zip_and_a_folder_of_zips_are_read_alike(tmp_path, rng, folder):
    tree = tmp_path / "tree"
    (tree / "1" / "2").mkdir(parents=True)
    for n, file in enumerate(sorted(folder.iterdir())):
        file.rename((tree / "1" if n % 2 else tree / "1" / "2") / file.name)
    (tree / "notes.txt").write_text("x")
    assert take_in(tree).verdicts[0].accepted
    one = tmp_path / "one.zip"
    with zipfile.ZipFile(one, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in tree.rglob("*"):
            archive.write(file, file.relative_to(tree))
    assert take_in(one).verdicts[0].accepted
    assert take_in(one).files["other"] == 1
    several = tmp_path / "several"
    several.mkdir()
    one.rename(several / "one.ZIP")
    second = write_scan(make_scan(rng), tmp_path / "second", rng)
    zipped(second, several / "two.zip")
    assert [verdict.accepted for verdict in take_in(several).verdicts] == [True, True]


def nested(path, depth):
    """Pack a zip into a zip beside it, so many times."""
    for n in range(depth):
        outer = path.with_name(f"outer{n}-{path.name}")
        with zipfile.ZipFile(outer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(path, f"b/{path.name}")
        path = outer
    return path


def test_zips_in_zips_are_read_alike_three_deep(tmp_path, folder):
    inner = zipped(folder, tmp_path / "a.zip")
    plain, deep = take_in(inner), take_in(nested(inner, 2))
    (verdict,) = deep.verdicts
    assert verdict.accepted
    voxels = [read_stack(t.verdicts[0].stack, "x")[0].voxels for t in (plain, deep)]
    np.testing.assert_array_equal(*voxels)
    source = verdict.series.slices[0].source
    assert source.folder(source.path) == "b/outer0-a.zip/b/a.zip/a"
    (refused,) = take_in(nested(inner, 3)).refused
    assert refused.fault.code == "unsafe_archive"
    assert "3 deep" in refused.fault.sentence


def test_a_bad_zip_in_a_zip_is_refused_alone(tmp_path, folder):
    bad = tmp_path / "bad.zip"
    with zipfile.ZipFile(bad, "w") as archive:
        archive.writestr("../evil.dcm", b"x")
    also = [("bad.zip", bad.read_bytes()), ("worse.zip", b"PK\x03\x04 nothing"), ("no.zip", b"")]
    taken = take_in(zipped(folder, tmp_path / "a.zip", also=also))
    assert [verdict.accepted for verdict in taken.verdicts] == [True]
    assert [each.fault.code for each in taken.refused] == ["unsafe_archive", "damaged_archive"]


def test_a_series_may_be_spread_over_zips(tmp_path, folder):
    several = tmp_path / "zips"
    several.mkdir()
    for n, file in enumerate(sorted(folder.iterdir())):
        with zipfile.ZipFile(several / f"{n % 3}.zip", "a") as archive:
            archive.write(file, file.name)
    (verdict,) = take_in(several).verdicts
    assert verdict.accepted
    assert len(verdict.series.slices) == 8


@pytest.mark.parametrize(
    "name",
    ["../evil.dcm", "a/../../evil", "/etc/passwd", "C:\\windows\\evil", "..\\evil", "a\\..\\..\\b"],
)
def test_an_archive_whose_members_climb_out_is_refused(tmp_path, folder, name):
    path = zipped(folder, tmp_path / "a.zip", also=[(name, b"x")])
    intake = take_in(path)
    assert intake.verdicts == ()
    assert [a.fault.code for a in intake.refused] == ["unsafe_archive"]
    assert intake.notes[-1].startswith("1 zip refused, unsafe_archive: a member has an absolute")


def test_a_name_with_two_dots_in_it_does_not_climb(tmp_path, folder):
    path = zipped(folder, tmp_path / "a.zip", also=[("a..b/scan..1", b"x")])
    assert take_in(path).verdicts[0].accepted


def test_an_archive_with_a_link_is_refused(tmp_path, folder):
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = zipped(folder, tmp_path / "a.zip", also=[(link, b"/etc/passwd")])
    assert take_in(path).refused[0].fault.code == "unsafe_archive"


def test_bombs_are_refused_by_size_and_by_ratio(tmp_path, folder, monkeypatch):
    bomb = zipped(folder, tmp_path / "a.zip", zipfile.ZIP_DEFLATED, [("bomb", bytes(20 * 1024**2))])
    assert take_in(bomb).refused[0].fault.code == "unsafe_archive"
    assert "more than 200-fold" in take_in(bomb).refused[0].fault.sentence
    blank = zipped(folder, tmp_path / "b.zip", zipfile.ZIP_DEFLATED, [("blank", bytes(2**20))])
    assert take_in(blank).verdicts[0].accepted
    member = zipfile.ZipInfo("large")
    member.file_size = member.compress_size = files.MEMBER_BYTES + 1
    assert archive_fault([member]).code == "unsafe_archive"
    member.file_size = member.compress_size = files.MEMBER_BYTES
    assert archive_fault([member]) is None
    assert archive_fault([member] * 33).code == "unsafe_archive"
    monkeypatch.setattr(files, "MEMBERS", 3)
    assert "expected at most 3" in take_in(blank).refused[0].fault.sentence


def test_an_encrypted_or_damaged_archive_is_refused(tmp_path, folder):
    path = zipped(folder, tmp_path / "a.zip")
    data = bytearray(path.read_bytes())
    place = data.rindex(b"PK\x01\x02")
    data[place + 8] |= 1
    path.write_bytes(data)
    assert take_in(path).refused[0].fault.sentence == "the zip is encrypted; decrypt it first"
    path.write_bytes(path.read_bytes()[:500])
    assert take_in(path).refused[0].fault.code == "damaged_archive"


def test_one_bad_archive_does_not_stop_the_others(tmp_path, folder):
    several = tmp_path / "zips"
    several.mkdir()
    zipped(folder, several / "good.zip")
    (several / "bad.zip").write_bytes(b"PK\x03\x04 nothing")
    found = dicom.read_export(several)
    assert len(found.cases) == 1
    assert "1 zip refused, damaged_archive: the zip cannot be read" in " ".join(found.notes)


def test_a_zip_leaves_nothing_on_disk(tmp_path, folder, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    path = zipped(folder, tmp_path / "a.zip", zipfile.ZIP_DEFLATED)
    before = sorted(tmp_path.rglob("*"))
    dicom.read_export(path).cases[0].load()
    assert sorted(tmp_path.rglob("*")) == before


def test_an_export_without_a_scan_says_what_it_has(tmp_path, rng):
    write_scan(make_scan(rng, 2), tmp_path / "export", rng)
    with pytest.raises(DataError, match=r"0 of 1 series accepted; 1 too_few_slices; `sacl ingest"):
        dicom.read_export(tmp_path / "export")


def test_dicom_is_recognized_by_content_not_by_name(tmp_path, folder):
    assert what_is_dicom(folder)
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "scan.dcm").write_text("this is no DICOM file at all, whatever its name says" * 5)
    assert not what_is_dicom(plain)
    assert dicom.DICOM.recognize(zipped(folder, tmp_path / "a.zip"))[0] == "DICOM images in a zip"


@pytest.mark.parametrize(
    ("start", "is_it"),
    [
        (bytes(128) + b"DICM", True),
        (b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100", True),
        (b"\x08\x00\x05\x00\x0a\x00\x00\x00ISO_IR 100", True),
        (b"\x08\x00\x05\x00\xff\xff\xff\xffISO_IR 100", False),
        (b"PK\x03\x04" + bytes(140), False),
        (b"\x08\x00", False),
        (b"", False),
    ],
)
def test_a_file_is_dicom_with_or_without_preamble(start, is_it):
    assert looks_like_dicom(start) == is_it
