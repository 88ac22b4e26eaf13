"""From a cohort and a machine to settings, each with its reason and where that was measured.

A rule yields its choices. What the facts cannot tell stands at the best that is known and names the
values between which they cannot (`Choice.alternatives`); the kind of segmenter a trial may decide.
Who is held out, or what to label first, a listing decides, before scans are read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sacl.cohort.dataset import Dataset, counted, in_short
from sacl.cohort.splits import annotated_subjects, strata_of, stratified_order
from sacl.errors import DataError
from sacl.geometry import volume_grid
from sacl.plan.facts import MachineFacts, TaskFacts, Tried, best_of, in_words, trial_s
from sacl.settings import IngestSettings
from sacl.types import UNKNOWN

Value = str | int | float | bool | list[Any] | dict[str, Any] | None
"""A setting as in YAML; None where a choice is of a block, or a remark."""

RESULTS = "docs/results.md, Table 1"
_LOG = "research/log.md"
_RUNS = "docs/results.md, Without a settings file"

_SLICE_SIZES = (64, 96, 128)
_FEW_PIXELS = 4.0
"""Least width of an organ in pixels of whole slices. Of OpenKBP at 64 pixels the esophagus, of less
than 2, was not found and parotids of 3 had Dice 0.2; ACDC's structures of 8 had 0.7."""
_FLAT, _UNMEASURED = 3.0, (2.0, 4.8)
"""Anisotropy from which on a volume is a stack of slices, as in nnU-Net, but of the pixels that are
read: in CT of 0.8 x 0.8 x 5 mm an abdomen is read at 4 mm, which is nearly isotropic. Which kind of
segmenter is better was measured up to 1.3 and at 4.9; between these two a trial may decide."""
_SHORT_S = 1800.0
"""Seconds below which networks on slices have not learned to locate on a CPU."""
_READING_S = 0.007
"""Processor time in which a slice of 96 x 96 is read once (research/log.md, 2026-11-29)."""
_PREDICTION_SHARE = 0.1
_NO_PIECE = 0.05
"""An organ whose second piece is smaller than this share of the first is drawn in one piece."""
_AHEAD = "networks on slices learn from unlabeled scans too, and were ahead on hearts"
_LOST = "on head and neck, networks on volumes had Dice 0.40 when those on slices lost all organs"
_HURRIED = "Dice on hearts in 12 minutes: volumes 0.69, slices 0.18"
_DICE = "Dice on neck, hippocampus, phantom: volumes 0.63, 0.84, 0.56, slices 0.29, 0.83, 0.54"
_TRIAL = "a trial on this cohort"
_OF_PRETRAINING = (
    *("finetune.encoder_rate", "pretrain.scan_label", "pretrain.steps", "pretrain.batch"),
    *("pretrain.temperature", "pretrain.augment"),
)
"""Settings that mean nothing without pretraining."""
_OF_SLICES = (
    *("finetune.dense", "finetune.query", "finetune.decoder", "finetune.encoder_rate"),
    *("extract", "pretrain.network", "pretrain.width", "locate.slices"),
)
"""Settings and blocks that mean nothing to a segmenter on volumes."""
TRAINED = ("locate", "extract", "pretrain", "finetune")
"""What a trial does of a run, and what the user may settle instead: stages, in their order."""
_MOST_VALUES = 12
_HOLD_OUT_FROM = 10
"""Labeled subjects from which on some are held out. 7 of 70 ACDC subjects and 8,000 steps with a
teacher are level with all 70 labels (0.894 and 0.897), so that a fifth of more costs little."""
_MOST_HELD_OUT = 10
_TO_LABEL = 3


@dataclass(frozen=True)
class Choice:
    """A setting or block by its dotted name, and the reason for it; without a name, a remark.

    `source` says where the constant behind it was measured; among `alternatives` the facts cannot
    tell. Only what is `said` is worth a line before the run.
    """

    setting: str
    value: Value = None
    reason: str = ""
    source: str = ""
    alternatives: tuple[Value, ...] = ()
    said: bool = True

    @property
    def because(self) -> str:
        """The reason with its source and with what else might do better."""
        others = " or ".join(map(str, self.alternatives))
        opened = f"; no rule tells whether {others} is better" * bool(others)
        return self.reason + opened + f" ({self.source})" * bool(self.source)


@dataclass(frozen=True)
class Situation:
    """What a plan is made for; `given` are the settings and blocks that the user gave, by name.

    `tried` is what a trial has shown; `kind`, slices or volumes, is settled for a trial.
    """

    facts: TaskFacts
    machine: MachineFacts
    seconds: float
    given: Mapping[str, Value] = field(default_factory=dict)
    tried: tuple[Tried, ...] = ()
    kind: str | None = None

    def gives(self, block: str) -> bool:
        """Tell whether the user gave a block, or a setting in it."""
        return any(name == block or name.startswith(f"{block}.") for name in self.given)


def choose(situation: Situation) -> list[Choice]:
    """Return what all rules choose for the stages after ingest, but for what the user gave."""
    given = situation.given
    rules = (_remarks, _coarse, _view, _pretraining, _training, _prediction)
    choices = [choice for rule in rules for choice in rule(situation)]
    return [c for c in choices if not any(f"{c.setting}.".startswith(f"{g}.") for g in given)]


def _remarks(situation: Situation) -> Iterator[Choice]:
    facts = situation.facts
    if facts.subjects < facts.scans:
        remark = f"the {facts.scans} scans are split by their {facts.subjects} subjects"
        yield Choice("", None, remark)
    if facts.scans == facts.labeled_scans:
        remark = "every scan is labeled: what is learned serves scans that are predicted later"
        yield Choice("", None, remark)
    if images := facts.only_predicted_scans:
        remark = f"{counted(images, 'held-out scan')} without a label map: segmented, not learned"
        remark += " from unless a table (--ingest.scan_labels) gives them the split train"
        yield Choice("", None, remark)
    if facts.labeled_subjects == 1:
        remark = "ONE labeled subject: nothing can be cross-fitted; its own coarse map comes from a"
        remark += " network that saw it, and no figure tells how good the maps of the others are"
        yield Choice("", None, remark)
    if facts.partly_annotated:
        organs = ", ".join(facts.partly_annotated)
        yield Choice("", None, f"not annotated in every labeled scan, unknown elsewhere: {organs}")


def _coarse(situation: Situation) -> Iterator[Choice]:
    """Choose what locates: 2-D networks on whole slices, or a 3-D one."""
    facts = situation.facts
    if situation.gives("locate.maps"):
        return
    many = f"{len(facts.organs)} organs" if len(facts.organs) > 1 else "one organ"
    flat = facts.anisotropy >= _FLAT and not on_volumes(situation)
    hurried = situation.seconds < _SHORT_S and not situation.machine.is_large
    given = next((k for k in ("slices", "volume") if situation.gives(f"locate.{k}")), None)
    if (given or ("slices" if flat and not hurried else "volume")) == "slices":
        reason = f"slices, not volumes: {_spacing(facts)}, {many}; {_AHEAD}"
        yield Choice("locate.slices", None, reason, "docs/decisions/0011")
        yield from _slices(situation)
    else:
        reason = f"volumes, not slices: {_spacing(facts)}, {many}; "
        reason += _HURRIED if hurried and flat else _LOST
        yield Choice("locate.volume", None, reason, f"{_LOG}, 2026-11-29")
        yield from _volumes(situation)


def _spacing(facts: TaskFacts) -> str:
    own_mm = min(facts.spacing_mm[:2])
    read = f", which is read as {facts.read_mm:g} mm" * (facts.read_mm > own_mm)
    return f"spacing {facts.spacing_mm[2]:g} mm against {own_mm:g} mm{read}"


def kinds_of(situation: Situation) -> tuple[str, ...]:
    """Return the kind of segmenter that the rule takes, and the other one where both are tried."""
    anisotropy, (least, most) = situation.facts.anisotropy, _UNMEASURED
    kinds = ("volumes", "slices") if anisotropy < _FLAT else ("slices", "volumes")
    is_open = least <= anisotropy < most and not any(map(situation.gives, TRAINED))
    return kinds if is_open and trial_s(situation.seconds, len(kinds)) else kinds[:1]


def on_volumes(situation: Situation) -> bool:
    """Tell whether the segmenter works on volumes: where slices are thin, unless the user says."""
    if situation.gives("finetune.volume"):
        return True
    asked = any(situation.gives(name) for name in _OF_SLICES)
    tried = best_of(situation.tried).candidate if situation.tried else ""
    return not asked and (situation.kind or tried or kinds_of(situation)[0]) == "volumes"


def _slices(situation: Situation) -> Iterator[Choice]:
    facts = situation.facts
    own = facts.side_mm[0] / min(facts.spacing_mm[:2])
    enough = (n for n in _SLICE_SIZES if facts.pixels_of_narrowest(n) >= _FEW_PIXELS or n >= own)
    size = next(enough, _SLICE_SIZES[-1])
    organ = facts.drawn.narrowest if facts.drawn else "an organ"
    reason = (
        f"{organ} is then {facts.pixels_of_narrowest(size):.1f} pixels wide (at 64:"
        f" {facts.pixels_of_narrowest(64):.1f}); organs narrower than {_FEW_PIXELS:g} get lost"
    )
    yield Choice("locate.slices.size", size, reason, f"{_LOG}, 2026-11-23 and 2026-11-29")
    reason = f"{_of_teacher(facts)}; longer was not measured here"
    source = "docs/decisions/0011"
    yield Choice("locate.slices.teacher_steps", 800, reason, source, (800, 2400), said=False)
    yield _copy_paste("locate.slices.copy_paste")
    yield _augment("locate.slices.augment", facts)


def _volumes(situation: Situation) -> Iterator[Choice]:
    facts, large = situation.facts, situation.machine.is_large
    source = f"{_LOG}, 2026-11-29"
    if not large:
        yield Choice("locate.channels", 16, "3-D steps are slow on a CPU", source)
    squares = situation.gives("locate.volume.in_plane_size") or facts.anisotropy >= _FLAT
    if squares and not situation.gives("locate.volume.spacing_mm"):
        reason = "a slice's field of view is a square of this many pixels; slices stay as they are"
        yield Choice("locate.volume.in_plane_size", 64, reason, f"{_LOG}, 2026-11-23")
        slices = 8 * math.ceil(facts.field_of_view_mm[2] / facts.spacing_mm[2] / 8)
        reason = "the whole of a scan, or as much as fits"
        yield Choice("locate.volume.crop", [64, 64, min(slices, 32 if large else 16)], reason)
        return
    spacing_mm, crop = volume_grid(facts.spacing_mm, facts.field_of_view_mm, large)
    computer = "a GPU" if large else "a CPU"
    reason = f"{facts.side_mm[0]:g} mm in {round(facts.side_mm[0] / spacing_mm[0])} voxels"
    yield Choice("locate.volume.spacing_mm", list(spacing_mm), reason)
    yield Choice("locate.volume.crop", list(crop), f"what {computer} trains on", source)


def _view(situation: Situation) -> Iterator[Choice]:
    """Choose what a segmenter on slices sees: the square, its pixels, and patches."""
    if on_volumes(situation):
        return
    facts, large = situation.facts, situation.machine.is_large
    share = facts.drawn.square_share if facts.drawn else 1.0
    region, makes = "slice", "gains nothing"
    if facts.square_pays:
        region, makes = "organs", "makes pixels finer"
    if situation.tried:
        reason = f"slices, not volumes: {_spacing(facts)}; {in_words(situation.tried)}"
        yield Choice("finetune.dense", None, reason, _TRIAL)
    reason = f"the square around all organs is {100 * share:.0f} % as wide as a slice and {makes}"
    yield Choice("extract.region", region, reason, "docs/decisions/0008")
    pixel_mm = min(facts.spacing_mm[:2])
    own = facts.shown_mm / pixel_mm
    least, most, finer = (128, 256, 2) if large else (64, 96, 1)
    size = min(most, max(least, 16 * math.ceil(finer * own / 16)))
    affords = "twice as many on a GPU" if large else "as many on a CPU"
    reason = f"the region spans {own:.0f} of the scans' own pixels: {affords}, up to {most}"
    yield Choice("extract.dense_size", size, reason, RESULTS)
    patch_mm = 1.4 * (facts.drawn.widest_mm if facts.drawn else facts.side_mm[0] / 4)
    reason = f"the widest organ with what surrounds it takes {patch_mm:.0f} mm"
    patch = 48 if patch_mm / pixel_mm <= 48 else 64
    yield Choice("extract.patch_size", patch, reason, said=False)


def _pretraining(situation: Situation) -> Iterator[Choice]:
    volumes = on_volumes(situation)
    if volumes and not situation.gives("pretrain"):
        return
    wanted = next((name for name in _OF_PRETRAINING if name in situation.given), None)
    method = situation.given.get("pretrain.method", "pooled" if wanted else "none")
    reason = f"{wanted} is yours, and asks for an encoder that was pretrained"
    if not wanted:
        reason = (
            "its head start of 3 points is gone after 1,000 steps with a teacher, and the same time"
            " spent on more steps gives 2 points more"
        )
    yield Choice("pretrain.method", method, reason, "docs/results.md, Table 2", ("none", "pooled"))
    label, reason = scan_label_of(situation.facts.values)
    if method in ("pooled", "semantic"):
        yield Choice("pretrain.scan_label", label, reason)
    else:
        reason = f"with pretraining, pretrain.scan_label would be '{label}': {reason}"
        yield Choice("", None, reason, said=False)
    if volumes:
        return
    large = situation.machine.is_large
    network, width = ("resnet50", 64) if large else ("resnet18", 32)
    reason = f"as in the runs at the size of a {'GPU' if large else 'CPU'}"
    yield Choice("pretrain.network", network, reason, RESULTS, said=large)
    yield Choice("pretrain.width", width, reason, RESULTS, said=False)


def scan_label_of(values: Mapping[str, Mapping[str, int]]) -> tuple[str, str]:
    """Return the scan-wise label that makes classes with the organs, or none, and the reason."""
    known = {
        name: sum(count > 1 for value, count in counts.items() if value != UNKNOWN)
        for name, counts in values.items()
    }
    useful = [name for name, count in known.items() if 2 <= count <= _MOST_VALUES]
    if not useful:
        return "", "no scan-wise label has two values, so the classes are organs alone"
    name = "phase" if "phase" in useful else useful[0]
    counted = ", ".join(f"{value} {count}" for value, count in values[name].items())
    return name, f"training scans by {name}: {counted}"


def _training(situation: Situation) -> Iterator[Choice]:
    facts = situation.facts
    if on_volumes(situation):
        shown, source = (in_words(situation.tried), _TRIAL) if situation.tried else (_DICE, _RUNS)
        reason = f"volumes, not slices: {_spacing(facts)}; {shown}"
        yield Choice("finetune.volume", None, reason, source)
        reason = f"{_of_teacher(facts)}; at most this many, as far as the time allows"
        yield Choice("finetune.volume.teacher_steps", 30_000, reason, f"{_LOG}, 2026-12-01")
        return
    if not situation.gives("finetune.query"):
        reason = f"{_of_teacher(facts)}; at most this many, as far as the time allows"
        yield Choice("finetune.dense.teacher_steps", 8000, reason, RESULTS)
        yield _copy_paste("finetune.dense.copy_paste")
    yield _augment("finetune.augment", facts)
    if situation.machine.is_large:
        source = "research/protocols/acdc-full.yaml"
        reason = "the rate of the full-size network"
        yield Choice("finetune.learning_rate", 1e-3, reason, source, said=False)


def _prediction(situation: Situation) -> Iterator[Choice]:
    facts, copies = situation.facts, 4
    if facts.drawn and facts.drawn.second_piece <= _NO_PIECE:
        second = f"{100 * facts.drawn.second_piece:.0f} % of the first"
        reason = f"organs are drawn in one piece (a second has {second}), so the largest is kept"
        yield Choice("predict.keep_component", 1.0, reason, f"{_LOG}, 2026-11-30")
    if on_volumes(situation):
        reason = "on volumes copies take five times as long and give 0.7 points at most"
        yield Choice("predict.copies", 0, reason, f"{_LOG}, 2026-11-30", (0, 4), said=False)
        return
    reason = "a mean over turned and scaled copies gives 0.8 points"
    seconds = (copies + 1) * facts.slices * _READING_S
    if not situation.machine.is_large and seconds > _PREDICTION_SHARE * situation.seconds:
        copies = 0
        reason = f"{facts.slices} slices, each read five times, would take too much of the time"
    yield Choice("predict.copies", copies, reason, "docs/decisions/0013", said=not copies)


def _of_teacher(facts: TaskFacts) -> str:
    if facts.unlabeled_scans:
        return f"{facts.unlabeled_scans} unlabeled scans take part, labeled by a teacher"
    return "no scan is unlabeled, so labeled ones are seen further"


def _copy_paste(setting: str) -> Choice:
    reason = "helps organs that look alike wherever they lie, harms parts told apart by their place"
    return Choice(setting, 0.0, reason, "docs/how-to/few-labels.md", (0.0, 0.5), said=False)


def _augment(setting: str, facts: TaskFacts) -> Choice:
    shown = counted(facts.labeled_subjects, "labeled subject")
    reason = f"{shown} in training: augmentation has to show what they do not"
    trial = ("strong", "mild")
    return Choice(setting, "strong", reason, f"{_LOG}, 2026-11-23", trial, said=False)


def hold_out_of(dataset: Dataset, ingest: IngestSettings, seed: int) -> Choice:
    """Return how many of the labeled subjects are held out.

    Where no training scan has a label map, a DataError names those to label first.
    """
    labeled = len(annotated_subjects(dataset))
    scored = sum(case.split != "train" and case.has_reference for case in dataset.cases)
    if not labeled:
        raise DataError(_what_to_label(dataset, ingest.stratify, seed, scored))
    return held_out(labeled, scored)


def held_out(labeled_subjects: int, scored_scans: int) -> Choice:
    """Return the choice, by labeled training subjects and scans that the data hold out."""
    setting = "ingest.validation_subjects"
    if scored_scans:
        return Choice(setting, 0, f"the data hold out {scored_scans} labeled scans of their own")
    if labeled_subjects < _HOLD_OUT_FROM:
        coarse = ", and only coarse maps are, by cross-fitting" if labeled_subjects > 1 else ""
        subjects = counted(labeled_subjects, "labeled subject")
        reason = f"{subjects}, needed to learn from, so final maps are not scored{coarse}"
        return Choice(setting, 0, reason)
    count = min(_MOST_HELD_OUT, labeled_subjects // 5)
    reason = f"of {labeled_subjects} labeled subjects, so that the run can judge itself"
    return Choice(setting, count, reason, f"{RESULTS}: 7 labels are level with 70")


def _what_to_label(dataset: Dataset, stratify: str, seed: int, scored: int) -> str:
    training = [case for case in dataset.cases if case.split == "train"]
    strata = strata_of([(c.subject, c.scan_labels) for c in training], stratify)
    chosen = stratified_order(strata, seed)[:_TO_LABEL]
    scans = [next(c.case_id for c in training if c.subject == subject) for subject in chosen]
    others = f" ({scored} scans held out for scoring are)" if scored else ""
    first = f"draw all organs in {in_short(scans)} first" if scans else "there is none to train on"
    return (
        f"{dataset.name}: none of {len(training)} training scans is labeled{others}, so nothing"
        f" says what to segment; {first}, save the label maps beside them (docs/how-to/cohort.md)"
        " and repeat the command"
    )
