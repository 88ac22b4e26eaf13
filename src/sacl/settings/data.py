"""Settings of what comes before any training of ours: data, coarse maps, patches."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sacl.settings.require import require
from sacl.settings.training import AugmentSettings

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
]
"""The layouts of `sacl.cohort.layouts.recognize.LAYOUTS`, and `auto`."""


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
        require(self.scans >= 0, f"phantom.scans must be >= 0, got {self.scans}")
        require(min(self.spacing_mm) > 0, f"phantom.spacing_mm must be > 0, got {self.spacing_mm}")


@dataclass(frozen=True, kw_only=True)
class IngestSettings:
    """Read a cohort of any known layout into canonical volumes and one manifest."""

    data: Path | tuple[Path, ...] | None = None
    """Folder (or `cohort.csv`) that holds the scans, or a list of several, merged into a cohort."""
    layout: Layout = "auto"
    """Layout of the data; `auto` recognizes it and says why."""
    modality: Literal["auto", "ct", "mr"] = "auto"
    """CT intensities are windowed in HU, MR normalized per scan; of a mixed cohort one is kept."""
    series: Literal["all", "largest"] = "all"
    """DICOM: every accepted series is a scan, or of each study the one with the most slices."""
    min_slices: int = 5
    """DICOM: a series of fewer slices is no scan."""
    window_hu: tuple[float, float] = (-175.0, 275.0)
    """CT intensities that become 0 and 1: the soft-tissue window."""
    percentiles: tuple[float, float] = (0.5, 99.5)
    """MR: percentiles of a scan's intensities that become 0 and 1."""
    organs: tuple[str, ...] = ()
    """Organs to keep, by name or alias; all of the cohort's where empty."""
    overlap: Literal["smaller", "first", "error"] = "smaller"
    """Where masks overlap: the organ smaller in that scan wins, or the first of `organs`."""
    repair_grid: Literal["none", "nearest"] = "none"
    """A label map on another grid than its image: refuse it, or resample by nearest neighbor."""
    scan_labels: Path | None = None
    """CSV or JSON with `case_id` and a column per scan-wise label (`subject_id`, `split` too), or a
    folder of the phases that TotalSegmentator wrote."""
    fold: int | None = None
    """Hold out the cases of this fold for validation: of `splits_final.json`, or a label `fold`."""
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
    labeled_values: tuple[str, ...] = ()
    """Values of that label whose training scans keep their reference, all where empty: to learn
    from annotation in one phase and be scored in another."""

    def __post_init__(self) -> None:
        low, high = self.window_hu
        require(self.min_slices >= 2, f"ingest.min_slices must be >= 2, got {self.min_slices}")
        require(low < high, f"ingest.window_hu must rise, got {self.window_hu}")
        low, high = self.percentiles
        require(0 <= low < high <= 100, f"ingest.percentiles: 0 to 100, got {self.percentiles}")
        if self.labeled_subjects is not None:
            require(
                self.labeled_subjects >= 1,
                f"ingest.labeled_subjects must be >= 1, got {self.labeled_subjects}",
            )
        require(self.fold is None or self.fold >= 0, f"ingest.fold must be >= 0, got {self.fold}")
        require(self.data != (), "ingest.data: an empty list; give one folder at least")

    @property
    def sources(self) -> tuple[Path, ...]:
        """The folders and tables to read, none where the phantom is to be read."""
        if self.data is None:
            return ()
        return self.data if isinstance(self.data, tuple) else (self.data,)


@dataclass(frozen=True, kw_only=True)
class LocateSettings:
    """Give every scan a coarse label map, by a cross-fitted network or from label maps at hand."""

    source: Path | None = None
    """Label maps of any other tool, a folder or nnssl's JSON (`--from`); no network is trained."""
    labeled_source: Path | None = None
    """The like for the labeled scans alone: iterated attention takes a run's predictions for all
    others, and for these the run's own coarse maps, whose networks never saw their subjects."""
    repair_grid: Literal["none", "nearest"] = "none"
    """A given map on another grid than its scan: refuse it, or resample by nearest neighbor."""
    allow_missing: bool = False
    """Accept scans without a given map: nothing is found in them, so they give no patches."""
    network: Literal["volume", "slices"] = "volume"
    """A 3-D U-Net on crops of the volume, or a 2-D network on whole slices, which can learn from
    unlabeled scans too (`teacher_steps`)."""
    spacing_mm: tuple[float, float, float] = (4.0, 4.0, 6.0)
    """Voxel spacing at which the coarse network works."""
    in_plane_size: int | None = None
    """Resample every slice's square field of view to this size instead (spacing not to be trusted).
    The spacing along k is then the scan's own."""
    crop: tuple[int, int, int] = (64, 64, 32)
    """Voxels of a training crop and of the sliding window."""
    channels: int = 16
    """Channels of the network's first level."""
    slice_size: int = 64
    """On slices: pixels of the square that a whole slice is resampled to."""
    slice_batch: int = 16
    """On slices: slices per step."""
    teacher_steps: int = 0
    """On slices: further steps of each network in which unlabeled training scans are mixed with
    labeled ones, labeled by a slowly moving teacher."""
    copy_paste: float = 0.0
    """On slices: share of the labeled slices that take a square, with its labels, from another."""
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    """On slices: augmentation."""
    folds: int = 3
    """Cross-fitting folds over the labeled subjects; as many as subjects where there are fewer. One
    more network sees all of them; together they locate the other scans."""
    steps: int = 600
    """Training steps of each network."""
    batch: int = 1
    """Crops per training step; many small steps beat few large ones."""
    learning_rate: float = 5e-3
    """Peak learning rate (AdamW, cosine)."""
    min_volume_ml: float = 0.05
    """An organ smaller than this is recorded as not found."""
    keep_component: float = 0.2
    """Components below this share of the organ's largest one are removed."""
    estimate_phase: bool = True
    """CT: estimate the contrast phase of scans whose label `phase` is unknown, from organs' HU."""
    phase_threshold: float = 0.8
    """Least probability of an estimated phase; below it the phase stays `unknown`."""

    def __post_init__(self) -> None:
        require(0 <= self.phase_threshold <= 1, "locate.phase_threshold: 0 to 1")
        require(
            self.labeled_source is None or self.source is not None,
            "locate.labeled_source: only beside locate.source; set that too",
        )
        require(self.folds >= 2, f"locate.folds must be >= 2, got {self.folds}")
        require(self.steps >= 1, f"locate.steps must be >= 1, got {self.steps}")
        require(self.slice_size % 16 == 0, f"locate.slice_size: x 16, got {self.slice_size}")
        require(self.slice_batch >= 2, f"locate.slice_batch must be >= 2, got {self.slice_batch}")
        require(self.teacher_steps >= 0, f"locate.teacher_steps: >= 0, got {self.teacher_steps}")
        require(0 <= self.copy_paste <= 1, f"locate.copy_paste: 0 to 1, got {self.copy_paste}")
        require(
            self.network == "slices" or self.teacher_steps == 0,
            "locate.teacher_steps: only for locate.network slices; set it to 0",
        )


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
    """Pixels of the square that a dense slice is resampled to, for the dense head."""
    dense_margin: float = 1.25
    """Like `margin`, for dense slices."""
    dense_region: Literal["slice", "organs"] = "slice"
    """What a dense slice shows: all of it, or a square around all organs of the coarse map."""
    region_context: float = 1.75
    """Side of that square in units of the organs' largest in-plane extent in that scan."""
    dense_unlabeled: bool = True
    """Store dense slices of unlabeled training scans too, for fine-tuning with a teacher."""

    def __post_init__(self) -> None:
        require(self.patch_size % 16 == 0, f"extract.patch_size: x 16, got {self.patch_size}")
        require(self.dense_size % 16 == 0, f"extract.dense_size: x 16, got {self.dense_size}")
        require(self.margin >= 1, f"extract.margin must be >= 1, got {self.margin}")
        require(self.dense_margin >= 1, "extract.dense_margin must be >= 1")
        require(self.context >= 1, f"extract.context must be >= 1, got {self.context}")
        require(self.region_context >= 1, "extract.region_context must be >= 1")
