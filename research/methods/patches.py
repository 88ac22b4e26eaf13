"""Query patches: the semantic method without its parts, one by one.

- `supcon`: semantic classes, of images without attention.
- `simclr-attention`: only a patch's own two views attract each other, with attention.
- `correlation`: organs are the classes, and a positive counts by how alike the intensities are.
- `semantic-hidden-half`: the semantic method, with the attention of half of the views hidden.
"""

from __future__ import annotations

from functools import cached_property, partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sacl.losses.contrastive import own_views, patch_contrastive_loss, semantic_relations
from sacl.methods import Method, Pretraining, Recipe, register
from sacl.methods.batches import PatchViews, TrainingPatches, embedder_of, training_patches
from sacl.methods.semantic import SCANS_PER_CLASS
from sacl.networks.device import channels_last
from sacl.patches.store import PatchStore
from sacl.training.sampler import BalancedSampler, Sampler, UniformSampler

_MEASURED_AT_ONCE = 256


class Contrast:
    """A step's embeddings of query patches, and which patches they are of."""

    def __init__(
        self,
        store: PatchStore,
        recipe: Recipe,
        patches: TrainingPatches,
        *,
        balanced: bool,
        attention: bool,
        hidden: float = 0.0,
    ) -> None:
        self.recipe, self.patches, self.attention, self.hidden = recipe, patches, attention, hidden
        sampler: Sampler = UniformSampler(len(patches.rows), recipe.batch)
        if balanced:
            sampler = BalancedSampler(
                patches.organ, patches.scan_label, patches.scan, recipe.batch, SCANS_PER_CLASS
            )
        self.views = PatchViews(store, patches.rows, sampler, recipe, attention)
        self.organ = torch.from_numpy(patches.organ).to(recipe.device)
        self.scan_label = torch.from_numpy(patches.scan_label).to(recipe.device)

    def embedded(
        self, network: nn.Module, step: int
    ) -> tuple[Float[Tensor, "patch 2 dim"], Int[Tensor, " patch"]]:
        """Return the unit vectors of a step's views, and their patches."""
        pixels, positions, generator = self.views.draw(step)
        if self.hidden > 0:
            hide_attention(pixels, self.hidden, generator)
        embedding = network(channels_last(pixels.flatten(0, 1)))
        return embedding.unflatten(0, (-1, 2)), torch.from_numpy(positions).to(self.recipe.device)

    def semantic(self, network: nn.Module, step: int) -> Tensor:
        """Return the loss in which organ and scan-wise label make the classes."""
        embedding, drawn = self.embedded(network, step)
        relations = semantic_relations(self.organ[drawn], self.scan_label[drawn])
        return patch_contrastive_loss(embedding, *relations, self.recipe.temperature)

    def single(self, network: nn.Module, step: int) -> Tensor:
        """Return the loss in which a patch is alike its own other view only."""
        embedding, drawn = self.embedded(network, step)
        relations = own_views(len(drawn), self.recipe.device)
        return patch_contrastive_loss(embedding, *relations, self.recipe.temperature)

    def correlated(self, network: nn.Module, step: int) -> Tensor:
        """Return the loss in which organs are the classes, weighted by the intensities."""
        embedding, drawn = self.embedded(network, step)
        relations = semantic_relations(self.organ[drawn], torch.zeros_like(drawn))
        means = self.intensity[drawn.cpu()].to(self.recipe.device)
        weight = intensity_weights(self.organ[drawn], means, self.spread.to(self.recipe.device))
        return patch_contrastive_loss(embedding, *relations, self.recipe.temperature, weight)

    @cached_property
    def intensity(self) -> Float[Tensor, " patch"]:
        """Mean intensity of every patch under its attention, 0 to 1, on the CPU."""
        means, count = [], len(self.patches.rows)
        for first in range(0, count, _MEASURED_AT_ONCE):
            last = min(first + _MEASURED_AT_ONCE, count)
            image, attention = self.views.pixels(np.arange(first, last)).unbind(dim=1)
            area = attention.sum(dim=(1, 2)).clamp_min(1e-6)
            means.append(((image * attention).sum(dim=(1, 2)) / area).cpu())
        return torch.cat(means)

    @cached_property
    def spread(self) -> Float[Tensor, " organ"]:
        """Standard deviation of the intensity within each organ."""
        organ = torch.from_numpy(self.patches.organ)
        of_organ = [self.intensity[organ == n] for n in range(int(organ.max()) + 1)]
        return torch.stack([m.std() if len(m) > 1 else torch.tensor(0.0) for m in of_organ])


def hide_attention(
    views: Float[Tensor, "patch 2 channel i j"], share: float, generator: torch.Generator
) -> None:
    """Set the attention (channel 1) of randomly chosen views to 0, in place.

    Given the mask, an encoder may read the organ off it; of a view without, it has to recognize
    the organ in the image. A dense segmenter uses it in that way: 0 is the same as no channel.

    Args:
        views: Each is drawn on its own.
        share: Probability of a view to lose its attention.
        generator: On the views' device.
    """
    drawn = torch.rand(views.shape[:2], generator=generator, device=views.device)
    views[:, :, 1] *= (drawn >= share)[:, :, None, None]


def intensity_weights(
    organ: Int[Tensor, " batch"],
    intensity: Float[Tensor, " batch"],
    spread: Float[Tensor, " organ"],
) -> Float[Tensor, "batch batch"]:
    """Return how alike the organs' intensities of two patches are, 0 to 1.

    exp(-(m_i - m_j)^2 / (2 s^2)) with the mean intensity m under the attention and the organ's
    spread s over all scans: what a contrast phase does to an organ, without phases being named.
    After the organ-wise correlation of Lee et al., "DCC-CL" (arXiv 2210.08652), of which only the
    abstract was at hand.

    Args:
        organ: Organ of each patch; the weights of different organs are of no use.
        intensity: Mean intensity under each patch's attention, 0 to 1.
        spread: Standard deviation of `intensity` within each organ.
    """
    difference = intensity[:, None] - intensity[None, :]
    scale = spread[organ].clamp_min(1e-3)[:, None]
    return torch.exp(-0.5 * (difference / scale).square()).clamp_min(1e-6)


def _pretraining(contrast: Contrast, name: str) -> Pretraining:
    return Pretraining(
        network=embedder_of(contrast.views.store, contrast.recipe, attention=contrast.attention),
        loss=getattr(contrast, name),
        pixels_per_step=contrast.views.pixels_per_step,
        facts={"patches": len(contrast.patches.rows)},
    )


def supcon(store: PatchStore, recipe: Recipe) -> Pretraining:
    """Return the semantic contrast of patches without attention."""
    patches = training_patches(store, recipe.scan_labels)
    contrast = Contrast(store, recipe, patches, balanced=True, attention=False)
    return _pretraining(contrast, "semantic")


def simclr_attention(store: PatchStore, recipe: Recipe) -> Pretraining:
    """Return the contrast between single patches, with attention."""
    patches = training_patches(store, ())
    return _pretraining(Contrast(store, recipe, patches, balanced=False, attention=True), "single")


def correlation(store: PatchStore, recipe: Recipe) -> Pretraining:
    """Return the contrast between organs, weighted by how alike the intensities are."""
    patches = training_patches(store, ())
    contrast = Contrast(store, recipe, patches, balanced=True, attention=True)
    return _pretraining(contrast, "correlated")


def hidden_attention(store: PatchStore, recipe: Recipe, share: float = 0.5) -> Pretraining:
    """Return the semantic contrast in which a share of the views has no attention."""
    patches = training_patches(store, recipe.scan_labels)
    contrast = Contrast(store, recipe, patches, balanced=True, attention=True, hidden=share)
    return _pretraining(contrast, "semantic")


register(Method(name="supcon", build=supcon, reads_scan_label=True))
register(Method(name="simclr-attention", build=simclr_attention, reads_attention=True))
register(Method(name="correlation", build=correlation, reads_attention=True))
register(
    Method(
        name="semantic-hidden-half",
        build=partial(hidden_attention, share=0.5),
        reads_attention=True,
        reads_scan_label=True,
    )
)
