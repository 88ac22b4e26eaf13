"""Two baselines: contrast without classes, and no pretraining at all.

`simclr`: a patch is alike its own other view only (Chen et al., "A simple framework for contrastive
learning of visual representations", ICML 2020). It reads images alone. `none` keeps random weights.
"""

from __future__ import annotations

from sacl.losses.contrastive import own_views
from sacl.methods import Method, Pretraining, Recipe, register
from sacl.methods.batches import (
    Queries,
    contrast_of,
    embedder_of,
    query_views,
    training_patches,
)
from sacl.training.sampler import UniformSampler


def simclr_pretraining(store: Queries, recipe: Recipe) -> Pretraining:
    """Return the contrast between the views of single patches, without attention."""
    patches = training_patches(store, ())
    sampler = UniformSampler(len(patches.rows), recipe.batch)
    views = query_views(store, patches, sampler, recipe, attention=False)
    facts = {"patches": len(patches.rows), "scans": int(patches.scan.max()) + 1}
    return contrast_of(views, lambda drawn: own_views(len(drawn), recipe.device), facts)


def keep_random_weights(store: Queries, recipe: Recipe) -> Pretraining:
    """Return an encoder that is not trained."""
    return Pretraining(network=embedder_of(store, recipe, attention=True))


register(Method(name="simclr", build=simclr_pretraining, on_volumes=True))
register(Method(name="none", build=keep_random_weights, reads_attention=True, on_volumes=True))
