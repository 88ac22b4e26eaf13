import json
from dataclasses import asdict

import pytest
import torch

from sacl.errors import ConfigError, DataError
from sacl.networks.encoder import (
    STEM_WEIGHT,
    Encoder,
    EncoderSpec,
    PretrainedEncoder,
    pooled,
    with_inputs,
)


@pytest.mark.parametrize("network", ["resnet18", "resnet34", "resnet50"])
@pytest.mark.parametrize("side", [32, 64])
def test_says_truly_what_feature_maps_it_gives(network, side):
    encoder = Encoder(EncoderSpec(network, width=8)).eval()

    features = encoder(torch.zeros(2, 2, side, side))

    assert [tuple(f.shape) for f in features] == [
        (2, channels, side // stride, side // stride)
        for channels, stride in zip(encoder.channels, encoder.strides, strict=True)
    ]
    assert encoder.strides == (2, 4, 8, 16)


def test_has_the_size_of_a_resnet18():
    encoder = Encoder(EncoderSpec("resnet18", width=64))

    # torchvision's has 11.18 million without its classifier, 7 x 7 stem included.
    assert 11.1e6 < sum(p.numel() for p in encoder.parameters()) < 11.3e6


def test_sees_every_pixel_of_a_patch():
    torch.manual_seed(0)
    encoder = Encoder(EncoderSpec(width=8)).eval()
    pixels = torch.rand(1, 2, 64, 64, requires_grad=True)

    pooled(encoder(pixels)).square().sum().backward()

    assert (pixels.grad != 0).float().mean() > 0.99


def test_can_be_built_again_from_its_spec():
    spec = EncoderSpec("resnet50", width=8, in_channels=1)
    encoder = Encoder(spec)

    again = Encoder(encoder.spec)
    again.load_state_dict(encoder.state_dict())

    pixels = torch.rand(2, 1, 32, 32)
    for one, other in zip(encoder.eval()(pixels), again.eval()(pixels), strict=True):
        torch.testing.assert_close(one, other)


def test_reads_images_alone_as_it_reads_them_without_attention():
    encoder = Encoder(EncoderSpec(width=8)).eval()
    state = with_inputs(encoder.state_dict(), 1)
    alone = Encoder(EncoderSpec(width=8, in_channels=1)).eval()
    alone.load_state_dict(state)
    image = torch.rand(2, 1, 32, 32)

    with_zeros = encoder(torch.cat([image, torch.zeros_like(image)], dim=1))

    for one, other in zip(alone(image), with_zeros, strict=True):
        torch.testing.assert_close(one, other)
    assert encoder.state_dict()[STEM_WEIGHT].shape[1] == 2


@pytest.mark.parametrize("channels", [1, 2])
def test_leaves_an_encoder_with_the_wanted_inputs_as_it_is(channels):
    encoder = Encoder(EncoderSpec(width=8, in_channels=channels))

    state = with_inputs(encoder.state_dict(), channels)

    assert all(torch.equal(state[k], v) for k, v in encoder.state_dict().items())


def test_a_description_by_an_older_version_is_refused_with_the_remedy():
    text = {"network": "resnet18", "width": 8, "in_channels": 2, "spatial_dims": 2}
    with pytest.raises(
        DataError, match=r"encoder\.json: .*older version.*sacl pretrain CONFIG.yaml --force"
    ):
        PretrainedEncoder.from_json(text)


def test_a_description_comes_back_as_it_was_saved():
    made = PretrainedEncoder(
        method="pooled",
        spec=EncoderSpec(width=8, in_channels=1),
        reads_attention=False,
        pixels_trained=9,
        projector=(16, 8),
        decoder="unet",
    )
    assert PretrainedEncoder.from_json(json.loads(json.dumps(asdict(made)))) == made


@pytest.mark.parametrize(
    "wrong",
    [
        {"network": "vgg"},
        {"width": 9},
        {"width": 6},
        {"width": 0},
        {"in_channels": 0},
    ],
)
def test_refuses_a_spec_that_no_encoder_has(wrong):
    with pytest.raises(ConfigError, match="encoder"):
        EncoderSpec(**wrong)


def test_of_a_network_without_memory_no_weights_are_drawn(monkeypatch):
    """There torch would draw them by its compiler, whose import takes a second."""
    monkeypatch.setattr(torch.nn.init, "kaiming_normal_", lambda *_, **__: pytest.fail("drawn"))
    with torch.device("meta"):
        Encoder(EncoderSpec())
