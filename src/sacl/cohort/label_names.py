"""The organ names of label maps that belong to no cohort."""

from __future__ import annotations

import json
from pathlib import Path

from sacl.errors import DataError
from sacl.files.nifti import is_nifti, read_label_table, read_labels
from sacl.types import LabelScheme

_DATASET = "dataset.json"


def scheme_of_folders(*folders: Path) -> LabelScheme:
    """Return the scheme of all label maps in some folders, the references' folder first.

    Names come from the label tables in the files, else from `dataset.json` in the first folder or
    beside it (nnU-Net or Medical Segmentation Decathlon); a value without a name is `label_N`.

    Raises:
        DataError: two files name a label differently, or `dataset.json` is of another kind.
    """
    paths = [path for folder in folders for path in sorted(folder.iterdir()) if is_nifti(path)]
    names = _from_tables(paths) or _from_dataset(folders[0])
    highest = max(names, default=0) or max(int(read_labels(path)[0].max()) for path in paths)
    if highest < 1:
        raise DataError(f"{folders[0].name}: all label maps are empty; there is nothing to score")
    return LabelScheme(
        folders[0].name, tuple(names.get(n, f"label_{n}") for n in range(1, highest + 1))
    )


def _from_tables(paths: list[Path]) -> dict[int, str]:
    """Return the names in the files' label tables by value, without the background."""
    names: dict[int, str] = {}
    for path in paths:
        for name, value in (read_label_table(path) or {}).items():
            if value > 0 and names.setdefault(value, name) != name:
                raise DataError(
                    f"{path.name}: label {value} is '{name}' here and '{names[value]}' in another"
                    " file; give all maps in one scheme"
                )
    return names


def _from_dataset(folder: Path) -> dict[int, str]:
    """Return the names in `dataset.json` by value, none where there is no such file."""
    path = next((f / _DATASET for f in (folder, folder.parent) if (f / _DATASET).is_file()), None)
    if path is None:
        return {}
    try:
        labels = json.loads(path.read_text(encoding="utf-8"))["labels"].items()
        # nnU-Net maps names to values, the decathlon (and nnU-Net 1) values to names.
        pairs = [(int(k), str(v)) if str(k).isdigit() else (int(v), str(k)) for k, v in labels]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{_DATASET}: 'labels' is not a table of single label values ({type(error).__name__});"
            " regions are not supported, remove them"
        ) from error
    names = {value: name for value, name in pairs if value > 0}
    if "ignore" in names.values():
        raise DataError(f"{_DATASET}: an 'ignore' label cannot be scored; set its voxels to 0")
    return names
