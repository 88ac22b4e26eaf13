"""The segmenter on volumes, and what is said of a trained segmenter of either kind."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from sacl.errors import DataError
from sacl.files.documents import JsonObject
from sacl.files.weights import described
from sacl.networks.coarse import CoarseNetwork, CoarseSpec
from sacl.networks.encoder import State
from sacl.networks.segmenter import SEGMENTER, Segmenter, SegmenterSpec, filled
from sacl.patches.scan_ranges import ScanRanges
from sacl.patches.window import WindowRule
from sacl.types import LabelScheme

VOLUME_HEAD: Literal["volume"] = "volume"


@dataclass(frozen=True, kw_only=True)
class VolumeSegmenterSpec:
    """What a segmenter on volumes is and how its input is made.

    `network` says on which grid it works, `window` which intensities become 0 and 1, `scans` what
    the scans of its training were like. It reads whole scans, so that no coarse map is needed.
    """

    network: CoarseSpec
    window: WindowRule
    scans: ScanRanges | None = None
    head: Literal["volume"] = VOLUME_HEAD

    @property
    def organs(self) -> tuple[str, ...]:
        """The organs, in the order of their label values."""
        return self.network.organs

    @property
    def label_scheme(self) -> LabelScheme:
        """The organs as a label scheme."""
        return LabelScheme(self.network.scheme, self.network.organs)

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
    kind = VolumeSegmenterSpec if text.get("head") == VOLUME_HEAD else SegmenterSpec
    return kind.from_json(text)


def restored(state: State, text: JsonObject, where: str) -> Segmenter | VolumeSegmenter:
    """Return a segmenter of either kind in eval mode from its saved weights and description.

    Raises:
        DataError: the description is damaged, or the weights do not fit it.
    """
    spec = spec_of(text)
    if isinstance(spec, VolumeSegmenterSpec):
        return filled(VolumeSegmenter(spec), state, where)
    return filled(Segmenter(spec), state, where)


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
