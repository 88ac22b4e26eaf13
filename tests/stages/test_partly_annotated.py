"""A cohort in which half of the scans annotate half of the organs, from ingest to the scores.

Both organs are in every scan. Where nobody looked for the spleen, its voxels may not count as
background anywhere: a network that finds it there is not punished, and nobody scores it.
"""

from __future__ import annotations

import json

import nibabel
import numpy as np
import pytest
import torch

from sacl.cohort.manifest import read_cohort, read_reference
from sacl.files.nifti import write_label_map
from sacl.patches.store import read_patches
from sacl.patches.views import ViewRanges
from sacl.run.record import recorded
from sacl.run.workspace import Workspace
from sacl.scores.summary import read_scores
from sacl.settings import (
    EvaluateSettings,
    ExtractSettings,
    FinetuneSettings,
    IngestSettings,
    LocateSettings,
    MapsSettings,
    PredictSettings,
)
from sacl.stages.evaluate import COARSE, evaluate
from sacl.stages.extract import extract
from sacl.stages.ingest import ingest
from sacl.stages.locate import locate
from sacl.stages.scan import Scan
from sacl.training.coarse import coarse_case, draw_crops
from sacl.training.finetune import DenseTask, QueryTask, StepRules, loss_of_levels
from sacl.types import LabelMap

SHAPE = (32, 32, 8)
LIVER, SPLEEN = (
    (slice(4, 18), slice(6, 26), slice(1, 7)),
    (slice(20, 28), slice(8, 24), slice(2, 6)),
)
HALF = ("s1", "s3", "s5")
"""Scans without the spleen's mask; s4 and s5 are held out for testing."""
CPU = torch.device("cpu")


def truth():
    labels = np.zeros(SHAPE, np.uint8)
    labels[LIVER], labels[SPLEEN] = 1, 2
    return labels


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """Ingest six scans, locate by the truth, and cut the patches."""
    root, affine = tmp_path_factory.mktemp("atlas"), np.diag([3.0, 3.0, 6.0, 1.0])
    for n in range(6):
        image = np.random.default_rng(n).normal(-60, 10, SHAPE)
        image[LIVER], image[SPLEEN] = 100, 220
        folder = root / "atlas" / f"s{n}" / "segmentations"
        folder.mkdir(parents=True)
        image[:, :, 0] = -1000
        nibabel.save(nibabel.Nifti1Image(image.astype(np.int16), affine), folder / "../ct.nii.gz")
        for value, organ in enumerate(("liver", "spleen"), start=1):
            if organ == "liver" or f"s{n}" not in HALF:
                mask = (truth() == value).astype(np.uint8)
                nibabel.save(nibabel.Nifti1Image(mask, affine), folder / f"{organ}.nii.gz")
    splits = "".join(f"s{n};{'train' if n < 4 else 'test'}\n" for n in range(6))
    (root / "atlas" / "meta.csv").write_text(f"image_id;split\n{splits}")
    workspace = Workspace(root / "work", device="cpu")
    cohort = read_cohort(ingest(IngestSettings(data=root / "atlas"), workspace))
    for case in cohort.cases:
        grid = read_reference(workspace.folder("ingest"), case, cohort.scheme).grid
        label_map = LabelMap(truth(), grid, cohort.scheme)
        write_label_map(root / "maps" / f"{case.case_id}.nii.gz", label_map)
    locate(LocateSettings(maps=MapsSettings(source=root / "maps")), workspace)
    extract(ExtractSettings(patch_size=16, dense_size=32, region="slice"), workspace)
    return workspace


@pytest.fixture(scope="module")
def store(workspace):
    return read_patches(workspace.require("extract"))


def cohort_of(workspace):
    return read_cohort(workspace.require("ingest"))


def rules(batch):
    return StepRules(batch=batch, ranges=ViewRanges(), seed=0, device=CPU)


def test_ingest_tells_which_organs_of_a_scan_are_known(workspace):
    annotated = {case.case_id: case.annotated for case in cohort_of(workspace).cases}
    full, half = ("liver", "spleen"), ("liver",)
    assert annotated == {f"s{n}": half if f"s{n}" in HALF else full for n in range(6)}


def test_query_patches_have_a_reference_of_annotated_organs_only(store):
    known = store.index[store.index["reference_row"] >= 0]
    assert set(zip(known["case_id"], known["organ"], strict=True)) == {
        ("s0", "liver"),
        ("s0", "spleen"),
        ("s1", "liver"),
        ("s2", "liver"),
        ("s2", "spleen"),
        ("s3", "liver"),
    }
    # Without a reference they still serve the contrast.
    assert set(store.index.query("organ == 'spleen'")["case_id"]) == {f"s{n}" for n in range(6)}


def test_the_query_task_draws_annotated_organs_only(store):
    task = QueryTask(store, rules(8))
    drawn = store.index.iloc[task.rows]
    assert not ((drawn["organ"] == "spleen") & drawn["case_id"].isin(HALF)).any()
    for step in range(5):
        _, reference = task.batch(step)
        assert (reference.amax(dim=(1, 2, 3)) > 0).float().mean() > 0.5


class Threshold(torch.nn.Module):
    """A segmenter by intensity: sure of the liver, and of the spleen if it is asked to find it."""

    def __init__(self, finds_spleen, low, high):
        super().__init__()
        self.finds_spleen, self.low, self.high = finds_spleen, low, high

    def forward(self, image):
        spleen = image[:, :1] > self.high
        liver = (image[:, :1] > self.low) & ~spleen
        sure = spleen & self.finds_spleen
        return 8.0 * torch.cat([~(liver | sure), liver, sure], dim=1).float()


def test_the_dense_task_does_not_mind_a_spleen_where_nobody_looked_for_it(store):
    low, high = (np.array([20.0, 160.0]) + 175) / 450
    for wanted in (False, True):  # whether the spleen was looked for
        task = DenseTask(store, rules(4), balance=0.0)
        chosen = store.dense_index["case_id"].isin(HALF).to_numpy() != wanted
        task.weights = np.where(chosen & (task.weights > task.weights.min()), 1.0, 0.0)
        task.weights /= task.weights.sum()
        assert (task.batch(0)[2].numpy() == [True, wanted]).all()
        found = task.loss(Threshold(True, low, high), 0).item()
        missed = task.loss(Threshold(False, low, high), 0).item()
        if wanted:
            assert missed > found + 0.2
        else:
            assert missed == pytest.approx(found, abs=0.02)


def test_the_coarse_network_does_not_mind_it_either(workspace):
    cohort = cohort_of(workspace)
    cases = [
        coarse_case(scan.image, scan.reference, case.window, case.annotated, (3.0, 3.0, 6.0))
        for case in cohort.labeled
        for scan in [Scan(case, cohort, workspace)]
    ]
    assert [case.annotated.tolist() for case in cases] == [[True, True], [True, False]] * 2
    low, high = (np.array([20.0, 160.0]) + 175) / 450
    differences = []
    for chosen in (cases[::2], cases[1::2]):
        crops = draw_crops(chosen, (32, 32, 8), 2, torch.Generator().manual_seed(0), CPU)
        losses = []
        for finds_spleen in (True, False):
            image = crops.image[:, 0].movedim(-1, 1).flatten(0, 1)[:, None]
            logit = Threshold(finds_spleen, low, high)(image)
            logit = logit.unflatten(0, (2, 8)).movedim(1, -1)
            losses.append(loss_of_levels([logit], crops, torch.ones(3)).item())
        differences.append(losses[1] - losses[0])
    assert differences[0] > 0.2
    assert abs(differences[1]) < 0.02


def test_an_organ_that_nobody_looked_for_is_not_scored(workspace):
    cohort = cohort_of(workspace)
    with recorded(workspace, "finetune", FinetuneSettings(), {}) as (_, done):
        done["arms"] = ["semantic"]
    with recorded(workspace, "predict", PredictSettings(), {}) as (folder, done):
        done["scans"] = {"semantic": 2}
        for case in cohort.of_split("test"):
            grid = read_reference(workspace.folder("ingest"), case, cohort.scheme).grid
            label_map = LabelMap(truth(), grid, cohort.scheme)
            write_label_map(folder / "semantic" / f"{case.case_id}.nii.gz", label_map, case.native)
    folder = evaluate(EvaluateSettings(), workspace)
    rows = read_scores(folder / "scores.csv")
    scored = {(row.run, row.score.case_id, row.score.organ): row.score.dice for row in rows}
    pairs = (("s4", "liver"), ("s4", "spleen"), ("s5", "liver"))
    assert scored == {(run, *pair): 1.0 for run in ("semantic", COARSE) for pair in pairs}


def test_the_coarse_maps_dice_is_of_annotated_organs_only(workspace):
    text = (workspace.folder("locate") / "coverage.csv").read_text().splitlines()
    assert len(text) == 1 + 6 * 2
    record = json.loads((workspace.folder("locate") / "run.json").read_text())
    assert record["results"]["organs"] == {"located": 12, "not_found": 0}
