"""Broken inputs of the commands that read a finished run, label maps, or a comparison."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import yaml

from research.benchmarks.hostile_parts.base import PROTOCOL, TINY
from research.benchmarks.hostile_parts.damage import (
    Room,
    change_document,
    damage_bytes,
    damage_dicom,
    damage_entry,
    damage_header,
    damage_json,
    damage_voxels,
    foreign_entry,
)
from research.benchmarks.hostile_parts.inputs import MAKERS_OF, STAGES, kind

__all__ = ["MAKERS_OF"]
RESULTS = Path(__file__).parents[2] / "results"


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
    words = [room.one_of(STAGES)] if kind == "stage" else [kind]
    del tiny[:2]
    config = str(room.base / "run.yaml")
    return [*words, config, *tiny, *(["--force"] if room.rng.random() < 0.2 else [])]


@kind
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


@kind
def work_records(room: Room) -> list[str]:
    """Damage the JSON of a finished run."""
    work = Path(shutil.copytree(room.base / "work", room.work))
    damage_json(room.file_in(work, "*.json"), room)
    return _of_work(room)


@kind
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


@kind
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


@kind
def predicted_images(room: Room) -> list[str]:
    """Predict scans that are damaged, with a sound segmenter."""
    images = room.take("nnunet") / "imagesTs"
    damage = room.one_of([damage_bytes, damage_header, damage_voxels, damage_entry])
    damage(room.file_in(images), room)
    given = room.one_of([images, *sorted(images.iterdir())])
    words = ["predict", "--segmenter", str(room.base / "work"), "--images", str(given)]
    return [*words, "--out", room.out]


@kind
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


@kind
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


@kind
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


@kind
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


@kind
def predictions_on_given_maps(room: Room) -> list[str]:
    """Predict by a segmenter that needs coarse maps, with damaged ones or damaged scans."""
    images = room.take("nnunet") / "imagesTs"
    maps = room.user / "maps"
    maps.mkdir()
    for path in sorted((room.base / "predicted").glob("*.nii.gz")):
        shutil.copy(path, maps)
    (maps / "labels.json").write_text(json.dumps({"liver": 1, "spleen": 2}))
    damage = room.one_of([damage_bytes, damage_header, damage_voxels, damage_entry, foreign_entry])
    folder = room.one_of([images, maps, maps])
    damage(folder if damage is foreign_entry else room.file_in(folder, "*.nii.gz"), room)
    words = ["predict", "--segmenter", str(room.base / "mixed"), "--images", str(images)]
    given = ["--coarse", str(maps)] if folder is maps or room.rng.random() < 0.5 else []
    return [*words, "--out", room.out, *given]


@kind
def exports_onto_dicom(room: Room) -> list[str]:
    """Export a run of NIfTI and DICOM scans onto damaged images, or by a damaged run."""
    work = Path(shutil.copytree(room.base / "mixed", room.work))
    source = room.take("hospital")
    if room.rng.random() < 0.6:
        for _ in range(int(room.rng.integers(1, 4))):
            damage_dicom(room.file_in(source), room)
    elif room.rng.random() < 0.5:
        damage_entry(room.file_in(source), room)
    else:
        damage_bytes(work / "dicom-key.csv", room)
    form = room.one_of(["dicom-seg", "dicom-seg-labelmap", "rtstruct"])
    return ["export", room.work, "--form", form, "--source", str(source), "--out", room.out]


@kind
def laboratory(room: Room) -> list[str]:
    """Read a damaged protocol, or the damaged results of a comparison."""
    room.user.mkdir()
    if room.rng.random() < 0.5:
        path = room.user / "protocol.yaml"
        shutil.copy(room.base / "tiny.yaml", room.user)
        document = json.loads(json.dumps(PROTOCOL))
        for _ in range(int(room.rng.integers(1, 3))):
            change_document(document, room)
        path.write_text(yaml.safe_dump(document))
        if room.rng.random() < 0.2:
            damage_bytes(path, room)
        data = str(room.base / "nnunet")
        return ["research", "list", str(path), "--work", room.work, "--data", data]
    path = room.user / "results.json"
    shutil.copy(RESULTS / "compare_hippocampus.json", path)
    damage_json(path, room)
    command = room.one_of(["tables", "render", "figures"])
    out = {"tables": [], "render": ["--out", room.out + ".html"], "figures": ["--out", room.out]}
    return ["research", command, str(path), *out[command]]
