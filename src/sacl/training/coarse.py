"""Scans on a coarse grid in memory, crops of them, and the loss of a network on volumes.

Copy-paste puts a box of one crop into another one, as `training.finetune` does with slices.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int16, Int64, Shaped
from torch import Tensor, nn
from torch.nn import functional

from sacl import ranks
from sacl.errors import DataError
from sacl.files.arrays import set_aside
from sacl.geometry import canonical_grid, volume_grid
from sacl.losses.segmentation import class_weights
from sacl.networks.coarse import CoarseSpec, Triple, plan_levels
from sacl.patches.coarse_grid import coarse_grid, image_to_coarse, labels_to_coarse
from sacl.patches.views import (
    VIEWS,
    BatchGenerator,
    ViewRanges,
    change_intensity,
    per_sample,
    resample,
)
from sacl.training.finetune import (
    BALANCE,
    PASTED_SHARE,
    TRUST,
    Labeled,
    Labeling,
    loss_of_levels,
    paste,
)
from sacl.training.pace import Plan
from sacl.types import Grid, LabelMap, LabelScheme, Volume

_FOREGROUND = 0.67
"""Share of the crops that are centered on a voxel of an organ, each organ being as likely."""
_ROTATION_DEG = 20.0
_TILT_DEG = 8.0
_SCALE = 0.35
_STRETCH = 0.1
_SHIFT = 0.1
_MARGIN = 1.3
"""Crops are cut this much larger, so that a turned one has no empty corners."""
_THIN = 4
"""A crop of up to so many voxels along an axis is pasted over all of it."""
INTENSITY = ViewRanges(brightness=0.1, contrast=0.3, gamma=0.5, noise=0.06)


@dataclass(frozen=True, eq=False)
class CoarseCase:
    """A labeled scan on the coarse grid; `annotated[n]` if somebody looked for organ n + 1 in it.

    The image is in [0, 1].
    """

    image: Float[Tensor, "i j k"]
    labels: Int16[Tensor, "i j k"]
    annotated: Bool[Tensor, " organ"]
    spacing_mm: tuple[float, float, float]

    @cached_property
    def present(self) -> Int64[Tensor, " present"]:
        """The labels of the organs that it holds."""
        values = self.labels.unique().long()
        return values[values > 0]

    def on_disk(self, folder: Path) -> CoarseCase:
        """Return the same, mapped from a nameless file in a folder (`arrays.set_aside`)."""
        parts = (set_aside([part.numpy()], folder) for part in (self.image, self.labels))
        image, labels = map(torch.from_numpy, parts)
        return replace(self, image=image, labels=labels)


Place = tuple[CoarseCase, list[int]]
"""A scan, and the voxel around which a crop of it is cut."""


def coarse_case(
    volume: Volume,
    reference: LabelMap,
    window: tuple[float, float],
    annotated: Sequence[str],
    spacing_mm: tuple[float, float, float],
    in_plane_size: int | None = None,
) -> CoarseCase:
    """Return a labeled scan on its coarse grid (`coarse_grid.coarse_grid`), on the CPU."""
    grid = coarse_grid(volume.grid, spacing_mm, in_plane_size)
    cpu, organs = torch.device("cpu"), reference.scheme.names
    return CoarseCase(
        image_to_coarse(volume.voxels, window, grid, cpu),
        labels_to_coarse(reference.voxels, len(organs), grid, cpu),
        torch.tensor([organ in annotated for organ in organs]),
        grid.spacing_mm,
    )


def spec_of_scans(
    scheme: LabelScheme, native: Sequence[Grid], large: bool, channels: int
) -> CoarseSpec:
    """Return the network for scans that lie on these grids in their files (`volume_grid`)."""
    grids = list(map(canonical_grid, native))
    sides_mm = np.median([np.multiply(grid.shape, grid.spacing_mm) for grid in grids], axis=0)
    own_mm = np.median([grid.spacing_mm for grid in grids], axis=0)
    spacing_mm, crop = volume_grid(own_mm.tolist(), sides_mm.tolist(), large)
    return volume_spec(scheme, [spacing_mm], crop, None, channels)


def volume_spec(
    scheme: LabelScheme,
    spacings_mm: Sequence[tuple[float, float, float]],
    crop: Triple,
    in_plane_size: int | None,
    channels: int,
) -> CoarseSpec:
    """Return the network for scans of these coarse spacings."""
    i, j, k = np.median(spacings_mm, axis=0)
    spacing_mm = (float(i), float(j), float(k))
    crop, kernels, strides = plan_levels(crop, spacing_mm)
    return CoarseSpec(
        scheme=scheme.name,
        organs=scheme.names,
        spacing_mm=spacing_mm,
        in_plane_size=in_plane_size,
        crop=crop,
        channels=channels,
        kernels=kernels,
        strides=strides,
    )


class CropTask:
    """Random crops of labeled volumes, changed in intensity, and the loss of a step.

    Most crops lie around an organ. They are turned, scaled, shifted and changed in one batch on the
    device; nothing is flipped, since left and right organs differ. Images of the unlabeled scans
    may be in half precision; their labels say where crops are drawn.
    """

    def __init__(
        self,
        cases: Sequence[CoarseCase],
        spec: CoarseSpec,
        plan: Plan,
        device: torch.device,
        unlabeled: Sequence[CoarseCase] = (),
    ) -> None:
        self.cases, self.unlabeled, self.spec, self.device = cases, unlabeled, spec, device
        self.batch, self.seed = plan.batch, plan.seed
        self.ranges = VIEWS[plan.augment] if plan.augment else INTENSITY
        classes = 1 + len(spec.organs)
        counts = [case.labels.flatten().long().bincount(minlength=classes) for case in cases]
        counted = torch.stack(counts).sum(dim=0).float()
        self.weights = class_weights(counted, BALANCE).to(device)

    def generator(self, step: int) -> BatchGenerator:
        """Return the generator of one step, the same however the training got there."""
        generator = BatchGenerator()
        generator.manual_seed(self.seed * 1_000_003 + step)
        generator.keep(ranks.own(self.batch), self.batch)
        return generator

    def drawn(self, cases: Sequence[CoarseCase], generator: torch.Generator) -> Labeled:
        """Draw a batch of crops of some volumes, of which this rank's are made."""
        return draw_crops(cases, self.spec.crop, self.batch, generator, self.device)

    def _changed(self, crops: Labeled, generator: torch.Generator) -> Labeled:
        return crops._replace(image=change_voxels(crops.image, self.ranges, generator))

    def loss(self, network: nn.Module, step: int) -> Float[Tensor, ""]:
        """Return the loss of one step."""
        generator = self.generator(step)
        crops = self._changed(self.drawn(self.cases, generator), generator)
        return loss_of_levels(network(crops.image), crops, self.weights)

    def mixed(self, step: int, label: Labeling) -> tuple[Labeled, Float[Tensor, "n i j k"]]:
        """Return this rank's mixed crops of a step, and how much each of their voxels counts.

        In every other step the box is the unlabeled crop's. Where no scan is unlabeled, labeled
        crops are mixed with each other, as they were drawn.
        """
        generator = self.generator(step)
        by_hand = self.drawn(self.cases, generator)
        other = self.drawn(self.unlabeled or self.cases, generator)
        if self.unlabeled:
            everything = torch.ones_like(other.annotated)
            other = other._replace(labels=label(other.image), annotated=everything)
        by_hand, other = (self._changed(crops, generator) for crops in (by_hand, other))
        inside = random_boxes(len(by_hand.image), self.spec.crop, generator, self.device)
        inside = ~inside if step % 2 else inside
        counts = torch.where(inside, 1.0, TRUST if self.unlabeled else 1.0)
        return paste(by_hand, other, inside), counts


def random_boxes(
    count: int, crop: Triple, generator: torch.Generator, device: torch.device
) -> Bool[Tensor, "count i j k"]:
    """Draw a box anywhere inside every crop, `PASTED_SHARE` of its sides: True inside."""
    inside = torch.ones(count, *crop, dtype=torch.bool)
    for axis, size in enumerate(crop):
        side = round(PASTED_SHARE * size) if size > _THIN else size
        start = per_sample(partial(torch.randint, size - side + 1), [count, 1], generator)
        position = torch.arange(size)
        along = (position >= start) & (position < start + side)
        inside &= along.view(count, *(size if a == axis else 1 for a in range(3)))
    return inside.to(device)


def require_organs(labels: Iterable[Shaped[Tensor | np.ndarray, "_ _ _"]], who: str) -> None:
    """Refuse labeled scans by their labels, a DataError where none holds an organ."""
    if not any(bool(one.any()) for one in labels):
        raise DataError(f"{who} hold no organ; check their references")


def draw_crops(
    cases: Sequence[CoarseCase],
    crop: Triple,
    count: int,
    generator: torch.Generator,
    device: torch.device,
) -> Labeled:
    """Return random crops of random cases, turned, scaled and shifted; 0 outside of a scan.

    Of the `count` crops of a step a rank makes its own alone.
    """
    places = (_random_place(cases, generator) for _ in range(count))
    drawn, stored = cut_around(places, crop, ranks.own(count), generator)
    turned = turn_crops(stored.to(device), drawn, crop, generator, nearest_channels=(1,))
    annotated = torch.stack([case.annotated for case in drawn]).to(device)
    return Labeled(turned[:, :1], turned[:, 1].long(), annotated)


def cut_around(
    places: Iterable[Place],
    crop: Triple,
    own: Int[np.ndarray, " own"],
    generator: torch.Generator,
) -> tuple[list[CoarseCase], Float[Tensor, "own 2 a b c"]]:
    """Return image and labels around those of the places that are this rank's, and their scans.

    They have a margin in which a crop can be turned, and are 0 outside of a scan.
    """
    wide = [math.ceil(n * _MARGIN) for n in crop]
    drawn, stored = [], []
    for number, (case, center) in enumerate(places):
        start = [
            _random_start(middle, size, n, generator) - (m - n) // 2
            for middle, size, n, m in zip(center, case.image.shape, crop, wide, strict=True)
        ]
        if number in own:
            drawn.append(case)
            parts = (_cut(voxels, start, wide).float() for voxels in (case.image, case.labels))
            stored.append(torch.stack([*parts]))
    return drawn, torch.stack(stored)


def turn_crops(
    stored: Float[Tensor, "n channel a b c"],
    cases: Sequence[CoarseCase],
    crop: Triple,
    generator: torch.Generator,
    nearest_channels: Sequence[int] = (),
) -> Float[Tensor, "n channel i j k"]:
    """Turn, scale and shift what `cut_around` cut of the cases, all channels on one grid."""
    spacing = torch.tensor([case.spacing_mm for case in cases])
    theta = random_turns(spacing, crop, stored.shape[2:], generator)
    return resample(stored, theta.to(stored.device), crop, 1.0, nearest_channels)


def change_voxels(
    image: Float[Tensor, "n 1 i j k"], ranges: ViewRanges, generator: torch.Generator
) -> Float[Tensor, "n 1 i j k"]:
    """Change the intensity as of slices, but for the blur; the pad outside of a scan stays 0."""
    changed = change_intensity(image.flatten(2, 3), replace(ranges, blur=0.0), generator)
    return changed.view_as(image) * (image > 0)


def random_turns(
    spacing_mm: Float[Tensor, "n 3"],
    crop: Triple,
    wide: Sequence[int],
    generator: torch.Generator,
) -> Float[Tensor, "n 3 4"]:
    """Return maps for `affine_grid`: rotation and scaling about the center, and a shift.

    Rotation is in mm and mostly about k; scans of thick slices are not tilted.
    """
    count = len(spacing_mm)
    signed = 2 * per_sample(torch.rand, [count, 10], generator) - 1
    thick = spacing_mm.max(dim=1).values > 2.5 * spacing_mm.min(dim=1).values
    limit_deg = torch.tensor([_TILT_DEG, _TILT_DEG, _ROTATION_DEG]).repeat(count, 1)
    limit_deg[thick, :2] = 0.0
    turn = torch.eye(3).repeat(count, 1, 1)
    for axis, angle in enumerate((signed[:, :3] * limit_deg).deg2rad().T):
        turn = turn @ _rotation(axis, angle)
    stretch = (
        signed[:, 3:4] * math.log(1 + _SCALE) + signed[:, 4:7] * math.log(1 + _STRETCH)
    ).exp()
    voxels = turn * stretch[:, None, :] * spacing_mm[:, None, :] / spacing_mm[:, :, None]
    # affine_grid counts in half sides of the crop, and names the axes from the last to the first.
    relative = voxels * torch.tensor(crop) / torch.tensor(wide)[:, None]
    odd = torch.tensor([((m - n) % 2) / m for n, m in zip(crop, wide, strict=True)])
    shift = 2 * _SHIFT * relative @ signed[:, 7:, None] - odd[:, None]
    return torch.cat([relative, shift], dim=2).flip(1)[:, :, [2, 1, 0, 3]]


def _rotation(axis: int, angle: Float[Tensor, " n"]) -> Float[Tensor, "n 3 3"]:
    turn = torch.eye(3).repeat(len(angle), 1, 1)
    a, b = [other for other in range(3) if other != axis]
    turn[:, a, a] = turn[:, b, b] = angle.cos()
    turn[:, a, b], turn[:, b, a] = -angle.sin(), angle.sin()
    return turn


def _random_index(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (1,), generator=generator))


def _random_place(cases: Sequence[CoarseCase], generator: torch.Generator) -> Place:
    case = cases[_random_index(len(cases), generator)]
    present = case.present
    if len(present) and torch.rand(1, generator=generator) < _FOREGROUND:
        return place_in(case, int(present[_random_index(len(present), generator)]), generator)
    return case, [_random_index(n, generator) for n in case.image.shape]


def place_in(case: CoarseCase, label: int, generator: torch.Generator) -> Place:
    """Return a random voxel of an organ that a scan's labels hold."""
    voxels = (case.labels == label).nonzero()
    return case, [int(n) for n in voxels[_random_index(len(voxels), generator)]]


def _random_start(center: int, size: int, crop: int, generator: torch.Generator) -> int:
    """Return where a crop starts along one axis: around its center, and as full as it can be."""
    if size <= crop:
        return size - crop + _random_index(crop - size + 1, generator)
    jitter = _random_index(crop // 2 + 1, generator) - crop // 4
    return min(max(center - crop // 2 + jitter, 0), size - crop)


def _cut(
    voxels: Shaped[Tensor, "i j k"], start: Sequence[int], shape: Sequence[int]
) -> Shaped[Tensor, "a b c"]:
    """Return a part of a volume, 0 outside of it: a negative pad cuts."""
    spans = zip(start, shape, voxels.shape, strict=True)
    pad = [amount for a, n, size in spans for amount in (a + n - size, -a)]
    return functional.pad(voxels, pad[::-1])
