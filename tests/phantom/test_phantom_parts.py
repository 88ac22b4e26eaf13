"""The phantom's building blocks: fields, noise, shapes, contrast."""

import numpy as np
import pytest

from sacl_phantom.contrast import MEAN_HU, PHASES, draw_contrast
from sacl_phantom.fields import noise_slice, smooth_field
from sacl_phantom.shapes import Points, carve, course, ellipsoid, plate, tube, turned
from sacl_phantom.subject import draw_subject

BOX_MM = np.array([[-100.0, -80.0, -60.0], [100.0, 80.0, 60.0]])


def points(step: float = 4.0) -> Points:
    axis = np.arange(-60, 60.1, step, dtype=np.float32)
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")
    return Points(x, y, z, *[np.zeros_like(x)] * 6)


def test_a_field_is_the_same_wherever_it_is_sampled():
    field = smooth_field(np.random.default_rng(0), BOX_MM, 20.0, 1.0)
    axis = np.linspace(-50, 50, 21)
    whole = field.at((axis, axis, axis))
    part = field.at((axis[3:9], axis[::2], axis[5:6]))
    assert part == pytest.approx(whole[3:9, ::2, 5:6], abs=1e-5)


def test_a_field_has_the_deviation_asked_for_and_stays_within_its_bound():
    field = smooth_field(np.random.default_rng(0), BOX_MM, 9.0, 3.0)
    values = field.at(tuple(np.arange(low, high, 2.0) for low, high in BOX_MM.T))
    assert values.std() == pytest.approx(3.0, rel=0.1)
    assert np.abs(values).max() <= field.bound


def test_a_field_is_smooth():
    field = smooth_field(np.random.default_rng(0), BOX_MM, 20.0, 1.0)
    values = field.at((np.arange(-90, 90, 0.5), np.zeros(1), np.zeros(1)))[:, 0, 0]
    assert np.abs(np.diff(values)).max() < 0.15


def test_noise_is_band_limited_and_has_unit_deviation():
    shape, spacing = (256, 256), (0.8, 0.8, 3.0)
    noise = noise_slice(1, 0, shape, spacing)
    assert noise.std() == pytest.approx(1.0, rel=1e-3)
    power = np.mean(
        [np.abs(np.fft.fft2(noise_slice(1, k, shape, spacing))) ** 2 for k in range(8)], 0
    )
    f = np.hypot(np.fft.fftfreq(256, 0.8)[:, None], np.fft.fftfreq(256, 0.8)[None])
    low, middle, high = (
        power[(f > a) & (f < b)].mean() for a, b in ((0.004, 0.02), (0.1, 0.3), (0.55, 0.63))
    )
    assert middle > 1.5 * low, "the ramp filter takes out slow noise"
    assert middle > 20 * high, "the kernel takes out fast noise"


def test_neighboring_slices_share_noise_only_when_thin():
    def shared(thick: float) -> float:
        a, b = (noise_slice(2, k, (96, 96), (1.0, 1.0, thick)) for k in (4, 5))
        return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])

    assert shared(1.0) > 0.4
    assert abs(shared(10.0)) < 0.1


def test_a_sphere_has_its_exact_distance():
    p = points()
    center = np.array([4.0, -8.0, 0.0])
    expected = np.sqrt((p.x - 4) ** 2 + (p.y + 8) ** 2 + p.z**2) - 20
    away = np.abs(expected + 20) > 1
    assert ellipsoid(p, center, np.full(3, 20.0))[away] == pytest.approx(expected[away], abs=1e-3)


def test_a_turned_ellipsoid_lies_along_its_own_axis():
    p = points(3.0)
    inside = ellipsoid(p, np.zeros(3), np.array([40.0, 8.0, 8.0]), turned(0, 0, 30)) < 0
    where = np.stack([p.x[inside], p.y[inside]])
    assert abs(np.cov(where)[0, 1]) > 100
    assert inside.sum() * 27 == pytest.approx(4 / 3 * np.pi * 40 * 8 * 8, rel=0.05)


def test_a_tube_agrees_with_spheres_laid_along_it():
    p = points(6.0)
    line = course(np.array([[-40.0, 0, 0], [0, 20, 10], [40, 0, -10]]), np.array([6.0, 10, 4]), 3)
    found = tube(p, line)
    brute = np.full(p.x.shape, np.inf)
    for a, b, ra, rb in zip(
        line.nodes[:-1], line.nodes[1:], line.radii[:-1], line.radii[1:], strict=True
    ):
        for t in np.linspace(0, 1, 60):
            c = a + t * (b - a)
            d = np.sqrt((p.x - c[0]) ** 2 + (p.y - c[1]) ** 2 + (p.z - c[2]) ** 2)
            brute = np.minimum(brute, d - (ra + t * (rb - ra)))
    near = brute < 5
    assert found.distance[near] == pytest.approx(brute[near], abs=0.35)
    assert (found.distance[brute > 9] > 5).all()


def test_a_tube_knows_what_lies_above_its_axis():
    line = course(np.array([[-40.0, 10, 0], [40.0, 10, 0]]), np.array([8.0, 8.0]), 1)
    p = points(4.0)
    found = tube(p, line)
    inside = found.distance < 0
    assert found.rise is not None
    assert found.rise[inside] == pytest.approx(p.y[inside] - 10, abs=1e-4)


def test_a_plate_is_thin_and_tall():
    p = points(2.0)
    inside = plate(p, np.array([-20.0, 0, 0]), np.array([20.0, 0, 0]), 3.0, 12.0) <= 0
    assert np.abs(p.y[inside]).max() <= 3
    assert np.abs(p.z[inside]).max() == pytest.approx(15, abs=2)


def test_carving_takes_away_what_lies_in_the_other_shape():
    p = points()
    big = ellipsoid(p, np.zeros(3), np.full(3, 30.0))
    small = ellipsoid(p, np.array([25.0, 0, 0]), np.full(3, 15.0))
    carved = carve(big, small, 4.0) < 0
    assert not (carved & (small < 0)).any()
    assert carved.any()


def contrasts(phase: str, count: int = 150) -> dict[str, np.ndarray]:
    drawn = [
        draw_contrast(draw_subject(seed), phase, np.random.default_rng(seed))
        for seed in range(count)
    ]
    return {tissue: np.array([d[tissue] for d in drawn]) for tissue in drawn[0]}


@pytest.mark.parametrize("n", range(3))
def test_mean_hu_over_many_scans_is_that_of_the_table(n):
    drawn = contrasts(PHASES[n])
    for tissue, means in MEAN_HU.items():
        # The liver's mean is lowered by the fifth of subjects with steatosis.
        assert drawn[tissue].mean() == pytest.approx(means[n], rel=0.04, abs=4), tissue


@pytest.mark.parametrize("phase", ["arterial_late", "portal_venous"])
def test_the_blood_pool_moves_together(phase):
    drawn = contrasts(phase)
    for tissue in ("kidney_cortex", "heart", "spleen"):
        assert np.corrcoef(drawn["aorta"], drawn[tissue])[0, 1] > 0.4, tissue
    veins = np.corrcoef(drawn["portal_vein_and_splenic_vein"], drawn["inferior_vena_cava"])[0, 1]
    assert veins > 0.4
    native = contrasts("native")
    assert native["aorta"].std() < 0.3 * drawn["aorta"].std()


def test_scans_of_one_phase_vary():
    assert 20 < contrasts("arterial_late")["aorta"].std() < 70
    assert 5 < contrasts("portal_venous")["liver"].std() < 25


def test_only_the_arterial_spleen_is_striped():
    assert (contrasts("arterial_late", 20)["zebra"] > 5).all()
    assert (contrasts("native", 20)["zebra"] == 0).all()
    assert (contrasts("portal_venous", 20)["zebra"] == 0).all()
