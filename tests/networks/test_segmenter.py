"""Segmenters: what they read and give, how a pretrained encoder gets in, and how it is restored."""

import json
from dataclasses import replace

import pytest
import torch

from sacl.errors import DataError
from sacl.networks.encoder import Encoder, EncoderSpec
from sacl.networks.segmenter import (
    SegmenterSpec,
    TrainedModel,
    build_segmenter,
    restored,
)
from sacl.patches.region import Placement
from sacl.patches.window import WindowRule

STEM = "stem.0.conv.weight"


def spec_of(head="dense", decoder="unet", **changes):
    spec = SegmenterSpec(
        encoder=EncoderSpec(width=8),
        decoder=decoder,
        head=head,
        scheme="two",
        organs=("liver", "spleen"),
        image_size=32,
        window=WindowRule("ct", (-175.0, 275.0)),
        placement=Placement(region="slice", min_side_mm=24.0),
    )
    return replace(spec, **changes)


@pytest.mark.parametrize("decoder", ["unet", "aspp"])
@pytest.mark.parametrize(("head", "channels", "logits"), [("dense", 1, 3), ("query", 2, 1)])
def test_gives_logits_at_full_resolution(decoder, head, channels, logits):
    segmenter = build_segmenter(spec_of(head, decoder), seed=0)
    assert segmenter(torch.rand(2, channels, 32, 32)).shape == (2, logits, 32, 32)


def test_arms_of_one_seed_share_decoder_and_head():
    pretrained = Encoder(EncoderSpec(width=8)).state_dict()
    scratch = build_segmenter(spec_of(), seed=4).state_dict()
    warm = build_segmenter(spec_of(), seed=4, pretrained=pretrained).state_dict()
    for key in scratch:
        if not key.startswith("encoder."):
            assert torch.equal(scratch[key], warm[key]), key
    assert not torch.equal(scratch[f"encoder.{STEM}"], warm[f"encoder.{STEM}"])


def test_building_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    build_segmenter(spec_of(), seed=9)
    assert torch.equal(torch.rand(3), expected)


def test_a_dense_segmenter_drops_the_attention_input():
    pretrained = Encoder(EncoderSpec(width=8)).state_dict()
    segmenter = build_segmenter(spec_of("dense"), seed=0, pretrained=pretrained)
    assert torch.equal(segmenter.state_dict()[f"encoder.{STEM}"], pretrained[STEM][:, :1])


def test_an_encoder_without_attention_gets_an_attention_input_of_zeros():
    pretrained = Encoder(EncoderSpec(width=8, in_channels=1)).state_dict()
    spec = spec_of("query", encoder=EncoderSpec(width=8, in_channels=1))
    segmenter = build_segmenter(spec, seed=0, pretrained=pretrained).eval()
    weight = segmenter.state_dict()[f"encoder.{STEM}"]
    assert torch.equal(weight[:, :1], pretrained[STEM])
    assert not weight[:, 1].any()
    pixels = torch.rand(1, 2, 32, 32)
    blind = torch.cat([pixels[:, :1], torch.zeros(1, 1, 32, 32)], dim=1)
    assert torch.equal(segmenter(pixels), segmenter(blind))


def saved(segmenter):
    """Return weights and description as they come back from disk."""
    model = TrainedModel(spec=segmenter.spec, method="none", steps=3, seconds=1.5)
    return segmenter.state_dict(), json.loads(json.dumps(model.to_json()))


def test_comes_back_as_it_was():
    segmenter = build_segmenter(spec_of("query", "aspp"), seed=0).eval()
    state, text = saved(segmenter)
    again = restored(state, text, "here")
    pixels = torch.rand(1, 2, 32, 32)
    assert again.spec == segmenter.spec
    assert torch.allclose(again(pixels), segmenter(pixels), atol=1e-6)
    model = TrainedModel.from_json(text)
    assert (model.method, model.steps, model.seconds) == ("none", 3, 1.5)


def test_a_description_without_its_training_is_one_line():
    _, text = saved(build_segmenter(spec_of(), seed=0))
    with pytest.raises(DataError, match=r"how it was trained.*sacl finetune CONFIG.yaml --force"):
        TrainedModel.from_json({**text, "training": {"steps": 3}})


def test_weights_of_another_spec_are_one_line():
    state, text = saved(build_segmenter(spec_of(), seed=0))
    with pytest.raises(DataError, match=r"^here/segmenter\.safetensors: the weights do not fit"):
        restored(state, {**text, "decoder": "aspp"}, "here")


def test_a_damaged_description_is_one_line():
    with pytest.raises(DataError, match="damaged"):
        restored({}, {"head": "dense"}, "here")


def test_a_segmenter_whose_patches_were_placed_otherwise_is_refused_with_the_remedy():
    state, text = saved(build_segmenter(spec_of(), seed=0))
    assert text["placement"]["rule"] == 2
    text["placement"]["rule"] = 1
    with pytest.raises(DataError, match=r"placed by rule 1.*sacl extract CONFIG.yaml --force"):
        restored(state, text, "here")
