"""Two views of every patch, made in one go on the device: one affine map, then the intensity.

Image and attention are resampled together, bilinearly; the attention stays the share of a pixel
that the organ covers (it is not thresholded, in training as in prediction). Where a view reaches
beyond the stored margin it is 0, the intensity of the window's lower end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class ViewRanges:
    """How far a view may differ from its patch; every field is a largest deviation.

    Rotation in degrees; scale the range of the magnification, drawn log-uniformly; shift in units
    of the side; brightness of the window's width; contrast relative;
    gamma its logarithm; noise a standard deviation; blur a standard deviation in pixels.
    """

    rotation_deg: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    shift: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    gamma: float = 0.0
    noise: float = 0.0
    blur: float = 0.0


VIEWS = {
    "mild": ViewRanges(
        rotation_deg=30.0,
        scale=(0.7, 1.25),
        shift=0.1,
        brightness=0.1,
        contrast=0.25,
        gamma=0.25,
        noise=0.05,
        blur=1.0,
    ),
    "strong": ViewRanges(
        rotation_deg=45.0,
        scale=(0.7, 1.4),
        shift=0.12,
        brightness=0.2,
        contrast=0.5,
        gamma=0.7,
        noise=0.08,
        blur=1.2,
    ),
}
"""The ranges that the settings know by name."""


class BatchGenerator(torch.Generator):
    """A generator that may be asked for a part of a batch, and draws for the whole of it.

    So a sample gets the same random numbers in whatever part it is made.
    """

    whole: int = 0
    kept: Int[Tensor, " kept"] | None = None

    def keep(self, kept: Int[np.ndarray, " kept"], whole: int) -> None:
        """Draw for `whole` samples from now on, and keep what these of them get."""
        all_of_them = np.array_equal(kept, np.arange(whole))
        self.kept = None if all_of_them else torch.from_numpy(kept).to(self.device)
        self.whole = whole


def per_sample(
    draw: Callable[..., Tensor], shape: Sequence[int], generator: torch.Generator
) -> Shaped[Tensor, "n ..."]:
    """Return random numbers `[n, ...]` of samples, by such as `torch.rand`, where the generator is.

    Of a part of a batch n may be a multiple of the samples: each has as many in a row.
    """
    kept = getattr(generator, "kept", None)
    if kept is None:
        return draw(tuple(shape), generator=generator, device=generator.device)
    whole = (generator.whole, shape[0] // len(kept), *shape[1:])
    return draw(whole, generator=generator, device=generator.device)[kept].flatten(0, 1)


def random_affine(
    count: int, ranges: ViewRanges, generator: torch.Generator, device: torch.device
) -> Float[Tensor, "count 2 3"]:
    """Draw one affine map per view: rotation, magnification and shift in one matrix.

    A map takes a view's (j, i) in units of half its side (-1 to 1, as `affine_grid` has it) to the
    patch's (j, i) in the same unit, so that it does not depend on the stored margin.
    """
    low, high = (math.log(s) for s in ranges.scale)
    turn = math.radians(ranges.rotation_deg) * _uniform(count, generator)
    magnification = torch.exp(0.5 * (low + high) + 0.5 * (high - low) * _uniform(count, generator))
    shift = 2 * ranges.shift * torch.stack([_uniform(count, generator) for _ in range(2)], 1)
    cosine, sine = torch.cos(turn) / magnification, torch.sin(turn) / magnification
    row_j = torch.stack([cosine, -sine, shift[:, 0]], 1)
    row_i = torch.stack([sine, cosine, shift[:, 1]], 1)
    return torch.stack([row_j, row_i], 1).to(device)


def resample(
    pixels: Float[Tensor, "n channel ..."],
    theta: Float[Tensor, "n axis _"],
    size: int | Sequence[int],
    stored_scale: float,
    nearest_channels: Sequence[int] = (),
) -> Float[Tensor, "n channel ..."]:
    """Resample stored patches or crops through affine maps, all channels on one sampling grid.

    The identity at the store's own scale is exactly the crop of the center. Views are 0 where they
    reach beyond what is stored.

    Args:
        pixels: Stored patches, with their margin.
        theta: One map per patch, as `random_affine` draws them.
        size: Pixels of a view's side, or voxels of each.
        stored_scale: Stored side in units of the patch's side, margin included.
        nearest_channels: Channels with labels, which take the nearest pixel; the rest is bilinear.
    """
    sides = (size, size) if isinstance(size, int) else size
    shape = [*pixels.shape[:2], *sides]
    grid = functional.affine_grid(theta.float() / stored_scale, shape, align_corners=False)
    if not nearest_channels:
        return functional.grid_sample(pixels, grid, align_corners=False)
    views, labels = pixels.new_empty(shape), list(nearest_channels)
    smooth = [c for c in range(pixels.shape[1]) if c not in labels]
    for channels, mode in ((smooth, "bilinear"), (labels, "nearest")):
        part = functional.grid_sample(pixels[:, channels], grid, mode=mode, align_corners=False)
        views[:, channels] = part
    return views


def change_intensity(
    image: Float[Tensor, "n 1 i j"], ranges: ViewRanges, generator: torch.Generator
) -> Float[Tensor, "n 1 i j"]:
    """Blur, change contrast, brightness and gamma, add noise: each image by its own draw.

    Intensities are in [0, 1] before and after. Contrast turns about the image's own mean.
    """
    count, device = image.shape[0], image.device

    def draw() -> Float[Tensor, "n 1 1 1"]:
        return _uniform(count, generator).to(device)[:, None, None, None]

    if ranges.blur > 0:
        image = _blur(image, ranges.blur * 0.5 * (draw() + 1).flatten())
    contrast, brightness = 1 + ranges.contrast * draw(), ranges.brightness * draw()
    mean = image.mean(dim=(1, 2, 3), keepdim=True)
    image = torch.addcmul(mean * (1 - contrast) + brightness, image, contrast).clamp_(0, 1)
    if ranges.gamma > 0:
        image = image.pow_(torch.exp(ranges.gamma * draw()))
    if ranges.noise > 0:
        noise = per_sample(torch.randn, image.shape, generator)
        image = image.addcmul_(noise.to(device), ranges.noise * 0.5 * (draw() + 1)).clamp_(0, 1)
    return image


@torch.no_grad()
def two_views(
    pixels: Float[Tensor, "n channel stored stored"],
    ranges: ViewRanges,
    size: int,
    stored_scale: float,
    generator: torch.Generator,
) -> Float[Tensor, "n 2 channel size size"]:
    """Return two independently augmented views of every patch.

    Channel 0 of the stored pixels is the image, channel 1 (if any) attention; size and scale are
    those of `resample`.
    """
    thetas = [random_affine(len(pixels), ranges, generator, pixels.device) for _ in range(2)]
    views = torch.stack([resample(pixels, theta, size, stored_scale) for theta in thetas], dim=1)
    image = views[:, :, :1].reshape(-1, 1, size, size)
    views[:, :, :1] = change_intensity(image, ranges, generator).view(-1, 2, 1, size, size)
    return views


def _uniform(count: int, generator: torch.Generator) -> Float[Tensor, " count"]:
    """Draw from -1 to 1, on the generator's own device."""
    return 2 * per_sample(torch.rand, [count], generator) - 1


def _blur(image: Float[Tensor, "n 1 i j"], sigma: Float[Tensor, " n"]) -> Float[Tensor, "n 1 i j"]:
    """Blur each image by its own Gaussian: two batched products with banded matrices."""
    rows, columns = (_blur_matrix(side, sigma) for side in image.shape[-2:])
    return torch.bmm(torch.bmm(rows, image[:, 0]), columns.transpose(1, 2))[:, None]


def _blur_matrix(side: int, sigma: Float[Tensor, " n"]) -> Float[Tensor, "n side side"]:
    """Return Gaussian weights that sum to 1 at the border too."""
    position = torch.arange(side, device=sigma.device)
    profile = torch.exp(-0.5 * (position[None, :] / sigma.clamp_min(0.1)[:, None]).square())
    profile[profile < 1e-7] = 0  # what underflows is slow to multiply and changes nothing
    kernel = profile[:, (position[:, None] - position[None, :]).abs()]
    return kernel / kernel.sum(dim=-1, keepdim=True)
