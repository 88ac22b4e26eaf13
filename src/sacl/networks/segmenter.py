"""The segmenter, of slices or of volumes, and all that is needed to use it on a new scan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Annotated, Literal, TypeVar

import torch
from jaxtyping import Float
from msgspec import Meta
from torch import Tensor, nn

from sacl.errors import DataError
from sacl.files.documents import JsonObject
from sacl.files.weights import described
from sacl.networks.coarse import CoarseNetwork, CoarseSpec
from sacl.networks.decoder import build_decoder, resize
from sacl.networks.device import seeded
from sacl.networks.encoder import Encoder, EncoderSpec, State, with_inputs
from sacl.patches.region import Placement
from sacl.patches.scan_ranges import ScanRanges
from sacl.patches.window import WindowRule
from sacl.types import Cohort, LabelScheme

AnyModule = TypeVar("AnyModule", bound=nn.Module)

SEGMENTER = "segmenter"
"""Name of the files of a segmenter, without suffix."""


@dataclass(frozen=True, kw_only=True)
class SegmenterSpec:
    """What a segmenter is and how its input is made: enough to predict a scan never ingested.

    `dense` reads slices, whole ones or the square around all organs, and gives a logit per class,
    background first; `query` reads an organ's patch, image and attention, and gives that organ's
    logit. `image_size` is the side of either in pixels; `placement` says where they lie, `window`
    which intensities become 0 and 1, `scans` what the scans of its training were like.
    """

    encoder: EncoderSpec
    decoder: str
    head: Literal["dense", "query"]
    scheme: str
    organs: tuple[str, ...]
    image_size: Annotated[int, Meta(ge=8, le=4096)]
    window: WindowRule
    placement: Placement
    scans: ScanRanges | None = None

    @property
    def needs_coarse(self) -> bool:
        """Tell whether a scan's coarse label map has to be known."""
        return self.head == "query" or self.placement.region == "organs"

    @property
    def label_scheme(self) -> LabelScheme:
        """The organs as a label scheme."""
        return LabelScheme(self.scheme, self.organs)

    @classmethod
    def from_json(cls, text: JsonObject) -> SegmenterSpec:
        """Return the spec that was saved as JSON; a DataError where it is damaged."""
        remedy = "train the segmenter again (`sacl extract CONFIG.yaml --force`, then `sacl run`)"
        return described(cls, text, f"{SEGMENTER}.json", remedy)


def slice_spec(cohort: Cohort, size: int, width: int) -> SegmenterSpec:
    """Return the coarse network on a cohort's whole slices of `size` pixels."""
    return SegmenterSpec(
        encoder=EncoderSpec(width=width, in_channels=1),
        decoder="unet",
        head="dense",
        scheme=cohort.scheme.name,
        organs=cohort.scheme.names,
        image_size=size,
        window=WindowRule(cohort.modality, cohort.window_hu),
        placement=Placement(region="slice"),
    )


class Segmenter(nn.Module):
    """A network from pixels `[n, channel, i, j]` to logits of the same size."""

    def __init__(self, spec: SegmenterSpec) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = Encoder(spec.encoder)
        self.decoder = build_decoder(
            spec.decoder, self.encoder.channels, self.encoder.strides, spec.image_size
        )
        outputs = 1 + len(spec.organs) if spec.head == "dense" else 1
        self.head = nn.Conv2d(self.decoder.out_channels, outputs, 1)

    def forward(self, pixels: Float[Tensor, "n channel i j"]) -> Float[Tensor, "n out i j"]:
        """Return float32 logits."""
        logit = self.head(self.decoder(self.encoder(pixels)))
        return resize(logit.float().contiguous(), pixels.shape[2:])


def build_segmenter(
    spec: SegmenterSpec, seed: int, pretrained: State | None = None, decoder: State | None = None
) -> Segmenter:
    """Return a segmenter with random weights, and a pretrained encoder or decoder where given.

    With the same seed, decoder and head start from the same weights, pretrained or not. A dense
    segmenter drops the encoder's attention input, a query segmenter gets one that starts at 0.
    """
    channels: Literal[1, 2] = 1 if spec.head == "dense" else 2
    spec = replace(spec, encoder=replace(spec.encoder, in_channels=channels))
    with seeded(seed):
        segmenter = Segmenter(spec)
    if pretrained is not None:
        segmenter.encoder.load_state_dict(with_inputs(pretrained, channels))
    if decoder is not None:
        segmenter.decoder.load_state_dict(decoder)
    return segmenter


def filled(build: Callable[[], AnyModule], state: State, where: str) -> AnyModule:
    """Return a network in eval mode with its saved weights.

    Their shapes are compared with the network's before either takes memory.

    Raises:
        DataError: they differ; `where` is the name of both files, without suffix.
    """
    try:
        with torch.device("meta"):
            wanted = _shapes(build().state_dict())
        fits = wanted == _shapes(state)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError):
        fits = False  # no network can be built as described
    if not fits:
        raise DataError(
            f"{where}.safetensors: the weights do not fit {where.rpartition('/')[2]}.json; copy"
            " both files of one training"
        )
    network = build()
    network.load_state_dict(state)
    return network.eval()


def _shapes(state: State) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (value.shape, value.dtype) for name, value in state.items()}


@dataclass(frozen=True, kw_only=True)
class VolumeSegmenterSpec:
    """What a segmenter on volumes is and how its input is made.

    `network` says on which grid it works, `window` which intensities become 0 and 1, `scans` what
    the scans of its training were like. It reads whole scans, so that no coarse map is needed.
    """

    network: CoarseSpec
    window: WindowRule
    scans: ScanRanges | None = None
    head: Literal["volume"] = "volume"

    @property
    def needs_coarse(self) -> bool:
        """Tell whether a scan's coarse label map has to be known."""
        return False

    @property
    def organs(self) -> tuple[str, ...]:
        """The organs, in the order of their label values."""
        return self.network.organs

    @property
    def label_scheme(self) -> LabelScheme:
        """The organs as a label scheme."""
        return self.network.label_scheme

    @classmethod
    def from_json(cls, text: JsonObject) -> VolumeSegmenterSpec:
        """Return the spec that was saved as JSON; a DataError where it is damaged."""
        remedy = "train the segmenter again (`sacl finetune CONFIG.yaml --force`)"
        return described(cls, text, f"{SEGMENTER}.json", remedy)


class VolumeSegmenter(CoarseNetwork):
    """A U-Net from volumes `[n, 1, i, j, k]` to the logits of all its levels, the finest first."""

    def __init__(self, spec: VolumeSegmenterSpec) -> None:
        super().__init__(spec.network)
        self.spec = spec


def spec_of(text: JsonObject) -> SegmenterSpec | VolumeSegmenterSpec:
    """Return the spec of either kind that was saved as JSON; a DataError where it is damaged."""
    kind = VolumeSegmenterSpec if text.get("head") == "volume" else SegmenterSpec
    return kind.from_json(text)


def restored(state: State, text: JsonObject, where: str) -> Segmenter | VolumeSegmenter:
    """Return a segmenter of either kind in eval mode from its saved weights and description.

    Raises:
        DataError: the description is damaged, or the weights do not fit it.
    """
    spec = spec_of(text)
    where = f"{where}/{SEGMENTER}"
    if isinstance(spec, VolumeSegmenterSpec):
        return filled(partial(VolumeSegmenter, spec), state, where)
    return filled(partial(Segmenter, spec), state, where)


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """What `segmenter.json` says: the segmenter, and how it was trained.

    `method` pretrained its encoder, `none` where it started from random weights. `seconds` are
    those of the last uninterrupted stretch of training.
    """

    spec: SegmenterSpec | VolumeSegmenterSpec
    method: str
    steps: int
    seconds: float

    def to_json(self) -> JsonObject:
        """Return the spec's fields, and those of the training in a block of their own."""
        training = asdict(self)
        return {**training.pop("spec"), "training": training}

    @classmethod
    def from_json(cls, text: JsonObject) -> TrainedModel:
        """Return the record that was saved as JSON; a DataError where it is damaged."""
        spec = spec_of(text)
        try:
            return cls(spec=spec, **text["training"])
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{SEGMENTER}.json: how it was trained is missing or damaged; redo it with"
                " `sacl finetune CONFIG.yaml --force`"
            ) from error
