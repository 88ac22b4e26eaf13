"""The decoder of the linear probe: all maps side by side, and nothing that learns."""

import torch
from tests.networks.test_decoder import CHANNELS, STRIDES, feature_maps
from tests.networks.test_segmenter import spec_of

import research.methods  # noqa: F401 - enters the decoder into the table
from sacl.networks.decoder import build_decoder, resize
from sacl.networks.segmenter import build_segmenter


def test_decodes_to_the_finest_map():
    decoder = build_decoder("linear", CHANNELS, STRIDES, image_size=16)
    assert decoder(feature_maps(16)).shape == (2, decoder.out_channels, 16, 16)


def test_a_linear_probe_learns_a_linear_classifier_of_pixels_alone():
    segmenter = build_segmenter(spec_of(decoder="linear"), seed=0)
    learned = {n for n, _ in segmenter.named_parameters() if not n.startswith("encoder.")}
    assert learned == {"head.weight", "head.bias"}
    assert segmenter(torch.rand(2, 1, 32, 32)).shape == (2, 3, 32, 32)


def test_linear_is_every_map_normalized_and_raised_side_by_side():
    torch.manual_seed(0)
    maps = [5 * each + 3 for each in feature_maps(16)]
    decoder = build_decoder("linear", CHANNELS, STRIDES, image_size=16)
    assert not list(decoder.parameters())
    decoded = decoder(maps)
    start = 0
    for each in maps:
        over = (0, *range(2, each.ndim))
        normal = (each - each.mean(over, keepdim=True)) / each.std(over, False, keepdim=True)
        expected = resize(normal, maps[0].shape[2:])
        assert torch.allclose(decoded[:, start : start + each.shape[1]], expected, atol=1e-3)
        start += each.shape[1]
    assert start == decoder.out_channels


def test_linear_does_not_care_for_the_scale_of_a_feature():
    torch.manual_seed(0)
    maps = feature_maps(16)
    decoder = build_decoder("linear", CHANNELS, STRIDES, image_size=16)
    assert torch.allclose(decoder([100 * each for each in maps]), decoder(maps), atol=1e-3)
