"""Coarse label maps made by another tool: checked before the first is read, cleaned, counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sacl.cohort.dataset import first_of, in_short
from sacl.cohort.layouts.label_maps import Survey, given_fingerprint, read_given_map, survey_maps
from sacl.cohort.references import overlap_in_words
from sacl.errors import DataError
from sacl.files.nifti import is_nifti, read_frame
from sacl.geometry import canonical_grid, require_same_grid, same_grid
from sacl.prediction.coarse import cleaned
from sacl.progress import say
from sacl.types import Case, Grid, LabelMap, LabelScheme

_SAID = 8
_WINS = "the organ that is smaller in the scan"


@dataclass(frozen=True, eq=False)
class GivenMaps:
    """The given maps of a cohort's scans, which are cleaned like those of our own networks.

    While they are read, it is counted what reading them decided: which grids were repaired, which
    voxels masks of two organs claim, which headers contradict themselves, and how many scans have a
    label value without a name.
    """

    survey: Survey
    scheme: LabelScheme
    grids: Mapping[str, Grid]
    repairs_grid: bool
    repaired: dict[str, str] = field(default_factory=dict)
    contested: dict[str, Mapping[str, int]] = field(default_factory=dict)
    contradictions: dict[str, str] = field(default_factory=dict)
    unnamed: Counter[int] = field(default_factory=Counter)

    def locate(self, case: Case) -> LabelMap:
        """Return a case's cleaned map, empty where none is given."""
        grid = self.grids[case.case_id]
        if case.case_id not in self.survey.maps:
            return LabelMap(np.zeros(grid.shape, self.scheme.label_type), grid, self.scheme)
        given = read_given_map(self.survey.maps[case.case_id], self.scheme, grid, self.repairs_grid)
        if given.repair:
            self.repaired[case.case_id] = given.repair
        if given.contested:
            self.contested[case.case_id] = given.contested
        if given.contradiction:
            self.contradictions[case.case_id] = given.contradiction
        self.unnamed.update(given.unnamed)
        return cleaned(given.label_map.voxels, grid, self.scheme)

    def record(self) -> dict[str, object]:
        """Return what to record of the maps, and say what was decided about overlaps."""
        total = Counter[str]()
        for pairs in self.contested.values():
            total.update(pairs)
        if total:
            say(f"locate: {overlap_in_words(self.contested.values())}; {_WINS} wins")
        if self.unnamed:
            values = in_short(list(map(str, sorted(self.unnamed))), _SAID)
            say(f"locate: label values without a name became background: {values}")
        if self.contradictions:
            first = first_of(list(self.contradictions.items()), "maps")
            say(f"locate: WARNING, the header contradicts itself in the map of {first}")
        survey = self.survey
        return {
            "maps": len(survey.maps),
            "missing": {"scans": len(survey.missing), "first": list(survey.missing[:_SAID])},
            "unmatched_names": dict(survey.unmatched),
            "absent_organs": list(survey.absent),
            "unnamed_values": {str(value): n for value, n in sorted(self.unnamed.items())},
            "repaired_grids": self.repaired,
            "contradictions": self.contradictions,
            "overlap": {
                "wins": _WINS,
                "scans": len(self.contested),
                "voxels": sum(total.values()),
                "pairs": dict(total.most_common()),
            },
        }


def fingerprint_of_maps(source: Path) -> str:
    """Return the fingerprint of given maps: of a folder, or of a JSON file and what it names."""
    if not source.is_dir() and not (source.suffix == ".json" and source.is_file()):
        raise DataError(f"locate.maps.source: no folder {source}; check --from")
    return given_fingerprint(source)


def look_through(
    source: Path,
    scheme: LabelScheme,
    grids: Mapping[str, Grid],
    repairs_grid: bool,
    allow_missing: bool,
) -> GivenMaps:
    """Return the maps of the scans that have these grids, and say what was understood.

    Refused where a map is missing, lies on another grid, or has labels without names.
    """
    remedy = "add them, or go on without these scans by --locate.maps.allow_missing true"
    survey = survey_maps(source, list(grids), scheme, allow_missing, remedy)
    _announce(survey, scheme)
    _require_grids(survey, grids, repairs_grid)
    return GivenMaps(survey, scheme, grids, repairs_grid)


def _require_grids(survey: Survey, grids: Mapping[str, Grid], repairs_grid: bool) -> None:
    """Compare all maps' grids with their scans' by the headers; DICOM's when they are read."""
    other: dict[str, tuple[Path, Grid]] = {}
    for case_id, given in survey.maps.items():
        for path in (path for path in given.paths if is_nifti(path)):
            own = canonical_grid(read_frame(path).grid)
            if not same_grid(grids[case_id], own):
                other.setdefault(case_id, (path, own))
    if not other:
        return
    case_id, (path, own) = next(iter(other.items()))
    so_many = f"{len(other)} of {len(survey.maps)}"
    if not repairs_grid:
        mask = f", mask {path.name}" if survey.maps[case_id].file is None else ""
        remedy = (
            f"{so_many} cases are so; resample the maps onto their scans' grids, which"
            " `--locate.maps.repair_grid nearest` does"
        )
        require_same_grid(grids[case_id], own, f"case {case_id}{mask}", remedy)
    say(
        f"locate: {so_many} given maps lie on another grid than their scan, the first is {case_id};"
        " resampled by nearest neighbor"
    )


def _announce(survey: Survey, scheme: LabelScheme) -> None:
    """Say how the names were understood, and what there is no map of."""
    say(f"locate: {len(survey.maps)} given maps")
    if survey.unmatched:
        left_out = in_short(list(survey.unmatched), _SAID)
        say(f"locate: no organs of {scheme.name}, left out: {left_out}")
    if survey.absent:
        them = "it" if len(survey.absent) == 1 else "them"
        absent = ", ".join(survey.absent)
        say(f"locate: no given map has {absent}; no patch can be cut around {them}")
    if survey.missing:
        scans = f"{len(survey.missing)} scans, the first {', '.join(survey.missing[:3])}"
        say(f"locate: no map of {scans}; they have no organ, and so give no patches")
