"""A scan of a cohort with its maps: each is read when first asked for, all on the image's grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float

from sacl.cohort.manifest import read_image, read_reference
from sacl.errors import DataError
from sacl.files.nifti import read_label_map
from sacl.geometry import require_same_grid
from sacl.patches.window import normalize
from sacl.run.workspace import Workspace
from sacl.types import Case, Cohort, LabelMap, Volume


def named_scans(cohort: Cohort, workspace: Workspace) -> Callable[[str], Scan]:
    """Return what gives a scan of a cohort by its case's name."""
    cases = {case.case_id: case for case in cohort.cases}
    return lambda name: Scan(cases[name], cohort, workspace)


@dataclass(frozen=True)
class Scan:
    """A case of a run; a map that is missing or lies on another grid is a `DataError`."""

    case: Case
    cohort: Cohort
    workspace: Workspace

    @cached_property
    def image(self) -> Volume:
        """The canonical image, memory-mapped where it is stored uncompressed."""
        return read_image(self.workspace.folder("ingest"), self.case)

    @property
    def coarse_path(self) -> Path:
        """Where the coarse map lies, written or not."""
        return self.workspace.folder("locate") / "maps" / f"{self.case.case_id}.nii.gz"

    @cached_property
    def coarse(self) -> LabelMap:
        """The coarse map."""
        if not self.coarse_path.is_file():
            raise DataError(f"case {self.case.case_id}: no coarse map; run `sacl locate` again")
        return self._on_grid(read_label_map(self.coarse_path, self.cohort.scheme)[0], "coarse map")

    @cached_property
    def reference(self) -> LabelMap:
        """The reference of a labeled case."""
        reference = read_reference(self.workspace.folder("ingest"), self.case, self.cohort.scheme)
        if reference is None:
            raise DataError(f"case {self.case.case_id}: no reference; run `sacl ingest` again")
        return self._on_grid(reference, "reference")

    def plane(self, k: int) -> Float[np.ndarray, "i j"]:
        """Return an axial slice with the window's ends at 0 and 1."""
        return normalize(self.image.voxels[:, :, k], self.case.window)

    def _on_grid(self, label_map: LabelMap, what: str) -> LabelMap:
        require_same_grid(self.image.grid, label_map.grid, f"case {self.case.case_id}, {what}")
        return label_map
