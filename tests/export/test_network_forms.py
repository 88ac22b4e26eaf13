"""Exports of a network, each opened by the program that it is for."""

import json
import re
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sacl.errors import ConfigError
from sacl.export import networks
from sacl.export.networks import Trained, write_bundle, write_nnunet, write_onnx, write_weights
from sacl.networks.coarse import CoarseSpec, plan_levels
from sacl.networks.encoder import EncoderSpec
from sacl.networks.segmenter import (
    Segmenter,
    SegmenterSpec,
    VolumeSegmenter,
    VolumeSegmenterSpec,
)
from sacl.patches.coarse_grid import coarse_grid, image_to_coarse
from sacl.patches.region import Placement
from sacl.patches.window import WindowRule, window_of
from sacl.types import Grid

ORGANS = ("liver", "spleen", "aorta")
CT, MR = WindowRule("ct", (-175.0, 275.0)), WindowRule("mr", (0.0, 1.0))


def on_volumes(crop=(16, 16, 8), window=CT, in_plane_size=None) -> Trained:
    crop, kernels, strides = plan_levels(crop, (2.0, 2.0, 5.0))
    spec = CoarseSpec(
        scheme="three",
        organs=ORGANS,
        spacing_mm=(2.0, 2.0, 5.0),
        in_plane_size=in_plane_size,
        crop=crop,
        channels=8,
        kernels=kernels,
        strides=strides,
    )
    torch.manual_seed(3)
    segmenter = VolumeSegmenter(VolumeSegmenterSpec(network=spec, window=window))
    return Trained(shaken(segmenter), "run", "CC-BY-4.0")


def on_slices(head="dense") -> Trained:
    spec = SegmenterSpec(
        encoder=EncoderSpec(width=8, in_channels=1 if head == "dense" else 2),
        decoder="unet",
        head=head,
        scheme="three",
        organs=ORGANS,
        image_size=32,
        window=CT,
        placement=Placement(),
    )
    torch.manual_seed(3)
    return Trained(shaken(Segmenter(spec)), "run", "CC-BY-4.0")


def shaken(segmenter):
    """Return a network of which no weight is as it was made, norms and statistics too."""
    with torch.no_grad():
        for value in segmenter.state_dict().values():
            if value.is_floating_point():
                value.add_(0.05 * torch.rand_like(value))
    return segmenter.eval()


def size_of(trained):
    spec = trained.segmenter.spec
    if trained.segmenter.spec.head == "volume":
        return (1, *spec.network.crop)
    return (spec.encoder.in_channels, spec.image_size, spec.image_size)


@torch.no_grad()
def logits_of(trained, image):
    logits = trained.segmenter(image)
    return logits[0] if isinstance(logits, list) else logits


def code_of(page: Path) -> str:
    [code] = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    return code


@pytest.mark.parametrize("trained", [on_volumes(), on_slices()], ids=["volumes", "slices"])
def test_weights_load_by_the_code_beside_them(trained, tmp_path, monkeypatch):
    write_weights(trained, tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "snippet.py").write_text(code_of(tmp_path / "README.md"))
    network = runpy.run_path("snippet.py")["network"]
    assert type(network).__name__ == (
        "DynUNet" if trained.segmenter.spec.head == "volume" else "Segmenter"
    )
    trained.segmenter.double()  # in float32 two ways to normalize differ by 2e-5
    image = torch.rand(2, *size_of(trained), dtype=torch.float64)
    with torch.no_grad():
        found = network.double()(image)
        torch.testing.assert_close(found, logits_of(trained, image), rtol=0, atol=1e-6)
    about = json.loads((tmp_path / "about.json").read_text())
    assert about["labels"] == {"0": "background", "1": "liver", "2": "spleen", "3": "aorta"}
    assert about["intensity"] == "ct: -175 HU becomes 0, 275 becomes 1, clipped"


@pytest.mark.parametrize(
    "trained",
    [on_volumes(), on_slices("dense"), on_slices("query")],
    ids=["volume", "dense", "query"],
)
def test_onnxruntime_agrees_with_torch_for_any_batch(trained, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    [path] = write_onnx(trained, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["segmenter.onnx"]
    session = runtime.InferenceSession(path)
    for batch in (1, 3):
        image = torch.rand(batch, *size_of(trained))
        [found] = session.run(["logits"], {"image": image.numpy()})
        assert np.abs(found - logits_of(trained, image).numpy()).max() < 1e-4
    told = session.get_modelmeta().custom_metadata_map
    assert told["opset"] == "18"
    assert json.loads(told["labels"])["3"] == "aorta"
    window = json.loads(told["spec"])["window"]
    assert (window["modality"], window["window_hu"]) == ("ct", [-175.0, 275.0])


def test_onnx_without_its_packages_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(networks, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'sacl\[onnx\]'"):
        write_onnx(on_slices(), tmp_path)


@pytest.mark.parametrize("crop", [(16, 16, 8), (8, 8, 4)], ids=["three levels", "two"])
def test_nnunets_own_network_gives_the_same_logits_with_axes_reversed(crop, tmp_path):
    pytest.importorskip("nnunetv2")
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    trained = on_volumes(crop)
    write_nnunet(trained, tmp_path)
    saved = torch.load(tmp_path / "checkpoint_final.pth", weights_only=True)
    plan = saved["nnssl_adaptation_plan"]
    assert plan == json.loads((tmp_path / "adaptation_plan.json").read_text())
    made = [plan["architecture_plans"][f"arch_{name}"] for name in ("class_name", "kwargs")]
    lazy = plan["architecture_plans"]["arch_kwargs_requiring_import"]
    network = get_network_from_plans(*made, lazy, 1, 4, deep_supervision=False)
    network.load_state_dict(saved["network_weights"])
    image = torch.rand(1, *size_of(trained))
    found = network.eval()(image.permute(0, 1, 4, 3, 2)).permute(0, 1, 4, 3, 2)
    torch.testing.assert_close(found, logits_of(trained, image), rtol=0, atol=1e-5)
    # What nnU-Net's loader of nnssl's checkpoints does: it fills the encoder, and the stem again.
    for key in ("encoder", "stem"):
        start = f"{plan[f'key_to_{key}']}."
        part = {k: v for k, v in saved["network_weights"].items() if k.startswith(start)}
        module = network.get_submodule(getattr(network, f"key_to_{key}"))
        module.load_state_dict({k.removeprefix(start): v for k, v in part.items()})
    assert plan["key_to_encoder"] == network.key_to_encoder
    assert plan["key_to_stem"] == network.key_to_stem
    assert set(plan["keys_to_in_proj"]) == set(network.keys_to_in_proj)


@pytest.mark.filterwarnings("ignore")
def test_nnunet_starts_from_the_weights_and_trains_a_step(tmp_path, monkeypatch):
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    monkeypatch.setenv("nnUNet_compile", "f")
    pytest.importorskip("nnunetv2")
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    write_nnunet(on_volumes(), tmp_path)
    (tmp_path / "nnUNetPlans.json").write_text(json.dumps(nnunet_plans()))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "snippet.py").write_text(code_of(tmp_path / "README.md"))
    runpy.run_path("snippet.py")
    plans = json.loads((tmp_path / "saclPlans.json").read_text())
    data = tmp_path / "preprocessed/Dataset001_x/saclPlans_3d_fullres/case.b2nd"
    data.parent.mkdir(parents=True)
    data.touch()
    labels = {"background": 0, "kidney": 1}
    dataset = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}
    how = ({**plans, "continue_training": False}, "3d_fullres", 0, dataset, torch.device("cpu"))
    trainer = nnUNetTrainer(*how)
    trainer.initialize()
    load_pretrained_weights(trainer.network, str(tmp_path / "checkpoint_final.pth"))
    stem = trainer.network.encoder.stages[0][0].convs[0].conv.weight
    ours = on_volumes().segmenter.down[0].conv1.conv.weight
    assert torch.equal(stem.detach().permute(0, 1, 4, 3, 2), ours)
    image = torch.rand(2, 1, *trainer.configuration_manager.patch_size)
    sizes = [logits.shape[2:] for logits in trainer.network(image)]
    target = [torch.randint(0, 2, (2, 1, *size)) for size in sizes]
    before = stem.detach().clone()
    assert np.isfinite(trainer.train_step({"data": image, "target": target})["loss"])
    assert not torch.equal(before, stem)


def nnunet_plans():
    """Return what nnU-Net plans for some other dataset, as far as a trainer reads it."""
    spacing, shape = [3.0, 1.0, 1.0], [40, 200, 200]
    resampling = {
        f"resampling_fn_{of}": "resample_data_or_seg_to_shape"
        for of in ("data", "seg", "probabilities")
    }
    config = {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "batch_dice": False,
        "patch_size": [32, 128, 128],
        "spacing": spacing,
        "median_image_size_in_voxels": shape,
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        **resampling,
        **{f"{name}_kwargs": {} for name in resampling},
        "architecture": {},
    }
    return {
        "dataset_name": "Dataset001_x",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": spacing,
        "original_median_shape_after_transp": shape,
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"2d": {}, "3d_fullres": config},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {},
    }


@pytest.mark.parametrize("rule", [CT, MR], ids=["ct", "mr"])
@pytest.mark.parametrize("in_plane_size", [None, 24])
def test_a_bundle_resamples_as_the_program_does(rule, in_plane_size, tmp_path):
    from monai.data import MetaTensor

    trained = on_volumes(window=rule, in_plane_size=in_plane_size)
    write_bundle(trained, tmp_path)
    scripts = runpy.run_path(str(tmp_path / "scripts" / "transforms.py"))
    config = json.loads((tmp_path / "configs" / "inference.json").read_text())
    made = dict(config["preprocessing"]["transforms"][-1])
    assert made.pop("_target_") == "scripts.transforms.ToNetworkGridd"
    grid = Grid((30, 26, 9), np.diag([1.3, 1.4, 4.0, 1.0]))
    voxels = np.random.default_rng(0).normal(0, 200, grid.shape).astype(np.float32)
    scan = MetaTensor(torch.from_numpy(voxels)[None], affine=torch.from_numpy(grid.affine))
    found = scripts["ToNetworkGridd"](**made)({"image": scan})["image"]
    coarse = coarse_grid(grid, (2.0, 2.0, 5.0), in_plane_size)
    window = window_of(voxels, rule, "scan")
    expected = image_to_coarse(voxels, window, coarse, torch.device("cpu"))
    assert torch.equal(found.as_tensor()[0], expected)


def test_what_a_form_has_no_place_for_is_refused_with_another_form(tmp_path):
    for write in (write_bundle, write_nnunet):
        with pytest.raises(ConfigError, match=r"works on slices.*use --form onnx or weights"):
            write(on_slices(), tmp_path)
    with pytest.raises(ConfigError, match="two levels"):
        write_bundle(on_volumes((8, 8, 4)), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_bundle_says_what_it_leaves_out(tmp_path):
    write_bundle(replace(on_volumes(), copies=4, from_coarse=("aorta",)), tmp_path)
    said = (tmp_path / "docs" / "README.md").read_text()
    assert "sacl predict --predict.copies 0" in said
    assert "took aorta from coarse label maps" in said
    assert '"run": CC-BY-4.0' in (tmp_path / "LICENSE").read_text()
