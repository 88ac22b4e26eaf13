"""What the benchmark of query volumes makes of scores."""

import pandas as pd
import pytest

from research.benchmarks.volume_contrast import LONGER, summary_of


def test_methods_are_compared_over_subjects_with_their_seeds_averaged():
    rows = []
    for arm, gain in ((LONGER, 0.0), ("pooled", 0.02), ("semantic", -0.01)):
        for subject in range(8):
            for seed in (0, 1):
                dice = 0.5 + 0.01 * subject + gain * (1 + seed) * (1 + subject / 8)
                for organ in ("a", "b"):
                    row = {"case_id": f"{subject}", "subject_id": f"{subject}", "organ": organ}
                    rows.append({**row, "row": arm, "seed": seed, "dice": dice, "nsd": dice})
    summary = summary_of(pd.DataFrame(rows), ["pooled", "semantic"])
    pooled, semantic = summary["against_longer"][:2]
    mean = 1.5 * (1 + 3.5 / 8)
    assert (pooled["metric"], pooled["method"], pooled["won"]) == ("dice", "pooled", 8)
    assert pooled["mean"] == pytest.approx(0.02 * mean, abs=1e-4)
    assert pooled["difference_by_seed"] == pytest.approx({"0": 0.0288, "1": 0.0575}, abs=1e-4)
    assert semantic["mean"] == pytest.approx(-0.01 * mean, abs=1e-4)
    assert semantic["lost"] == 8
    assert pooled["p"] == pytest.approx(2 / 2**8, rel=0.05)
    assert pooled["p_holm"] == pytest.approx(4 / 2**8, rel=0.05)
    assert summary["dice"]["pooled"] > summary["dice"][LONGER]
