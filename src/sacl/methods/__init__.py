"""Pretraining methods: one file each, and the table of what each of them reads and trains.

A method registers itself when its file is imported. Every file of this package is, and what a
caller has imported besides is known as well.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from sacl.errors import ConfigError
from sacl.networks.encoder import EncoderSpec
from sacl.patches.views import ViewRanges
from sacl.training.loop import Loss


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a method is given beside the patch store.

    `network` and `width` are the encoder's, `decoder` is of methods that train one, `projector` has
    a hidden and an output width. A step sees `batch` patches or slices, each in two views that
    `ranges` allows. `scan_labels` make the classes with the organ (of several their combination).
    """

    network: str = "resnet18"
    width: int = 32
    decoder: str = "unet"
    projector: tuple[int, int] = (512, 128)
    batch: int = 16
    temperature: float = 0.1
    scan_labels: tuple[str, ...] = ()
    ranges: ViewRanges = ViewRanges()  # noqa: RUF009 - frozen
    seed: int = 0
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable

    def encoder_spec(self, *, attention: bool = False) -> EncoderSpec:
        """Return the encoder of images, or of images with attention."""
        return EncoderSpec(self.network, self.width, in_channels=2 if attention else 1)


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """What a method makes of a patch store: a network and the loss of its steps.

    The network has the `encoder` that is kept, and the `decoder` if the method trains one; there is
    no loss where there is nothing to train. `facts` are counts worth recording.
    """

    network: nn.Module
    loss: Loss | None = None
    pixels_per_step: int = 0
    facts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to pretrain an encoder without voxel annotation; `reads` is what a batch is made of.

    The attention is the encoder's second channel, scan-wise labels are part of the classes. It is
    built of a `PatchStore`, and of `QueryVolumes` where it is `on_volumes` too.
    """

    name: str
    build: Callable[[Any, Recipe], Pretraining]
    reads: Literal["patches", "slices"] = "patches"
    reads_attention: bool = False
    reads_scan_label: bool = False
    trains_decoder: bool = False
    on_volumes: bool = False

    def usual_batch(self, volumes: bool = False) -> int:
        """Return how many patches, slices or volumes a step has where nothing else is asked for."""
        if volumes:
            return 16 if self.reads == "patches" else 4
        return 128 if self.reads == "patches" else 16


METHODS: dict[str, Method] = {}
"""The methods by name, as far as they are imported; `method_named` imports those of the package."""


def register(method: Method) -> Method:
    """Enter a method into the table, and return it."""
    METHODS[method.name] = method
    return method


def method_named(name: str) -> Method:
    """Return a method by its name; one that nobody registered is refused."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    if name not in METHODS:
        raise ConfigError(
            f"pretrain.method: expected one of {', '.join(sorted(METHODS))}, got '{name[:60]}'"
        )
    return METHODS[name]
