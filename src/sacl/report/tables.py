"""What a page shows of a stage's tables: losses step by step, organs of the coarse maps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from sacl.errors import DataError
from sacl.files.documents import text_of_cell
from sacl.report.figures import Curve
from sacl.run.workspace import FOLDERS


@dataclass(frozen=True)
class CoverageLine:
    """In how many scans the coarse maps show an organ, how large it is (median), its mean Dice."""

    organ: str
    scans: int
    shown: int
    volume_ml: float
    dice: float


def read_losses(path: Path, stage: str, name: str) -> list[Curve]:
    """Read curves from a table of steps and losses, one per value of the column `network`."""
    if not path.is_file():
        return []
    with _undamaged(path, stage):
        table = pd.read_csv(path, dtype={"step": int, "loss": float})
        table["network"] = table.get("network", "")
        return [
            Curve(f"{name} {key}".strip(), part["step"].to_numpy(), part["loss"].to_numpy())
            for key, part in table.groupby("network", sort=False)
        ]


def read_coverage(path: Path) -> list[CoverageLine]:
    """Read in how many scans the coarse maps show each organ, how large it is, and its Dice."""
    if not path.is_file():
        return []
    with _undamaged(path, "locate"):
        table = pd.read_csv(path, dtype={"organ": str, "found": str})
        table["shown"] = table["found"].str.lower().isin(["true", "1"])
        return [
            CoverageLine(
                organ=text_of_cell(str(organ)),
                scans=len(part),
                shown=int(part["shown"].sum()),
                volume_ml=float(part.loc[part["shown"], "volume_ml"].median()),
                dice=float(part["dice"].mean()),
            )
            for organ, part in table.groupby("organ", sort=False)
        ]


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
