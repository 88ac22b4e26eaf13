"""pretrain and finetune on volumes: what the network starts from, and scans with coarse maps.

Coarse maps say where organs lie; no voxel that somebody drew is read here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from sacl.cohort.manifest import read_cohort, with_phases
from sacl.errors import DataError
from sacl.files.weights import read_weights
from sacl.methods.batches import QueryVolumes
from sacl.networks.coarse import CoarseSpec
from sacl.networks.device import resolve_device
from sacl.networks.encoder import UNET3D, PretrainedEncoder, State
from sacl.patches.store import PatchStore, read_patches
from sacl.prediction.coarse import ALL_LABELED, load_network
from sacl.progress import track
from sacl.run.workspace import Workspace
from sacl.stages.scan import Scan
from sacl.training.coarse import CoarseCase, coarse_case, spec_of_scans
from sacl.types import Case, Cohort

_CHANNELS = 16
_MOST_VOXELS = 500_000_000
"""Voxels of scans with coarse maps that take part at most; of a larger cohort every n-th scan."""


def coarse_start(cohort: Cohort, workspace: Workspace) -> tuple[CoarseSpec, State | None]:
    """Return the network of the coarse maps and its weights, which saw all labeled scans.

    Where it is not on volumes, or there is none, the grid follows the scans; no weights then.
    """
    located = load_network(workspace.require("locate"), ALL_LABELED, torch.device("cpu"))
    if located and isinstance(located.spec, CoarseSpec):
        return located.spec, located.networks[0].state_dict()
    large = resolve_device(workspace.device).type != "cpu"
    native = [case.native.grid for case in cohort.of_split("train")]
    return spec_of_scans(cohort.scheme, native, large, _CHANNELS), None


def with_coarse_map(scan: Scan, spec: CoarseSpec, stage: str) -> CoarseCase:
    """Return a scan on the network's grid with its coarse map, mapped from a stage's folder."""
    grid = (spec.spacing_mm, spec.in_plane_size)
    on_grid = coarse_case(scan.image, scan.coarse, scan.case.window, spec.organs, *grid)
    folder = scan.workspace.folder(stage)
    return replace(on_grid, image=on_grid.image.half()).on_disk(folder)


def taking_part(cases: Sequence[Case], voxels: float) -> Sequence[Case]:
    """Return which scans take part, each of about so many voxels: all, or every n-th."""
    return cases[:: max(1, math.ceil(len(cases) * voxels / _MOST_VOXELS))]


def read_store(workspace: Workspace, on_volumes: bool) -> PatchStore | QueryVolumes:
    """Return what pretraining learns from: the patches, or training scans on the network's grid.

    Volumes in whose coarse maps there is no organ at all are refused.
    """
    if not on_volumes:
        return read_patches(workspace.require("extract"))
    cohort = with_phases(read_cohort(workspace.require("ingest")), workspace.require("locate"))
    spec, weights = coarse_start(cohort, workspace)
    cases: Sequence[Case] = cohort.of_split("train")
    if cases:
        first = with_coarse_map(Scan(cases[0], cohort, workspace), spec, "pretrain")
        cases = taking_part(cases, math.prod(first.image.shape))
    scans = (Scan(case, cohort, workspace) for case in track(cases, "read training scans"))
    on_grid = [with_coarse_map(scan, spec, "pretrain") for scan in scans]
    store = QueryVolumes(spec, on_grid, [case.scan_labels for case in cases], weights)
    if not store.queries.size:
        raise DataError(
            "pretrain: no coarse map of a training scan holds any organ; train the coarse network"
            " longer or give better maps"
        )
    return store


def read_pretrained(workspace: Workspace) -> tuple[str, State | None, State | None]:
    """Return by what method `sacl pretrain` made which way down, and up where that is trained.

    Refused where it learned from slices.
    """
    folder = workspace.require("pretrain")
    encoder, text = read_weights(folder, "encoder")
    made = PretrainedEncoder.from_json(text)
    if made.spec.network != UNET3D:
        raise DataError(
            f"{folder.name}: an encoder of slices, and finetune.volume needs one of volumes; redo"
            " it with `sacl pretrain CONFIG.yaml --force`"
        )
    decoder = read_weights(folder, "decoder")[0] if made.decoder else None
    return made.method, encoder, decoder
