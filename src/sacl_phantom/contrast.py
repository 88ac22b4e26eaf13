"""HU of every tissue in three contrast phases, with the variation between subjects and scans.

Sources of the means, at about 120 kVp:

- native: liver 58 +- 9 HU in 64 livers without disease (Int J Legal Med 133:1861-1867, 2019,
  doi 10.1007/s00414-019-02016-1); the liver lies above the spleen and both rise and fall together
  (Radiology 137:727-729, 1980, doi 10.1148/radiology.137.3.6934563); renal parenchyma 30 HU in
  100 patients (Euler et al., "Realistic Kidney Tissue Surrogates for Multienergy Computed
  Tomography"); all soft tissues shift between scanners (PMC5015439);
- late arterial: aorta 290-360 HU, liver 20-30 HU above native, portal vein 145 +- 20 HU
  (Radiopaedia, "Late arterial phase", rev. 2023); pancreas 112-128 HU at 38 s (a randomized
  comparison of bolus tracking and fixed delay in 526 patients, synapse.koreamed.org 1004370);
  renal cortex enhanced by 195-217 HU, 110-140 HU above the medulla
  (Suzuki et al., Eur J Radiol 63:420-426, 2007, doi 10.1016/j.ejrad.2007.02.005);
- portal venous: renal medulla enhanced by up to 145 HU with the cortex within 30 HU (Suzuki 2007);
  adrenal glands 84 +- 24 HU at 60 s (Schek et al., Eur Radiol 2013,
  doi 10.1007/s00330-013-3050-4).

What these do not state (spleen and pancreas natively, esophagus, stomach wall, bile, muscle, vena
cava, spleen and blood pool in the portal venous phase) are textbook-typical values set by hand.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from sacl.errors import ConfigError
from sacl_phantom.subject import Subject

Phase = Literal["native", "arterial_late", "portal_venous"]
PHASES: tuple[Phase, ...] = get_args(Phase)

MEAN_HU: dict[str, tuple[float, float, float]] = {
    "spleen": (49.0, 122.0, 122.0),
    "kidney_cortex": (32.0, 212.0, 190.0),
    "kidney_medulla": (30.0, 92.0, 165.0),
    "gallbladder": (8.0, 8.0, 9.0),
    "esophagus": (36.0, 58.0, 72.0),
    "liver": (57.0, 78.0, 110.0),
    "stomach": (38.0, 72.0, 86.0),
    "aorta": (40.0, 310.0, 155.0),
    "inferior_vena_cava": (38.0, 92.0, 140.0),
    "portal_vein_and_splenic_vein": (40.0, 138.0, 168.0),
    "pancreas": (40.0, 114.0, 94.0),
    "adrenal_gland": (28.0, 68.0, 84.0),
    "bowel": (38.0, 74.0, 88.0),
    "muscle": (54.0, 58.0, 64.0),
    "heart": (42.0, 190.0, 135.0),
    "renal_vein": (38.0, 165.0, 160.0),
}
"""Mean HU in the native, late arterial and portal venous phase."""

_LATER_HU: dict[str, tuple[float, float]] = {
    "spleen": (4.0, -2.0),
    "kidney_cortex": (8.0, -3.0),
    "kidney_medulla": (12.0, 9.0),
    "liver": (7.0, 2.0),
    "aorta": (-28.0, -11.0),
    "inferior_vena_cava": (14.0, 5.0),
    "portal_vein_and_splenic_vein": (20.0, -7.0),
    "pancreas": (3.0, -5.0),
    "renal_vein": (12.0, -4.0),
}
"""Change of HU when an enhanced scan is taken one standard deviation of delay later."""

_FIXED_HU = {
    "fat": -103.0,
    "skin": 25.0,
    "lung": -855.0,
    "gas": -990.0,
    "cortical_bone": 420.0,
    "spongy_bone": 175.0,
    "arch_bone": 330.0,
    "disc": 82.0,
    "cyst": 6.0,
    "canal": 22.0,
    "couch": -60.0,
    "feces": 20.0,
}
_NATIVE_DEVIATION_HU = 3.0
_ORGAN_DEVIATION_HU = 4.0


def draw_contrast(subject: Subject, phase: Phase, rng: np.random.Generator) -> dict[str, float]:
    """Draw the HU of every tissue in one scan.

    Three numbers move the tissues together: the subject's own native HU, the iodine that the blood
    carries (dose, weight and cardiac output: one factor for all enhancement), and the delay of the
    scan, which lowers the aorta while veins and parenchyma rise.

    Raises:
        ConfigError: there is no such phase.
    """
    if phase not in PHASES:
        raise ConfigError(f"phantom: no phase '{phase}'; it has {', '.join(PHASES)}")
    n = PHASES.index(phase)
    own = subject.rng(11)
    iodine = float(np.exp(0.13 * np.clip(rng.standard_normal(), -2, 2)))
    delay = float(np.clip(rng.standard_normal(), -2, 2))
    steatosis = max(subject.fill["steatosis"] - 0.8, 0.0) * 130
    drawn: dict[str, float] = {}
    common = own.normal(0, _NATIVE_DEVIATION_HU)
    for tissue, means in MEAN_HU.items():
        native = means[0] + 0.7 * common + own.normal(0, 0.7 * _NATIVE_DEVIATION_HU)
        enhancement = means[n] - means[0]
        if n > 0 and tissue in _LATER_HU:
            enhancement += delay * _LATER_HU[tissue][n - 1]
        own_part = rng.normal(0, _ORGAN_DEVIATION_HU) if n > 0 else 0.0
        drawn[tissue] = native + iodine * enhancement + own_part
    drawn["liver"] -= steatosis
    for tissue, mean in _FIXED_HU.items():
        drawn[tissue] = mean + own.normal(0, 0.03 * abs(mean) if tissue != "gas" else 0.0)
    heterogeneous = n == 1
    drawn["zebra"] = float(rng.uniform(14, 38)) * (1 - 0.2 * delay) if heterogeneous else 0.0
    return drawn
