"""finetune: the training scans on the grid of a segmenter on volumes, all of them in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from sacl.cohort.manifest import read_cohort
from sacl.geometry import canonical_grid
from sacl.networks.device import resolve_device
from sacl.networks.encoder import State
from sacl.networks.volume_segmenter import VolumeSegmenterSpec
from sacl.patches.scan_ranges import measures_of, ranges_of
from sacl.patches.window import WindowRule
from sacl.prediction.coarse import ALL_LABELED, VolumeEnsemble, load_network
from sacl.progress import say, track
from sacl.run.workspace import Workspace
from sacl.stages.scan import Scan
from sacl.training.coarse import CoarseCase, coarse_case, require_organs, spec_of_scans
from sacl.types import Cohort

_CHANNELS = 16
_MOST_VOXELS = 500_000_000
"""Voxels of unlabeled scans that are held in memory at most; of a larger cohort every n-th scan."""


@dataclass(frozen=True, eq=False)
class VolumeScans:
    """A segmenter's spec, its training scans, and the coarse network's weights where they fit.

    Of an unlabeled scan the labels are those of its coarse map.
    """

    spec: VolumeSegmenterSpec
    labeled: Sequence[CoarseCase]
    unlabeled: Sequence[CoarseCase]
    weights: State | None


def read_scans(workspace: Workspace, with_unlabeled: bool) -> VolumeScans:
    """Return what is trained and on what, from the cohort and its coarse networks and maps.

    Raises:
        DataError: no labeled scan holds an organ.
    """
    cohort, folder = read_cohort(workspace.require("ingest")), workspace.require("locate")
    cases = cohort.of_split("train")
    coarse, weights = load_network(folder, ALL_LABELED, torch.device("cpu")), None
    if isinstance(coarse, VolumeEnsemble):
        network, weights = coarse.spec, coarse.networks[0].state_dict()
    else:
        large = resolve_device(workspace.device).type != "cpu"
        grids = [canonical_grid(case.native.grid) for case in cases]
        network = spec_of_scans(cohort.scheme, grids, large, _CHANNELS)
    grid = (network.spacing_mm, network.in_plane_size)
    labeled = []
    for case in cohort.labeled:
        scan, how = Scan(case, cohort, workspace), (case.window, case.annotated)
        labeled.append(coarse_case(scan.image, scan.reference, *how, *grid))
    require_organs(labeled, "finetune: the labeled scans")
    each = sum(math.prod(case.image.shape) for case in labeled) / len(labeled)
    taking_part = _unlabeled(cohort, each) if with_unlabeled else set()
    measures, unlabeled = [], []
    for case in track(cases, "read training scans"):
        scan = Scan(case, cohort, workspace)
        measures.append(measures_of(scan.image))
        if case.case_id in taking_part:
            on_grid = coarse_case(scan.image, scan.coarse, case.window, network.organs, *grid)
            unlabeled.append(replace(on_grid, image=on_grid.image.half()))
    window = WindowRule(cohort.modality, cohort.window_hu)
    spec = VolumeSegmenterSpec(network=network, window=window, scans=ranges_of(measures))
    return VolumeScans(spec, labeled, unlabeled, weights)


def _unlabeled(cohort: Cohort, voxels: float) -> set[str]:
    """Return which training scans without any reference take part, each of about so many voxels."""
    seen = {case.subject_id for case in cohort.labeled}
    cases = [case for case in cohort.of_split("train") if case.subject_id not in seen]
    if not cases:
        say("finetune: every training scan is labeled, so the teacher's steps see labeled scans")
    every = max(1, math.ceil(len(cases) * voxels / _MOST_VOXELS))
    return {case.case_id for case in cases[::every]}
