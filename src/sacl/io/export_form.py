"""What an export consists of: one result per scan, a form to write it in, and what they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sacl.io.workspace import Workspace
from sacl.types import Case, LabelMap, LabelScheme, NativeFrame


@dataclass(frozen=True, eq=False)
class Result:
    """A predicted label map on its canonical grid, and the frame of the scan's own file.

    `case` is what the cohort knows of the scan; None where a folder of label maps is exported.
    """

    case_id: str
    label_map: LabelMap
    native: NativeFrame
    case: Case | None = None


@dataclass(frozen=True, eq=False)
class Export:
    """What all scans of an export share.

    `reference_of` reads a scan's reference and the organs that are annotated in it, for the scans
    that have one. `workspace` and `cases` are those of the run; None and empty where a folder of
    label maps is exported.
    """

    out: Path
    scheme: LabelScheme
    modality: Literal["ct", "mr"] | None
    case_ids: tuple[str, ...]
    reference_of: Mapping[str, Callable[[], tuple[LabelMap, tuple[str, ...]]]]
    workspace: Workspace | None = None
    cases: tuple[Case, ...] = ()
    folds: int = 5
    seed: int = 0


@dataclass(frozen=True)
class Form:
    """One way to write results.

    `write` puts one scan's result at a path, the case's name with `suffix`, whole or not at all;
    None where a form has nothing per scan. `finish` writes what is said of all scans together, and
    returns it.
    """

    summary: str
    suffix: str = ""
    write: Callable[[Result, Path], None] | None = None
    finish: Callable[[Export], list[Path]] | None = field(default=None)
