"""Broken inputs by kind: a maker writes one into a room and returns the command that meets it."""

from __future__ import annotations

import gzip
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from research.benchmarks.hostile_parts.base import MAKERS, TINY, new_patient
from research.benchmarks.hostile_parts.damage import (
    ODD,
    Room,
    damage_bytes,
    damage_dicom,
    damage_entry,
    damage_header,
    damage_json,
    damage_voxels,
    foreign_entry,
)

Maker = Callable[[Room], list[str]]
STAGES = ["ingest", "locate", "extract", "pretrain", "finetune", "predict", "evaluate", "report"]
MAKERS_OF: dict[str, Maker] = {}
"""Kinds of cases by name."""


def kind(make: Maker) -> Maker:
    """Enter a maker into the table by its name."""
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


@kind
def nifti_header(room: Room) -> list[str]:
    """Damage headers of a cohort's images or label maps."""
    data = room.take("nnunet")
    for _ in range(int(room.rng.integers(1, 3))):
        damage_header(room.file_in(data, "*.nii.gz"), room)
    return _reader(room, data)


@kind
def nifti_voxels(room: Room) -> list[str]:
    """Damage voxels of a cohort's images or label maps."""
    data = room.take("nnunet")
    damage_voxels(room.file_in(data, "*.nii.gz"), room)
    return _reader(room, data)


@kind
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


@kind
def dataset_json(room: Room) -> list[str]:
    """Damage dataset.json."""
    data = room.take("nnunet")
    damage_json(data / "dataset.json", room)
    return _reader(room, data)


@kind
def entries(room: Room) -> list[str]:
    """Replace files of a cohort by pipes, links and folders, and add foreign ones."""
    data = room.take(room.one_of(["nnunet", "table", "dicom"]))
    for _ in range(int(room.rng.integers(1, 3))):
        if room.rng.random() < 0.5:
            foreign_entry(room.file_in(data).parent, room)
        else:
            damage_entry(room.file_in(data), room)
    return _reader(room, data)


@kind
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


@kind
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


@kind
def dicom_bytes(room: Room) -> list[str]:
    """Damage elements or bytes of DICOM files."""
    data = room.take("dicom")
    for _ in range(int(room.rng.integers(1, 4))):
        damage_dicom(room.file_in(data), room)
    return _reader(room, data)


@kind
def dicom_series(room: Room) -> list[str]:
    """Write series with the faults of scanners and of archives."""
    data = room.user / "export"
    for number in range(2):
        make = MAKERS[room.one_of(MAKERS)]
        make(room.rng, data / f"s{number}", new_patient(room.rng, number))
    return _reader(room, data)


@kind
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


@kind
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


@kind
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
