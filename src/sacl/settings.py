"""The settings of every stage: YAML keys, dotted flags, `--help` and `run.json` come from here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sacl.errors import ConfigError

Strategy = Literal["semantic", "organ", "supcon", "simclr", "simclr-attention", "none"]
Network = Literal["resnet18", "resnet34", "resnet50"]
Layout = Literal["auto", "nnunet", "decathlon", "btcv", "flare2021", "table", "folder"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class PhantomSettings:
    """Generate a seeded abdominal CT cohort to try the whole pipeline on."""

    scans: int = 0
    """Number of scans to generate; 0 means that the run reads its data from elsewhere."""
    shape: tuple[int, int, int] = (128, 104, 40)
    """Voxels of a scan along left-right, back-front and foot-head."""
    spacing_mm: tuple[float, float, float] = (3.0, 3.0, 6.0)
    """Voxel spacing of a scan."""
    noise_hu: float = 18.0
    """Standard deviation of the image noise; a low-dose CT has about 20."""

    def __post_init__(self) -> None:
        _require(self.scans >= 0, f"phantom.scans must be >= 0, got {self.scans}")
        _require(min(self.spacing_mm) > 0, f"phantom.spacing_mm must be > 0, got {self.spacing_mm}")


@dataclass(frozen=True, kw_only=True)
class IngestSettings:
    """Read a cohort of any known layout into canonical volumes and one manifest."""

    data: Path | None = None
    """Folder (or `cohort.csv`) that holds the scans."""
    layout: Layout = "auto"
    """Layout of the data; `auto` recognizes it and says why."""
    modality: Literal["auto", "ct", "mr"] = "auto"
    """CT intensities are windowed in HU, MR intensities normalized per scan."""
    window_hu: tuple[float, float] = (-175.0, 275.0)
    """CT intensities that become 0 and 1: the soft-tissue window."""
    percentiles: tuple[float, float] = (0.5, 99.5)
    """MR: percentiles of a scan's intensities that become 0 and 1."""
    organs: tuple[str, ...] = ()
    """Organs to keep, by name or alias; all of the cohort's where empty."""
    scan_labels: Path | None = None
    """CSV with `case_id` and one column per scan-wise label (`subject_id` and `split` too)."""
    validation_subjects: int = 0
    """Subjects held out of the annotated training part for validation, where the data has none."""
    test_subjects: int = 0
    """Subjects held out of the annotated training part for testing, where the data has none."""
    labeled_subjects: int | None = None
    """How many training subjects keep their reference; all where unset. Smaller sets are nested."""
    labeled_order: Path | None = None
    """JSON or text file with the training subjects in the order in which they become labeled."""
    labeled_scan_label: str = "phase"
    """Scan-wise label by which held-out and labeled subjects are stratified."""

    def __post_init__(self) -> None:
        low, high = self.window_hu
        _require(low < high, f"ingest.window_hu must rise, got {self.window_hu}")
        low, high = self.percentiles
        _require(0 <= low < high <= 100, f"ingest.percentiles: 0 to 100, got {self.percentiles}")
        if self.labeled_subjects is not None:
            _require(
                self.labeled_subjects >= 1,
                f"ingest.labeled_subjects must be >= 1, got {self.labeled_subjects}",
            )


@dataclass(frozen=True, kw_only=True)
class LocateSettings:
    """Give every scan a coarse label map, by a cross-fitted network or from label maps at hand."""

    source: Path | None = None
    """Folder of label maps made by any other tool (`--from`); no network is trained then."""
    spacing_mm: tuple[float, float, float] = (4.0, 4.0, 6.0)
    """Voxel spacing at which the coarse network works."""
    in_plane_size: int | None = None
    """Resample every slice's square field of view to this size instead (spacing not to be trusted).
    The spacing along k is then the scan's own."""
    crop: tuple[int, int, int] = (64, 64, 32)
    """Voxels of a training crop and of the sliding window."""
    channels: int = 16
    """Channels of the network's first level."""
    folds: int = 3
    """Cross-fitting folds over the labeled subjects; as many as subjects where there are fewer."""
    steps: int = 600
    """Training steps of each fold's network."""
    batch: int = 1
    """Crops per training step; many small steps beat few large ones."""
    learning_rate: float = 5e-3
    """Peak learning rate (AdamW, cosine)."""
    min_volume_ml: float = 0.05
    """An organ smaller than this is recorded as not found."""
    keep_component: float = 0.2
    """Components below this share of the organ's largest one are removed."""

    def __post_init__(self) -> None:
        _require(self.folds >= 2, f"locate.folds must be >= 2, got {self.folds}")
        _require(self.steps >= 1, f"locate.steps must be >= 1, got {self.steps}")


@dataclass(frozen=True, kw_only=True)
class ExtractSettings:
    """Cut a query patch per organ and axial slice into a memory-mapped store."""

    patch_size: int = 64
    """Pixels of a query patch's side."""
    margin: float = 2.2
    """The store keeps this many patch sides around the center: the default views reach 2.15."""
    context: float = 1.4
    """Side of the patch in units of the organ's largest in-plane extent in that scan."""
    min_side_mm: float = 24.0
    """Smallest side of a patch."""
    slice_margin: int = 1
    """Slices beyond the coarse mask's ends that get a patch too."""
    dense_size: int = 128
    """Pixels of the square that a whole slice is resampled to, for the dense head."""
    dense_margin: float = 1.25
    """Like `margin`, for whole slices."""

    def __post_init__(self) -> None:
        _require(self.patch_size % 16 == 0, f"extract.patch_size: x 16, got {self.patch_size}")
        _require(self.dense_size % 16 == 0, f"extract.dense_size: x 16, got {self.dense_size}")
        _require(self.margin >= 1, f"extract.margin must be >= 1, got {self.margin}")
        _require(self.dense_margin >= 1, "extract.dense_margin must be >= 1")
        _require(self.context >= 1, f"extract.context must be >= 1, got {self.context}")


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
        _require(0 < low <= high, f"augment.scale must be > 0 and rise, got {self.scale}")


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """Pretrain the encoder by contrast between query patches; no voxel annotation is used."""

    strategy: Strategy = "semantic"
    """Which patches are alike: organ x scan-wise label, organ, the same without attention, or only
    a patch's own two views (with or without attention)."""
    scan_label: str = "phase"
    """Scan-wise label that, with the organ, makes the semantic class."""
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
        _require(self.temperature > 0, f"pretrain.temperature must be > 0, got {self.temperature}")
        _require(self.batch >= 4, f"pretrain.batch must be >= 4, got {self.batch}")
        _require(self.steps >= 1, f"pretrain.steps must be >= 1, got {self.steps}")


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """Train encoder and decoder on the labeled scans, with the from-scratch twins beside."""

    head: Literal["dense", "query"] = "dense"
    """`dense`: all organs at once from whole slices; `query`: an organ's mask from its patch."""
    decoder: Literal["unet", "deeplab", "aspp"] = "unet"
    """Decoder with skips at every level, with one skip (DeepLabV3+), or none (the paper's)."""
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
    corruption: float = 0.5
    """Query head: share of patches whose attention is corrupted as the coarse network errs."""
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    """Augmentation of the labeled patches."""

    def __post_init__(self) -> None:
        _require(self.encoder_rate >= 0, f"finetune.encoder_rate: >= 0, got {self.encoder_rate}")
        _require(0 <= self.corruption <= 1, f"finetune.corruption: 0 to 1, got {self.corruption}")
        _require(self.steps >= 1, f"finetune.steps must be >= 1, got {self.steps}")


@dataclass(frozen=True, kw_only=True)
class PredictSettings:
    """Predict label maps on the scans' own grids."""

    batch: int = 32
    """Slices or patches per forward pass."""
    keep_component: float = 0.1
    """Components below this share of the organ's largest one are removed; 0 keeps all."""
    splits: tuple[Literal["train", "validation", "test"], ...] = ("train", "validation", "test")
    """Splits to predict; the twins predict only scans that have a reference."""


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """Score predicted against reference label maps, with statistics."""

    splits: tuple[Literal["train", "validation", "test"], ...] = ("validation", "test")
    """Splits to score."""
    nsd_tolerance_mm: float = 2.0
    """Tolerance of the normalized surface Dice."""
    bootstrap: int = 5000
    """Resamples of the bootstrap over subjects."""


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """Write one self-contained HTML page."""

    title: str = ""
    """Title of the page; the run's name where empty."""
    embedded_patches: int = 1500
    """Query patches shown in the embedding map."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything a run needs: one block per stage."""

    name: str = "run"
    """Name of the run."""
    work: Path = Path("work")
    """Work directory; each stage has a numbered folder in it."""
    seed: int = 0
    """Seed of everything random."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:N` or `mps`."""
    phantom: PhantomSettings = field(default_factory=PhantomSettings)
    ingest: IngestSettings = field(default_factory=IngestSettings)
    locate: LocateSettings = field(default_factory=LocateSettings)
    extract: ExtractSettings = field(default_factory=ExtractSettings)
    pretrain: PretrainSettings = field(default_factory=PretrainSettings)
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    predict: PredictSettings = field(default_factory=PredictSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    report: ReportSettings = field(default_factory=ReportSettings)
