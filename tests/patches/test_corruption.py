"""Corrupted attention errs by as much as it was measured to err."""

import pytest
import torch

from sacl.patches.corruption import AttentionErrors, corrupt, mask_dice, measure_errors

SIZE = 64


def disks(count, generator, low=0.12, high=0.3):
    """Return masks of ellipses `[count, i, j]` of random radius, place and shape."""
    axis = (torch.arange(SIZE) + 0.5) / SIZE - 0.5
    i, j = torch.meshgrid(axis, axis, indexing="ij")
    radius = low + (high - low) * torch.rand(count, 2, 1, 1, generator=generator)
    center = 0.1 * torch.randn(count, 2, 1, 1, generator=generator)
    distance = ((i - center[:, 0]) / radius[:, 0]) ** 2 + ((j - center[:, 1]) / radius[:, 1]) ** 2
    return (distance < 1).float()


def shifted(masks, generator, spread):
    """Return the masks moved by whole pixels, `spread` their standard deviation."""
    moves = (spread * torch.randn(len(masks), 2, generator=generator)).round().long().tolist()
    return torch.stack(
        [mask.roll(move, dims=(0, 1)) for mask, move in zip(masks, moves, strict=True)]
    )


def test_the_dice_of_corrupted_attention_is_distributed_as_measured():
    generator = torch.Generator().manual_seed(0)
    reference = disks(600, generator)
    organ = torch.arange(600) % 2
    spread = torch.tensor([1.0, 4.0])
    attention = torch.where(
        (organ == 0)[:, None, None],
        shifted(reference, generator, float(spread[0])),
        shifted(reference, generator, float(spread[1])),
    )
    errors = measure_errors(attention, reference, organ, 2)
    made = corrupt(reference, organ, errors, generator)
    levels = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])
    for index in (0, 1):
        measured = mask_dice(attention, reference)[organ == index].quantile(levels)
        drawn = mask_dice(made, reference)[organ == index].quantile(levels)
        assert (measured - drawn).abs().max() < 0.04, (index, measured, drawn)


def test_measures_shift_and_area_in_patch_sides():
    reference = torch.zeros(20, SIZE, SIZE)
    reference[:, 20:30, 20:30] = 1
    attention = torch.zeros_like(reference)
    attention[:, 20:30, 24:44] = 1
    errors = measure_errors(attention, reference, torch.zeros(20, dtype=torch.long), 1)
    # The center moves by 9 pixels along j and not along i; the area doubles.
    assert errors.shift.item() == pytest.approx(9 / SIZE / 2**0.5, rel=1e-4)
    assert errors.log_area.item() == pytest.approx(0.6931, rel=1e-3)
    assert errors.dice[0].tolist() == pytest.approx([2 * 60 / 300] * errors.dice.shape[1])


def test_a_rare_organ_takes_the_errors_of_all():
    generator = torch.Generator().manual_seed(1)
    reference = disks(50, generator)
    attention = shifted(reference, generator, 3.0)
    organ = torch.zeros(50, dtype=torch.long)
    organ[:3] = 1
    errors = measure_errors(attention, reference, organ, 3)
    whole = measure_errors(attention, reference, torch.zeros(50, dtype=torch.long), 1)
    assert torch.equal(errors.dice[1], whole.dice[0])
    assert torch.equal(errors.dice[2], whole.dice[0])


def test_perfect_attention_stays_perfect():
    generator = torch.Generator().manual_seed(2)
    reference = disks(8, generator)
    organ = torch.zeros(8, dtype=torch.long)
    errors = measure_errors(reference, reference, organ, 1)
    assert mask_dice(corrupt(reference, organ, errors, generator), reference).min() > 0.97


def test_an_empty_mask_stays_empty_and_finite():
    errors = AttentionErrors(torch.full((1, 33), 0.5), torch.tensor([0.1]), torch.tensor([0.3]))
    empty = torch.zeros(2, SIZE, SIZE)
    made = corrupt(empty, torch.zeros(2, dtype=torch.long), errors, torch.Generator())
    assert torch.equal(made, empty)


def test_nothing_measured_means_no_errors():
    empty = torch.zeros(4, SIZE, SIZE)
    errors = measure_errors(empty, empty, torch.zeros(4, dtype=torch.long), 2)
    assert torch.equal(errors.dice, torch.ones_like(errors.dice))


def test_the_same_generator_corrupts_alike():
    reference = disks(4, torch.Generator().manual_seed(3))
    organ = torch.zeros(4, dtype=torch.long)
    errors = AttentionErrors(torch.full((1, 33), 0.7), torch.tensor([0.05]), torch.tensor([0.2]))
    twice = [corrupt(reference, organ, errors, torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(*twice)
    assert not torch.equal(
        twice[0], corrupt(reference, organ, errors, torch.Generator().manual_seed(6))
    )
