"""What a page shows of a stage's tables: losses step by step, organs of the coarse maps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from sacl.errors import DataError
from sacl.files.documents import text_of_cell
from sacl.run.workspace import FOLDERS


def read_losses(path: Path, stage: str, name: str) -> list[pd.Series[float]]:
    """Read curves by step from a table of losses, one per value of the column `network`."""
    if not path.is_file():
        return []
    with _undamaged(path, stage):
        table = pd.read_csv(path, dtype={"step": int, "loss": float}, index_col="step")
        if "network" not in table:
            return [table["loss"].rename(name)]
        networks = table.groupby("network", sort=False)
        return [part["loss"].rename(f"{name} {network}") for network, part in networks]


def read_coverage(path: Path) -> list[Any]:
    """Read for each `organ`, of how many `scans`, in how many the coarse maps have it `shown`.

    `volume_ml` is its median where it is shown, `dice` its mean where it was judged.
    """
    if not path.is_file():
        return []
    with _undamaged(path, "locate"):
        kinds = {"organ": str, "found": bool, "volume_ml": float, "dice": float}
        table = pd.read_csv(path, dtype=kinds)
        table["organ"] = table["organ"].map(text_of_cell)
        table["volume_ml"] = table["volume_ml"].where(table["found"])
        organs = table.groupby("organ", sort=False, as_index=False).agg(
            scans=("found", "size"),
            shown=("found", "sum"),
            volume_ml=("volume_ml", "median"),
            dice=("dice", "mean"),
        )
        return list(organs.itertuples(index=False))


@contextlib.contextmanager
def _undamaged(path: Path, stage: str) -> Iterator[None]:
    """Refuse, in one line, a file of a stage that cannot be read as what it is."""
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{FOLDERS[stage]}/{path.name}: damaged ({type(error).__name__}); run `sacl {stage}"
            " CONFIG.yaml --force`"
        ) from None
