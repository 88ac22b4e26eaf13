"""The generated scan: reproducible, anatomical, at any spacing."""

import itertools

import numpy as np
import pytest
from scipy import ndimage

import sacl_phantom.scan
from sacl.errors import ConfigError
from sacl_phantom import ORGANS, PHASES, PhantomScan, make_scan
from sacl_phantom.contrast import MEAN_HU
from sacl_phantom.subject import draw_subject

SHAPE, SPACING_MM = (128, 104, 40), (3.0, 3.0, 6.0)
VOLUME_ML = {
    "spleen": (70, 350),
    "kidney_right": (90, 270),
    "kidney_left": (90, 270),
    "gallbladder": (12, 70),
    "esophagus": (4, 40),
    "liver": (950, 2100),
    "stomach": (150, 750),
    "aorta": (35, 160),
    "inferior_vena_cava": (40, 160),
    "portal_vein_and_splenic_vein": (10, 50),
    "pancreas": (42, 130),
    "adrenal_gland_right": (2, 10),
    "adrenal_gland_left": (2, 10),
}
TISSUE = {"adrenal_gland_right": "adrenal_gland", "adrenal_gland_left": "adrenal_gland"}


@pytest.fixture(scope="module")
def cohort() -> list[PhantomScan]:
    """Four subjects, each in all three phases."""
    return [
        make_scan(100 * subject + n, phase, subject_seed=subject)
        for subject in range(200, 204)
        for n, phase in enumerate(PHASES)
    ]


def volumes_ml(scan: PhantomScan) -> dict[str, float]:
    counts = np.bincount(scan.labels.voxels.ravel(), minlength=len(ORGANS) + 1)
    return dict(zip(ORGANS, counts[1:] * scan.labels.grid.voxel_ml, strict=True))


def center_mm(scan: PhantomScan, organ: str) -> np.ndarray:
    return np.argwhere(scan.labels.mask(organ)).mean(0) * scan.labels.grid.spacing_mm


def core_hu(scan: PhantomScan, organ: str) -> float:
    """Return the median HU of an organ without its border, NaN where the organ is missing."""
    mask = scan.labels.mask(organ)
    inner = ndimage.binary_erosion(mask)
    inner = inner if inner.sum() >= 20 else mask
    return float(np.median(scan.image.voxels[inner])) if mask.any() else float("nan")


def test_gives_the_same_voxels_for_the_same_seed():
    a, b = (make_scan(5, "native", (48, 40, 12), (8.0, 8.0, 20.0)) for _ in range(2))
    assert np.array_equal(a.image.voxels, b.image.voxels)
    assert np.array_equal(a.labels.voxels, b.labels.voxels)
    assert np.array_equal(a.image.grid.affine, b.image.grid.affine)


def test_does_not_depend_on_how_the_volume_is_cut_into_slabs(monkeypatch):
    whole = make_scan(5, "native", (48, 40, 12), (8.0, 8.0, 20.0))
    monkeypatch.setattr(sacl_phantom.scan, "_CELLS_PER_SLAB", 10_000)
    slabs = make_scan(5, "native", (48, 40, 12), (8.0, 8.0, 20.0))
    differ = np.abs(whole.image.voxels.astype(int) - slabs.image.voxels)
    assert differ.max() <= 1, "only rounding of float32 sums may differ"
    assert np.mean(whole.labels.voxels != slabs.labels.voxels) < 1e-4


def test_another_seed_gives_another_scan():
    a, b = (make_scan(seed, "native", (48, 40, 12), (8.0, 8.0, 20.0)) for seed in (5, 6))
    assert np.mean(a.labels.voxels != b.labels.voxels) > 0.02


def test_gives_int16_hu_and_labels_on_one_canonical_grid(cohort):
    scan = cohort[0]
    assert scan.image.voxels.dtype == np.int16
    assert scan.labels.voxels.dtype == np.uint8
    assert scan.image.grid is scan.labels.grid
    assert scan.image.grid.shape == SHAPE
    assert scan.image.grid.spacing_mm == pytest.approx(SPACING_MM)
    assert (np.diag(scan.image.grid.affine) > 0).all()
    assert scan.image.voxels.min() >= -1024


def test_refuses_an_unknown_phase_and_names_the_known_ones():
    with pytest.raises(ConfigError, match="no phase 'delayed'; it has native, arterial_late"):
        make_scan(1, "delayed")  # type: ignore[arg-type]


def test_keeps_the_subject_and_changes_its_pose_from_phase_to_phase(cohort):
    a, b = cohort[0], cohort[2]
    for organ, least in (("liver", 0.8), ("spleen", 0.5), ("aorta", 0.4)):
        masks = [scan.labels.mask(organ) for scan in (a, b)]
        # Take the shift of the patient on the table out before comparing.
        move = np.rint(np.argwhere(masks[0]).mean(0) - np.argwhere(masks[1]).mean(0)).astype(int)
        moved = np.roll(masks[1], move, (0, 1, 2))
        dice = 2 * (masks[0] & moved).sum() / (masks[0].sum() + moved.sum())
        assert dice > least, organ
        assert dice < 0.999, organ
    for organ in ("liver", "pancreas"):
        assert volumes_ml(a)[organ] == pytest.approx(volumes_ml(b)[organ], rel=0.08)


@pytest.mark.parametrize("organ", ORGANS)
def test_organ_volumes_are_those_of_adults(cohort, organ):
    low, high = VOLUME_ML[organ]
    for scan in cohort:
        if organ not in draw_subject(scan.subject_seed).missing:
            assert low < volumes_ml(scan)[organ] < high, scan.subject_seed


def test_subjects_differ_in_size(cohort):
    for organ in ("liver", "spleen", "pancreas"):
        sizes = [volumes_ml(scan)[organ] for scan in cohort[::3] if volumes_ml(scan)[organ]]
        assert np.std(sizes) / np.mean(sizes) > 0.05


def test_a_removed_organ_is_absent_from_the_label_map():
    seed = next(s for s in itertools.count() if "gallbladder" in draw_subject(s).missing)
    scan = make_scan(1, "native", (64, 52, 30), (6.0, 6.0, 8.0), subject_seed=seed)
    assert not scan.labels.mask("gallbladder").any()
    assert scan.labels.mask("liver").any()


def test_organs_are_missing_now_and_then_but_never_both_kidneys():
    missing = [draw_subject(seed).missing for seed in range(600)]
    share = {organ: np.mean([organ in m for m in missing]) for organ in ORGANS}
    assert 0.06 < share["gallbladder"] < 0.2
    assert 0 < share["spleen"] < 0.1
    assert share["liver"] == share["aorta"] == 0
    assert not any({"kidney_right", "kidney_left"} <= m for m in missing)


def test_organs_lie_where_they_lie_in_people(cohort):
    right, front, up = 0, 1, 2
    for scan in cohort:
        missing = draw_subject(scan.subject_seed).missing
        center = {organ: center_mm(scan, organ) for organ in ORGANS if organ not in missing}
        relations = [
            ("liver", "stomach", right),
            ("liver", "spleen", right),
            ("inferior_vena_cava", "aorta", right),
            ("kidney_right", "inferior_vena_cava", right),
            ("aorta", "kidney_left", right),
            ("adrenal_gland_right", "adrenal_gland_left", right),
            ("adrenal_gland_right", "kidney_right", up),
            ("adrenal_gland_left", "kidney_left", up),
            ("liver", "gallbladder", up),
            ("esophagus", "pancreas", up),
            ("esophagus", "stomach", up),
            ("pancreas", "aorta", front),
            ("pancreas", "portal_vein_and_splenic_vein", front),
            ("stomach", "spleen", front),
            ("gallbladder", "kidney_right", front),
        ]
        for more, less, axis in relations:
            if more in center and less in center:
                assert center[more][axis] > center[less][axis], (scan.subject_seed, more, less)


def test_neighboring_organs_touch(cohort):
    def touching(a: str, b: str) -> list[bool]:
        return [
            bool((ndimage.binary_dilation(scan.labels.mask(a)) & scan.labels.mask(b)).any())
            for scan in cohort
            if {a, b}.isdisjoint(draw_subject(scan.subject_seed).missing)
        ]

    assert np.mean(touching("pancreas", "portal_vein_and_splenic_vein")) > 0.9
    assert np.mean(touching("liver", "inferior_vena_cava")) > 0.9
    assert np.mean(touching("liver", "gallbladder")) > 0.6
    assert np.mean(touching("stomach", "spleen")) > 0.4


@pytest.mark.parametrize("n", range(3))
@pytest.mark.parametrize(
    "organ", ["spleen", "liver", "aorta", "inferior_vena_cava", "portal_vein_and_splenic_vein"]
)
def test_mean_hu_is_the_published_one(cohort, organ, n):
    expected = MEAN_HU[TISSUE.get(organ, organ)][n]
    measured = np.nanmean([core_hu(scan, organ) for scan in cohort if scan.phase == PHASES[n]])
    assert measured == pytest.approx(expected, rel=0.2, abs=11)


def test_renal_cortex_and_medulla_part_in_the_arterial_phase(cohort):
    def spread(phase: str) -> float:
        stds = []
        for scan in cohort:
            inner = ndimage.binary_erosion(scan.labels.mask("kidney_left"))
            if scan.phase == phase and inner.any():
                stds.append(np.std(scan.image.voxels[inner]))
        return float(np.mean(stds))

    assert spread("arterial_late") > spread("portal_venous") + 12
    assert spread("portal_venous") < 2.2 * spread("native")


def test_contrast_is_weak_natively(cohort):
    native = [scan for scan in cohort if scan.phase == "native"]
    for a, b in (("liver", "spleen"), ("pancreas", "portal_vein_and_splenic_vein")):
        gap = np.nanmean([abs(core_hu(s, a) - core_hu(s, b)) for s in native])
        assert gap < 18, "less than the noise"


def test_noise_follows_its_setting():
    def roughness(noise_hu: float) -> float:
        scan = make_scan(9, "native", (64, 52, 10), (3.0, 3.0, 12.0), noise_hu)
        inner = ndimage.binary_erosion(scan.labels.mask("liver"), iterations=2)
        return float(np.std(scan.image.voxels[inner]))

    quiet, loud = roughness(0.0), roughness(30.0)
    assert quiet < 15
    assert loud > quiet + 10


def test_a_coarse_scan_sees_the_means_of_a_fine_one():
    fine = make_scan(4, "portal_venous", (128, 104, 40), (3.0, 3.0, 6.0), 0.0)
    coarse = make_scan(4, "portal_venous", (64, 52, 20), (6.0, 6.0, 12.0), 0.0)
    blocks = fine.image.voxels.reshape(64, 2, 52, 2, 20, 2).mean((1, 3, 5))
    assert np.corrcoef(blocks.ravel(), coarse.image.voxels.ravel())[0, 1] > 0.99
    assert blocks.mean() == pytest.approx(coarse.image.voxels.mean(), abs=6)
    for organ in ("liver", "kidney_left", "aorta", "stomach"):
        assert volumes_ml(coarse)[organ] == pytest.approx(volumes_ml(fine)[organ], rel=0.06)
