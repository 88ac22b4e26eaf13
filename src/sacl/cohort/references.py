"""Read a label map, or a mask per organ, in the cohort's scheme and on its scan's grid.

Masks may overlap: a rule says which organ a contested voxel is given to, and all are counted.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Integer

from sacl.cohort.annotation import label_of_value
from sacl.cohort.dataset import Dataset, SourceCase, first_of, naming_case
from sacl.errors import DataError
from sacl.files.arrays import distinct_values, relabeled
from sacl.files.itk import labels_in
from sacl.geometry import repaired, require_same_grid, resample_nearest, same_grid
from sacl.organs import match
from sacl.types import Grid, LabelMap, LabelScheme

Overlap = Literal["smaller", "first", "error"]
"""Who gets a contested voxel: the organ with fewer voxels in this scan, or that listed first."""
_WORTH_SAYING = 0.0005
"""Share of an image outside of its label map from which on it is mentioned."""
REMEDY = "resample the label map onto the image's grid, which `--ingest.repair_grid nearest` does"


Decided = tuple[Mapping[str, int], str, str]
"""Of a case: voxels that two organs claim, by pair, how its map was resampled, headers' doubts."""


@dataclass(frozen=True)
class MapRules:
    """How label maps are read: the organs, who wins where masks overlap, whether to resample.

    `remedy` is what a refusal of another grid advises.
    """

    scheme: LabelScheme
    overlap: Overlap = "smaller"
    repairs_grid: bool = False
    remedy: str = REMEDY


@dataclass(frozen=True, eq=False)
class SchemeMap:
    """A label map in the cohort's scheme on its scan's grid, and what was decided on the way.

    `contested` are the voxels that masks of two organs claim, by `a and b`; `unnamed` the label
    values without a name, which became background; `repair` says how the map's own grid differed;
    `contradiction` how a header of it contradicts itself.
    """

    label_map: LabelMap
    contested: Mapping[str, int] = field(default_factory=dict)
    unnamed: tuple[int, ...] = ()
    repair: str = ""
    contradiction: str = ""

    @property
    def doubts(self) -> list[str]:
        """What a reader of the map should know, in words."""
        values = ", ".join(map(str, self.unnamed))
        unnamed = f"label values without a name became background: {values}" if values else ""
        return [text for text in (self.contradiction, unnamed) if text]


def read_source_map(
    dataset: Dataset, case: SourceCase, annotated: tuple[str, ...], grid: Grid, rules: MapRules
) -> SchemeMap:
    """Read what is annotated of a case, by label values of the cohort's scheme.

    Refused on another grid than the image's, with values that the source does not name, voxels to
    be ignored, masks that overlap and may not; or where a training scan's map is background alone.
    """
    with naming_case(case):
        if case.reference is None:
            organ_of = match(list(case.masks), annotated)
            return lay_masks(case.masks, organ_of, annotated, grid, rules)
        voxels, own, frame = labels_in(case.reference)
        label_of = label_of_value(dataset, case, rules.scheme, annotated)
        _require_known(case, distinct_values(voxels), label_of, dataset.ignored_in(case))
        laid = in_scheme(voxels, label_of, own, grid, rules, f"case {case.case_id}")
        return dataclasses.replace(laid, contradiction=frame.contradiction)


def in_scheme(
    voxels: Integer[np.ndarray, "i j k"],
    label_of: Mapping[int, int],
    own: Grid,
    grid: Grid,
    rules: MapRules,
    where: str,
) -> SchemeMap:
    """Return a label map on the scan's grid by the scheme's label of each value, 0 without one."""
    voxels, repair = on_grid(voxels, own, grid, rules, where)
    values = distinct_values(voxels)
    table = np.zeros(max(values) + 1, rules.scheme.label_type)
    for value in values & set(label_of):
        table[value] = label_of[value]
    label_map = LabelMap(relabeled(voxels, table), grid, rules.scheme)
    unnamed = tuple(sorted(values - set(label_of) - {0}))
    return SchemeMap(label_map, unnamed=unnamed, repair=repair)


def merged_into(label_map: LabelMap, scheme: LabelScheme) -> LabelMap:
    """Return a label map in another scheme, parts merged into their whole, other organs left out.

    Every organ of the scheme has to be complete in the map's own one.
    """
    organ_of = match(label_map.scheme.names, scheme.names)
    label_of = [
        scheme.label_of(organ_of[n]) if n in organ_of else 0 for n in label_map.scheme.names
    ]
    table = np.array([0, *label_of], scheme.label_type)
    return LabelMap(relabeled(label_map.voxels, table), label_map.grid, scheme)


def _require_known(
    case: SourceCase, values: set[int], label_of: Mapping[int, int], ignore: int | None
) -> None:
    if ignore in values:
        raise DataError(
            f"case {case.case_id}: its label map has voxels of the value {ignore}, 'ignore';"
            " complete the annotation, or remove this label map so that the scan counts as"
            " unlabeled"
        )
    strange = sorted(values - set(label_of) - {0})
    if strange:
        raise DataError(
            f"case {case.case_id}: label values {strange[:10]} outside the dataset's scheme, which"
            f" has {sorted(label_of)}; correct the label map or the scheme"
        )
    if case.split == "train" and values <= {0}:
        raise DataError(
            f"case {case.case_id}: empty label map, every voxel is background; correct it, or"
            " remove it so that the scan counts as unlabeled"
        )


def lay_masks(
    files: Mapping[str, Path],
    organ_of: Mapping[str, str],
    organs: Sequence[str],
    grid: Grid,
    rules: MapRules,
) -> SchemeMap:
    """Lay the masks of each organ together, then those of all organs; others are not even read.

    `organ_of` says of which of the scheme's organs a mask, by its name in `files`, is the whole or
    a part; `organs` are those to read, in the scheme's order. A mask that is not binary is
    refused, and one that overlaps where that is an error.
    """
    masks: dict[str, np.ndarray] = {}
    repairs, doubts = [], []
    for organ in organs:
        inside = np.zeros(grid.shape, np.bool_, order="F")
        for name in (name for name in files if organ_of.get(name) == organ):
            voxels, own, frame = labels_in(files[name])
            voxels = mask_in(voxels, f"mask {name}")
            voxels, repair = on_grid(voxels, own, grid, rules, f"mask {name}")
            inside |= voxels
            repairs += [f"{name}: {repair}"] if repair else []
            doubts += [frame.contradiction] if frame.contradiction else []
        small = np.min_scalar_type(inside.size)  # half the memory of NumPy's own index
        masks[organ] = np.flatnonzero(inside.ravel("F")).astype(small)
    labels = [rules.scheme.label_of(organ) for organ in organs]
    voxels, contested = merge_masks(masks, labels, grid.shape, rules.overlap)
    if contested and rules.overlap == "error":
        pair, count = next(iter(contested.items()))
        raise DataError(
            f"the masks of {pair} overlap in {count} voxels"
            f" ({len(contested)} such pairs); correct them, or let the smaller or the first organ"
            " win with --ingest.overlap smaller or first"
        )
    label_map = LabelMap(voxels.astype(rules.scheme.label_type, copy=False), grid, rules.scheme)
    doubt = next(iter(doubts), "")
    return SchemeMap(label_map, contested, repair="; ".join(repairs), contradiction=doubt)


def mask_in(voxels: Integer[np.ndarray, "i j k"], where: str) -> Bool[np.ndarray, "i j k"]:
    """Return where a mask is not 0, and refuse one with two other values."""
    inside = np.asarray(voxels != 0, dtype=np.bool_, order="F")
    value = voxels.max() or voxels.min()
    if not np.array_equal(voxels == value, inside) and inside.any():
        raise DataError(
            f"{where}: values {sorted(distinct_values(voxels))[:5]}, expected 0 and one other;"
            " this is not a binary mask"
        )
    return inside


def on_grid(
    voxels: Integer[np.ndarray, "i j k"] | Bool[np.ndarray, "i j k"],
    own: Grid,
    grid: Grid,
    rules: MapRules,
    where: str,
) -> tuple[np.ndarray, str]:
    """Return a map on the image's grid, and what was done to it; refused where it may not be."""
    if same_grid(grid, own):
        return voxels, ""
    if not rules.repairs_grid:
        require_same_grid(grid, own, where, rules.remedy)
    moved, words = repaired(voxels, own, grid, where)
    everywhere = np.broadcast_to(np.uint8(1), own.shape)
    outside = 1 - np.count_nonzero(resample_nearest(everywhere, own, grid)) / moved.size
    if outside >= _WORTH_SAYING:
        words += f"; {outside:.1%} of the image lie outside of it and count as background"
    return moved, words


def merge_masks(
    masks: Mapping[str, Integer[np.ndarray, " voxel"]],
    labels: Sequence[int],
    shape: tuple[int, int, int],
    rule: Overlap,
) -> tuple[Integer[np.ndarray, "i j k"], dict[str, int]]:
    """Return a label map of the organs' masks, and the contested voxels by `a and b`.

    A mask is given by its voxels' places where i runs fastest. With `smaller` the organ of fewer
    voxels here wins, so that nothing small vanishes within something large, else (and of equal
    ones) the one listed first. A voxel that three masks claim counts for each of their pairs.
    """
    voxels = np.zeros(math.prod(shape), np.min_scalar_type(max(labels, default=0)))
    contested = np.zeros(voxels.size, np.bool_)
    order = list(zip(masks.values(), labels, strict=True))
    if rule == "smaller":
        order.sort(key=lambda claim: len(claim[0]))
    for places, label in reversed(order):  # the winner is written last
        contested[places] |= voxels[places] > 0
        voxels[places] = label
    shared = {organ: places[contested[places]] for organ, places in masks.items()}
    pairs = Counter[str]()
    for a, b in itertools.combinations(masks, 2):
        both = np.intersect1d(shared[a], shared[b], assume_unique=True)
        pairs[f"{a} and {b}"] = len(both)
    counts = {pair: count for pair, count in pairs.most_common() if count}
    return voxels.reshape(shape, order="F"), counts


@dataclass(frozen=True)
class Decisions:
    """What reading label maps decided, by case: contested voxels, resampling, headers in doubt."""

    overlaps: dict[str, Mapping[str, int]] = field(default_factory=dict)
    repaired_grids: dict[str, str] = field(default_factory=dict)
    contradictions: dict[str, str] = field(default_factory=dict)

    def note(self, case_id: str, decided: Decided) -> None:
        """Keep what was decided of a case, if there was something to decide."""
        contested, repair, contradiction = decided
        self.overlaps.update({case_id: contested} if contested else {})
        self.repaired_grids.update({case_id: repair} if repair else {})
        self.contradictions.update({case_id: contradiction} if contradiction else {})

    @property
    def contested(self) -> Counter[str]:
        """Contested voxels by pair of organs, over all cases."""
        return sum(map(Counter, self.overlaps.values()), Counter[str]())

    def lines(self, winner: str, where: str = "case", what: str = "scans") -> Iterator[str]:
        """Yield in words what headers and overlapping masks left open, and who won a voxel."""
        if self.contradictions:
            first = first_of(list(self.contradictions.items()), what)
            yield f"WARNING, the header contradicts itself in {where} {first}"
        if self.overlaps:
            worst, count = self.contested.most_common(1)[0]
            yield (
                f"masks overlap in {len(self.overlaps)} scans by {self.contested.total()} voxels,"
                f" most of all {worst} by {count}; {winner} wins; run.json has all pairs"
            )
