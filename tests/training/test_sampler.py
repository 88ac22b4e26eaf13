import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sacl.training.sampler import BalancedSampler, UniformSampler, step_generator


def cohort(organs=3, labels=2, scans=6, slices=10):
    """Return organ, scan label and scan of patches; a scan has one label and every organ."""
    organ, scan, _ = (a.ravel() for a in np.mgrid[0:organs, 0:scans, 0:slices])
    return organ, scan % labels, scan


def drawn(sampler, steps=50, seed=0):
    return [sampler.draw(step_generator(seed, step)) for step in range(steps)]


def test_shares_a_batch_out_evenly_among_the_classes():
    organ, label, scan = cohort()
    sampler = BalancedSampler(organ, label, scan, batch=24, scans_per_class=3)

    for batch in drawn(sampler):
        _, counts = np.unique(organ[batch] * 2 + label[batch], return_counts=True)
        assert counts.tolist() == [4] * 6


def test_brings_several_scans_of_every_class():
    organ, label, scan = cohort(scans=12)
    sampler = BalancedSampler(organ, label, scan, batch=24, scans_per_class=4)

    for batch in drawn(sampler):
        classes = organ[batch] * 2 + label[batch]
        for one in np.unique(classes):
            assert len(np.unique(scan[batch][classes == one])) == 4


def test_gives_rare_classes_the_same_share_as_frequent_ones():
    organ = np.r_[np.zeros(1000, int), np.ones(8, int)]
    scan = np.r_[np.arange(1000) % 50, np.arange(8) % 4]
    sampler = BalancedSampler(organ, organ * 0, scan, batch=8, scans_per_class=4)

    for batch in drawn(sampler):
        assert (organ[batch] == 1).sum() == 4


def test_sees_every_class_and_every_patch_in_the_long_run():
    organ, label, scan = cohort(organs=4, scans=4, slices=3)
    sampler = BalancedSampler(organ, label, scan, batch=8, scans_per_class=4)

    seen = np.unique(np.concatenate(drawn(sampler, steps=300)))

    assert seen.tolist() == list(range(len(organ)))


def test_makes_a_class_of_the_patches_with_unknown_label():
    organ = np.zeros(40, int)
    label = np.r_[np.zeros(30, int), np.full(10, -1)]
    sampler = BalancedSampler(organ, label, np.arange(40), batch=10, scans_per_class=5)

    assert sampler.classes == 2
    for batch in drawn(sampler):
        assert (label[batch] == -1).sum() == 5


def test_takes_a_class_that_one_scan_holds_from_slices_far_apart():
    organ, scan = np.zeros(12, int), np.zeros(12, int)
    sampler = BalancedSampler(organ, organ, scan, batch=4, scans_per_class=4)

    for batch in drawn(sampler):
        steps = np.diff(np.sort(batch))
        assert steps.tolist() == [3, 3, 3]


def test_fills_the_batch_also_from_fewer_patches_than_it_has_places():
    sampler = BalancedSampler(
        np.array([0, 1]), np.zeros(2, int), np.zeros(2, int), batch=6, scans_per_class=2
    )

    assert np.bincount(sampler.draw(step_generator(0, 0))).tolist() == [3, 3]


def test_is_decided_by_seed_and_step_alone():
    organ, label, scan = cohort()
    one, other = (BalancedSampler(organ, label, scan, 12, 3) for _ in range(2))

    in_order = [one.draw(step_generator(5, step)) for step in range(3)]

    np.testing.assert_array_equal(other.draw(step_generator(5, 2)), in_order[2])
    assert not np.array_equal(in_order[0], in_order[1])
    assert not np.array_equal(one.draw(step_generator(6, 0)), in_order[0])


@given(
    patches=st.integers(1, 60),
    batch=st.integers(4, 40),
    scans_per_class=st.integers(1, 8),
    seed=st.integers(0, 1000),
)
@settings(max_examples=150, deadline=None)
def test_never_takes_a_patch_twice_while_its_class_has_others(
    patches, batch, scans_per_class, seed
):
    rng = np.random.default_rng(seed)
    organ, label, scan = (rng.integers(low, 4, patches) for low in (0, -1, 0))
    sampler = BalancedSampler(organ, label, scan, batch, scans_per_class)

    positions = sampler.draw(rng)

    assert len(positions) == batch
    classes = organ * 5 + label
    scans, sizes = np.unique(np.stack([classes, scan], 1), axis=0, return_counts=True)
    for one in np.unique(classes[positions]):
        mine = positions[classes[positions] == one]
        of_scan = np.bincount(scan[mine], minlength=4)
        for number, size in zip(
            scans[scans[:, 0] == one, 1], sizes[scans[:, 0] == one], strict=True
        ):
            distinct = len(np.unique(mine[scan[mine] == number]))
            assert distinct == min(size, of_scan[number])
        held = of_scan[scans[scans[:, 0] == one, 1]]
        assert held.max() - held.min() <= 1


def test_draws_uniformly_and_nothing_twice_without_classes():
    counts = np.bincount(np.concatenate(drawn(UniformSampler(20, 10), steps=400)), minlength=20)

    assert counts.min() > 150
    assert all(len(np.unique(batch)) == 10 for batch in drawn(UniformSampler(20, 10), steps=20))


@pytest.mark.parametrize("count", [3, 8])
def test_draws_what_there_is_where_that_is_less_than_a_batch(count):
    batch = UniformSampler(count, 8).draw(step_generator(0, 0))

    assert sorted(batch) == list(range(count))
