"""What all tests share: one torch thread, and the real data where there is some."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

# Shapes and dtypes are checked at every call in the tests.
install_import_hook(
    [
        "research.methods",
        "sacl.cohort",
        "sacl.dicom",
        "sacl.export",
        "sacl.files",
        "sacl.geometry",
        "sacl.losses",
        "sacl.methods",
        "sacl.networks",
        "sacl.patches",
        "sacl.prediction",
        "sacl.ranks",
        "sacl.report.pictures",
        "sacl.scores",
        "sacl.training",
    ],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real cohorts, or skip where SACL_DATA is unset."""
    folder = os.environ.get("SACL_DATA")
    if not folder:
        pytest.skip("SACL_DATA is unset: no real scans to test on")
    return Path(folder)
