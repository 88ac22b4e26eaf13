"""Of what label maps were made, so that those which are there are not made again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from sacl.types import LabelMap, Volume

_MADE = ".made-by-sacl.jsonl"


@dataclass(frozen=True)
class Made:
    """Of what a label map was made, as a hash; what speaks against believing it; its statistics."""

    name: str
    key: str
    doubts: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


class MadeMaps:
    """The label maps of a folder that were made, a line for each, the last one of a name counts.

    What ends in the midst of a line, or was damaged, is made again.
    """

    def __init__(self, folder: Path, forget: bool = False) -> None:
        self._path = folder / _MADE
        self._made: dict[str, Made] = {}
        if self._path.is_file() and not forget:
            for line in self._path.read_bytes().splitlines():
                try:
                    made = msgspec.json.decode(line, type=Made)
                except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                    continue
                self._made[made.name] = made

    def find(self, name: str, key: str) -> Made | None:
        """Return what is known of a label map, None where it was not made, or of something else."""
        made = self._made.get(name)
        return made if made is not None and made.key == key else None

    def add(self, made: Made) -> None:
        """Note a label map that was written."""
        with self._path.open("ab") as file:
            file.write(b"\n" + msgspec.json.encode(made))
        self._made[made.name] = made


def key_of(model: str, volume: Volume, coarse: LabelMap | None, way: str = "") -> str:
    """Return a hash of all that decides a label map.

    Args:
        model: The model's fingerprint.
        volume: The scan.
        coarse: The coarse label map that was given.
        way: In what way it is written.
    """
    digest = hashlib.sha256(f"{model} {volume.grid.affine.tolist()} {way}".encode())
    for voxels in (volume.voxels, *([] if coarse is None else [coarse.voxels])):
        for k in range(voxels.shape[2]):
            digest.update(np.ascontiguousarray(voxels[:, :, k]).data)
    return digest.hexdigest()
