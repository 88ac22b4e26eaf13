"""The paper's method: contrast of query patches (image and attention) in semantic classes.

The mask of the coarse map is a second channel of the patch, or the volume, of one organ. Two are
alike where organ and scan-wise label are the same; a batch holds the classes evenly.
"""

from __future__ import annotations

import torch

from sacl.losses.contrastive import semantic_relations
from sacl.methods import Method, Pretraining, Recipe, register
from sacl.methods.batches import Queries, contrast_of, query_views, training_patches
from sacl.training.sampler import BalancedSampler

SCANS_PER_CLASS = 4
"""Different scans that a class brings into a batch, where it has them."""


def semantic_pretraining(store: Queries, recipe: Recipe) -> Pretraining:
    """Return the contrast between query patches with attention."""
    patches = training_patches(store, recipe.scan_labels)
    sampler = BalancedSampler(
        patches.organ, patches.scan_label, patches.scan, recipe.batch, SCANS_PER_CLASS
    )
    views = query_views(store, patches, sampler, recipe, attention=True)
    organ = torch.from_numpy(patches.organ).to(recipe.device)
    scan_label = torch.from_numpy(patches.scan_label).to(recipe.device)
    facts = {
        "patches": len(patches.rows),
        "scans": int(patches.scan.max()) + 1,
        "classes": sampler.classes,
        "patches_with_unknown_label": int((patches.scan_label < 0).sum()),
    }
    return contrast_of(
        views, lambda drawn: semantic_relations(organ[drawn], scan_label[drawn]), facts
    )


register(
    Method(
        name="semantic",
        build=semantic_pretraining,
        reads_attention=True,
        reads_scan_label=True,
        on_volumes=True,
    )
)
