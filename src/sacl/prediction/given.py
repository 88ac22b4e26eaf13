"""Coarse label maps made by another tool: checked before the first is read, cleaned, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from sacl.cohort.layouts.label_maps import Survey, read_given_map
from sacl.cohort.references import SchemeMap, overlap_in_words
from sacl.files.nifti import is_nifti, read_frame
from sacl.geometry import canonical_grid, require_same_grid, same_grid
from sacl.prediction.components import clean_components
from sacl.progress import say
from sacl.types import Case, Grid, LabelMap, LabelScheme

_SAID = 8
_WINS = "the organ that is smaller in the scan"


@dataclass(frozen=True)
class Cleaning:
    """What becomes of a given map: whether it is resampled, and which pieces are dropped."""

    repairs_grid: bool
    keep_component: float
    min_volume_ml: float


@dataclass(frozen=True)
class Tally:
    """What reading the maps decided: by case, and how many scans have an unnamed label value."""

    repaired: dict[str, str] = field(default_factory=dict)
    contested: dict[str, dict[str, int]] = field(default_factory=dict)
    unnamed: Counter[int] = field(default_factory=Counter)

    def add(self, case_id: str, given: SchemeMap) -> None:
        """Count one case's map."""
        if given.repair:
            self.repaired[case_id] = given.repair
        if given.contested:
            pairs = {f"{a} and {b}": count for (a, b), count in given.contested.items()}
            self.contested[case_id] = pairs
        self.unnamed.update(given.unnamed)


def require_grids(survey: Survey, grids: Mapping[str, Grid], repairs_grid: bool) -> None:
    """Compare all maps' grids with their scans' by the headers, and say how many are resampled.

    A DICOM segmentation is compared when it is read.

    Raises:
        DataError: a map lies on another grid and that is not to be repaired; both are printed.
    """
    other = {}
    for case_id, given in survey.maps.items():
        for path in (path for path in given.paths if is_nifti(path)):
            own = canonical_grid(read_frame(path).grid)
            if not same_grid(grids[case_id], own):
                other[case_id] = (path, own)
                break
    if other and not repairs_grid:
        case_id, (path, own) = next(iter(other.items()))
        mask = f", mask {path.name}" if survey.maps[case_id].file is None else ""
        require_same_grid(
            grids[case_id],
            own,
            f"case {case_id}{mask}",
            f"{len(other)} of {len(survey.maps)} cases are so; resample the maps onto their"
            " scans' grids, which `--locate.maps.repair_grid nearest` does",
        )
    if other:
        say(
            f"coarse: {len(other)} of {len(survey.maps)} given maps lie on another grid than their"
            f" scan, the first is {next(iter(other))}; resampled by nearest neighbor"
        )


def announce(survey: Survey, scheme: LabelScheme) -> None:
    """Say how the names were understood, and what there is no map of."""
    say(f"coarse: {len(survey.maps)} given maps")
    if survey.unmatched:
        names = list(survey.unmatched)
        more = f" and {len(names) - _SAID} more" if len(names) > _SAID else ""
        say(f"coarse: no organs of {scheme.name}, left out: {', '.join(names[:_SAID])}{more}")
    if survey.absent:
        say(
            f"coarse: no given map has {', '.join(survey.absent)}; no patch can be cut around"
            f" {'it' if len(survey.absent) == 1 else 'them'}"
        )
    if survey.missing:
        first = ", ".join(survey.missing[:3])
        say(
            f"coarse: no map of {len(survey.missing)} scans, the first {first}; nothing is found in"
            " them, so they give no patches"
        )


def locate_given(
    case: Case, survey: Survey, grid: Grid, scheme: LabelScheme, cleaning: Cleaning
) -> tuple[LabelMap, SchemeMap | None]:
    """Return a case's cleaned map, empty where none is given, and what was decided in reading."""
    if case.case_id not in survey.maps:
        return LabelMap(np.zeros(grid.shape, scheme.label_type), grid, scheme), None
    given = read_given_map(survey.maps[case.case_id], scheme, grid, cleaning.repairs_grid)
    voxels = clean_components(
        given.label_map.voxels,
        len(scheme.names),
        cleaning.keep_component,
        cleaning.min_volume_ml / grid.voxel_ml,
    )
    return LabelMap(voxels, grid, scheme), given


def record_of(survey: Survey, tally: Tally) -> dict[str, object]:
    """Return what to record of the given maps, and say what was decided about overlaps."""
    total = Counter[str]()
    for pairs in tally.contested.values():
        total.update(pairs)
    if total:
        say(f"coarse: {overlap_in_words(tally.contested.values())}; {_WINS} wins")
    if tally.unnamed:
        values = ", ".join(map(str, sorted(tally.unnamed)[:_SAID]))
        say(f"coarse: label values without a name became background: {values}")
    return {
        "maps": len(survey.maps),
        "missing": {"scans": len(survey.missing), "first": list(survey.missing[:_SAID])},
        "unmatched_names": dict(survey.unmatched),
        "absent_organs": list(survey.absent),
        "unnamed_values": {str(value): scans for value, scans in sorted(tally.unnamed.items())},
        "repaired_grids": tally.repaired,
        "overlap": {
            "wins": _WINS,
            "scans": len(tally.contested),
            "voxels": sum(total.values()),
            "pairs": dict(total.most_common()),
        },
    }
