"""A cohort of two blobs per scan, ingested: what the locate stage starts from."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

from sacl.cohort.manifest import write_cohort
from sacl.files.nifti import read_label_map, write_label_map, write_volume
from sacl.run.record import recorded
from sacl.run.workspace import Workspace
from sacl.settings import IngestSettings, LocateSettings, MapsSettings
from sacl.types import Case, Cohort, Grid, LabelMap, LabelScheme, NativeFrame, Volume

SCHEME = LabelScheme("two", ("spleen", "kidney_right"))
SHAPE = (20, 18, 12)
GRID = Grid(SHAPE, np.diag([3.0, 3.0, 3.0, 1.0]))


def blobs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an image with a dim and a bright organ at places of its own, and its labels."""
    rng = np.random.default_rng(seed)
    i, j, k = rng.integers(0, 3, size=3)
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[2 + i : 8 + i, 3 + j : 11 + j, 1 + k : 8 + k] = 1
    labels[11 + i : 16 + i, 4 + j : 12 + j, 2 + k : 9 + k] = 2
    image = np.array([0, 80, 160])[labels] + rng.normal(0, 8, SHAPE)
    return image.astype(np.int16), labels


def make_cohort(root: Path, labeled: int = 2) -> Workspace:
    """Write an ingested cohort: labeled and unlabeled training subjects, one for validation."""
    workspace = Workspace(root, device="cpu")
    with recorded(workspace, "ingest", IngestSettings(window_hu=(-50.0, 200.0)), {}) as (folder, _):
        cases = [write_case(folder, number, labeled) for number in range(labeled + 2)]
        write_cohort(folder, Cohort("blobs", SCHEME, tuple(cases), window_hu=(-50.0, 200.0)))
    return workspace


def write_case(folder: Path, number: int, labeled: int) -> Case:
    """Write one case, with a reference where it is among the first, labeled ones."""
    case_id, image, labels = f"case{number}", *blobs(number)
    write_volume(folder / "images" / f"{case_id}.nii", Volume(image, GRID))
    has_reference = number < labeled
    if has_reference:
        reference = LabelMap(labels, GRID, SCHEME)
        write_label_map(folder / "references" / f"{case_id}.nii.gz", reference)
    return Case(
        case_id=case_id,
        subject_id=f"subject{number}",
        image=f"images/{case_id}.nii",
        reference=f"references/{case_id}.nii.gz" if has_reference else None,
        split="validation" if number == labeled + 1 else "train",
        native=NativeFrame(GRID),
        window=(-50.0, 200.0),
        annotated=SCHEME.names if has_reference else (),
    )


def from_folder(source: Path, **more) -> LocateSettings:
    return LocateSettings(maps=MapsSettings(source=source, **more))


def give_maps(
    folder: Path, names: tuple[str, ...] | None, values: tuple[int, int] = (1, 2)
) -> None:
    """Write the four cases' true labels, under other names and values."""
    for number in range(4):
        labels = np.select([blobs(number)[1] == 1, blobs(number)[1] == 2], values, 0)
        path = folder / f"case{number}.nii.gz"
        if names is None:
            write_volume(path, Volume(labels.astype(np.int16), GRID))
        else:
            scheme = LabelScheme("theirs", names)
            write_label_map(path, LabelMap(labels.astype(np.uint8), GRID, scheme))


def contradict(path: Path) -> None:
    """Give a gzipped file a pixdim of 7 mm beside an sform of 3 mm."""
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[88:92] = np.float32(7.0).tobytes()
    path.write_bytes(gzip.compress(raw))


def located(workspace, number: int) -> np.ndarray:
    path = workspace.folder("locate") / "maps" / f"case{number}.nii.gz"
    return read_label_map(path, SCHEME)[0].voxels


def give_masks(folder: Path, number: int, **masks: np.ndarray) -> None:
    for name, mask in masks.items():
        write_volume(folder / f"case{number}" / f"{name}.nii.gz", Volume(mask.astype("i2"), GRID))
