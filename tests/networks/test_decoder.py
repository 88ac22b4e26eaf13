"""Decoders: shapes, dilations without dead taps, gradients in every weight."""

import pytest
import torch

from sacl.errors import ConfigError
from sacl.networks.decoder import GroupNorm, aspp_dilations, build_decoder, resize

CHANNELS, STRIDES = (16, 32, 64, 128), (1, 2, 4, 8)


def feature_maps(size):
    return [torch.randn(2, c, size // s, size // s) for c, s in zip(CHANNELS, STRIDES, strict=True)]


@pytest.mark.parametrize(("name", "side"), [("aspp", 2), ("unet", 16)])
def test_decodes_to_the_finest_map_it_reads(name, side):
    decoder = build_decoder(name, CHANNELS, STRIDES, image_size=16)
    decoded = decoder(feature_maps(16))
    assert decoded.shape == (2, decoder.out_channels, side, side)


@pytest.mark.parametrize("size", [32, 64, 96, 128])
@pytest.mark.parametrize("name", ["aspp", "unet"])
def test_no_weight_is_dead(name, size):
    torch.manual_seed(0)
    decoder = build_decoder(name, CHANNELS, STRIDES, image_size=size)
    decoder(feature_maps(size)).square().sum().backward()
    for key, parameter in decoder.named_parameters():
        alive = (parameter.grad != 0).float().mean()
        assert alive > 0.9, f"{key}: {alive:.2f} of the weights get a gradient"


@pytest.mark.parametrize("map_size", [4, 8, 12, 16, 32, 48, 64])
def test_the_outer_taps_reach_into_the_map_from_most_pixels(map_size):
    assert max(aspp_dilations(map_size)) <= max(1, map_size / 2)


def test_a_48_pixel_map_gets_the_papers_dilations():
    assert aspp_dilations(48) == (6, 12, 18)


def test_resizing_keeps_a_ramp_in_place():
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    half = resize(ramp, (4, 4))
    assert torch.allclose(half[0, 0, 0], torch.tensor([0.5, 2.5, 4.5, 6.5]))


def test_an_unknown_decoder_is_one_line():
    with pytest.raises(ConfigError, match="decoder: expected one of unet, aspp"):
        build_decoder("tower", CHANNELS, STRIDES, image_size=16)


def test_group_norm_is_that_of_torch_and_keeps_the_memory_order():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 16, 6, 5, generator=generator, dtype=torch.float64)
    outcomes = []
    for norm in (GroupNorm(8, 16), torch.nn.GroupNorm(8, 16)):
        norm.double().weight.data.copy_(torch.arange(1.0, 17))
        given = maps.contiguous(memory_format=torch.channels_last).requires_grad_()
        normed = norm(given)
        normed.pow(3).sum().backward()
        outcomes.append((normed, given.grad, norm.weight.grad, norm.bias.grad))
    for own, other in zip(*outcomes, strict=True):
        assert torch.allclose(own, other, rtol=1e-9, atol=1e-9)
    assert outcomes[0][0].is_contiguous(memory_format=torch.channels_last)


def test_maps_do_not_depend_on_the_number_of_threads():
    norm = GroupNorm(8, 32)
    maps = torch.rand(1, 32, 32, 32).bfloat16().contiguous(memory_format=torch.channels_last)
    before, normed = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            normed.append(norm(maps))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*normed)
