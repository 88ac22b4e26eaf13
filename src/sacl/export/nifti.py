"""Results as NIfTI: one label map per scan, or one folder of binary masks per scan."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from sacl.errors import DataError
from sacl.export.form import Result
from sacl.files.nifti import write_label_map
from sacl.organs import snake_case
from sacl.types import LabelMap, LabelScheme


def write_map(result: Result, path: Path) -> None:
    """Write all organs into one file, on the scan's own grid, with the label table in it."""
    write_label_map(path, result.label_map, result.native)


def write_masks(result: Result, folder: Path) -> None:
    """Write `ORGAN.nii.gz` per organ into a folder, 1 in the organ and 0 elsewhere.

    An organ that was not found gets an empty mask. The folder appears when all masks are in it.

    Raises:
        DataError: two organs would have the same file name.
    """
    scheme = result.label_map.scheme
    names = {organ: snake_case(organ) for organ in scheme.names}
    if len(set(names.values())) < len(names):
        twice = next(n for n in names.values() if list(names.values()).count(n) > 1)
        raise DataError(
            f"scheme {scheme.name}: two organs would be written to {twice}.nii.gz; rename one"
        )
    partial = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    for organ, name in names.items():
        mask = result.label_map.mask(organ).astype(np.uint8)
        alone = LabelMap(mask, result.label_map.grid, LabelScheme(organ, (organ,)))
        write_label_map(partial / f"{name}.nii.gz", alone, result.native)
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
