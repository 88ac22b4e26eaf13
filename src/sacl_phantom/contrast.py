"""HU of every tissue in three contrast phases, with the variation between subjects and scans.

The means and their sources are in `tissues.yaml`.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from sacl.errors import ConfigError
from sacl_phantom.subject import TISSUES, Subject

Phase = Literal["native", "arterial_late", "portal_venous"]
PHASES: tuple[Phase, ...] = get_args(Phase)

MEAN_HU = TISSUES.mean_hu
"""Mean HU in the native, late arterial and portal venous phase."""
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
    drawn: dict[str, float] = {}
    common = own.normal(0, _NATIVE_DEVIATION_HU)
    for tissue, means in MEAN_HU.items():
        native = means[0] + 0.7 * common + own.normal(0, 0.7 * _NATIVE_DEVIATION_HU)
        enhancement = means[n] - means[0]
        if n > 0 and tissue in TISSUES.later_hu:
            enhancement += delay * TISSUES.later_hu[tissue][n - 1]
        own_part = rng.normal(0, _ORGAN_DEVIATION_HU) if n > 0 else 0.0
        drawn[tissue] = native + iodine * enhancement + own_part
    drawn["liver"] -= max(subject.fill["steatosis"] - 0.8, 0.0) * 130
    for tissue, mean in TISSUES.fixed_hu.items():
        drawn[tissue] = mean + own.normal(0, 0.03 * abs(mean) if tissue != "gas" else 0.0)
    drawn["zebra"] = float(rng.uniform(14, 38)) * (1 - 0.2 * delay) if n == 1 else 0.0
    return drawn
