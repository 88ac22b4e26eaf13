"""phantom: a seed -> a generated cohort in nnU-Net's raw layout, to be read like any other data."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from sacl.errors import ConfigError
from sacl.progress import track
from sacl.run.record import recorded
from sacl.run.workspace import Workspace
from sacl.settings import PhantomSettings
from sacl_phantom.cohort import plan_cohort, write_scans, write_tables

DATASET = "Dataset900_Phantom"


def inputs(settings: PhantomSettings, workspace: Workspace) -> dict[str, str]:
    """Return the fingerprints of the stages this one reads: there are none."""
    return {}


def phantom(settings: PhantomSettings, workspace: Workspace) -> Path:
    """Generate the cohort and return its dataset folder; every training case has its label file."""
    if settings.scans == 0:
        raise ConfigError("phantom.scans is 0; ask for at least one scan, for instance 24")
    planned = plan_cohort(settings.scans, workspace.seed)
    with recorded(workspace, "phantom", settings, inputs(settings, workspace)) as (folder, results):
        root = folder / DATASET
        done = write_scans(root, planned, settings.shape, settings.spacing_mm, workspace.seed)
        for _ in track(done, "phantom", len(planned)):
            pass
        write_tables(root, planned)
        results["scans"] = len(planned)
        results["splits"] = dict(Counter(scan.split for scan in planned))
        results["phases"] = dict(Counter(scan.phase for scan in planned))
    return root
