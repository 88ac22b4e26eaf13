"""Settings of pretraining and fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sacl.settings.require import require

Strategy = Literal[
    "semantic",
    "organ",
    "correlation",
    "supcon",
    "simclr",
    "simclr-attention",
    "simclr-slices",
    "pixel",
    "self-training",
    "mim",
    "none",
]
_ON_SLICES: tuple[Strategy, ...] = ("simclr-slices", "pixel", "self-training", "mim")
_POOLED: tuple[Strategy, ...] = ("semantic", "organ")
_WITHOUT_ATTENTION: tuple[Strategy, ...] = ("supcon", "simclr")
Network = Literal["resnet18", "resnet34", "resnet50"]
Decoder = Literal["unet", "deeplab", "aspp", "linear"]


@dataclass(frozen=True, kw_only=True)
class AugmentSettings:
    """How a view differs from its patch: one affine map, then intensity changes."""

    rotation_deg: float = 30.0
    """Largest rotation, either way."""
    scale: tuple[float, float] = (0.7, 1.25)
    """Range of the magnification."""
    shift: float = 0.1
    """Largest shift in units of the side."""
    flip: bool = False
    """Flip left-right; refused where the cohort has paired organs."""
    brightness: float = 0.1
    """Largest change of the intensity, of the window's width."""
    contrast: float = 0.25
    """Largest relative change of the contrast."""
    gamma: float = 0.25
    """Largest absolute value of the logarithm of the gamma."""
    noise: float = 0.05
    """Largest standard deviation of added noise."""
    blur: float = 1.0
    """Largest standard deviation of the blur, in pixels."""

    def __post_init__(self) -> None:
        low, high = self.scale
        require(0 < low <= high, f"augment.scale must be > 0 and rise, got {self.scale}")


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """Pretrain the encoder by contrast between query patches; no voxel annotation is used."""

    strategy: Strategy = "semantic"
    """What is learned from the unlabeled scans. By contrast of query patches: which are alike,
    organ x scan-wise label (`semantic`), organ, organ weighted by how alike the intensities are
    (`correlation`), the same without attention (`supcon`), or only a patch's own two views (with or
    without attention). On dense slices: only a slice's own two views, contrast between pixels by
    coarse label, training on the coarse labels, masked image modeling."""
    query: Literal["patch", "pooled", "parts"] = "patch"
    """What attention does under `semantic` and `organ`: the mask is a second channel of a query
    patch (the paper's), or an organ's query is pooled under its mask from a dense slice, so that
    the decoder learns too; in the decoder's map over the whole mask (`pooled`), or over the part of
    it in every square of a grid (`parts`)."""
    attention_dropout: float = 0.0
    """Query patches: share of the views whose attention is hidden (all 0). Fine-tuning with a dense
    head uses the encoder without attention."""
    decoder: Decoder = "unet"
    """Decoder that is pretrained too, on dense slices; fine-tuning with another one starts anew."""
    slices: int = 32
    """Dense slices per step, each seen in two views."""
    scan_label: str | tuple[str, ...] = "phase"
    """Scan-wise label that, with the organ, makes the semantic class; of several (`phase,scanner`)
    their combination, unknown where one of them is."""
    network: Network = "resnet18"
    """Architecture of the encoder."""
    width: int = 64
    """Channels of the encoder's first level."""
    steps: int = 1000
    """Training steps."""
    batch: int = 128
    """Query patches per step, each seen in two views."""
    scans_per_class: int = 4
    """Different scans that a class brings into a batch, where it has them."""
    temperature: float = 0.1
    """Soft-max temperature of the contrastive loss."""
    learning_rate: float = 1e-3
    """Peak learning rate (AdamW, warm-up and cosine)."""
    weight_decay: float = 1e-4
    """Weight decay."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises."""
    projector: tuple[int, int] = (512, 128)
    """Hidden and output width of the projector."""
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    """Augmentation of the views."""

    def __post_init__(self) -> None:
        names = self.scan_label_names
        require(bool(names) and all(names), "pretrain.scan_label: name at least one label")
        require(len(set(names)) == len(names), f"pretrain.scan_label: one twice in {names}")
        require(
            0 <= self.attention_dropout <= 1,
            f"pretrain.attention_dropout: 0 to 1, got {self.attention_dropout}",
        )
        require(self.slices >= 2, f"pretrain.slices must be >= 2, got {self.slices}")
        require(self.temperature > 0, f"pretrain.temperature must be > 0, got {self.temperature}")
        require(self.batch >= 4, f"pretrain.batch must be >= 4, got {self.batch}")
        require(self.steps >= 1, f"pretrain.steps must be >= 1, got {self.steps}")

    @property
    def scan_label_names(self) -> tuple[str, ...]:
        """The names in `scan_label`, which may be one text with commas."""
        label = self.scan_label
        return tuple(n.strip() for n in (label.split(",") if isinstance(label, str) else label))

    @property
    def on_patches(self) -> bool:
        """Tell whether query patches are embedded; dense slices are otherwise."""
        pooled = self.query != "patch" and self.strategy in _POOLED
        return not pooled and self.strategy not in _ON_SLICES

    @property
    def reads_attention(self) -> bool:
        """Tell whether the encoder gets the attention as a second channel."""
        return self.on_patches and self.strategy not in _WITHOUT_ATTENTION

    @property
    def trains_decoder(self) -> bool:
        """Tell whether the decoder is pretrained with the encoder."""
        return not self.on_patches and self.strategy != "simclr-slices"


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """Train encoder and decoder on the labeled scans, with the from-scratch twins beside."""

    head: Literal["dense", "query"] = "dense"
    """`dense`: all organs at once from whole slices; `query`: an organ's mask from its patch."""
    decoder: Decoder = "unet"
    """Decoder with skips at every level, with one skip (DeepLabV3+), none (the paper's), or no
    decoder but a linear classifier of pixels (`linear`; with `encoder_rate` 0 a linear probe)."""
    twins: tuple[Literal["scratch", "scratch-long"], ...] = ("scratch", "scratch-long")
    """From-scratch twins: same budget; and with the pretraining's compute added to it."""
    steps: int = 1000
    """Training steps."""
    batch: int = 16
    """Slices or patches per step."""
    learning_rate: float = 3e-3
    """Peak learning rate of the decoder (and of the encoder from scratch)."""
    encoder_rate: float = 0.5
    """Learning rate of a pretrained encoder relative to the decoder's; 0 freezes it."""
    weight_decay: float = 1e-4
    """Weight decay."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises."""
    class_balance: float = 0.5
    """Dense head: 0 weighs every pixel alike in the cross-entropy, 1 every organ."""
    copy_paste: float = 0.0
    """Dense head: share of the slices that take a square, with its labels, from another slice."""
    teacher_steps: int = 0
    """Dense head: further steps in which unlabeled slices are mixed with labeled ones, labeled by a
    slowly moving teacher; of labeled slices alone where there are no others."""
    teacher_weight: float = 0.5
    """How much a pixel with the teacher's label counts against one that was drawn by hand."""
    teacher_decay: float = 0.99
    """Share of itself that the teacher keeps in a step."""
    corruption: float = 0.5
    """Query head: share of patches whose attention is corrupted as the coarse network errs."""
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    """Augmentation of the labeled patches."""

    def __post_init__(self) -> None:
        require(self.encoder_rate >= 0, f"finetune.encoder_rate: >= 0, got {self.encoder_rate}")
        require(0 <= self.corruption <= 1, f"finetune.corruption: 0 to 1, got {self.corruption}")
        require(0 <= self.copy_paste <= 1, f"finetune.copy_paste: 0 to 1, got {self.copy_paste}")
        require(self.teacher_steps >= 0, f"finetune.teacher_steps: >= 0, got {self.teacher_steps}")
        require(0 <= self.teacher_decay < 1, "finetune.teacher_decay: 0 to below 1")
        require(self.teacher_weight >= 0, "finetune.teacher_weight must be >= 0")
        require(
            self.teacher_steps == 0 or self.head == "dense",
            "finetune.teacher_steps: only for finetune.head dense; set it to 0",
        )
        require(self.steps >= 1, f"finetune.steps must be >= 1, got {self.steps}")
