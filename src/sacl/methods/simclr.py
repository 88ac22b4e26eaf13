"""Two baselines: contrast without classes, and no pretraining at all.

`simclr`: a patch is alike its own other view only (Chen et al., "A simple framework for contrastive
learning of visual representations", ICML 2020). It reads images alone. `none` keeps random weights.
"""

from __future__ import annotations

from torch import Tensor, nn

from sacl.losses.contrastive import own_views, patch_contrastive_loss
from sacl.methods import Method, Pretraining, Recipe, register
from sacl.methods.batches import PatchViews, training_patches
from sacl.networks.device import channels_last
from sacl.networks.encoder import Encoder
from sacl.networks.projector import Embedder
from sacl.patches.store import PatchStore
from sacl.training.sampler import UniformSampler


def simclr_pretraining(store: PatchStore, recipe: Recipe) -> Pretraining:
    """Return the contrast between the views of single patches, without attention.

    Raises:
        DataError: there is no training patch.
    """
    patches = training_patches(store, ())
    sampler = UniformSampler(len(patches.rows), recipe.batch)
    views = PatchViews(store, patches.rows, sampler, recipe, attention=False)

    def loss(network: nn.Module, step: int) -> Tensor:
        pixels, positions, _ = views.draw(step)
        embedding = network(channels_last(pixels.flatten(0, 1)))
        positive, candidate = own_views(len(positions), recipe.device)
        return patch_contrastive_loss(
            embedding.unflatten(0, (-1, 2)), positive, candidate, recipe.temperature
        )

    return Pretraining(
        network=_embedder(recipe, attention=False),
        loss=loss,
        pixels_per_step=views.pixels_per_step,
        margin=views.margin,
        facts={"patches": len(patches.rows), "scans": int(patches.scan.max()) + 1},
    )


def keep_random_weights(store: PatchStore, recipe: Recipe) -> Pretraining:
    """Return an encoder that is not trained."""
    return Pretraining(network=_embedder(recipe, attention=True))


def _embedder(recipe: Recipe, *, attention: bool) -> Embedder:
    with recipe.seeded():
        return Embedder(Encoder(recipe.encoder_spec(attention=attention)), *recipe.projector)


register(Method(name="simclr", build=simclr_pretraining))
register(Method(name="none", build=keep_random_weights, reads_attention=True))
