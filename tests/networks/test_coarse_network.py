import json
from dataclasses import asdict

import pytest
import torch

from sacl.errors import DataError
from sacl.networks.coarse import CoarseNetwork, CoarseSpec, InstanceNorm, plan_levels
from sacl.networks.device import channels_last


def spec_for(crop, spacing_mm, channels=4) -> CoarseSpec:
    crop, kernels, strides = plan_levels(crop, spacing_mm)
    return CoarseSpec(
        scheme="two",
        organs=("liver", "spleen"),
        spacing_mm=spacing_mm,
        in_plane_size=None,
        crop=crop,
        channels=channels,
        kernels=kernels,
        strides=strides,
    )


def test_pools_every_axis_alike_where_the_spacing_is_isotropic():
    crop, kernels, strides = plan_levels((32, 32, 32), (2.0, 2.0, 2.0))
    assert crop == (32, 32, 32)
    assert strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert set(kernels) == {(3, 3, 3)}


def test_spares_thick_slices_until_the_pixels_have_grown_as_thick():
    _, kernels, strides = plan_levels((96, 96, 8), (3.0, 3.0, 10.0))
    assert kernels[:2] == ((3, 3, 1), (3, 3, 3))
    assert strides[:3] == ((1, 1, 1), (2, 2, 1), (2, 2, 2))


def test_never_pools_an_axis_below_four_voxels():
    _, _, strides = plan_levels((64, 64, 6), (1.0, 1.0, 1.0))
    assert all(k == 1 for _, _, k in strides)


def test_rounds_the_crop_up_to_what_the_pooling_divides():
    crop, _, strides = plan_levels((37, 50, 41), (1.0, 1.0, 1.0))
    pooling = torch.tensor(strides).prod(dim=0)
    assert (torch.tensor(crop) % pooling == 0).all()
    assert all(rounded >= asked for rounded, asked in zip(crop, (37, 50, 41), strict=True))


@pytest.mark.parametrize(
    ("crop", "spacing_mm"),
    [((24, 24, 6), (3.0, 3.0, 10.0)), ((20, 28, 20), (1.0, 1.0, 1.0)), ((9, 9, 9), (1, 1, 1))],
)
def test_gives_a_logit_per_class_and_voxel_of_the_crop_and_of_every_level(crop, spacing_mm):
    spec = spec_for(crop, spacing_mm)
    logits = CoarseNetwork(spec)(torch.rand(1, 1, *spec.crop))
    expected = torch.tensor(spec.crop)
    for logit, stride in zip(logits, spec.strides, strict=True):
        expected = expected // torch.tensor(stride)
        assert logit.shape == (1, 3, *expected.tolist())


def test_a_spec_survives_json():
    spec = spec_for((24, 24, 6), (3.0, 3.0, 10.0))
    assert CoarseSpec.from_json(json.loads(json.dumps(asdict(spec)))) == spec


def test_a_description_without_a_field_is_refused():
    with pytest.raises(DataError, match="missing required field `spacing_mm`"):
        CoarseSpec.from_json(
            {
                k: v
                for k, v in asdict(spec_for((8, 8, 8), (1, 1, 1))).items()
                if k not in ("crop", "spacing_mm")
            }
        )


def test_of_a_network_without_memory_no_weights_are_drawn(monkeypatch):
    monkeypatch.setattr(torch.nn.init, "kaiming_normal_", lambda *_, **__: pytest.fail("drawn"))
    with torch.device("meta"):
        CoarseNetwork(spec_for((32, 32, 32), (2.0, 2.0, 2.0)))


@pytest.mark.parametrize(("samples", "channels"), [(1, 8), (3, 8), (2, 2)])
def test_instance_norm_is_that_of_torch_and_keeps_the_memory_order(samples, channels):
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(samples, channels, 4, 6, 5, generator=generator, dtype=torch.float64)
    ours, theirs = (
        InstanceNorm(channels, affine=True),
        torch.nn.InstanceNorm3d(channels, affine=True),
    )
    gradients = []
    for norm in (ours, theirs):
        norm.double().weight.data.copy_(torch.arange(1.0, channels + 1))
        norm.bias.data.copy_(torch.arange(channels))
        given = channels_last(maps).requires_grad_()
        normed = norm(given)
        normed.pow(3).sum().backward()
        gradients.append((normed, given.grad, norm.weight.grad, norm.bias.grad))
        given.grad = None
    for own, other in zip(*gradients, strict=True):
        assert torch.allclose(own, other, rtol=1e-9, atol=1e-9)
    assert gradients[0][0].is_contiguous(memory_format=torch.channels_last_3d)


def test_volumes_go_all_the_way_down_and_up_in_channels_last_order():
    spec = spec_for((16, 16, 8), (1.0, 1.0, 1.0), channels=8)
    network = CoarseNetwork(spec)
    features = network.down(torch.rand(2, 1, *spec.crop))
    for maps in [*features, *network.up.levels(features)]:
        assert maps.is_contiguous(memory_format=torch.channels_last_3d)


def test_in_prediction_the_order_is_that_of_norms_which_do_not_depend_on_threads():
    spec = spec_for((16, 16, 8), (1.0, 1.0, 1.0), channels=8)
    with torch.inference_mode():
        features = CoarseNetwork(spec).down(torch.rand(2, 1, *spec.crop))
    assert all(maps.is_contiguous() for maps in features)
