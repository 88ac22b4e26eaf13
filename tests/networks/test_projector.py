import torch

from sacl.networks.encoder import Encoder, EncoderSpec
from sacl.networks.projector import Embedder, Projector


def test_lands_on_the_unit_sphere():
    projected = Projector(12, 16, 5)(torch.randn(8, 12))

    assert projected.shape == (8, 5)
    torch.testing.assert_close(projected.norm(dim=1), torch.ones(8))


def test_stays_float32_under_autocast():
    embedder = Embedder(Encoder(EncoderSpec(width=8)), 16, 4)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        embedding = embedder(torch.rand(4, 2, 32, 32))

    assert embedding.dtype == torch.float32
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(4))


def test_carries_the_gradient_to_the_stem():
    embedder = Embedder(Encoder(EncoderSpec(width=8)), 16, 4)

    embedder(torch.rand(4, 2, 32, 32))[:, 0].sum().backward()

    assert all(torch.isfinite(p.grad).all() for p in embedder.parameters())
    assert next(embedder.encoder.parameters()).grad.abs().sum() > 0
