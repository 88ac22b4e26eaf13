"""Fine-tuning on volumes as a stage: its start, its teacher, its maps, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from toy_cohort import SCHEME, SHAPE, locate_toy_cohort

from sacl.cohort.manifest import read_cohort
from sacl.errors import ConfigError, DataError
from sacl.files.nifti import map_volume, read_label_map
from sacl.model import Model, load_model
from sacl.pack import pack
from sacl.prediction.coarse import ALL_LABELED, load_network
from sacl.prediction.volume import (
    MapRecipe,
    Predictor,
    VolumePredictor,
    load_predictor,
    slice_probabilities,
)
from sacl.run.pipeline import stages_of
from sacl.run.record import read_record
from sacl.run.workspace import Workspace
from sacl.settings import (
    ExtractSettings,
    FinetuneSettings,
    LocateSettings,
    PredictSettings,
    PretrainSettings,
    RunConfig,
    VolumeHeadSettings,
    VolumeSettings,
)
from sacl.stages.finetune import finetune
from sacl.stages.locate import locate
from sacl.stages.predict import predict
from sacl.stages.volumes import read_volumes
from sacl.training.pace import Pace
from tiny_model import write_tiny_model

CPU = torch.device("cpu")


def settings_of(teacher_steps=0, **given) -> FinetuneSettings:
    return FinetuneSettings(
        volume=VolumeHeadSettings(teacher_steps=teacher_steps), steps=2, **given
    )


@pytest.fixture(scope="module")
def located(tmp_path_factory) -> Workspace:
    """Return the toy cohort with coarse networks on volumes of 4 x 4 x 5 mm."""
    workspace = locate_toy_cohort(tmp_path_factory.mktemp("volumes"))
    volume = VolumeSettings(spacing_mm=(4.0, 4.0, 5.0), crop=(16, 16, 8), steps=2)
    locate(LocateSettings(volume=volume, channels=8), workspace)
    return workspace


def test_trains_predicts_and_reads_back_without_patches_or_an_encoder(located):
    finetune(settings_of(teacher_steps=2), located)
    results = read_record(located.folder("finetune")).results
    assert (results["arms"], results["steps"]) == (["volume"], {"volume": 4})
    predict(PredictSettings(copies=0), located)
    for case in read_cohort(located.folder("ingest")).cases:
        path = located.folder("predict") / "volume" / f"{case.case_id}.nii.gz"
        assert read_label_map(path, SCHEME)[0].voxels.shape == SHAPE
    predictor = load_predictor(located.folder("finetune") / "volume", "cpu", MapRecipe())
    assert isinstance(predictor, VolumePredictor)
    assert not predictor.needs_coarse
    assert predictor.spec.organs == ("liver", "aorta")
    assert predictor.spec.scans is not None


def test_a_pack_of_volumes_predicts_as_its_run_alone_and_with_one_of_slices(located, tmp_path):
    workspace = Workspace(Path(shutil.copytree(located.root, tmp_path / "work")), device="cpu")
    finetune(settings_of(), workspace)
    predict(PredictSettings(copies=0, keep_component=0.0), workspace)
    pack(workspace, tmp_path / "volumes.sacl")
    model = load_model(tmp_path / "volumes.sacl", device="cpu")
    assert not model.needs_coarse
    case = read_cohort(workspace.folder("ingest")).cases[-1]
    path = workspace.folder("predict") / "volume" / f"{case.case_id}.nii.gz"
    volume = map_volume(workspace.folder("ingest") / case.image)
    labels = model.segment(volume, "scan").label_map.voxels
    assert np.array_equal(labels, read_label_map(path, SCHEME)[0].voxels)
    # On slices: liver wherever it is bright, as sure as its logit is.
    [member] = load_model(write_tiny_model(tmp_path / "a.sacl", organs=SCHEME.names)).members
    for logit in (0.1, 1.0, 30.0):
        slices = replace(member, predictor=Predictor(Bright(member.predictor.spec, logit), CPU))
        both = Model((*model.members, slices)).segment(volume, "scan").label_map.voxels
        views = (one.see(volume, "scan", None) for one in (*model.members, slices))
        a, b = (
            torch.stack(list(slice_probabilities(one.predictor, *seen)), dim=-1).numpy()
            for one, seen in zip((*model.members, slices), views, strict=True)
        )
        assert np.array_equal(both, np.argmax((a + b) / 2, axis=0))
    sure = cut_bright(volume)
    assert (both[sure] == 1).all(), "who is sure decides"


class Bright:
    """A network on slices that gives the first organ a logit where a pixel is bright."""

    def __init__(self, spec, logit):
        self.spec, self.logit = spec, logit

    def __call__(self, pixels):
        organ = self.logit * (pixels[:, 0] > 0.5) * 2 - self.logit
        return torch.stack([torch.zeros_like(organ), organ, organ - 99], dim=1)


def cut_bright(volume):
    """Return where 3 x 3 pixels of a slice are bright, so that no resampling makes them dark."""
    return ndimage.minimum_filter(volume.voxels, (5, 5, 1)) > 50


def test_starts_from_the_coarse_network_that_saw_all_labeled_scans(located):
    coarse = load_network(located.folder("locate"), ALL_LABELED, CPU)
    start = read_volumes(settings_of(), located)
    assert start.spec.network == coarse.spec
    weights = start.build(7).state_dict()
    for name, value in coarse.networks[0].state_dict().items():
        assert torch.equal(weights[name], value)


def test_without_a_coarse_network_the_grid_follows_the_scans(tmp_path):
    start = read_volumes(settings_of(teacher_steps=1), locate_toy_cohort(tmp_path))
    assert start.coarse is None
    # Slices of 5 mm over 60 mm, pixels of 2 mm over 96 and 80 mm.
    assert start.spec.network.spacing_mm == (2.0, 2.0, 5.0)
    assert start.spec.network.crop == (48, 40, 16)
    assert [case.annotated.tolist() for case in start.labeled] == [[True, True], [True, False]]
    # Of the two unlabeled scans of the training the coarse maps say where crops are drawn.
    assert [len(case.labels.unique()) for case in start.unlabeled] == [3, 3]


def test_a_description_that_is_damaged_is_one_line(located, tmp_path):
    folder = shutil.copytree(located.folder("finetune") / "volume", tmp_path / "volume")
    document = json.loads((folder / "segmenter.json").read_text())
    (folder / "segmenter.json").write_text(json.dumps({**document, "network": {}}))
    with pytest.raises(DataError, match="train the segmenter again"):
        load_predictor(folder, "cpu", MapRecipe())


@pytest.mark.parametrize(
    "tree",
    [
        {"finetune": {"volume": {}, "decoder": "aspp"}},
        {"finetune": {"volume": {}, "encoder_rate": 0.5}},
    ],
)
def test_what_a_segmenter_on_volumes_does_not_have_is_refused(tree):
    with pytest.raises(ConfigError, match="a segmenter on volumes has none"):
        FinetuneSettings(**(tree["finetune"] | {"volume": VolumeHeadSettings()}))


@pytest.mark.parametrize(
    "given",
    [{"extract": ExtractSettings(dense_size=64)}, {"pretrain": PretrainSettings(steps=5)}],
)
def test_settings_of_stages_that_do_not_run_are_refused(given):
    with pytest.raises(ConfigError, match=r"not read beside finetune\.volume"):
        RunConfig(finetune=settings_of(), **given)


def test_nothing_is_cut_or_pretrained_for_volumes():
    stages = stages_of(RunConfig(finetune=settings_of()))
    assert "extract" not in stages
    assert "pretrain" not in stages
    assert "pretrain" in stages_of(RunConfig())


def test_the_same_seed_trains_the_same_segmenter(located, tmp_path):
    first, second = (
        read_volumes(settings_of(), located).train(
            replace(located, seed=7), tmp_path / "training.pt", Pace()
        )
        for _ in range(2)
    )
    assert first[1] == second[1]
    states = zip(first[0].state_dict().values(), second[0].state_dict().values(), strict=True)
    assert all(np.array_equal(a, b) for a, b in states)
