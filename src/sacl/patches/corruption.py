"""Attention masks that err as the coarse network errs, made from reference masks while training.

The labeled scans are few, and their cross-fitted attention shows each slice with one error only.
So the errors are measured there, and training draws new ones of the same size: the reference is
shifted, scaled and bent smoothly, as strongly as it takes to bring its Dice down to one drawn from
the organ's measured distribution. A segmenter trained on such attention corrects it; trained on
perfect attention it would copy it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

_QUANTILES = 33
_FEWEST = 16
_STRONGEST = 16.0
_BISECTIONS = 8
_KNOTS = 5
_LEAST_PIXELS = 4


@dataclass(frozen=True, eq=False)
class AttentionErrors:
    """How the attention of the labeled patches differs from their reference, per organ.

    `dice` holds rising quantiles of the Dice; `shift` is the root mean square distance of the
    centers of mass along an axis, in patch sides; `log_area` that of the logarithm of the ratio of
    the areas.
    """

    dice: Float[Tensor, "organ quantile"]
    shift: Float[Tensor, " organ"]
    log_area: Float[Tensor, " organ"]

    def to(self, device: torch.device) -> AttentionErrors:
        """Return the same on a device."""
        parts = (self.dice, self.shift, self.log_area)
        return AttentionErrors(*(part.to(device) for part in parts))


def mask_dice(a: Float[Tensor, "n i j"], b: Float[Tensor, "n i j"]) -> Float[Tensor, " n"]:
    """Return the Dice of masks of area coverage, at least half being inside.

    Two empty masks give NaN.
    """
    inside_a, inside_b = a >= 0.5, b >= 0.5
    overlap = (inside_a & inside_b).sum(dim=(1, 2))
    return 2 * overlap / (inside_a.sum(dim=(1, 2)) + inside_b.sum(dim=(1, 2)))


def _centers(mask: Float[Tensor, "n i j"]) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 2"]]:
    """Return areas in pixels, and centers of mass (i, j) in sides from the middle."""
    size = mask.shape[-1]
    axis = (torch.arange(size, device=mask.device) + 0.5) / size - 0.5
    area = mask.sum(dim=(1, 2))
    along_i = (mask.sum(dim=2) * axis).sum(dim=1)
    along_j = (mask.sum(dim=1) * axis).sum(dim=1)
    return area, torch.stack([along_i, along_j], dim=1) / area.clamp(min=1e-6)[:, None]


def measure_errors(
    attention: Float[Tensor, "n i j"],
    reference: Float[Tensor, "n i j"],
    organ: Int[Tensor, " n"],
    organs: int,
) -> AttentionErrors:
    """Measure how attention errs.

    Patches in which either mask is empty say nothing about size and place and are left out; in
    training they keep the attention that they have. An organ with fewer than 16 patches takes the
    errors of all organs. Both masks are area coverage in [0, 1]; the attention is of networks that
    never saw the subject.
    """
    area_a, center_a = _centers(attention)
    area_r, center_r = _centers(reference)
    both = (area_a >= _LEAST_PIXELS) & (area_r >= _LEAST_PIXELS)
    dice = mask_dice(attention, reference).nan_to_num(0.0)
    squared_shift = (center_a - center_r).square().mean(dim=1)
    squared_log = (area_a.clamp(min=1e-6) / area_r.clamp(min=1e-6)).log().square()
    levels = torch.linspace(0, 1, _QUANTILES, dtype=dice.dtype, device=dice.device)
    if not bool(both.any()):  # no organ has both masks: draw perfect attention
        nothing = dice.new_zeros(organs)
        return AttentionErrors(dice.new_ones(organs, _QUANTILES), nothing, nothing)
    quantiles, shift, log_area = [], [], []
    for index in range(organs):
        chosen = both & (organ == index)
        if int(chosen.sum()) < _FEWEST:
            chosen = both
        quantiles.append(torch.quantile(dice[chosen], levels))
        shift.append(squared_shift[chosen].mean().sqrt())
        log_area.append(squared_log[chosen].mean().sqrt())
    return AttentionErrors(torch.stack(quantiles), torch.stack(shift), torch.stack(log_area))


def corrupt(
    reference: Float[Tensor, "n i j"],
    organ: Int[Tensor, " n"],
    errors: AttentionErrors,
    generator: torch.Generator,
) -> Float[Tensor, "n i j"]:
    """Return a perturbed copy of reference masks whose Dice is distributed as measured.

    Each patch draws a Dice from its organ's measured distribution and a direction: a shift, a
    change of size and a smooth bending, in the measured proportions. How far to go in that
    direction is decided by bisection, for all patches at once. An empty mask stays empty. The
    errors are on the reference's device; the generator may be on any.
    """
    goal = _draw_dice(errors.dice[organ], generator)
    shift, log_radius, bend = _draw_direction(reference, organ, errors, generator)
    low = reference.new_zeros(len(reference))
    high = torch.full_like(low, _STRONGEST)
    for _ in range(_BISECTIONS):
        # Perturbations span decades; halving the logarithm finds the small ones as well.
        middle = ((low + 0.01) * (high + 0.01)).sqrt() - 0.01
        reached = mask_dice(_warp(reference, shift, log_radius, bend, middle), reference)
        milder = reached.nan_to_num(1.0) > goal
        low, high = torch.where(milder, middle, low), torch.where(milder, high, middle)
    return _warp(reference, shift, log_radius, bend, low)


def _draw_dice(
    quantiles: Float[Tensor, "n quantile"], generator: torch.Generator
) -> Float[Tensor, " n"]:
    """Draw from distributions by inverting them, linear in between."""
    count, levels = quantiles.shape
    uniform = torch.rand(count, generator=generator, device=generator.device)
    place = (levels - 1) * uniform.to(quantiles.device)
    below = place.floor().long().clamp(max=levels - 2)
    rows = torch.arange(count, device=quantiles.device)
    return torch.lerp(quantiles[rows, below], quantiles[rows, below + 1], place - below)


def _draw_direction(
    reference: Float[Tensor, "n i j"],
    organ: Int[Tensor, " n"],
    errors: AttentionErrors,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "n 2"], Float[Tensor, " n"], Float[Tensor, "n 2 i j"]]:
    """Draw shifts, logarithms of the radius, and fields of displacements, in sides."""
    count, size = len(reference), reference.shape[-1]

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=generator.device).to(
            reference.device
        )

    # The bending is as large as the shift, and never nothing: without it an organ that is always
    # seen in the right place and size could not be made to err at all.
    typical = errors.shift[organ].clamp(min=0.005)
    knots = normal(count, 2, _KNOTS, _KNOTS) * typical[:, None, None, None]
    bend = torch.nn.functional.interpolate(knots, size=(size, size), mode="bicubic")
    shift = normal(count, 2) * typical[:, None]
    return shift, 0.5 * normal(count) * errors.log_area[organ].clamp(max=1.0), bend


def _warp(
    mask: Float[Tensor, "n i j"],
    shift: Float[Tensor, "n 2"],
    log_radius: Float[Tensor, " n"],
    bend: Float[Tensor, "n 2 i j"],
    strength: Float[Tensor, " n"],
) -> Float[Tensor, "n i j"]:
    """Move, scale about its center and bend each mask, by its strength times the given amounts."""
    size = mask.shape[-1]
    axis = (torch.arange(size, device=mask.device) + 0.5) / size - 0.5
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1)
    _, center = _centers(mask)
    center = center[:, None, None]
    # A shrunken organ keeps a third of its radius, a grown one gets to three times it.
    growth = torch.exp(-(strength * log_radius).clamp(-1.1, 1.1))[:, None, None, None]
    offset = shift[:, None, None] + bend.movedim(1, -1)
    source = center + (grid - center) * growth - strength[:, None, None, None] * offset
    # grid_sample wants (j, i) in [-1, 1].
    warped: Tensor = torch.nn.functional.grid_sample(
        mask[:, None], 2 * source.flip(-1), mode="bilinear", align_corners=False
    )
    return warped[:, 0]
