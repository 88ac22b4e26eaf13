"""The patch store: query patches and dense slices as memory-mapped arrays with an index table.

Each case is cut into a file of its own; in the end the cases' rows are put one after another into
the arrays of all cases, which lie in files of limited size.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
from jaxtyping import Float, Int64, Shaped, UInt, UInt16

from sacl.errors import DataError
from sacl.files.arrays import (
    Joined,
    Layout,
    mapped,
    mapped_new,
    read_joined,
    set_aside,
    size_of,
    write_rows,
)
from sacl.files.atomic import replacing
from sacl.files.documents import read_as, read_if_there, write_json
from sacl.patches.region import Placement
from sacl.patches.scan_ranges import ScanRanges
from sacl.patches.window import WindowRule
from sacl.types import UNKNOWN, Box, Split, join_labels

IMAGE_SCALE = 65535
"""Stored image values per unit of the window: far finer than any scanner's HU."""
COVERAGE_SCALE = 255
"""Stored attention and reference values per unit of coverage."""
LABEL_PREFIX = "label_"
"""Column prefix of the scan-wise labels in the index."""


def quantized(pixels: Float[np.ndarray, "*shape"], scale: int) -> Float[np.ndarray, "*shape"]:
    """Return values of [0, 1] as whole numbers of the store."""
    return np.rint(np.clip(pixels, 0.0, 1.0) * np.float32(scale))


@dataclass(frozen=True)
class StoreMeta:
    """What a store holds: sides in pixels, organs (label value `n + 1`) and scan-wise labels.

    The `stored` sides include the margin. `window` and `placement` say how its pixels were made, so
    that a segmenter can make its own likewise; `scans` what the training scans were like.
    """

    patch_size: int
    stored_size: int
    dense_size: int
    dense_stored_size: int
    organs: tuple[str, ...]
    scan_labels: tuple[str, ...] = ()
    scheme: str = "organs"
    window: WindowRule = WindowRule("ct", (-175.0, 275.0))  # noqa: RUF009 - frozen
    placement: Placement = Placement()  # noqa: RUF009 - frozen
    scans: ScanRanges | None = None


@dataclass(frozen=True)
class StoreSize:
    """Rows of a store's arrays, or of one case in them."""

    patches: int = 0
    references: int = 0
    slices: int = 0
    dense_references: int = 0

    def __add__(self, other: StoreSize) -> StoreSize:
        return StoreSize(*map(sum, zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True, kw_only=True)
class StoredCase:
    """A scan of a store: whose it is, what is known of all of it, and how much the store holds."""

    case_id: str
    subject_id: str
    split: Split
    size: StoreSize
    scan_labels: Mapping[str, str] = field(default_factory=dict)
    annotated: tuple[str, ...] = ()


Patches = UInt[np.ndarray | Joined, "_row _i _j"]
_ARRAYS = ["images", "attention", "references", "dense_images", "dense_references", "dense_coarse"]
_BOX = [(name, "<i4") for name in ("slice", "i0", "j0", "i1", "j1")]
_PATCH_ROW = np.dtype([*_BOX, ("pixel_mm", "<f8"), ("organ", "<u2"), ("has_reference", "?")])
_SLICE_ROW = np.dtype([*_BOX, ("holds_organ", "?"), ("has_reference", "?")])
_TOLD = ("organ", "has_reference")
"""Columns that the tables hold otherwise."""
_CASES, _JOINED = "cases.json", "joined.json"
_AGAIN = "run `sacl extract CONFIG.yaml --force`"
_TWICE_BYTES = 10**9
"""Files of cases are kept up to this size until what was made of them is safely on the disk."""


@dataclass(frozen=True, eq=False)
class PatchStore:
    """A store, its arrays mapped read-only.

    `index` has a row per patch: case_id, subject_id, split, organ, slice, box (i0, j0, i1, j1),
    pixel_mm, reference_row (-1 where there is none) and `label_<name>` per scan-wise label.
    `dense_index` has a row per dense slice of the training cases, with its own reference_row, and
    `holds_organ` by the coarse map. The arrays have their margin. Images are uint16, attention and
    references (coverage by the organ) uint8, dense references and coarse maps label values, uint8
    (uint16 beyond 255 organs).
    """

    meta: StoreMeta
    index: pd.DataFrame
    dense_index: pd.DataFrame
    images: Patches
    attention: Patches
    references: Patches
    dense_images: Patches
    dense_references: Patches
    dense_coarse: Patches

    @property
    def margin(self) -> float:
        """Stored side of a patch in units of its own side."""
        return self.meta.stored_size / self.meta.patch_size

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays, on disk as in memory."""
        return sum(getattr(self, name).nbytes for name in _ARRAYS)

    @cached_property
    def organ_code(self) -> Int64[np.ndarray, " patch"]:
        """Position of each patch's organ in `meta.organs`."""
        organs = pd.Categorical(self.index["organ"], categories=self.meta.organs)
        return organs.codes.astype(np.int64)

    def joined_label(self, names: Sequence[str]) -> Shaped[np.ndarray, " patch"]:
        """Return scan-wise labels of every patch as one, unknown where one of them is, or none."""
        columns = {name: self.index.get(LABEL_PREFIX + name, UNKNOWN) for name in names or [""]}
        labels = pd.DataFrame(columns, self.index.index)
        kinds = labels.groupby([*columns], observed=True)
        rows = kinds.size().reset_index()[[*columns]].itertuples(index=False)
        joined = np.array([join_labels(row) for row in rows], dtype=object)
        return joined[kinds.ngroup().to_numpy()]

    def joined_dense_label(self, names: Sequence[str]) -> Shaped[np.ndarray, " slice"]:
        """Return several scan-wise labels of every dense slice as one, as `joined_label`."""
        last = ~self.index["case_id"].duplicated(keep="last").to_numpy()
        of_case = self.joined_label(names)[last]
        by_case = dict(zip(self.index["case_id"][last], of_case, strict=True))
        labels = [by_case.get(case, UNKNOWN) for case in self.dense_index["case_id"]]
        return np.array(labels, dtype=object)

    def __len__(self) -> int:
        return len(self.index)


def row_of(box: Box) -> tuple[int, ...]:
    """Return a box of one slice as the tables hold it."""
    return (box.start[2], *box.start[:2], *box.stop[:2])


def case_file(folder: Path, case_id: str) -> Path:
    """Return where a case lies until it is put into the store."""
    return folder / "cases" / f"{case_id}.patches"


@contextlib.contextmanager
def writing_case(path: Path, meta: StoreMeta, size: StoreSize) -> Iterator[dict[str, np.ndarray]]:
    """Yield the arrays and tables of a case, all 0, to fill; its file is whole or not there.

    The arrays are those of a `PatchStore`; the tables `index` and `dense_index` have a box, as
    `row_of`, in each row, and `has_reference` instead of the reference's row.
    """
    with replacing(path) as temporary:
        yield mapped_new(temporary, _layout(meta, size))


def bytes_of(meta: StoreMeta, size: StoreSize) -> int:
    """Return the disk that so much of a store takes."""
    return size_of(_layout(meta, size))


def count_joined(folder: Path, count: int) -> int:
    """Return how many of the first of `count` cases are in the store, and in no file of theirs."""
    if (folder / "store.json").is_file():
        return count
    return read_if_there(folder / _JOINED, int, _AGAIN) or 0


def join_cases(folder: Path, meta: StoreMeta, cases: Sequence[StoredCase]) -> None:
    """Put the files of all cases into the arrays of the store, in their order, and remove them.

    Meanwhile 1 GB of the store, or one case of it, is on the disk twice. Interrupted at any moment,
    the same call goes on.
    """
    done = count_joined(folder, len(cases))
    whole, first = _rows_of(meta, cases), _rows_of(meta, cases[:done])
    written: set[Path] = set()
    kept: list[Path] = []
    twice = 0
    try:
        for number, case in enumerate(cases[done:], done + 1):
            kept.append(case_file(folder, case.case_id))
            for name, rows in mapped(kept[-1], _layout(meta, case.size)).items():
                written.update(write_rows(folder, name, rows, first[name], whole[name]))
                first[name] += len(rows)
            twice += bytes_of(meta, case.size)
            if number == len(cases) or twice > _TWICE_BYTES:
                _sync(written)
                write_json(folder / _JOINED, number)
                for path in kept:
                    path.unlink()
                written, kept, twice = set(), [], 0
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{folder.name}: the cases cannot be joined, {reason}; free some disk space and run"
            " the same command again to continue"
        ) from error
    write_json(folder / _CASES, cases)
    write_json(folder / "store.json", meta)
    (folder / _JOINED).unlink(missing_ok=True)
    shutil.rmtree(case_file(folder, "").parent, ignore_errors=True)


def _rows_of(meta: StoreMeta, cases: Sequence[StoredCase]) -> dict[str, int]:
    """Return how many rows of every array some cases have."""
    layout = _layout(meta, sum((case.size for case in cases), StoreSize()))
    return {name: shape[0] for name, (shape, _) in layout.items()}


def _sync(files: Iterable[Path]) -> None:
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())


def read_patches(folder: Path) -> PatchStore:
    """Open a store, refused where it is damaged; its arrays stay on disk, read as they are used."""
    if (folder / "index.csv").exists():
        raise DataError(f"{folder.name}: this patch store is of an older version; {_AGAIN}")
    meta = read_as(folder / "store.json", StoreMeta, _AGAIN)
    try:
        cases = msgspec.json.decode((folder / _CASES).read_bytes(), type=list[StoredCase])
        layout = _layout(meta, sum((case.size for case in cases), StoreSize()))
        arrays = {name: read_joined(folder, name, *layout[name]) for name in layout}
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise DataError(
            f"{folder.name}: the patch store is incomplete or broken ({type(error).__name__});"
            f" {_AGAIN}"
        ) from error
    for name, (shape, _) in layout.items():
        if arrays[name].shape != shape:
            raise DataError(
                f"{folder.name}: {name} has the shape {arrays[name].shape}, expected {shape};"
                f" {_AGAIN}"
            )
    patches, slices = arrays.pop("index")[:], arrays.pop("dense_index")[:]
    return PatchStore(meta, _index(meta, cases, patches), _dense_index(cases, slices), **arrays)


def _index(
    meta: StoreMeta, cases: Sequence[StoredCase], rows: Shaped[np.ndarray, " patch"]
) -> pd.DataFrame:
    counts = [case.size.patches for case in cases]
    table = _table(cases, counts, rows)
    table["split"] = _repeated([case.split for case in cases], counts)
    table["organ"] = pd.Categorical.from_codes(rows["organ"], pd.Index(meta.organs))
    for name in meta.scan_labels:
        labels = [case.scan_labels.get(name, UNKNOWN) for case in cases]
        table[LABEL_PREFIX + name] = _repeated(labels, counts)
    return table


def _dense_index(cases: Sequence[StoredCase], rows: Shaped[np.ndarray, " slice"]) -> pd.DataFrame:
    counts = [case.size.slices for case in cases]
    table = _table(cases, counts, rows)
    table["annotated"] = _repeated([";".join(case.annotated) for case in cases], counts)
    return table


def _table(
    cases: Sequence[StoredCase], counts: Sequence[int], rows: Shaped[np.ndarray, " row"]
) -> pd.DataFrame:
    """Return the numbers of rows, still mapped, and whose they are: a name is one number."""
    known = rows["has_reference"]
    columns = {
        "reference_row": np.where(known, np.cumsum(known) - 1, -1),
        "case_id": _repeated([case.case_id for case in cases], counts),
        "subject_id": _repeated([case.subject_id for case in cases], counts),
        **{name: rows[name] for name in rows.dtype.names or () if name not in _TOLD},
    }
    return pd.DataFrame(columns, copy=False)


def _repeated(values: Sequence[str], counts: Sequence[int]) -> pd.Categorical:
    """Return a value of each case as often as the case has rows."""
    codes, names = pd.factorize(np.array(values, dtype=object))
    return pd.Categorical.from_codes(np.repeat(codes, counts), pd.Index(names))


@dataclass(frozen=True, eq=False)
class ScanSlices:
    """All axial slices of a training scan, with their margin; no labels in an unlabeled scan.

    The images are in units of `IMAGE_SCALE`; `annotated` are the organs somebody looked for.
    """

    images: UInt16[np.ndarray, "k side side"]
    labels: UInt[np.ndarray, "k side side"] | None
    annotated: tuple[str, ...]

    def on_disk(self, folder: Path) -> ScanSlices:
        """Return the same, mapped from nameless files in a folder (`arrays.set_aside`)."""
        labels = None if self.labels is None else set_aside([self.labels], folder)
        return replace(self, images=set_aside([self.images], folder), labels=labels)


def store_of_slices(
    meta: StoreMeta, scans: Sequence[ScanSlices], folder: Path | None
) -> PatchStore:
    """Return a store that holds the slices of some scans and no patches, on disk in a folder."""
    labeled = np.concatenate([np.full(len(s.images), s.labels is not None) for s in scans])
    annotated = [";".join(scan.annotated) for scan in scans for _ in scan.images]
    references = [scan.labels for scan in scans if scan.labels is not None]
    nothing = np.zeros((0, meta.dense_stored_size, meta.dense_stored_size), np.uint8)
    reference_row = np.where(labeled, np.cumsum(labeled) - 1, -1)
    return PatchStore(
        meta,
        index=pd.DataFrame(),
        dense_index=pd.DataFrame({"reference_row": reference_row, "annotated": annotated}),
        images=nothing,
        attention=nothing,
        references=nothing,
        dense_images=set_aside([scan.images for scan in scans], folder),
        dense_references=set_aside(references, folder) if references else nothing,
        dense_coarse=nothing,
    )


def _layout(meta: StoreMeta, size: StoreSize) -> Layout:
    patch, whole = (meta.stored_size,) * 2, (meta.dense_stored_size,) * 2
    label = np.uint8 if len(meta.organs) < 256 else np.uint16
    return {
        "images": ((size.patches, *patch), np.uint16),
        "attention": ((size.patches, *patch), np.uint8),
        "references": ((size.references, *patch), np.uint8),
        "dense_images": ((size.slices, *whole), np.uint16),
        "dense_references": ((size.dense_references, *whole), label),
        "dense_coarse": ((size.slices, *whole), label),
        "index": ((size.patches,), _PATCH_ROW),
        "dense_index": ((size.slices,), _SLICE_ROW),
    }
