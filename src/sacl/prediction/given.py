"""Coarse label maps that another tool made: matched to cases and to organs by name, and read.

They are checked before the first is read, cleaned as those of our own networks, and counted.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sacl.cohort.dataset import in_short, scan_files
from sacl.cohort.label_names import TABLES, names_in_folder, names_in_map, require_labels
from sacl.cohort.layouts.nnssl import anatomy_masks
from sacl.cohort.references import Decided, Decisions, MapRules, SchemeMap, in_scheme, lay_masks
from sacl.dicom.segmentation import read_segmentation, segment_names
from sacl.errors import DataError
from sacl.files.atomic import folder_fingerprint
from sacl.files.itk import frame_in, labels_in, stem_of
from sacl.files.nifti import SUFFIXES, is_nifti
from sacl.geometry import canonical_grid, require_same_grid, same_grid
from sacl.organs import match
from sacl.prediction.coarse import cleaned
from sacl.progress import say
from sacl.types import Case, Grid, LabelMap, LabelScheme

DICOM = ".dcm"
"""Suffix of a DICOM segmentation."""
_POSTFIXES = ("seg", "segmentation", "pred", "prediction", "label", "labels", "mask", "trans")
"""What is appended to a case's name, the likeliest first; MONAI's SaveImage takes any word."""
_WHOLE = ("combined_labels", "segmentations", "segmentation", "labels")
"""Names of the one label map in a case's folder, where it is not called as the case."""
_REMEDY = "resample the label map onto the image's grid"
ReadCoarse = Callable[[str, Grid], SchemeMap | None]
"""From a case and its scan's grid to the coarse label map that was given; None where none was."""

_SAID = 8
_WINS = "the organ that is smaller in the scan"


@dataclass(frozen=True)
class GivenMap:
    """One case's label map: one file of many values, or a mask per organ; what its names are.

    `names` has the name of each value of a single file; `organ_of` the names that are an organ of
    the cohort or a part of one.
    """

    case_id: str
    file: Path | None = None
    masks: Mapping[str, Path] = field(default_factory=dict)
    names: Mapping[int, str] = field(default_factory=dict)
    organ_of: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Survey:
    """What is known of all given maps before a voxel is read.

    `unmatched` counts the maps by name that is no organ; `absent` are the organs that no map has.
    """

    maps: Mapping[str, GivenMap]
    missing: tuple[str, ...]
    unmatched: Mapping[str, int]
    absent: tuple[str, ...]


def survey_maps(
    source: Path,
    case_ids: Sequence[str],
    scheme: LabelScheme,
    allow_missing: bool = False,
    remedy: str = "add them",
) -> Survey:
    """List the cases' label maps and match their names to the scheme's organs.

    In a folder, a case's map is `CASE.nii.gz` (nnU-Net, a table's folder), `CASE_seg.nii.gz` or
    `CASE/CASE_seg.nii.gz` (MONAI, which may keep nnU-Net's `_0000` in the name), or the masks
    `CASE/ORGAN.nii.gz` or `CASE/segmentations/ORGAN.nii.gz` (TotalSegmentator, AbdomenAtlas). DICOM
    segmentations are `CASE.dcm`, or the one file `.dcm` in a folder `CASE`. A `pretrain_data.json`
    (nnssl) names each image's anatomy mask.

    The values of a single file are named by the label table in it (of DICOM, by its segments), else
    by a `labels.json` or `dataset.json` beside it or in the source. Refused where a case has no map
    or two, label values have no names, or no name is an organ of the scheme.
    """
    drawn = anatomy_masks(source) if source.suffix == ".json" else {}
    maps = {case_id: GivenMap(case_id, drawn[case_id]) for case_id in case_ids if case_id in drawn}
    if not drawn:
        maps = {name: given for name in case_ids if (given := _in_folder(source, name))}
    missing = tuple(name for name in case_ids if name not in maps)
    if missing and not (allow_missing and maps):
        expected = f"{missing[0]}.nii.gz, or a folder {missing[0]} with one mask per organ"
        if source.suffix == ".json":
            expected = "an 'anatomy_mask' of it"
        raise DataError(
            f"{source.name}: no label map for {len(missing)} of {len(case_ids)} cases, the first is"
            f" {missing[0]}; expected {expected}; {remedy}"
        )
    unmatched = Counter[str]()
    for case_id, given in maps.items():
        names = {} if given.file is None else _names_of(given.file, source)
        listed = list(dict.fromkeys(names.values() if given.file is not None else given.masks))
        organ_of = match(listed, scheme.names)
        maps[case_id] = GivenMap(case_id, given.file, given.masks, names, organ_of)
        unmatched.update(name for name in listed if name not in organ_of)
    matched = {organ for given in maps.values() for organ in given.organ_of.values()}
    if not matched:
        raise DataError(
            f"{source.name}: none of its labels ({', '.join(list(unmatched)[:5])}) is an organ of"
            f" the cohort ({', '.join(scheme.names[:5])}); rename them"
        )
    absent = tuple(organ for organ in scheme.names if organ not in matched)
    return Survey(maps, missing, dict(unmatched.most_common()), absent)


def given_fingerprint(source: Path) -> str:
    """Return a hash of the places, sizes and times of all files that a source may be read from."""
    listed = [folder_fingerprint(source)]
    if source.suffix == ".json":
        listed += [folder_fingerprint(path) for path in anatomy_masks(source).values()]
    return hashlib.sha256("".join(listed).encode()).hexdigest()[:16]


def coarse_reader(source: Path | None, names: Sequence[str], scheme: LabelScheme) -> ReadCoarse:
    """Return what reads the given coarse map of a scan; the maps are listed before the first."""
    maps = {} if source is None else survey_maps(source, names, scheme).maps
    return functools.partial(_read_if_given, maps, scheme)


def _read_if_given(
    maps: Mapping[str, GivenMap], scheme: LabelScheme, name: str, grid: Grid
) -> SchemeMap | None:
    return read_given_map(maps[name], scheme, grid) if maps else None


def read_given_map(
    given: GivenMap, scheme: LabelScheme, grid: Grid, repairs_grid: bool = False
) -> SchemeMap:
    """Return a case's label map in the cohort's scheme, on the canonical grid of its scan.

    Names that are no organ of the scheme become background. Where masks of two organs overlap, the
    organ that is smaller in this scan wins.
    """
    rules = MapRules(scheme, repairs_grid=repairs_grid, remedy=_REMEDY)
    where, organ_of = f"case {given.case_id}", given.organ_of
    if given.file is None:
        organs = [organ for organ in scheme.names if organ in organ_of.values()]
        try:
            return lay_masks(given.masks, organ_of, organs, grid, rules)
        except DataError as error:
            raise DataError(f"{where}, {error}") from error
    if given.file.suffix == DICOM:  # its frames are laid on the scan's slices, or refused
        voxels, own, doubt = read_segmentation(given.file, grid).voxels, grid, ""
    else:
        voxels, own, frame = labels_in(given.file)
        doubt = frame.contradiction
    require_labels(voxels, given.file.name)
    names = given.names.items()
    label_of = {v: scheme.label_of(organ_of[name]) if name in organ_of else 0 for v, name in names}
    return dataclasses.replace(
        in_scheme(voxels, label_of, own, grid, rules, where), contradiction=doubt
    )


def _names_of(file: Path, source: Path) -> Mapping[int, str]:
    if file.suffix == DICOM:
        return dict(enumerate(segment_names(file), start=1))
    home = source if source.is_dir() else source.parent
    names = names_in_map(file) or names_in_folder(file.parent) or names_in_folder(home)
    if names is not None:
        return names.organs
    raise DataError(
        f"{file.name}: its label values have no names; write them into {TABLES[0]} beside the"
        ' maps, such as {"1": "spleen", "2": "liver"}'
    )


def _in_folder(source: Path, case_id: str) -> GivenMap | None:
    for suffix in (*SUFFIXES, DICOM):
        if (source / f"{case_id}{suffix}").is_file():
            return GivenMap(case_id, source / f"{case_id}{suffix}")
    for name in (case_id, f"{case_id}_0000"):
        flat = [source / f"{name}_{word}{suffix}" for word in _POSTFIXES for suffix in SUFFIXES]
        named = [path for path in flat if path.is_file()]
        whole = re.compile(f"{re.escape(name)}(_.*)?|{'|'.join(_WHOLE)}")
        named += [path for path in scan_files(source / name) if whole.fullmatch(stem_of(path))]
        named += sorted((source / name).glob(f"*{DICOM}"))
        if named:
            return GivenMap(case_id, _likeliest(named, name))
        for folder in (source / name / "segmentations", source / name):
            if masks := scan_files(folder):
                return GivenMap(case_id, masks={stem_of(path): path for path in masks})
    return None


def _likeliest(paths: list[Path], name: str) -> Path:
    """Return the label map among a case's files, which may hold the image too (MONAI's `trans`)."""

    def rank(path: Path) -> int:
        word = stem_of(path).removeprefix(name).lstrip("_")
        return _POSTFIXES.index(word) if word in _POSTFIXES else len(_POSTFIXES)

    first, *others = sorted(paths, key=rank)
    if others and rank(others[0]) == rank(first):
        raise DataError(
            f"case {name}: both {first.name} and {others[0].name} may be its label map; keep one"
        )
    return first


@dataclass(frozen=True, eq=False)
class GivenMaps:
    """The given maps of a cohort's scans, which are cleaned like those of our own networks."""

    survey: Survey
    scheme: LabelScheme
    grids: Mapping[str, Grid]
    repairs_grid: bool

    def locate(self, case: Case) -> tuple[LabelMap, SchemeMap | None]:
        """Return a case's cleaned map, empty where none is given, and the given one."""
        grid = self.grids[case.case_id]
        if case.case_id not in self.survey.maps:
            return LabelMap(np.zeros(grid.shape, self.scheme.label_type), grid, self.scheme), None
        given = read_given_map(self.survey.maps[case.case_id], self.scheme, grid, self.repairs_grid)
        return cleaned(given.label_map.voxels, grid, self.scheme), given

    def record(self, read: Mapping[str, tuple[Decided, Sequence[int]]]) -> dict[str, object]:
        """Return what to record of the maps, and say what was decided.

        `read` has what reading each case's map decided, and its label values without a name.
        """
        survey, decisions, unnamed = self.survey, Decisions(), Counter[int]()
        for case_id, (decided, values) in read.items():
            decisions.note(case_id, decided)
            unnamed.update(values)
        for line in decisions.lines(_WINS, "the map of", "maps"):
            say(f"locate: {line}")
        if unnamed:
            named = in_short(list(map(str, sorted(unnamed))), _SAID)
            say(f"locate: label values without a name became background: {named}")
        return {
            "maps": len(survey.maps),
            "missing": {"scans": len(survey.missing), "first": list(survey.missing[:_SAID])},
            "unmatched_names": dict(survey.unmatched),
            "absent_organs": list(survey.absent),
            "unnamed_values": {str(value): n for value, n in sorted(unnamed.items())},
            "repaired_grids": decisions.repaired_grids,
            "contradictions": decisions.contradictions,
            "overlap": {
                "wins": _WINS,
                "scans": len(decisions.overlaps),
                "voxels": decisions.contested.total(),
                "pairs": dict(decisions.contested.most_common()),
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
        paths = [given.file] if given.file else [given.masks[name] for name in given.organ_of]
        for path in filter(is_nifti, paths):
            own = canonical_grid(frame_in(path).grid)
            if not same_grid(grids[case_id], own):
                other.setdefault(case_id, (path, own))
    if not other:
        return
    case_id, (path, own) = next(iter(other.items()))
    so_many = f"{len(other)} of {len(survey.maps)}"
    if not repairs_grid:
        mask = f", mask {path.name}" if survey.maps[case_id].file is None else ""
        remedy = (
            f"{so_many} cases are like this; resample the maps onto their scans' grids, which"
            " `--locate.maps.repair_grid nearest` does"
        )
        require_same_grid(grids[case_id], own, f"case {case_id}{mask}", remedy)
    say(
        f"locate: {so_many} given maps are on a grid other than their scan's, first {case_id};"
        " resampled by nearest neighbor"
    )


def _announce(survey: Survey, scheme: LabelScheme) -> None:
    """Say how the names were understood, and what there is no map of."""
    say(f"locate: {len(survey.maps)} given maps")
    if survey.unmatched:
        left_out = in_short(list(survey.unmatched), _SAID)
        say(f"locate: left out, not organs of {scheme.name}: {left_out}")
    if survey.absent:
        them = "it" if len(survey.absent) == 1 else "them"
        absent = ", ".join(survey.absent)
        say(f"locate: no given map has {absent}; no patch can be cut around {them}")
    if survey.missing:
        scans = f"{len(survey.missing)} scans, the first {', '.join(survey.missing[:3])}"
        say(f"locate: no map for {scans}; without organs they give no patches")
