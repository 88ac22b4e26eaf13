"""Headers that contradict themselves are read and spoken of; other files are named as such."""

from __future__ import annotations

import os
import time

import nibabel
import numpy as np
import pytest

from sacl.errors import DataError
from sacl.files.nifti import read_frame, read_labels, read_volume, write_label_map
from sacl.types import LabelMap, LabelScheme

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])


def save(path, change=lambda header: None, sform=1, qform=1, affine=AFFINE):
    image = nibabel.Nifti1Image(np.ones((4, 5, 6), np.int16), affine)
    image.set_sform(affine, code=sform)
    image.set_qform(affine, code=qform)
    raw = bytearray(image.to_bytes())
    header = np.frombuffer(bytes(raw[:348]), nibabel.Nifti1Header.template_dtype).copy()[0]
    change(header)
    raw[:348] = header.tobytes()
    path.write_bytes(bytes(raw))
    return path


def turned(header):
    header["quatern_d"] = np.sin(np.deg2rad(10) / 2)


def mirrored(header):
    header["pixdim"][0] = -1


def moved(header):
    header["qoffset_x"] += 30


def thin(header):
    header["pixdim"][3] = 1


def negative(header):
    header["pixdim"][2] *= -1


def zero(header):
    header["pixdim"][1] = 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (turned, "sform and qform are 10 degrees apart"),
        (mirrored, "mirror images of each other"),
        (moved, "lie 30 mm apart"),
        (thin, "2 x 2 x 3 mm by the sform, which is used, and 2 x 2 x 1 mm by pixdim"),
        (negative, "pixdim is 2 x -2 x 3 mm, not positive"),
        (zero, "pixdim is 0 x 2 x 3 mm, not positive"),
    ],
)
def test_a_contradiction_is_put_in_words(tmp_path, change, words):
    path = save(tmp_path / "a.nii", change)
    assert words in read_frame(path).contradiction
    assert read_volume(path)[1].contradiction == read_frame(path).contradiction


@pytest.mark.parametrize("code", [-1, 6, 255])
@pytest.mark.parametrize("name", ["sform_code", "qform_code"])
def test_a_code_that_nifti_does_not_know_is_said_and_a_map_is_written(tmp_path, name, code):
    def strange(header):
        header[name] = code

    path = save(tmp_path / "a.nii", strange)
    volume, native = read_volume(path)
    assert native.contradiction.startswith(f"{name} {code}: no code of NIfTI, read as 0")
    label_map = LabelMap(np.ones((4, 5, 6), np.uint8), volume.grid, LabelScheme("a", ("liver",)))
    write_label_map(tmp_path / "b.nii.gz", label_map, native)
    ours, image = nibabel.load(tmp_path / "b.nii.gz"), nibabel.load(path)
    assert np.allclose(ours.affine, image.affine)
    codes = {"sform_code": 1, "qform_code": 1} | {name: 0}
    assert {each: int(ours.header[each]) for each in codes} == codes


@pytest.mark.parametrize("qform", [0, 1])
@pytest.mark.parametrize("sform", [0, 1, 4])
def test_an_ordinary_header_has_none(tmp_path, sform, qform):
    oblique = AFFINE.copy()
    oblique[:3, :3] = nibabel.eulerangles.euler2mat(0.3, 0.2, 0.1) @ AFFINE[:3, :3]
    for affine in (AFFINE, oblique, np.diag([-2.0, 2.0, -3.0, 1.0])):
        path = save(tmp_path / "a.nii", sform=sform, qform=qform, affine=affine)
        assert read_frame(path).contradiction == ""


def test_a_qform_without_code_or_a_sheared_sform_is_no_contradiction(tmp_path):
    assert read_frame(save(tmp_path / "a.nii", turned, qform=0)).contradiction == ""
    sheared = AFFINE.copy()
    sheared[0, 2] = 0.3
    assert read_frame(save(tmp_path / "b.nii", affine=sheared)).contradiction == ""


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04" + bytes(400), "expected NIfTI, but this is a zip archive; unpack it"),
        (b"NRRD0004\n" + bytes(400), "an NRRD file"),
        (b"ObjectType = Image\n" + bytes(400), r"a MetaImage \(\.mha\)"),
        (bytes(128) + b"DICM" + bytes(400), "a DICOM file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b"", "it is empty"),
        (b"\x1f\x8b" + bytes(400), "truncated, damaged or of another format"),
    ],
)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_file_of_another_kind_is_named_as_what_it_is(tmp_path, content, words, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_volume(tmp_path / name)


def test_a_file_that_may_not_be_read_says_so(tmp_path, monkeypatch):
    path = save(tmp_path / "a.nii")

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("nibabel.load", refuse)
    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(DataError, match=r"a\.nii: cannot be read, Permission denied"):
        read_volume(path)


def test_a_pipe_or_a_folder_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "a.nii.gz")
    (tmp_path / "b.nii.gz").mkdir()
    for name in ("a.nii.gz", "b.nii.gz"):
        with pytest.raises(DataError, match="a folder or a pipe, expected a NIfTI file"):
            read_labels(tmp_path / name)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_header_that_promises_a_million_billion_voxels_is_refused_at_once(tmp_path, name):
    image = nibabel.Nifti2Image(np.ones((2, 2, 2), np.int16), np.eye(4))
    raw = bytearray(image.to_bytes())
    header = np.frombuffer(bytes(raw[:540]), nibabel.Nifti2Header.template_dtype).copy()[0]
    header["dim"][1:4] = 100_000
    raw[:540] = header.tobytes()
    import gzip

    (tmp_path / name).write_bytes(gzip.compress(bytes(raw)) if name.endswith("gz") else bytes(raw))
    start = time.perf_counter()
    for read in (read_volume, read_labels):
        with pytest.raises(DataError, match=name):
            read(tmp_path / name)
    assert time.perf_counter() - start < 5
