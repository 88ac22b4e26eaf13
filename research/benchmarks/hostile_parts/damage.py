"""What is damaged, and how: bytes, entries, JSON, NIfTI headers and voxels, DICOM elements.

All is drawn from one generator of random numbers, so that a seed and a number name a case.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pydicom.misc

Rng = np.random.Generator


@dataclass(frozen=True)
class Room:
    """Where a case lives: the sound inputs to copy from, what is the user's, and what is ours."""

    base: Path
    root: Path
    rng: Rng

    @property
    def user(self) -> Path:
        """Return the folder of the user's files, which nothing may change."""
        return self.root / "user"

    @property
    def work(self) -> str:
        """Return the work directory."""
        return str(self.root / "work")

    @property
    def out(self) -> str:
        """Return where results go."""
        return str(self.root / "out")

    def take(self, name: str, to: str = "") -> Path:
        """Copy sound input into the user's folder."""
        target = self.user / (to or name)
        shutil.copytree(self.base / name, target, symlinks=True)
        return target

    def one_of(self, items: Any) -> Any:
        """Draw one."""
        items = list(items)
        return items[int(self.rng.integers(len(items)))]

    def file_in(self, folder: Path, pattern: str = "*") -> Path:
        """Draw a file below a folder."""
        return self.one_of(sorted(p for p in folder.rglob(pattern) if p.is_file()))


ODD: list[Any] = [
    None, True, -1, 0, 1, 2**63, -(2**70), 0.5, 1e308, float("nan"), float("inf"), "", " ", "²",
    "a" * 300, "../../x", "/etc", "=cmd|x", "\x00", "ü\ud800"[:1], "1", [], {}, [[]], [1, "a"],
    {"a": {"b": 1}}, "liver", ["liver", "liver"], "2024-13-45", "~nosuchuser/x", "\n", "C:\\x",
]  # fmt: skip
"""Values that a document may hold where another is expected."""


def damage_bytes(path: Path, room: Room) -> None:
    """Cut, flip, fill, double or replace the bytes of a file."""
    raw, rng = path.read_bytes(), room.rng
    at = int(rng.integers(max(1, len(raw))))
    damages: list[Callable[[], bytes]] = [
        lambda: raw[:at],
        lambda: b"",
        lambda: rng.bytes(int(rng.integers(1, 4000))),
        lambda: _flipped(raw, rng),
        lambda: raw[:at] + bytes(64) + raw[at + 64 :],
        lambda: raw[:at] + rng.bytes(100) + raw[at:],
        lambda: raw + raw,
        lambda: b"PK\x03\x04" + raw[4:],
    ]
    path.write_bytes(room.one_of(damages)())


def _flipped(raw: bytes, rng: Rng) -> bytes:
    changed = np.frombuffer(raw, np.uint8).copy()
    if len(raw):
        changed[rng.integers(len(raw), size=int(rng.integers(1, 20)))] ^= np.uint8(
            rng.integers(1, 256)
        )
    return changed.tobytes()


def damage_entry(path: Path, room: Room) -> None:
    """Replace a file by something that is no file, or by another name."""
    instead: list[Callable[[], Any]] = [
        lambda: os.mkfifo(path),
        lambda: path.symlink_to(path.name),
        lambda: path.symlink_to("nowhere"),
        path.mkdir,
        lambda: path.symlink_to("/dev/zero"),
        lambda: None,  # missing
    ]
    names = [b"x y", "ü.nii.gz".encode(), b"c0.NII.GZ", b"c0.nrrd", b"c\xff\xfe_0000.nii.gz"]
    if room.rng.random() < 0.7:
        path.unlink()
        room.one_of(instead)()
    elif room.rng.random() < 0.6:
        path.rename(path.parent / os.fsdecode(room.one_of(names)))
    else:
        shutil.copy(path, path.with_name(f"copy of {path.name}"))


def foreign_entry(folder: Path, room: Room) -> None:
    """Add something that does not belong into a folder."""
    names = ["Thumbs.db", ".DS_Store", "._c0.nii.gz", "notes.txt", "c9.nii.gz", "x.zip", "a.dcm"]
    path = folder / room.one_of(names)
    path.unlink(missing_ok=True)
    match int(room.rng.integers(5)):
        case 0:
            os.mkfifo(path)
        case 1:
            path.symlink_to(folder)
        case 2:
            path.write_bytes(room.rng.bytes(500))
        case 3:
            path.write_bytes(b"")
        case _:
            path.mkdir()


def damage_json(path: Path, room: Room) -> None:
    """Change, drop or double a value anywhere in a document, or its text."""
    text = path.read_text()
    kind = int(room.rng.integers(10))
    if kind == 0:
        path.write_text(room.one_of(["[" * 200_000, "{", "", "null", "[]", "NaN", '"a"', "﻿{}"]))
    elif kind == 1:
        key = room.one_of(json.loads(text))
        path.write_text(text.rstrip()[:-1] + f", {json.dumps(key)}: {json.dumps(None)}}}")
    elif kind == 2:
        damage_bytes(path, room)
    else:
        document = json.loads(text)
        change_document(document, room)
        path.write_text(json.dumps(document))


def change_document(node: Any, room: Room) -> None:
    """Walk to a random place in a document and change it."""
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return
        key = room.one_of(keys)
        if isinstance(node[key], dict | list) and node[key] and room.rng.random() < 0.7:
            node = node[key]
            continue
        if room.rng.random() < 0.2:
            del node[key]
        elif isinstance(node, dict) and room.rng.random() < 0.15:
            node[str(room.one_of(ODD))] = node.pop(key)
        else:
            node[key] = room.one_of(ODD)
        return


def damage_header(path: Path, room: Room) -> None:
    """Give a few fields of a NIfTI header odd values."""
    raw = bytearray(gzip.decompress(path.read_bytes()))
    header = np.frombuffer(bytes(raw[:348]), dtype=nibabel.Nifti1Header.template_dtype).copy()
    names = [n for n in header.dtype.names if n not in ("data_type", "db_name", "descrip")]
    values = [0, 1, -1, 2, 4, 7, 16, 255, 512, 32767, -32768, np.nan, np.inf, 1e30, 1e-30, 0.9945]
    for _ in range(int(room.rng.integers(1, 4))):
        field = room.one_of(names)
        part = header[field].reshape(-1)
        if part.dtype.kind == "S":
            part[int(room.rng.integers(len(part)))] = room.rng.bytes(4)
            continue
        with np.errstate(all="ignore"):
            value = np.float64(room.one_of(values))
            if part.dtype.kind in "iu" and not abs(value) < 32768:
                value = np.float64(32767)
            part[int(room.rng.integers(len(part)))] = value.astype(part.dtype)
    raw[:348] = header.tobytes()
    path.write_bytes(gzip.compress(bytes(raw), 1))


def damage_voxels(path: Path, room: Room) -> None:
    """Write an image anew with odd voxels, type or shape."""
    image: Any = nibabel.load(path)
    array, affine = np.asarray(image.dataobj).astype(np.float64), np.array(image.affine)
    rng = room.rng
    arrays: list[Callable[[], Any]] = [
        lambda: np.where(rng.random(array.shape) < 0.3, np.nan, array),
        lambda: _with_one(array, room.one_of([5e7, -3, 0.5, np.inf, 1e300, 255])),
        lambda: array * 0,
        lambda: array[..., None].repeat(int(rng.integers(1, 4)), -1),
        lambda: array[:, :, : int(rng.integers(1, 3))],
        lambda: array[1:],
        lambda: array.astype(np.complex64),
        lambda: array,
    ]
    affines: list[Callable[[], Any]] = [
        lambda: np.vstack([np.hstack([rng.normal(0, 3, (3, 3)), affine[:3, 3:]]), affine[3:]]),
        lambda: affine[:, [2, 0, 1, 3]],
        lambda: affine * [[room.one_of([-1, 1e-4, 1e4])], [1], [1], [1]],
        lambda: affine * np.diag([0, 1, 1, 1]),
    ]
    array = room.one_of(arrays)()
    affine = room.one_of(affines)() if rng.random() < 0.4 else affine
    kind = array.dtype if np.iscomplexobj(array) else room.one_of([np.float32, np.float64])
    with np.errstate(all="ignore"), contextlib.suppress(nibabel.spatialimages.HeaderDataError):
        nibabel.save(nibabel.Nifti1Image(array.astype(kind), affine), path)


def _with_one(array: np.ndarray, value: float) -> np.ndarray:
    changed = array.copy()
    changed.flat[0] = value
    return changed


_REFUSED = (
    ValueError,
    TypeError,
    ArithmeticError,
    AttributeError,
    OSError,
    LookupError,
    struct.error,
)
"""What pydicom raises where it does not even write an odd value."""


def damage_dicom(path: Path, room: Room) -> None:
    """Give an element of a DICOM file an odd value, drop it, or damage the bytes."""
    if room.rng.random() < 0.3 or not pydicom.misc.is_dicom(path):
        damage_bytes(path, room)
        return
    dataset = pydicom.dcmread(path)
    names = ["Rows", "Columns", "PixelSpacing", "ImagePositionPatient", "RescaleSlope",
             "ImageOrientationPatient", "RescaleIntercept", "BitsAllocated", "BitsStored",
             "PixelRepresentation", "SamplesPerPixel", "SeriesInstanceUID", "SOPInstanceUID",
             "Modality", "PixelData", "SOPClassUID", "PatientID", "PhotometricInterpretation",
             "InstanceNumber", "StudyInstanceUID", "SpecificCharacterSet"]  # fmt: skip
    for name in room.rng.choice(names, int(room.rng.integers(1, 4)), replace=False):
        if name not in dataset:
            continue
        if room.rng.random() < 0.4:
            delattr(dataset, name)
            continue
        texts = [b"", b"0", b"-1", b"nan", b"1e400", b"65535", b"a\\b", b"1\\2\\3\\4\\5\\6\\7"]
        element = dataset[name]
        numbers = [0, 1, 65535, 12]
        value = room.one_of(numbers if element.VR == "US" else texts)
        if element.VR != "US":
            value += b" " * (len(value) % 2)
        try:
            dataset[name] = pydicom.DataElement(element.tag, element.VR, value, validation_mode=0)
        except _REFUSED:
            delattr(dataset, name)
    try:
        dataset.save_as(path)
    except _REFUSED:
        damage_bytes(path, room)
