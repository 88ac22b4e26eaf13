"""Fine-tuning on volumes as a stage: its start, its teacher, its maps, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage
from toy_cohort import SCHEME, SHAPE, interrupted_at_step_two, locate_toy_cohort

from sacl.cohort.manifest import read_cohort
from sacl.errors import ConfigError, DataError
from sacl.files.nifti import map_volume, read_label_map
from sacl.files.weights import read_weights
from sacl.methods.batches import DenseCropViews
from sacl.model import Model, load_model
from sacl.pack import pack
from sacl.prediction.coarse import ALL_LABELED, load_network
from sacl.prediction.volume import (
    MapRecipe,
    Predictor,
    load_predictor,
    slice_probabilities,
)
from sacl.run.configure import load_config
from sacl.run.pipeline import stages_of
from sacl.run.record import read_record
from sacl.run.workspace import Workspace
from sacl.settings import (
    FinetuneSettings,
    LocateSettings,
    PredictSettings,
    PretrainSettings,
    RunConfig,
    VolumeHeadSettings,
    VolumeSettings,
)
from sacl.stages.finetune import finetune
from sacl.stages.finetune import inputs as finetune_inputs
from sacl.stages.locate import locate
from sacl.stages.predict import predict
from sacl.stages.pretrain import pretrain
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
    assert predictor.spec.head == "volume"
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
    with pytest.raises(ConfigError, match="has no effect on a segmenter on volumes"):
        FinetuneSettings(**(tree["finetune"] | {"volume": VolumeHeadSettings()}))


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"extract.dense_size": "64"}, r"extract: has no effect with finetune\.volume"),
        (
            {"pretrain.network": "resnet34"},
            r"pretrain\.network: unet3d belongs to finetune\.volume",
        ),
        (
            {"pretrain.width": "16"},
            r"pretrain\.width: has no effect on volumes; set locate\.channels",
        ),
        ({"finetune.volume.pretrained": "true"}, r"needs a pretrain\.method beside it"),
        (
            {"pretrain.method": "none", "finetune.volume.pretrained": "true"},
            r"needs a pretrain\.method beside it",
        ),
    ],
)
def test_what_means_nothing_on_volumes_is_refused(flags, reason):
    with pytest.raises(ConfigError, match=reason):
        load_config(None, flags, base={"finetune.volume": None})


def test_a_network_on_volumes_is_of_volumes_alone():
    with pytest.raises(ConfigError, match=r"unet3d belongs to finetune\.volume"):
        load_config(None, {"pretrain.network": "unet3d"})


def test_nothing_is_cut_for_volumes_and_what_is_pretrained_is_what_the_user_asks_for():
    stages = stages_of(RunConfig(finetune=settings_of()))
    assert "extract" not in stages
    assert "pretrain" not in stages
    assert "pretrain" in stages_of(RunConfig())
    for method in ("pooled", "none"):  # the first is the default, and given all the same
        config = load_config(None, {"pretrain.method": method}, base={"finetune.volume": None})
        assert config.pretrain.on_volumes
        assert ("pretrain" in stages_of(config)) == (method == "pooled")
        assert "extract" not in stages_of(config)


def pretrained_on(located, root, method, **given):
    """Return a copy of the located cohort, with the network pretrained by a method."""
    workspace = Workspace(Path(shutil.copytree(located.root, root)), device="cpu", seed=3)
    settings = PretrainSettings(method=method, network="unet3d", steps=4, batch=4, **given)
    pretrain(settings, workspace)
    return workspace


@pytest.mark.parametrize("method", ["pooled", "semantic", "simclr"])
def test_a_segmenter_on_volumes_starts_from_what_was_pretrained(located, tmp_path, method):
    workspace = pretrained_on(located, tmp_path / "work", method)
    settings = FinetuneSettings(volume=VolumeHeadSettings(pretrained=True), steps=1)
    start = read_volumes(settings, workspace)
    assert start.method == method
    weights, coarse = start.build(3).state_dict(), start.coarse
    changed = {
        name.split(".")[0] for name in coarse if not torch.equal(weights[name], coarse[name])
    }
    assert changed == ({"down", "up"} if method == "pooled" else {"down"})
    encoder, text = read_weights(workspace.folder("pretrain"), "encoder")
    assert text["spec"]["in_channels"] == (2 if method == "semantic" else 1)
    assert torch.equal(weights["down.0.conv1.conv.weight"], encoder["0.conv1.conv.weight"][:, :1])
    record = read_record(workspace.folder("pretrain"))
    assert set(record.inputs) == {"ingest", "locate"}
    read = finetune_inputs(settings, workspace)
    assert set(read) == {"ingest", "locate", "pretrain"}
    losses = pd.read_csv(workspace.folder("pretrain") / "losses.csv")["loss"]
    assert len(losses) == 4
    assert np.isfinite(losses).all()


def test_a_pretraining_on_volumes_goes_on_as_if_it_had_not_been_interrupted(
    located, tmp_path, monkeypatch
):
    whole = pretrained_on(located, tmp_path / "whole", "pooled")
    monkeypatch.setattr("sacl.training.loop._SAVE_EVERY_S", 0.0)
    with interrupted_at_step_two(DenseCropViews, monkeypatch):
        pretrained_on(located, tmp_path / "resumed", "pooled")
    resumed = Workspace(tmp_path / "resumed", device="cpu", seed=3)
    record = read_record(whole.folder("pretrain"))
    pretrain(PretrainSettings(**record.settings["pretrain"]), resumed)
    a, b = (read_weights(one.folder("pretrain"), "encoder")[0] for one in (whole, resumed))
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=1e-5, atol=1e-6)


def test_without_an_organ_in_any_coarse_map_there_is_nothing_to_pretrain_on(tmp_path):
    workspace = locate_toy_cohort(tmp_path, empty_maps=True)
    with pytest.raises(DataError, match="no coarse map of a training scan holds any organ"):
        pretrain(PretrainSettings(network="unet3d", steps=1), workspace)


def test_an_encoder_of_slices_is_refused(located, tmp_path):
    workspace = pretrained_on(located, tmp_path / "work", "pooled")
    path = workspace.folder("pretrain") / "encoder.json"
    path.write_text(path.read_text().replace("unet3d", "resnet18"))
    with pytest.raises(DataError, match="an encoder of slices"):
        read_volumes(FinetuneSettings(volume=VolumeHeadSettings(pretrained=True)), workspace)


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
