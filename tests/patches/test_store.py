import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sacl.errors import DataError
from sacl.files import arrays
from sacl.files.arrays import Joined, write_rows
from sacl.patches import store as module
from sacl.patches.store import (
    StoredCase,
    StoreMeta,
    StoreSize,
    case_file,
    count_joined,
    join_cases,
    read_patches,
    row_of,
    writing_case,
)
from sacl.types import Box

META = StoreMeta(
    patch_size=4,
    stored_size=6,
    dense_size=8,
    dense_stored_size=10,
    organs=("liver", "aorta"),
    scan_labels=("phase",),
)


CASES = [
    StoredCase(
        case_id="001",
        subject_id="1",
        split="train",
        size=StoreSize(patches=2, references=1, slices=2, dense_references=2),
        scan_labels={"phase": "native"},
        annotated=("liver", "aorta"),
    ),
    StoredCase(case_id="empty", subject_id="1", split="train", size=StoreSize()),
    StoredCase(
        case_id="NA",
        subject_id="3",
        split="test",
        size=StoreSize(patches=3, references=1),
        scan_labels={"phase": "null"},
    ),
]


def fill(folder, cases=CASES):
    """Write the cases' files: what is in them tells case and row."""
    for number, case in enumerate(cases):
        with writing_case(case_file(folder, case.case_id), META, case.size) as rows:
            for name, array in rows.items():
                if "index" not in name:
                    array[:] = (10 * number + np.arange(len(array)) + 1)[:, None, None]
            for row in range(case.size.patches):
                box = row_of(Box((-2, 3, 5 + row), (8, 13, 6 + row)))
                rows["index"][row] = (*box, 1.5, row % 2, row < case.size.references)
            for row in range(case.size.slices):
                box = row_of(Box((0, 0, row), (9, 9, row + 1)))
                rows["dense_index"][row] = (*box, row > 0, row < case.size.dense_references)


@pytest.fixture
def folder(tmp_path):
    fill(tmp_path)
    join_cases(tmp_path, META, CASES)
    return tmp_path


@pytest.fixture
def store(folder):
    return read_patches(folder)


def test_reads_what_was_written(store):
    assert store.meta == META
    assert store.images.shape == (5, 6, 6)
    assert store.images.dtype == np.uint16
    assert store.images[:, 0, 0].tolist() == [1, 2, 21, 22, 23]
    assert store.references[:, 5, 5].tolist() == [1, 21]
    assert store.dense_images.shape == (2, 10, 10)
    assert store.dense_references[:, 0, 0].tolist() == [1, 2]


def test_tells_of_every_patch_whose_it_is_and_where(store):
    index = store.index
    assert index["reference_row"].tolist() == [0, -1, 1, -1, -1]
    assert index["subject_id"].tolist() == ["1", "1", "3", "3", "3"]
    assert index["split"].tolist() == ["train", "train", "test", "test", "test"]
    assert index["organ"].tolist() == ["liver", "aorta", "liver", "aorta", "liver"]
    assert index["slice"].tolist() == [5, 6, 5, 6, 7]
    assert index[["i0", "j0", "i1", "j1"]].iloc[0].tolist() == [-2, 3, 8, 13]
    assert store.dense_index["annotated"].tolist() == ["liver;aorta"] * 2
    assert store.dense_index["holds_organ"].tolist() == [False, True]
    assert store.dense_index["reference_row"].tolist() == [0, 1]


def test_keeps_names_that_look_like_numbers_or_like_nothing(store):
    assert store.index["case_id"].tolist() == ["001", "001", "NA", "NA", "NA"]
    assert store.joined_label(("phase",)).tolist() == ["native", "native", "null", "null", "null"]
    assert store.joined_dense_label(("phase",)).tolist() == ["native", "native"]


def test_joins_labels_and_what_is_unknown_in_one_is_unknown(tmp_path):
    meta = replace(META, scan_labels=("phase", "scanner"))
    labels = [{"phase": "native", "scanner": "x"}, {}, {"phase": "null"}]
    cases = [replace(case, scan_labels=of) for case, of in zip(CASES, labels, strict=True)]
    fill(tmp_path)
    join_cases(tmp_path, meta, cases)
    joined = read_patches(tmp_path).joined_label(("phase", "scanner"))
    assert joined.tolist() == ["native / x"] * 2 + ["unknown"] * 3


def test_knows_organs_by_their_place_in_the_scheme(store):
    assert store.organ_code.tolist() == [0, 1, 0, 1, 0]


def test_takes_a_label_that_the_cohort_does_not_have_for_unknown(store):
    assert store.joined_label(("scanner",)).tolist() == ["unknown"] * 5
    assert store.joined_label(()).tolist() == ["unknown"] * 5


def test_is_mapped_from_disk_and_cannot_be_written(store):
    assert isinstance(store.images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        store.images[0] = 1


def test_stores_a_cohort_without_annotation_or_training_scans(tmp_path):
    cases = [replace(CASES[0], size=StoreSize(patches=2))]
    fill(tmp_path, cases)
    join_cases(tmp_path, META, cases)

    store = read_patches(tmp_path)

    assert store.references.shape == (0, 6, 6)
    assert len(store.dense_index) == 0
    assert store.joined_dense_label(("phase",)).tolist() == []


def test_counts_its_bytes_on_disk(store, folder):
    files = [p for p in folder.glob("*.npy") if "index" not in p.name]

    assert store.nbytes == 5 * 36 * 3 + 2 * 36 + 2 * 100 * 4
    assert sum(path.stat().st_size for path in files) == store.nbytes + 6 * 128


@pytest.fixture
def in_parts(tmp_path, monkeypatch):
    """A store whose files hold two patches or one slice at most."""
    monkeypatch.setattr(arrays, "LARGEST_FILE", 1000 + 2 * 72)
    fill(tmp_path / "parts")
    join_cases(tmp_path / "parts", META, CASES)
    return tmp_path / "parts"


def test_no_file_is_larger_than_allowed_and_the_store_is_the_same(in_parts, store):
    parted = read_patches(in_parts)
    assert max(path.stat().st_size for path in in_parts.glob("*.npy")) <= 1000 + 2 * 72
    assert len([*in_parts.glob("images-*.npy")]) == 3
    assert isinstance(parted.images, Joined)
    assert parted.index.equals(store.index)
    for name in module._ARRAYS:
        one, several = getattr(store, name), getattr(parted, name)
        assert (several.shape, several.dtype) == (one.shape, one.dtype)
        assert several.nbytes == one.nbytes
        np.testing.assert_array_equal(several[:], one)
    rows = np.array([4, 0, 3, 0])
    np.testing.assert_array_equal(parted.images[rows], store.images[rows])
    np.testing.assert_array_equal(parted.images[3], store.images[3])
    np.testing.assert_array_equal(parted.images[1:4], store.images[1:4])
    assert parted.images[np.array([], np.int64)].shape == (0, 6, 6)


@pytest.mark.parametrize("rows", [np.array([5]), np.array([-1]), np.ones(5, bool)])
def test_rows_that_are_none_are_refused(in_parts, rows):
    with pytest.raises(IndexError):
        read_patches(in_parts).images[rows]


def content(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


class Interruption:
    """Interrupts in the n-th write, or before the n-th deletion; never without an n."""

    def __init__(self, monkeypatch):
        self.left = 0
        for name in ("write_rows", "write_json", "_sync"):
            monkeypatch.setattr(module, name, self.counted(getattr(module, name)))
        monkeypatch.setattr(Path, "unlink", self.counted(Path.unlink))

    def counted(self, work):
        def act(*given, **more):
            self.left -= 1
            if self.left == 0:
                if work is write_rows:
                    folder, name, rows, *where = given
                    work(folder, name, rows[: len(rows) // 2], *where)
                raise KeyboardInterrupt
            return work(*given, **more)

        return act


@pytest.mark.parametrize("twice", [0, 10**9])
def test_joining_goes_on_wherever_it_was_interrupted(in_parts, tmp_path, monkeypatch, twice):
    monkeypatch.setattr(module, "_TWICE_BYTES", twice)
    expected, interruption = content(in_parts), Interruption(monkeypatch)
    for moment in range(1, 200):
        folder = tmp_path / f"at-{moment}"
        fill(folder)
        interruption.left = moment
        try:
            join_cases(folder, META, CASES)
        except KeyboardInterrupt:
            joined = count_joined(folder, len(CASES))
            assert all(case_file(folder, c.case_id).exists() for c in CASES[joined:])
            join_cases(folder, META, CASES)
            assert content(folder) == expected
        else:
            break
    assert moment > 20


def test_a_disk_that_is_full_is_said_and_the_cases_are_kept(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    fill(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_rows", full)
        with pytest.raises(DataError, match="No space left on device; free some disk"):
            join_cases(tmp_path, META, CASES)
    join_cases(tmp_path, META, CASES)
    assert len(read_patches(tmp_path)) == 5


def test_a_case_is_whole_or_not_there(tmp_path, monkeypatch):
    with pytest.raises(RuntimeError), writing_case(tmp_path / "x", META, CASES[0].size):
        raise RuntimeError
    monkeypatch.setattr("os.posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(28, "Full")))
    with (
        pytest.raises(DataError, match=r"x: .*Full"),
        writing_case(tmp_path / "x", META, CASES[0].size),
    ):
        pytest.fail("the body must not run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    ["store.json", "cases.json", "index-0000.npy", "images-0000.npy", "dense_references-0000.npy"],
)
def test_names_the_remedy_where_a_file_is_missing_or_broken(folder, name):
    (folder / name).write_bytes(b"\x00broken")
    with pytest.raises(DataError, match=r"sacl extract CONFIG.yaml --force"):
        read_patches(folder)

    (folder / name).unlink()
    with pytest.raises(DataError, match=r"sacl extract CONFIG.yaml --force"):
        read_patches(folder)


def test_refuses_a_store_of_an_older_version_with_the_remedy(folder):
    for path in folder.glob("*-0000.npy"):
        path.rename(folder / path.name.replace("-0000", ""))
    (folder / "index.csv").write_text("patch,reference_row\n")
    (folder / "cases.json").unlink()

    with pytest.raises(DataError, match=r"older version.*sacl extract CONFIG.yaml --force"):
        read_patches(folder)


def test_refuses_an_index_of_another_store(folder):
    cases = json.loads((folder / "cases.json").read_text())
    (folder / "cases.json").write_text(json.dumps(cases[:1]))

    with pytest.raises(DataError, match=r"images has the shape \(5, 6, 6\), expected \(2, 6, 6\)"):
        read_patches(folder)
