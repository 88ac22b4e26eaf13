"""What lies beside a segmenter's weights: which segmenter it is, and how it was trained."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from sacl.errors import DataError
from sacl.files.documents import JsonObject
from sacl.networks.segmenter import SEGMENTER, SegmenterSpec
from sacl.networks.volume_segmenter import VOLUME_HEAD, VolumeSegmenterSpec


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
        kind = VolumeSegmenterSpec if text.get("head") == VOLUME_HEAD else SegmenterSpec
        spec = kind.from_json(text)
        try:
            return cls(spec=spec, **text["training"])
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{SEGMENTER}.json: how it was trained is missing or damaged; redo it with"
                " `sacl finetune CONFIG.yaml --force`"
            ) from error
