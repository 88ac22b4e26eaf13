"""Broken inputs for every command: what is damaged, how, and the command that meets it.

A `Case` holds a maker, which writes the input into a folder of its own and returns the command's
words. All is drawn from one generator of random numbers, so a seed and a number name a case.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "dicom"))

import make_odd_series  # noqa: F401  (adds its kinds)
import pydicom
from dicom_kinds import MAKERS, new_patient

Rng = np.random.Generator
Maker = Callable[["Room"], list[str]]
SHAPE = (40, 36, 24)
TINY: dict[str, Any] = {
    "name": "tiny",
    "ingest": {"validation_subjects": 1},
    "locate": {"slices": {"size": 16, "steps": 2, "teacher_steps": 0}, "channels": 8},
    "extract": {"patch_size": 16, "dense_size": 32, "region": "slice"},
    "pretrain": {"width": 8, "steps": 2, "batch": 4},
    "finetune": {"steps": 2, "batch": 2, "dense": {"teacher_steps": 2}},
    "predict": {"copies": 0},
}
"""Settings of a run that takes seconds."""
STAGES = ["ingest", "locate", "extract", "pretrain", "finetune", "predict", "evaluate", "report"]


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


# -- damage to files --------------------------------------------------------------------------

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
        _change(document, room)
        path.write_text(json.dumps(document))


def _change(node: Any, room: Room) -> None:
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


def damage_dicom(path: Path, room: Room) -> None:
    """Give an element of a DICOM file an odd value, drop it, or damage the bytes."""
    if room.rng.random() < 0.3:
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
        except (ValueError, TypeError):
            delattr(dataset, name)
    try:
        dataset.save_as(path)
    except (ValueError, TypeError, AttributeError, OSError, KeyError, IndexError):
        damage_bytes(path, room)


# -- makers: an input and the command that meets it --------------------------------------------

MAKERS_OF: dict[str, Maker] = {}
"""Kinds of cases by name."""


def _kind(make: Maker) -> Maker:
    MAKERS_OF[make.__name__] = make
    return make


def _reader(room: Room, data: Path) -> list[str]:
    """Return a command that reads a cohort."""
    words = room.one_of(["ingest"] * 9 + ["check", "explain"] * 4 + ["run"])
    if words == "check":
        return ["check", str(data), "--out", room.out + ".html", "--work", room.work]
    if words == "explain":
        return ["ingest", str(data), "--explain", "--work", room.work]
    if words == "run":
        return ["run", str(room.base / "tiny.yaml"), "--data", str(data), "--work", room.work]
    return ["ingest", str(data), "--work", room.work]


@_kind
def nifti_header(room: Room) -> list[str]:
    """Damage headers of a cohort's images or label maps."""
    data = room.take("nnunet")
    for _ in range(int(room.rng.integers(1, 3))):
        damage_header(room.file_in(data, "*.nii.gz"), room)
    return _reader(room, data)


@_kind
def nifti_voxels(room: Room) -> list[str]:
    """Damage voxels of a cohort's images or label maps."""
    data = room.take("nnunet")
    damage_voxels(room.file_in(data, "*.nii.gz"), room)
    return _reader(room, data)


@_kind
def nifti_bytes(room: Room) -> list[str]:
    """Damage bytes of a cohort's images or label maps, compressed or not."""
    data = room.take("nnunet")
    path = room.file_in(data, "*.nii.gz")
    if room.rng.random() < 0.5:
        path.write_bytes(gzip.decompress(path.read_bytes()))
        damage_bytes(path, room)
        path.write_bytes(gzip.compress(path.read_bytes(), 1))
    else:
        damage_bytes(path, room)
    return _reader(room, data)


@_kind
def dataset_json(room: Room) -> list[str]:
    """Damage dataset.json."""
    data = room.take("nnunet")
    damage_json(data / "dataset.json", room)
    return _reader(room, data)


@_kind
def entries(room: Room) -> list[str]:
    """Replace files of a cohort by pipes, links and folders, and add foreign ones."""
    data = room.take(room.one_of(["nnunet", "table", "dicom"]))
    for _ in range(int(room.rng.integers(1, 3))):
        if room.rng.random() < 0.5:
            foreign_entry(room.file_in(data).parent, room)
        else:
            damage_entry(room.file_in(data), room)
    return _reader(room, data)


@_kind
def cohort_csv(room: Room) -> list[str]:
    """Damage the cells, columns or bytes of a cohort.csv, or its labels.json."""
    data = room.take("table")
    path = data / "cohort.csv"
    rows = [line.split(",") for line in path.read_text().splitlines()]
    match int(room.rng.integers(7)):
        case 0:
            damage_bytes(path, room)
        case 1:
            damage_json(data / "labels.json", room)
        case 2:
            path.write_text("\n".join(",".join(r) for r in [*rows, rows[-1]]) + "\n")
        case 3:
            rows[0][int(room.rng.integers(len(rows[0])))] = str(room.one_of([*ODD, "case_id"]))
            path.write_text("\n".join(map(",".join, rows)))
        case 4:
            rows[1][0] = "x" * 140_000
            path.write_text("\n".join(map(",".join, rows)))
        case 5:
            room.one_of(rows).append("more")
            path.write_text("\n".join(map(",".join, rows)))
        case _:
            row = room.one_of(rows[1:])
            row[int(room.rng.integers(len(row)))] = str(room.one_of(ODD)).replace("\x00", "")
            path.write_text("\n".join(map(",".join, rows)))
    return _reader(room, room.one_of([data, path]))


@_kind
def scan_labels(room: Room) -> list[str]:
    """Damage a table of scan-wise labels."""
    data, path = room.take("nnunet"), room.user / "scan_labels.csv"
    cells = ["c0", "c1", "c9", "", "native", "train", "test", "moon", '"', "a,b", "é", "-1", "=1+1"]
    heads = ["case_id", "subject_id", "split", "phase", "fold", "", "case_id "]
    text = ",".join(str(room.one_of(heads)) for _ in range(3)) + "\n"
    text = room.one_of([text, "case_id,subject_id,phase\n", "case_id,split,phase\n"])
    text += "".join(",".join(room.one_of(cells) for _ in range(3)) + "\n" for _ in range(4))
    path.write_text(text)
    return [*_reader(room, data), "--ingest.scan-labels", str(path)]


@_kind
def dicom_bytes(room: Room) -> list[str]:
    """Damage elements or bytes of DICOM files."""
    data = room.take("dicom")
    for _ in range(int(room.rng.integers(1, 4))):
        damage_dicom(room.file_in(data), room)
    return _reader(room, data)


@_kind
def dicom_series(room: Room) -> list[str]:
    """Write series with the faults of scanners and of archives."""
    data = room.user / "export"
    for number in range(2):
        make = MAKERS[room.one_of(MAKERS)]
        make(room.rng, data / f"s{number}", new_patient(room.rng, number))
    return _reader(room, data)


@_kind
def archives(room: Room) -> list[str]:
    """Write zips that are cut, encrypted, nested, full of nothing, or that climb out."""
    data = room.user / "export"
    data.mkdir(parents=True)
    path = data / "scans.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
        for file in sorted((room.base / "dicom").rglob("*.dcm")):
            packed.write(file, f"{file.parent.name}/{file.name}")
        link = zipfile.ZipInfo("link.dcm")
        link.external_attr = 0o120777 << 16
        more: list[list[tuple[Any, bytes]]] = [
            [("../../evil.dcm", b"x")],
            [("/abs/evil.dcm", b"x")],
            [(f"e{number}", b"") for number in range(20_000)],
            [("bomb.dcm", bytes(300_000_000))],
            [(link, b"/etc/passwd")],
            [("inner.zip", b"PK\x05\x06" + bytes(18))],
        ]
        for name, content in room.one_of(more):
            packed.writestr(name, content)
    if room.rng.random() < 0.5:
        damage_bytes(path, room)
    if room.rng.random() < 0.3:
        shutil.copy(room.file_in(room.base / "nnunet", "*.nii.gz"), data)
    return _reader(room, room.one_of([data, path]))


@_kind
def yaml_settings(room: Room) -> list[str]:
    """Give settings odd values, in YAML or as flags."""
    from sacl.run.configure import dotted_settings

    name = room.one_of(dotted_settings())
    value = room.one_of(ODD)
    room.user.mkdir()
    path = room.user / "run.yaml"
    stage = name.split(".")[0]
    stage = stage if stage in STAGES else "ingest"
    shutil.copytree(room.base / "work", room.work)
    words = [stage, str(path), "--work", room.work, "--force"]
    document = json.loads(json.dumps(TINY))
    document["ingest"]["data"] = str(room.take("nnunet"))
    if room.rng.random() < 0.4:
        path.write_text(yaml.safe_dump(document))
        return [*words, f"--{name}={str(value)[:300]}".replace("\x00", "")]
    *blocks, last = name.split(".")
    node = document
    for block in blocks:
        node = node.setdefault(block, {})
    node[last] = value
    path.write_text(yaml.safe_dump(document))
    return words


@_kind
def yaml_text(room: Room) -> list[str]:
    """Write settings that are no YAML, or that explode."""
    room.user.mkdir()
    path = room.user / "run.yaml"
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{c}: &{c} [*{p},*{p},*{p},*{p},*{p},*{p},*{p},*{p},*{p}]\n"
        for p, c in zip("abcdefgh", "bcdefghi", strict=True)
    )
    texts = ["[" * 5000, "{" * 3000, "a: b: c", "\t", "- 1\n- 2", "5", "!!python/object:os.x {}",
             "name: 2024-13-45", "seed: " + "9" * 5000, bomb + "name: *i", "finetune: *x",
             "---\n---", "name: a\nname: b", "&a [*a]", "name: &a [*a]",
             "pretrain: {steps: 1e3}", "<<: 5", "? [a]\n: b", "seed: 0x10",
             'name: "\\x00"', "%YAML 9.9\n---\na: 1"]  # fmt: skip
    path.write_text(room.one_of(texts))
    if room.rng.random() < 0.3:
        path.write_text(yaml.safe_dump(TINY))
        damage_bytes(path, room)
    return ["ingest", str(path), "--data", str(room.take("nnunet")), "--work", room.work]


def _of_work(room: Room) -> list[str]:
    """Return a command that reads a work directory."""
    kind = room.one_of(["run", "report", *["predict", "export", "stage"] * 3])
    tiny = ["--data", str(room.base / "nnunet"), "--work", room.work]
    if kind == "predict":
        images = str(room.base / "nnunet" / "imagesTs")
        return ["predict", "--segmenter", room.work, "--images", images, "--out", room.out]
    if kind == "export":
        form = room.one_of(["nifti", "nifti-per-organ", "nnunet", "nnssl"])
        return ["export", room.work, "--form", form, "--out", room.out]
    if kind == "report":
        return ["report", "--runs", room.work, str(room.base / "work"), "--out", room.out + ".html"]
    words = ["run"] if kind == "run" else [room.one_of(STAGES)]
    del tiny[:2]
    config = str(room.base / "run.yaml")
    return [*words, config, *tiny, *(["--force"] if room.rng.random() < 0.2 else [])]


@_kind
def work_files(room: Room) -> list[str]:
    """Damage files of a finished run."""
    work = Path(shutil.copytree(room.base / "work", room.work))
    for _ in range(int(room.rng.integers(1, 3))):
        path = room.file_in(work)
        if path.suffix == ".json" and room.rng.random() < 0.7:
            damage_json(path, room)
        elif room.rng.random() < 0.8:
            damage_bytes(path, room)
        else:
            damage_entry(path, room)
    return _of_work(room)


@_kind
def work_records(room: Room) -> list[str]:
    """Damage the JSON of a finished run."""
    work = Path(shutil.copytree(room.base / "work", room.work))
    damage_json(room.file_in(work, "*.json"), room)
    return _of_work(room)


@_kind
def work_stages(room: Room) -> list[str]:
    """Delete or exchange stages of a finished run."""
    work = Path(shutil.copytree(room.base / "work", room.work))
    for folder in room.rng.choice(sorted(p.name for p in work.iterdir()), 2, replace=False):
        path = work / folder
        if path.is_dir():
            shutil.rmtree(path)
            match int(room.rng.integers(4)):
                case 0:
                    path.write_text("a file")
                case 1:
                    path.mkdir()
                case 2:
                    path.symlink_to("nowhere")
    return _of_work(room)


@_kind
def work_unfinished(room: Room) -> list[str]:
    """Leave a stage unfinished with damaged partial files."""
    work = Path(shutil.copytree(room.base / "work", room.work))
    folder = room.one_of(sorted(p for p in work.iterdir() if p.is_dir()))
    record = folder / "run.json"
    document = json.loads(record.read_text())
    partial = {"settings": document["settings"], "inputs": document["inputs"]}
    (folder / "partial.json").write_text(json.dumps(partial, sort_keys=True))
    record.unlink()
    for name in ("training.pt", f"{room.one_of(['pooled', 'networks', '.'])}/training.pt"):
        if (folder / name).parent.is_dir():
            (folder / name).write_bytes(room.rng.bytes(int(room.rng.integers(0, 2000))))
    damage_bytes(room.file_in(folder), room)
    return ["run", str(room.base / "run.yaml"), "--work", room.work]


@_kind
def predicted_images(room: Room) -> list[str]:
    """Predict scans that are damaged, with a sound segmenter."""
    images = room.take("nnunet") / "imagesTs"
    damage = room.one_of([damage_bytes, damage_header, damage_voxels, damage_entry])
    damage(room.file_in(images), room)
    given = room.one_of([images, *sorted(images.iterdir())])
    words = ["predict", "--segmenter", str(room.base / "work"), "--images", str(given)]
    return [*words, "--out", room.out]


@_kind
def scored_folders(room: Room) -> list[str]:
    """Score label maps that are damaged, missing or of others."""
    data = room.take("nnunet")
    reference, predicted = data / "labelsTr", data / "predicted"
    shutil.copytree(reference, predicted)
    damage = room.one_of([damage_bytes, damage_header, damage_voxels, damage_entry])
    damage(room.file_in(room.one_of([reference, predicted])), room)
    words = ["evaluate", "--reference", str(reference), "--predicted", str(predicted)]
    missing = ["--allow-missing"] if room.rng.random() < 0.4 else []
    return [*words, "--out", room.out, *missing]


@_kind
def exported_folders(room: Room) -> list[str]:
    """Export label maps that are damaged, in every form."""
    data = room.take("nnunet")
    labels = data / "labelsTr"
    names = {"liver": 1, "spleen": 2}
    (labels / "labels.json").write_text(json.dumps(names))
    if room.rng.random() < 0.4:
        damage_json(labels / "labels.json", room)
    else:
        damage = room.one_of([damage_bytes, damage_header, damage_voxels, damage_entry])
        damage(room.file_in(labels, "*.nii.gz"), room)
    forms = ["nifti", "nifti-per-organ", "nnunet", "nnssl", "dicom-seg", "rtstruct", "moon"]
    form = room.one_of(forms)
    words = ["export", "--predicted", str(labels), "--form", form, "--out", room.out]
    if form in ("dicom-seg", "rtstruct"):
        words += ["--source", str(room.base / "dicom")]
    return words


@_kind
def given_maps(room: Room) -> list[str]:
    """Take coarse maps that are damaged from elsewhere."""
    work = Path(shutil.copytree(room.base / "work", room.work))
    for folder in sorted(work.iterdir()):
        if folder.is_dir() and folder.name != "1-cohort":
            shutil.rmtree(folder)
    maps = Path(shutil.copytree(room.base / "work" / "2-coarse" / "maps", room.user / "maps"))
    damage = room.one_of([damage_bytes, damage_header, damage_voxels, damage_entry, foreign_entry])
    damage(maps if damage is foreign_entry else room.file_in(maps), room)
    path = room.user / "run.yaml"
    settings = {**TINY, "ingest": {**TINY["ingest"], "data": str(room.base / "nnunet")}}
    del settings["locate"]
    path.write_text(yaml.safe_dump(settings))
    return ["locate", str(path), "--work", room.work, "--from", str(maps)]


@_kind
def command_lines(room: Room) -> list[str]:
    """Draw words that make no sense together."""
    data = room.take("nnunet")
    paths = ["", "~nosuchuser/x", "x" * 300, str(data / "dataset.json"), "/dev/null", "nope", ".",
             "\n", str(data), str(data / "imagesTr"), str(room.base / "work"), "-",
             "a\udcff"]  # fmt: skip
    names = "work out data segmenter images predicted reference from name seed device form arm"
    flags = [f"--{name}" for name in f"{names} folds runs".split()]
    command = room.one_of([*STAGES, "check", "export", "phantom", "run", "nope", "--nope"])
    words = [command]
    if room.rng.random() < 0.6:
        words.append(room.one_of(paths))
    for _ in range(int(room.rng.integers(0, 4))):
        words += [room.one_of(flags), room.one_of(paths)]
    return words if "--work" in words else [*words, "--work", room.work]
