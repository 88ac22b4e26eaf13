"""Is a result that was called good right: equal to the sound one where its input was left alone.

What a damaged file means is not known here, but the files beside it are sound, and they have to
come out as ever: no scan may be dropped without its name on stderr, and none may change.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from research.benchmarks.hostile_parts.damage import Room
from research.benchmarks.hostile_parts.ended import Ended
from sacl.cohort.manifest import read_cohort, read_image, read_reference
from sacl.types import Case, Cohort


def disagreements(room: Room, words: Sequence[str], ended: Ended) -> list[str]:
    """Return where results that were called good contradict themselves or the sound ones."""
    faults = []
    cohort = Path(room.work) / "1-cohort"
    if (
        words[0] in ("ingest", "run")
        and "--explain" not in words
        and (cohort / "run.json").exists()
    ):
        faults += _of_cohort(room, cohort, ended)
    out = Path(room.out)
    images = Path(words[words.index("--images") + 1]) if "--images" in words else None
    if images is not None and out.is_dir():
        faults += _of_predictions(room, images, out, ended)
    if words[0] == "evaluate" and (out / "scores.csv").is_file():
        faults += _of_scores(room, out / "scores.csv")
    for path in sorted(out.rglob("*.nii.gz")) if out.is_dir() else ():
        faults += _of_map(path, words)
    return faults


def _of_cohort(room: Room, folder: Path, ended: Ended) -> Iterator[str]:
    """Give what is wrong with an ingested cohort."""
    manifest = read_cohort(folder)
    for case in manifest.cases:
        image = read_image(folder, case)
        reference = read_reference(folder, case, manifest.scheme)
        if not np.isfinite(image.voxels).all():
            yield f"{case.case_id}: not finite"
        if reference is not None and reference.voxels.shape != image.voxels.shape:
            yield f"{case.case_id}: shapes differ"
    data = room.user / "nnunet"
    if (data / "imagesTr").is_dir() and (data / "dataset.json").is_file():
        yield from _of_sound_scans(room, data, (folder, manifest), ended)


def _of_sound_scans(
    room: Room, data: Path, ingested: tuple[Path, Cohort], ended: Ended
) -> Iterator[str]:
    """Give the sound scans of a dataset that are missing without a word, or that have changed."""
    folder, manifest = ingested
    sound = room.base / "work" / "1-cohort"
    cases = {case.case_id: case for case in manifest.cases}
    expected = {case.case_id: case for case in read_cohort(sound).cases}
    for path in _untouched(room, data, "images*/*.nii.gz"):
        name = path.name.removesuffix("_0000.nii.gz")
        if name not in cases:
            if name not in ended.errors:
                yield f"{name}: left out without a word"
        elif not _same_voxels((folder, cases[name]), (sound, expected[name])):
            yield f"{name}: its voxels have changed"
    for path in _untouched(room, data, "labelsTr/*.nii.gz"):
        name = path.name.removesuffix(".nii.gz")
        if name in cases and cases[name].reference is None and name not in ended.errors:
            yield f"{name}: its label map is left out without a word"


def _same_voxels(one: tuple[Path, Case], other: tuple[Path, Case]) -> bool:
    now, before = read_image(*one), read_image(*other)
    grids = now.grid.affine, before.grid.affine
    return np.array_equal(now.voxels, before.voxels) and np.array_equal(*grids)


def _of_predictions(room: Room, images: Path, out: Path, ended: Ended) -> Iterator[str]:
    """Give the scans that have neither a label map nor a word, and maps unlike the sound ones."""
    if not images.is_dir() or images.parent.parent != room.user:
        return
    sound = None if (room.user / "maps").exists() else room.base / "predicted"
    for path in _untouched(room, images.parent, "imagesTs/*.nii.gz"):
        named = [out / path.name, out / path.name.replace("_0000.nii.gz", ".nii.gz")]
        written = next((target for target in named if target.is_file()), None)
        if written is None:
            if path.name.removesuffix("_0000.nii.gz") not in ended.errors:
                yield f"{path.name}: not predicted, without a word"
        elif sound and not np.array_equal(_voxels(written), _voxels(sound / named[1].name)):
            yield f"{path.name}: another label map than when all was sound"


def _of_scores(room: Room, table: Path) -> Iterator[str]:
    """Give the pairs of equal label maps whose Dice is not 1."""
    data = room.user / "nnunet"
    equal = {path.name for path in _untouched(room, data, "labelsTr/*.nii.gz")}
    sound = room.base / "nnunet" / "labelsTr"
    equal &= {
        path.name
        for path in (data / "predicted").glob("*.nii.gz")
        if path.is_file() and path.read_bytes() == (sound / path.name).read_bytes()
    }
    with table.open(newline="") as lines:
        for row in csv.DictReader(lines):
            if f"{row['case_id']}.nii.gz" in equal and float(row["dice"]) != 1.0:
                yield f"{row['case_id']}: equal label maps have a Dice of {row['dice']}"


def _of_map(path: Path, words: Sequence[str]) -> Iterator[str]:
    """Give what is wrong with a written label map."""
    try:
        array = _voxels(path)
    except (OSError, EOFError, nibabel.filebasedimages.ImageFileError) as error:
        yield f"{path.name}: written, and cannot be read, {type(error).__name__}"
        return
    images = "images" in path.parts[-2] or words[-1] == "nnssl"
    if not images and (array.size == 0 or array.max() > 2 or array.min() < 0):
        yield f"{path.name}: labels from {array.min()} to {array.max()}"


def _untouched(room: Room, data: Path, pattern: str) -> list[Path]:
    """Return the files of a dataset that are byte for byte those of the sound one."""
    sound = room.base / "nnunet"
    pairs = ((path, sound / path.relative_to(data)) for path in sorted(data.glob(pattern)))
    return [
        path
        for path, before in pairs
        if path.is_file() and before.is_file() and path.read_bytes() == before.read_bytes()
    ]


def _voxels(path: Path) -> Any:
    return np.asarray(nibabel.load(path).dataobj)  # type: ignore[attr-defined]
