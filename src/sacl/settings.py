"""The settings of every stage: YAML keys, dotted flags, `--help` and `run.json` come from here.

Settings are checked whenever they are made, from a file or in Python: a value out of range, or one
that nothing would read, is refused. The defaults are the best known values.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, field
from msgspec.structs import force_setattr

from sacl.checked import Checked, as_list, name_blocks, require, require_one
from sacl.run.clock import seconds_of

Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Pixels = Annotated[int, Meta(ge=16, multiple_of=16)]
Width = Annotated[int, Meta(ge=8, multiple_of=2)]
Side = Annotated[int, Meta(ge=8, le=2048)]
Length = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Name = Annotated[str, Meta(min_length=1)]
Augment = Literal["mild", "strong"]
Network = Literal["resnet18", "resnet34", "resnet50", "unet3d"]
Decoder = Literal["unet", "aspp"]
Layout = Literal[
    "auto",
    "nnssl",
    "nnunet",
    "amos",
    "decathlon",
    "btcv",
    "flare2021",
    "totalsegmentator",
    "table",
    "monai_datalist",
    "folder",
    "dicom",
    "folders",
]
"""The layouts of `sacl.cohort.layouts.listing.LAYOUTS`, and `auto`."""

METHODS = ("pooled", "semantic", "simclr", "none")
"""The program's pretraining methods, known without torch; of others `sacl.methods` is asked."""


_PHANTOM_MM = (384.0, 312.0, 240.0)


class PhantomSettings(Checked, frozen=True, kw_only=True):
    """Generate a seeded abdominal CT cohort to try the whole pipeline on."""

    scans: Count = 0
    """Number of scans to generate; 0 where the run reads existing data."""
    shape: tuple[Side, Side, Side] = (128, 104, 40)
    """Voxels of a scan along left-right, back-front and foot-head, over 384 x 312 x 240 mm."""

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel spacing of a scan."""
        i, j, k = (mm / n for mm, n in zip(_PHANTOM_MM, self.shape, strict=True))
        return i, j, k


class IngestSettings(Checked, frozen=True, kw_only=True):
    """Read a cohort of any known layout into canonical volumes and one manifest."""

    data: tuple[Path, ...] = ()
    """Folder (or `cohort.csv`) that holds the scans, or a list of several, which are merged; if
    empty, the generated cohort."""
    layout: Layout = "auto"
    """Layout of the data; `auto` recognizes it and prints how."""
    modality: Literal["auto", "ct", "mr"] = "auto"
    """Modality of the scans to keep. CT is windowed in HU, MR normalized per scan."""
    series: Literal["all", "largest"] = "all"
    """DICOM: take every accepted series of a study, or only the one with the most slices."""
    window_hu: tuple[float, float] = (-175.0, 275.0)
    """CT intensities that are mapped to 0 and 1, in HU; by default a soft-tissue window."""
    organs: tuple[Name, ...] = ()
    """Organs to segment, by name or alias; if empty, all organs of the data."""
    overlap: Literal["smaller", "first", "error"] = "smaller"
    """Where masks overlap, take the smaller organ, or the first in `organs`, or refuse the scan."""
    repair_grid: Literal["none", "nearest"] = "none"
    """A label map on a grid other than its image's: refuse it, or resample by nearest neighbor."""
    scan_labels: Path | None = None
    """CSV or JSON with `case_id` and a column per scan-wise label (also `subject_id` and `split`),
    or a folder of phases written by TotalSegmentator. It is looked for beside the YAML file, then
    in the working directory, then in the data."""
    fold: Count | None = None
    """Fold to hold out for validation, of `splits_final.json` or of a scan-wise label `fold`."""
    validation_subjects: Count = 0
    """Labeled training subjects to hold out for validation, where the data have no such split."""
    test_subjects: Count = 0
    """Labeled training subjects to hold out for testing, where the data have no such split."""
    labeled_subjects: Positive | None = None
    """How many training subjects keep their reference; if unset, all. Smaller sets are nested."""
    labeled_order: Path | None = None
    """JSON or text file that lists training subjects in the order in which they become labeled."""
    stratify: Name = "phase"
    """Scan-wise label whose values are spread evenly over held-out and labeled subjects."""
    labeled_values: tuple[Name, ...] = ()
    """Values of the label `stratify`: only training scans with one of these keep their reference;
    if empty, all do. With it a run learns from annotation in one phase and is scored in another."""

    def __post_init__(self) -> None:
        force_setattr(self, "data", as_list(self.data))
        super().__post_init__()
        low, high = self.window_hu
        require(low < high, f"ingest.window_hu: expected lower, upper, got {self.window_hu}")
        for name in ("organs", "labeled_values"):
            values = getattr(self, name)
            twice = next((value for value in values if values.count(value) > 1), None)
            require(twice is None, f"ingest.{name}: '{twice}' is listed twice; list it once")
        require(
            self.modality != "mr" or self.window_hu == (-175.0, 275.0),
            "ingest.window_hu: applies to CT, but ingest.modality is mr; leave it out",
        )


class SlicesSettings(Checked, frozen=True, kw_only=True):
    """Locate by a 2-D network on whole slices, which learns from unlabeled scans too."""

    size: Pixels = 64
    """Side in pixels of the square to which a whole slice is resampled."""
    steps: Positive = 400
    """Training steps of each network."""
    teacher_steps: Count = 800
    """Further steps that also use unlabeled training scans, which the teacher labels."""
    copy_paste: Share = 0.0
    """Share of the labeled slices into which a square of another one is pasted, with its labels."""
    augment: Augment = "strong"
    """Strength of the augmentation: rotation, scaling and change of intensity."""


class VolumeSettings(Checked, frozen=True, kw_only=True):
    """Locate by a 3-D U-Net on crops of the volume."""

    spacing_mm: tuple[Length, Length, Length] = (4.0, 4.0, 6.0)
    """Voxel spacing at which the network works."""
    in_plane_size: Annotated[int, Meta(ge=8)] | None = None
    """Side in pixels of the square to which the field of view of every slice is resampled, instead
    of `spacing_mm`; the spacing along k is then the scan's own."""
    crop: tuple[Positive, Positive, Positive] = (64, 64, 32)
    """Size in voxels of a training crop and of the sliding window."""
    steps: Positive = 600
    """Training steps of each network."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.in_plane_size is None or self.spacing_mm == (4.0, 4.0, 6.0),
            "locate.volume.spacing_mm: has no effect beside in_plane_size; leave one of them out",
        )


class MapsSettings(Checked, frozen=True, kw_only=True):
    """Take the coarse label maps of any other tool; no network is trained."""

    source: Path
    """Folder of label maps, or nnssl's `pretrain_data.json` (the same as `sacl locate --from`)."""
    repair_grid: Literal["none", "nearest"] = "none"
    """A map whose grid differs from its scan's: refuse it, or resample by nearest neighbor."""
    allow_missing: bool = False
    """Accept scans without a map. They have no organ, so no patches are cut from them."""


class LocateSettings(Checked, frozen=True, kw_only=True):
    """Give every scan a coarse label map, by a cross-fitted network or from label maps at hand."""

    slices: SlicesSettings | None = None
    volume: VolumeSettings | None = None
    maps: MapsSettings | None = None
    channels: Width = 32
    """Channels of the first level of the network."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one(self, ("slices", "volume", "maps"), SlicesSettings())
        require(
            self.maps is None or self.channels == 32,
            "locate.channels: has no effect with locate.maps, which trains nothing; leave it out",
        )


class ExtractSettings(Checked, frozen=True, kw_only=True):
    """Cut a query patch per organ and axial slice into a memory-mapped store."""

    patch_size: Pixels = 64
    """Side of a query patch in pixels."""
    dense_size: Pixels = 96
    """Side in pixels of the square to which a dense slice is resampled."""
    region: Literal["organs", "slice"] = "organs"
    """What a dense slice shows: the square around all organs in the coarse map, or all of it."""


class PretrainSettings(Checked, frozen=True, kw_only=True):
    """Pretrain the encoder by contrast; no voxel annotation is used."""

    method: Name = "pooled"
    """How the encoder is pretrained. `semantic` (the paper's): contrast of query patches in classes
    of organ x scan-wise label. `pooled`: the same classes, but a query is the mean of the features
    under an organ's mask in a dense slice, which also trains the decoder. `simclr`: contrast of the
    two views of each patch. `none`: no pretraining."""
    scan_label: str | tuple[Name, ...] = "phase"
    """Scan-wise label that forms the semantic class together with the organ. Several
    (`phase,scanner`) are combined, and unknown where one of them is. If empty, or absent from the
    cohort, classes are organs alone."""
    network: Network = "resnet18"
    """Architecture of the encoder; for `finetune.volume` it is `unet3d`, the coarse network."""
    width: Width = 32
    """Channels of the first level of the encoder."""
    steps: Positive = 600
    """Training steps."""
    batch: Annotated[int, Meta(ge=4)] | None = None
    """Query patches or dense slices per step, in two views; unset: 128 or 16 (volumes: 16 or 4)."""
    temperature: Length = 0.1
    """Temperature of the softmax in the contrastive loss."""
    augment: Augment = "strong"
    """Strength of the augmentation of views: rotation, scaling and change of intensity."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = self.scan_label_names
        require(all(names), f"pretrain.scan_label: a name is empty in {self.scan_label!r}")
        require(len(set(names)) == len(names), f"pretrain.scan_label: a name twice in {names}")
        own = not self.on_volumes or self.width == 32
        require(own, "pretrain.width: has no effect on volumes; set locate.channels")
        if self.method in METHODS and names == ("phase",):
            return
        method = importlib.import_module("sacl.methods").method_named(self.method)
        require(
            method.reads_scan_label or names == ("phase",),
            f"pretrain.scan_label: method {self.method} uses no scan-wise label; leave it out",
        )
        knows = method.on_volumes or not self.on_volumes
        require(
            knows, f"pretrain.method: {self.method} does not work on volumes; choose another one"
        )

    @property
    def on_volumes(self) -> bool:
        """Tell whether query volumes are learned from."""
        return self.network == "unet3d"

    @property
    def scan_label_names(self) -> tuple[str, ...]:
        """The names in `scan_label`, which may be one text with commas; none where it is empty."""
        label = self.scan_label
        if isinstance(label, str):
            label = tuple(label.split(",")) if label.strip() else ()
        return tuple(name.strip() for name in label)


class DenseSettings(Checked, frozen=True, kw_only=True):
    """Segment all organs at once, from dense slices."""

    teacher_steps: Count = 3000
    """Further steps that also use unlabeled slices, which the teacher labels; where all scans are
    labeled, they use labeled slices alone."""
    copy_paste: Share = 0.0
    """Share of the slices into which a square of another slice is pasted, with its labels."""


class QuerySettings(Checked, frozen=True, kw_only=True):
    """Segment one organ at a time, from its query patch (the paper's head); it has no settings."""


class VolumeHeadSettings(Checked, frozen=True, kw_only=True):
    """Segment all organs at once, from volumes, by a 3-D U-Net on the coarse network's grid.

    Where the coarse network is on volumes too, it starts from those weights. Nothing is cut for it.
    """

    teacher_steps: Count = 3000
    """Further steps that also use unlabeled volumes, which the teacher labels."""
    pretrained: bool = False
    """Start from the weights that `sacl pretrain` made of these; needs `pretrain.method`."""


class FinetuneSettings(Checked, frozen=True, kw_only=True):
    """Train the segmenter on the labeled scans."""

    dense: DenseSettings | None = None
    query: QuerySettings | None = None
    volume: VolumeHeadSettings | None = None
    decoder: Decoder = "unet"
    """`unet` has skip connections at every level, `aspp` (the paper's) has none."""
    steps: Positive = 500
    """Training steps on labeled scans."""
    batch: Positive | None = None
    """Slices, patches or crops of volumes per step; if unset, 16, or 1 crop."""
    learning_rate: Length | None = None
    """Peak learning rate of the decoder, and of an encoder that was not pretrained; if unset,
    0.003, or 0.01 on volumes."""
    encoder_rate: Annotated[float, Meta(ge=0)] = 1.0
    """Learning rate of a pretrained encoder, relative to the decoder's; 0 freezes the encoder."""
    augment: Augment = "strong"
    """Strength of the augmentation: rotation, scaling and change of intensity."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_one(self, ("dense", "query", "volume"), DenseSettings())
        if self.volume is not None:
            for name, usual in (("decoder", "unet"), ("encoder_rate", 1.0)):
                require(
                    getattr(self, name) == usual,
                    f"finetune.{name}: has no effect on a segmenter on volumes; leave it out",
                )
        else:
            require(self.batch != 1, "finetune.batch: expected at least 2, got 1")

    @property
    def samples(self) -> int:
        """Slices, patches or crops of a step."""
        return self.batch or (16 if self.volume is None else 1)

    @property
    def least_samples(self) -> int:
        """Samples that a step needs: a labeled and an unlabeled slice where they are mixed."""
        return 2 if self.dense is not None and self.teacher_steps else 1

    @property
    def teacher_steps(self) -> int:
        """Steps in which unlabeled scans take part."""
        block = self.dense or self.volume
        return block.teacher_steps if block else 0


class PredictSettings(Checked, frozen=True, kw_only=True):
    """Predict label maps on the scans' own grids."""

    copies: Annotated[int, Meta(ge=0, le=64)] = 4
    """Rotated and scaled copies averaged with the plain prediction (test-time augmentation); 4
    copies take 5 times as long."""
    keep_component: Share = 0.1
    """Components below this share of the organ's largest one are removed; 0 keeps all."""


class EvaluateSettings(Checked, frozen=True, kw_only=True):
    """Score predicted against reference label maps, with statistics."""

    nsd_tolerance_mm: Annotated[float, Meta(ge=0)] = 2.0
    """Tolerance of the normalized surface Dice."""


class ReportSettings(Checked, frozen=True, kw_only=True):
    """Write one self-contained HTML page; it has no settings."""


class RunConfig(Checked, frozen=True, kw_only=True):
    """Everything a run needs: one block per stage."""

    name: Name = "run"
    """Name of the run."""
    work: Path = Path("work")
    """Work directory; each stage has a numbered folder in it."""
    seed: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    """Seed of all random numbers."""
    device: Annotated[str, Meta(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:N` or `mps`."""
    time: str | None = None
    """Time limit for all stages of a command, such as 30m, 2h or 1h30m: trainings do as many of
    their steps as fit. If unset, they do all steps, however long that takes."""
    phantom: PhantomSettings = field(default_factory=PhantomSettings)
    ingest: IngestSettings = field(default_factory=IngestSettings)
    locate: LocateSettings = field(default_factory=LocateSettings)
    extract: ExtractSettings = field(default_factory=ExtractSettings)
    pretrain: PretrainSettings = field(default_factory=PretrainSettings)
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    predict: PredictSettings = field(default_factory=PredictSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    report: ReportSettings = field(default_factory=ReportSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.time is not None:
            seconds_of(self.time)
        require(
            self.phantom.scans == 0 or not self.ingest.data,
            "phantom.scans: cannot be combined with ingest.data; leave one of them out",
        )
        volume, given = self.finetune.volume, self.pretrain
        unread = "has no effect with finetune.volume; leave it out"
        require(volume is None or self.extract == ExtractSettings(), f"extract: {unread}")
        fits = given.on_volumes == (volume is not None) or (volume and given == PretrainSettings())
        require(bool(fits), "pretrain.network: unet3d belongs to finetune.volume; leave it out")
        begins = volume is not None and volume.pretrained
        require(
            begins == (given.on_volumes and given.method != "none"),
            "finetune.volume.pretrained: needs a pretrain.method beside it; give both or neither",
        )


name_blocks(RunConfig)
