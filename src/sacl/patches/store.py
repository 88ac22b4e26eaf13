"""The patch store: query patches and dense slices as memory-mapped arrays with an index table."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
from jaxtyping import Float, Int64, Shaped, UInt, UInt16

from sacl.errors import DataError
from sacl.files.arrays import allocate, open_array, set_aside
from sacl.files.atomic import replacing
from sacl.files.documents import write_json, write_table
from sacl.patches.region import Placement
from sacl.patches.scan_ranges import ScanRanges
from sacl.patches.window import WindowRule
from sacl.types import UNKNOWN, join_labels

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


Patches = UInt[np.ndarray, "_row _i _j"]
_ARRAYS = ["images", "attention", "references", "dense_images", "dense_references", "dense_coarse"]


@dataclass(frozen=True, eq=False)
class PatchStore:
    """A store: its arrays are writable while it is made, and mapped read-only afterwards.

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
        codes = pd.Index(self.meta.organs).get_indexer(pd.Index(self.index["organ"]))
        return codes.astype(np.int64)

    def joined_label(self, names: Sequence[str]) -> Shaped[np.ndarray, " patch"]:
        """Return scan-wise labels of every patch as one, unknown where one of them is, or none."""
        unknown = pd.Series(UNKNOWN, self.index.index)
        columns = [self.index.get(LABEL_PREFIX + name, unknown) for name in names] or [unknown]
        return np.array([join_labels(row) for row in zip(*columns, strict=True)], dtype=object)

    def joined_dense_label(self, names: Sequence[str]) -> Shaped[np.ndarray, " slice"]:
        """Return several scan-wise labels of every dense slice as one, as `joined_label`."""
        by_case = dict(zip(self.index["case_id"], self.joined_label(names), strict=True))
        labels = [by_case.get(case, UNKNOWN) for case in self.dense_index["case_id"]]
        return np.array(labels, dtype=object)

    def __len__(self) -> int:
        return len(self.index)


@contextlib.contextmanager
def writing_patches(
    folder: Path, meta: StoreMeta, index: pd.DataFrame, dense_index: pd.DataFrame
) -> Iterator[PatchStore]:
    """Allocate a store for the rows of two index tables and yield it, its arrays all 0, to fill.

    The files get their names when the body succeeds, `store.json` last; nothing is left otherwise.
    Where the disk has too little room, that is said before anything is computed.
    """
    layout = _layout(meta, index, dense_index)
    need = sum(math.prod(shape) * np.dtype(kind).itemsize for shape, kind in layout.values())
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if need > free:
        raise DataError(
            f"{folder.name}: the patch store needs {math.ceil(need / 1e6)} MB, the disk has"
            f" {free // 10**6} MB left; free some, or lower extract.patch_size or"
            " extract.dense_size"
        )
    with contextlib.ExitStack() as files:
        arrays = {}
        for name, (shape, kind) in layout.items():
            path = files.enter_context(replacing(folder / f"{name}.npy"))
            arrays[name] = allocate(path, shape, kind)
        yield PatchStore(meta, index, dense_index, **arrays)
    for name, table in (("index", index), ("dense_index", dense_index)):
        write_table(folder / f"{name}.csv", table)
    write_json(folder / "store.json", meta)


def read_patches(folder: Path) -> PatchStore:
    """Open a store, refused where it is damaged; its arrays stay on disk, read as they are used."""
    try:
        text = json.loads((folder / "store.json").read_text(encoding="utf-8"))
        if "placement" not in text:
            raise DataError(
                f"{folder.name}: this patch store was made by an older version, which placed its"
                " patches otherwise; run `sacl extract CONFIG.yaml --force`"
            )
        meta = msgspec.convert(text, StoreMeta)
        index = _read_table(folder / "index.csv")
        dense_index = _read_table(folder / "dense_index.csv")
        layout = _layout(meta, index, dense_index)
        store = PatchStore(
            meta,
            index,
            dense_index,
            **{name: open_array(folder / f"{name}.npy") for name in layout},
        )
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(
            f"{folder.name}: the patch store is incomplete or broken ({type(error).__name__});"
            " run `sacl extract CONFIG.yaml --force`"
        ) from error
    if len(store.images) != len(index) or len(store.dense_images) != len(dense_index):
        raise DataError(
            f"{folder.name}: {len(store.images)} patches for {len(index)} rows of index.csv;"
            " run `sacl extract CONFIG.yaml --force`"
        )
    return store


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


def _layout(
    meta: StoreMeta, index: pd.DataFrame, dense_index: pd.DataFrame
) -> dict[str, tuple[tuple[int, ...], type]]:
    patch, whole = (meta.stored_size,) * 2, (meta.dense_stored_size,) * 2
    labeled, dense_labeled = (int((t["reference_row"] >= 0).sum()) for t in (index, dense_index))
    label = np.uint8 if len(meta.organs) < 256 else np.uint16
    return {
        "images": ((len(index), *patch), np.uint16),
        "attention": ((len(index), *patch), np.uint8),
        "references": ((labeled, *patch), np.uint8),
        "dense_images": ((len(dense_index), *whole), np.uint16),
        "dense_references": ((dense_labeled, *whole), label),
        "dense_coarse": ((len(dense_index), *whole), label),
    }


def _read_table(path: Path) -> pd.DataFrame:
    """Read an index; names stay text, also where a case is called 001 or an organ NA."""
    columns = pd.read_csv(path, nrows=0).columns
    text = {"case_id", "subject_id", "split", "organ", "annotated"}
    types = {c: str for c in columns if c in text or c.startswith(LABEL_PREFIX)}
    return pd.read_csv(path, dtype=types, keep_default_na=False)
