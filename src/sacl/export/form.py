"""What an export consists of: one result per scan, a form to write it in, and what they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sacl.run.workspace import Workspace
from sacl.types import SPLITS, Case, Cohort, LabelMap, LabelScheme, NativeFrame, Split


@dataclass(frozen=True, eq=False)
class Result:
    """A predicted label map on its canonical grid, and the frame of the scan's own file.

    `case` is what the cohort knows of the scan; None where a folder of label maps is exported, and
    `run`, the name of the run, is empty then. `source` reads the headers of the scan's own DICOM
    images; None where nobody said where these are.
    """

    case_id: str
    label_map: LabelMap
    native: NativeFrame
    case: Case | None = None
    run: str = ""
    source: Callable[[], Sequence[Any]] | None = None


@dataclass(frozen=True, eq=False)
class Export:
    """What all scans of an export share.

    `reference_of` reads the references of the scans to be scored, and the organs annotated there.
    `workspace` and `cohort` are those of the run and `cases` the exported ones; None and empty
    where a folder of label maps is exported. `force` is set to write anew what is there.
    """

    out: Path
    scheme: LabelScheme
    reference_of: Mapping[str, Callable[[], tuple[LabelMap, tuple[str, ...]]]]
    workspace: Workspace | None = None
    cohort: Cohort | None = None
    cases: tuple[Case, ...] = ()
    folds: int = 5
    force: bool = False


@dataclass(frozen=True)
class Form:
    """One way to write results.

    `write` puts one scan's result at a path, the case's name with `suffix`, whole or not at all;
    None where a form needs no predictions. `finish` writes what is said of all scans together, and
    returns the files. `splits` are those that are exported where nobody says. A form that
    `needs_source` refers to the scan's own DICOM images.
    """

    summary: str
    suffix: str = ""
    write: Callable[[Result, Path], None] | None = None
    finish: Callable[[Export], list[Path]] | None = None
    splits: tuple[Split, ...] = SPLITS
    needs_source: bool = False
