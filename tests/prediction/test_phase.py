import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

from sacl.files.nifti import read_labels, read_volume
from sacl.prediction import phases as module
from sacl.prediction.phases import TISSUES, estimate_phase, organ_hu, phase_probabilities
from sacl.types import PHASES, LabelMap, LabelScheme

NATIVE = {"aorta": 41, "portal_vein": 40, "kidneys": 31, "liver": 57, "spleen": 49}
EARLY = {"aorta": 330, "portal_vein": 48, "kidneys": 105, "liver": 62, "spleen": 85}
LATE = {"aorta": 310, "portal_vein": 140, "kidneys": 170, "liver": 80, "spleen": 130}
PORTAL = {"aorta": 165, "portal_vein": 175, "kidneys": 185, "liver": 115, "spleen": 125}
DELAYED = {"aorta": 98, "portal_vein": 102, "kidneys": 140, "liver": 84, "spleen": 80}
TYPICAL = dict(zip(PHASES, (NATIVE, EARLY, LATE, PORTAL, DELAYED), strict=True))


@pytest.mark.parametrize("phase", PHASES)
def test_names_a_typical_scan_of_every_phase(phase):
    estimate = estimate_phase(TYPICAL[phase], 0.6)
    assert (estimate.phase, estimate.likeliest) == (phase, phase)
    assert estimate.probability > 0.6


@pytest.mark.parametrize("phase", ["native", "arterial_late", "portal_venous"])
@pytest.mark.parametrize("missing", TISSUES)
def test_names_the_common_phases_without_any_one_organ(phase, missing):
    hu = {tissue: value for tissue, value in TYPICAL[phase].items() if tissue != missing}
    assert estimate_phase(hu, 0.5).phase == phase


def test_agrees_with_the_printed_model_where_every_mask_is_right(monkeypatch):
    monkeypatch.setattr(module, "_WRONG_MASK", 1e-12)
    hu = {"aorta": 150.0, "liver": 96.0, "spleen": 101.0}
    evidence = []
    for n, phase in enumerate(PHASES):
        mean, covariance = np.zeros(3), np.zeros((3, 3))
        rise = {t: module._HU[t].rise[n - 1] if n else (0.0, 0.0) for t in hu}
        for i, a in enumerate(hu):
            native, deviation = module._HU[a].native
            mean[i] = native + rise[a][0]
            for j, b in enumerate(hu):
                covariance[i, j] = 0.25**2 * rise[a][0] * rise[b][0] + 5.0**2
            covariance[i, i] += deviation**2 + rise[a][1] ** 2
        density = multivariate_normal(mean, covariance).pdf(list(hu.values()))
        evidence.append(module._BEFOREHAND[phase] * density)
    expected = np.array(evidence) / sum(evidence)
    assert list(phase_probabilities(hu).values()) == pytest.approx(expected, rel=1e-6)


def test_one_wrong_mask_does_not_decide():
    for wrong in ("aorta", "portal_vein", "spleen"):
        assert estimate_phase({**PORTAL, wrong: -90}, 0.6).phase == "portal_venous"
        assert estimate_phase({**NATIVE, wrong: 180}, 0.6).phase == "native"


def test_stronger_iodine_does_not_make_another_phase():
    stronger = {t: NATIVE[t] + 1.4 * (LATE[t] - NATIVE[t]) for t in NATIVE}
    assert estimate_phase(stronger, 0.6).phase == "arterial_late"


def test_is_unknown_below_the_threshold_and_names_both_candidates():
    between = {t: 0.5 * (PORTAL[t] + DELAYED[t]) for t in PORTAL}
    probability = estimate_phase(between, 0.0).probability
    estimate = estimate_phase(between, probability + 0.01)
    assert estimate.phase == "unknown"
    assert estimate.likeliest in ("portal_venous", "delayed")
    assert "portal venous (0." in estimate.explanation
    assert "delayed (0." in estimate.explanation


def test_says_what_was_measured_in_one_sentence():
    estimate = estimate_phase({"aorta": 309.6, "portal_vein": 120.2}, 0.5)
    assert estimate.explanation.startswith("aorta 310 HU, portal vein 120 HU: arterial late (0.")


@pytest.mark.parametrize("offset", [-1024, 1024, 400])
def test_hu_that_no_ct_has_are_not_believed(offset):
    estimate = estimate_phase({t: value + offset for t, value in PORTAL.items()}, 0.5)
    assert (estimate.phase, estimate.likeliest, estimate.probability) == ("unknown", "unknown", 0.0)
    assert "liver" in estimate.explanation
    assert "rescale intercept" in estimate.explanation


def test_without_an_organ_nothing_is_known():
    estimate = estimate_phase({}, 0.0)
    assert estimate.phase == "unknown"
    assert "none of aorta" in estimate.explanation
    assert phase_probabilities({}) == pytest.approx(module._BEFOREHAND)


@settings(deadline=None, max_examples=40)
@given(
    st.dictionaries(st.sampled_from(TISSUES), st.floats(-2000, 4000)),
    st.floats(0, 1),
)
def test_probabilities_add_up_whatever_was_measured(hu, threshold):
    probability = phase_probabilities(hu)
    assert sum(probability.values()) == pytest.approx(1)
    estimate = estimate_phase(hu, threshold)
    assert estimate.phase == "unknown" or estimate.probability >= threshold


@pytest.mark.real_data
def test_a_real_scan_with_vessels_like_muscle_is_native(real_data):
    folder = real_data / "TotalSegmentator_CT"
    image, _ = read_volume(folder / "ct_3mm.nii.gz")
    values, grid, _ = read_labels(folder / "segmentation_3mm.nii.gz")
    names = json.loads((folder / "labels.json").read_text())
    scheme = LabelScheme("theirs", tuple(names[key] for key in sorted(names, key=int)))
    hu = organ_hu(image, LabelMap(values, grid, scheme))
    assert set(hu) == set(TISSUES)
    assert estimate_phase(hu, 0.9).phase == "native"


def test_the_page_shows_the_model_that_is_computed():
    page = Path(__file__).parents[2] / "docs" / "how-to" / "scan-labels.md"
    lines = page.read_text(encoding="utf-8").splitlines()
    for tissue in TISSUES:
        cells = []
        for phase in PHASES:
            mean, covariance = module._moments(phase, [tissue])
            cells.append(f"{mean[0]:.0f} ± {np.sqrt(covariance[0, 0]):.0f}")
        assert f"| {tissue.replace('_', ' ')} | {' | '.join(cells)} |" in lines
