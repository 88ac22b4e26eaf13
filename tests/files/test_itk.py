"""NRRD and MetaImage: grids by hand, round trips, and damage in one line."""

import gzip
import re

import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st

from sacl.errors import DataError
from sacl.files.itk import frame_in, is_itk, volume_in, write_itk
from sacl.files.label_table import label_color
from sacl.geometry import to_canonical, to_native
from sacl.types import Grid, LabelMap, LabelScheme, NativeFrame

SCHEME = LabelScheme("two", ("liver", "kidney left"))
DIRECTIONS = "(0.5,0,0) (0.1,0.6,0) (0,0,0.7)"
BY_SPACE = {
    "right-anterior-superior": (1, 1),
    "RAS": (1, 1),
    "left-anterior-superior": (-1, 1),
    "left-posterior-superior": (-1, -1),
    "LPS": (-1, -1),
}


@pytest.fixture
def voxels():
    return np.random.default_rng(0).integers(-1000, 2000, (5, 6, 7)).astype("<i2")


def write_nrrd(path, voxels, space="space: RAS", **changes):
    """Write NRRD by hand, i fastest."""
    fields = {
        "type": "short",
        "dimension": "3",
        "sizes": " ".join(map(str, voxels.shape)),
        "space directions": DIRECTIONS,
        "space origin": "(1,2,3)",
        "endian": "little",
        "encoding": "raw",
    }
    fields |= {name.replace("_", " "): value for name, value in changes.items()}
    lines = [f"{name}: {value}" for name, value in fields.items() if value]
    text = "\n".join(["NRRD0004", lines[0], lines[1], space, *lines[2:], "", ""])
    path.write_bytes(text.encode() + voxels.tobytes("F"))
    return path


def image_of(voxels, **changes):
    image = SimpleITK.GetImageFromArray(voxels.transpose())
    image.SetSpacing(changes.get("spacing", (0.5, 0.6, 0.7)))
    return image


def native_of(path):
    """Return voxels as they lie in the file."""
    volume, frame = volume_in(path)
    return to_native(volume.voxels, frame.grid), frame


@pytest.mark.parametrize("space", BY_SPACE)
def test_spaces_become_ras(tmp_path, voxels, space):
    path = write_nrrd(tmp_path / "a.nrrd", voxels, f"space: {space}")
    x, y = BY_SPACE[space]
    native, frame = native_of(path)
    expected = [[x * 0.5, x * 0.1, 0, x], [0, y * 0.6, 0, y * 2], [0, 0, 0.7, 3], [0, 0, 0, 1]]
    np.testing.assert_allclose(frame.grid.affine, expected, atol=1e-12)
    np.testing.assert_array_equal(native, voxels)
    assert native.dtype == np.int16
    assert not frame.contradiction


@pytest.mark.parametrize("space", ["space dimension: 3", "space: scanner-xyz"])
def test_a_header_without_directions_of_the_body_is_in_doubt(tmp_path, voxels, space):
    path = write_nrrd(tmp_path / "a.nrrd", voxels, space)
    assert "left-posterior-superior" in frame_in(path).contradiction


@settings(max_examples=30, deadline=None)
@given(data=st.data(), suffix=st.sampled_from([".seg.nrrd", ".mha"]))
def test_label_maps_of_any_grid_come_back_exactly(tmp_path_factory, data, suffix):
    numbers = data.draw(st.lists(st.floats(-1, 1), min_size=9, max_size=9))
    matrix = np.reshape(numbers, (3, 3)) + np.diag(data.draw(st.permutations([2.5, -3.5, 4.5])))
    affine = np.eye(4)
    affine[:3] = np.column_stack(
        [matrix, data.draw(st.lists(st.floats(-500, 500), min_size=3, max_size=3))]
    )
    grid = Grid((3, 4, 5), affine)
    native = np.random.default_rng(1).integers(0, 3, grid.shape).astype(np.uint8)
    canonical, own = to_canonical(native, grid)
    path = tmp_path_factory.mktemp("maps") / f"a{suffix}"
    write_itk(path, LabelMap(canonical, own, SCHEME), NativeFrame(grid))
    back, frame = native_of(path)
    np.testing.assert_array_equal(back, native)
    np.testing.assert_allclose(frame.grid.affine, affine, rtol=1e-9, atol=1e-9)


def test_slicer_finds_names_values_and_colors(tmp_path):
    grid = Grid((3, 4, 5), np.eye(4))
    label_map = LabelMap(np.ones(grid.shape, np.uint8), grid, SCHEME)
    write_itk(tmp_path / "a.seg.nrrd", label_map, NativeFrame(grid))
    image = SimpleITK.ReadImage(tmp_path / "a.seg.nrrd")
    for n, name in enumerate(SCHEME.names):
        field = {
            key: image.GetMetaData(f"Segment{n}_{key}")
            for key in ("Name", "LabelValue", "Color", "Extent")
        }
        assert (field["Name"], field["LabelValue"], field["Extent"]) == (
            name,
            str(n + 1),
            "0 2 0 3 0 4",
        )
        assert [float(x) for x in field["Color"].split()] == pytest.approx(
            label_color(n + 1), abs=1e-5
        )
    assert image.GetMetaData("Segmentation_MasterRepresentation") == "Binary labelmap"
    assert not image.HasMetaDataKey("Segment2_Name")


def test_a_detached_header_with_gzip_is_read(tmp_path, voxels):
    for name in ("a.nhdr", "a.mhd"):
        SimpleITK.WriteImage(image_of(voxels), tmp_path / name, useCompression=True)
        np.testing.assert_array_equal(native_of(tmp_path / name)[0], voxels)
    (tmp_path / "a.raw.gz").unlink()
    (tmp_path / "a.zraw").unlink()
    for name, data in (("a.nhdr", r"a\.raw\.gz"), ("a.mhd", r"a\.zraw")):
        for read in (volume_in, frame_in):
            one_line(read, tmp_path / name, f"its data file {data} is missing")


def one_line(read, path, words):
    with pytest.raises(DataError) as caught:
        read(path)
    message = str(caught.value)
    assert re.match(rf"{re.escape(path.name)}: .*{words}", message)
    assert "\n" not in message
    assert str(path.parent) not in message


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (SimpleITK.Image([4, 5, 6, 2], SimpleITK.sitkInt16), "a 4-D image of 2 volumes"),
        (SimpleITK.Image([4, 5], SimpleITK.sitkInt16), "a 2-D image"),
        (SimpleITK.Image([4, 5, 6], SimpleITK.sitkVectorUInt8, 3), "vector of 8-bit"),
    ],
)
@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_what_is_not_one_volume_is_refused_by_its_header(tmp_path, image, words, suffix):
    SimpleITK.WriteImage(image, tmp_path / f"a{suffix}")
    one_line(frame_in, tmp_path / f"a{suffix}", words)


def test_a_fourth_dimension_of_one_is_none(tmp_path, voxels):
    SimpleITK.WriteImage(SimpleITK.JoinSeries([image_of(voxels)]), tmp_path / "a.mha")
    np.testing.assert_array_equal(native_of(tmp_path / "a.mha")[0], voxels)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("left", [0, 60, 0.5, -5])
def test_a_truncated_file_is_one_line(tmp_path, voxels, suffix, compressed, left, capfd):
    path = tmp_path / f"a{suffix}"
    SimpleITK.WriteImage(image_of(np.tile(voxels, (9, 9, 1))), path, useCompression=compressed)
    content = path.read_bytes()
    end = int(len(content) * left) if isinstance(left, float) else left
    path.write_bytes(content[:end])
    one_line(volume_in, path, "truncated, damaged")
    assert capfd.readouterr() == ("", ""), "SimpleITK prints nothing of its own"


def test_bad_headers_are_one_line(tmp_path, voxels):
    bad = {
        "sizes": "60000 50000 40000",
        "space_directions": "(nan,0,0) (0,1,0) (0,0,1)",
    }
    for name, value in bad.items():
        one_line(
            volume_in,
            write_nrrd(tmp_path / "a.nrrd", voxels, **{name: value}),
            "truncated, damaged",
        )
    flat = "(0,0,0) (0,1,0) (0,0,1)"
    one_line(frame_in, write_nrrd(tmp_path / "a.nrrd", voxels, space_directions=flat), "repair")
    image = image_of(voxels)
    for size in (b"x", b"9999", b"-1"):
        SimpleITK.WriteImage(image, tmp_path / "a.mha", useCompression=True)
        content = (tmp_path / "a.mha").read_bytes()
        changed = re.sub(rb"CompressedDataSize = \d+", b"CompressedDataSize = " + size, content)
        (tmp_path / "a.mha").write_bytes(changed)
        one_line(volume_in, tmp_path / "a.mha", "truncated, damaged")


META = {
    "NDims": ["1e308", "0", "x", ""],
    "DimSize": ["7 6", "7 6 -5", "7 6 5 4", "1e9 6 5", "99999999999 6 5"],
    "ElementType": ["MET_SHORT_ARRAY", "MET_OTHER"],
    "ElementSpacing": ["nan 1 1", "1 1", "x"],
    "TransformMatrix": ["1 0 0", "inf 0 0 0 1 0 0 0 1"],
    "CompressedData": ["maybe"],
    "ObjectType": ["Tube"],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in META.items() for v in values])
def test_odd_values_of_a_metaimage_are_one_line(tmp_path, voxels, name, value, capfd):
    """SimpleITK crashes on some of them, and prints lines of its own about others."""
    path = tmp_path / "a.mha"
    SimpleITK.WriteImage(image_of(voxels), path)
    line = re.compile(rb"^" + name.encode() + rb" = .*$", re.MULTILINE)
    content, count = line.subn(f"{name} = {value}".encode(), path.read_bytes())
    assert count == 1
    path.write_bytes(content)
    one_line(frame_in, path, "truncated, damaged")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("data", ["%s%d", "a%03d.raw 1 5 1", "LIST"])
@pytest.mark.parametrize("name", ["a.nhdr", "a.mhd"])
def test_names_of_several_data_files_are_one_line(tmp_path, voxels, name, data):
    SimpleITK.WriteImage(image_of(voxels), tmp_path / name)
    text = (tmp_path / name).read_text().replace("a.raw", data)
    (tmp_path / name).write_text(text)
    one_line(frame_in, tmp_path / name, "several files")


def test_a_field_that_stands_twice_is_one_line(tmp_path, voxels):
    path = tmp_path / "a.mha"
    SimpleITK.WriteImage(image_of(voxels), path)
    path.write_bytes(path.read_bytes().replace(b"DimSize", b"DimSize = 1 1 1\nDimSize"))
    one_line(frame_in, path, "truncated, damaged")


def test_damage_within_compressed_voxels_is_noticed(tmp_path, voxels, capfd):
    for name in ("a.mha", "a.nrrd", "a.mhd"):
        SimpleITK.WriteImage(image_of(np.tile(voxels, (5, 5, 1))), tmp_path / name, True)
        path = tmp_path / ("a.zraw" if name == "a.mhd" else name)
        content = bytearray(path.read_bytes())
        content[-len(content) // 3] ^= 0xFF
        path.write_bytes(content)
        one_line(volume_in, tmp_path / name, "truncated, damaged")
    assert capfd.readouterr() == ("", "")


def test_damage_is_noticed_however_the_encoding_is_spelled(tmp_path, voxels):
    packed = bytearray(gzip.compress(voxels.tobytes("F")))
    packed[len(packed) // 2] ^= 0xFF
    for encoding in ("gzip", "GZIP"):
        path = write_nrrd(tmp_path / "a.nrrd", voxels, encoding=encoding)
        path.write_bytes(path.read_bytes().partition(b"\n\n")[0] + b"\n\n" + packed)
        one_line(volume_in, path, "truncated, damaged")


def test_voxels_that_are_no_number_are_counted(tmp_path, voxels):
    floats = voxels.astype("<f4")
    floats[0, 0, 0] = np.nan
    path = write_nrrd(tmp_path / "a.nrrd", floats, type="float")
    one_line(volume_in, path, "1 of 210 voxels are NaN or infinite")


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
def test_voxels_beside_a_header_of_an_accented_name_are_found(tmp_path, suffix):
    image = SimpleITK.GetImageFromArray(np.arange(24, dtype=np.int16).reshape(2, 3, 4))
    SimpleITK.WriteImage(image, tmp_path / f"Größe ä{suffix}")
    assert volume_in(tmp_path / f"Größe ä{suffix}")


def test_folders_and_missing_files_are_one_line(tmp_path):
    (tmp_path / "a.nrrd").mkdir()
    one_line(volume_in, tmp_path / "a.nrrd", "a folder")
    one_line(volume_in, tmp_path / "b.mha", "no such file")


def test_names_of_files(tmp_path):
    named = ["a.nrrd", "a.NHDR", "a.mha", "a.mhd", "a.seg.nrrd", "._a.nrrd", "a.nii", "nrrd"]
    assert [is_itk(tmp_path / name) for name in named] == [True] * 5 + [False] * 3
