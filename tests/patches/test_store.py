import json
import shutil
from collections import namedtuple

import numpy as np
import pandas as pd
import pytest

from sacl.errors import DataError
from sacl.patches.store import StoreMeta, read_patches, writing_patches

META = StoreMeta(
    patch_size=4,
    stored_size=6,
    dense_size=8,
    dense_stored_size=10,
    organs=("liver", "aorta"),
    scan_labels=("phase",),
)


def index_of(rows):
    return pd.DataFrame(
        {
            "patch": range(rows),
            "reference_row": [0, -1, 1, -1][:rows],
            "case_id": ["001", "001", "002", "NA"][:rows],
            "subject_id": ["1", "1", "2", "3"][:rows],
            "split": ["train", "train", "test", "test"][:rows],
            "organ": ["liver", "aorta", "aorta", "liver"][:rows],
            "slice": range(5, 5 + rows),
            "i0": [-2] * rows,
            "j0": [3] * rows,
            "i1": [8] * rows,
            "j1": [13] * rows,
            "pixel_mm": [1.5] * rows,
            "label_phase": ["native", "unknown", "portal_venous", "null"][:rows],
        }
    )


def dense_of(rows):
    table = {"slice_row": range(rows), "case_id": "001", "subject_id": "1", "slice": range(rows)}
    table |= {"i0": 0, "j0": 0, "i1": 9, "j1": 9, "annotated": "liver;aorta"}
    table |= {"reference_row": range(rows), "holds_organ": True}
    return pd.DataFrame(table)


@pytest.fixture
def store(tmp_path):
    with writing_patches(tmp_path, META, index_of(4), dense_of(2)) as arrays:
        arrays.images[:] = np.arange(4)[:, None, None] * 21845
        arrays.attention[1, 1:5, 1:5] = 255
        arrays.references[1] = 51
        arrays.dense_references[1] = 2
    return read_patches(tmp_path)


def test_reads_what_was_written(store):
    assert store.meta == META
    assert store.images.shape == (4, 6, 6)
    assert store.images.dtype == np.uint16
    assert store.references.shape == (2, 6, 6)
    assert store.dense_images.shape == (2, 10, 10)
    assert store.dense_references[1].min() == 2
    assert store.images[3].max() == 65535


def test_keeps_names_that_look_like_numbers_or_like_nothing(store):
    assert store.index["case_id"].tolist() == ["001", "001", "002", "NA"]
    assert store.joined_label(("phase",)).tolist() == ["native", "unknown", "portal_venous", "null"]


def test_knows_organs_by_their_place_in_the_scheme(store):
    assert store.organ_code.tolist() == [0, 1, 1, 0]


def test_takes_a_label_that_the_cohort_does_not_have_for_unknown(store):
    assert store.joined_label(("scanner",)).tolist() == ["unknown"] * 4


def test_is_mapped_from_disk_and_cannot_be_written(store):
    assert isinstance(store.images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        store.images[0] = 1


def test_stores_a_cohort_without_annotation(tmp_path):
    index = index_of(2).assign(reference_row=-1)
    with writing_patches(tmp_path, META, index, dense_of(0)):
        pass

    store = read_patches(tmp_path)

    assert store.references.shape == (0, 6, 6)
    assert len(store.dense_index) == 0


def test_counts_its_bytes_on_disk(store, tmp_path):
    files = sum(path.stat().st_size for path in tmp_path.glob("*.npy"))

    assert store.nbytes == 4 * 36 * 3 + 2 * 36 + 2 * 100 * 4
    assert files == store.nbytes + 6 * 128


def test_refuses_a_disk_that_is_too_small_before_it_writes(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1000, 900, 100))

    with (
        pytest.raises(DataError, match="needs 1 MB, the disk has 0 MB"),
        writing_patches(tmp_path, META, index_of(4), dense_of(2)),
    ):
        pytest.fail("the body must not run")

    assert list(tmp_path.iterdir()) == []


def test_tells_a_disk_that_fills_up_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)

    with (
        pytest.raises(DataError, match="No space left on device"),
        writing_patches(tmp_path, META, index_of(4), dense_of(2)),
    ):
        pytest.fail("the body must not run")

    assert list(tmp_path.iterdir()) == []


def test_leaves_nothing_where_filling_it_fails(tmp_path):
    with pytest.raises(RuntimeError), writing_patches(tmp_path, META, index_of(4), dense_of(2)):
        raise RuntimeError

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["store.json", "index.csv", "images.npy", "dense_references.npy"])
def test_names_the_remedy_where_a_file_is_missing_or_broken(store, tmp_path, name):
    (tmp_path / name).write_bytes(b"\x00broken")
    with pytest.raises(DataError, match=r"sacl extract CONFIG.yaml --force"):
        read_patches(tmp_path)

    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=r"sacl extract CONFIG.yaml --force"):
        read_patches(tmp_path)


def test_refuses_a_store_of_an_older_version_with_the_remedy(store, tmp_path):
    document = json.loads((tmp_path / "store.json").read_text())
    del document["placement"]
    (tmp_path / "store.json").write_text(json.dumps(document))

    with pytest.raises(DataError, match=r"older version.*sacl extract CONFIG.yaml --force"):
        read_patches(tmp_path)


def test_refuses_an_index_of_another_store(store, tmp_path):
    index_of(3).to_csv(tmp_path / "index.csv", index=False)

    with pytest.raises(DataError, match="4 patches for 3 rows"):
        read_patches(tmp_path)
