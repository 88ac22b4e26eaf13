"""predict: scans outside the cohort, in any format, predicted as the run's own scans were."""

from __future__ import annotations

import csv
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from sacl.cohort.dataset import counted
from sacl.errors import ConfigError, DataError, SaclError
from sacl.export.forms import mask_alone, mask_names
from sacl.files.atomic import owned, real, require_own
from sacl.files.documents import cell_text
from sacl.files.journal import Journal
from sacl.model import Model, Segmented
from sacl.prediction.given import ReadCoarse, coarse_reader
from sacl.prediction.new_scans import NIFTI, NewScan, find_scans
from sacl.progress import say
from sacl.report.pictures import ShownScan, preview
from sacl.run.engine import HERE, Engine
from sacl.scores.organs_of_case import OrganMeasures, measure_organs
from sacl.types import NativeFrame, Volume

_BYTES_PER_VOXEL, _BASE_GB = 17, 0.7
"""Of a scan while it is read, predicted and cleaned, and of the rest: imports, networks, a batch;
by research/benchmarks/prediction_memory.py at 50 and at 200 slices."""
_SAY_ABOVE_GB = 2.0
STATISTICS, PREVIEWS = "statistics.csv", "previews"
_COLUMNS = ("case", "organ", "volume_ml", "mean", "sd")
_SAID = 3
_AT_ONCE = 2
"""Scans under way on a GPU: one is read or written while the other one is computed."""


@dataclass(frozen=True)
class Extras:
    """What is written beside the label maps.

    `nifti`: NIfTI label maps of scans in other formats too; `per_organ`: a mask per organ in a
    folder per scan, of DICOM as NIfTI; `beside`: `statistics.csv` and a picture of every scan.
    """

    nifti: bool = False
    per_organ: bool = False
    beside: bool = True


@dataclass(frozen=True)
class Predicted:
    """What was written: a label map per scan, and files beside them.

    `doubts` are by scan what speaks against believing its map, `failures` why it has none,
    `ignored` what was not read at all.
    """

    written: tuple[Path, ...] = ()
    beside: tuple[Path, ...] = ()
    doubts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    def require_all(self) -> None:
        """Refuse to go on, with a `DataError` of the reasons, where scans have no label map."""
        reasons, total = list(self.failures.values()), len(self.written) + len(self.failures)
        if total == 1 and reasons:
            raise DataError(reasons[0])
        if reasons:
            more = f"; and {len(reasons) - _SAID} more" if len(reasons) > _SAID else ""
            done = "; the others are done" if self.written else ""
            why = "; ".join(reasons[:_SAID])
            raise DataError(f"no label map of {len(reasons)} of {total} scans: {why}{more}{done}")


def predict_folder(  # noqa: PLR0913
    model: Model,
    images: Path,
    out: Path,
    *,
    coarse: Path | None = None,
    extras: Extras | None = None,
    force: bool = False,
    engine: Engine = HERE,
) -> Predicted:
    """Predict new scans, and say in what one is unlike those that were learned from.

    `images` is a file, a folder or a zip, read by `new_scans.find_scans`. A label map is called and
    stored as its scan, on the scan's own grid: NIfTI as `.nii.gz`, NRRD as `.seg.nrrd`, MetaImage
    as `.mha`, and a DICOM series gets a DICOM segmentation `.seg.dcm` of its images. A scan that is
    bad is left out, and the others are done. What is there, of the same model and scan, is not made
    again. `coarse` is a folder of coarse label maps; `force` makes all again, over files of the
    user's too. Of a shard of the `engine` only its own scans are predicted; `statistics.csv` is of
    all that are there, whoever predicted them, sorted by name.

    Raises:
        DataError: there is no scan that can be read.
        ConfigError: a file of the user's is in the way.
    """
    found = find_scans(images, model.modality)
    for note in found.notes:
        say(f"predict: {note}")
    shard, extras = engine.shard, extras or Extras()
    scans = [scan for scan in found.scans if shard is None or shard.holds(scan.name)]
    if not scans:
        say(f"predict: shard {shard} has none of {counted(len(found.scans), 'scan')}")
        return Predicted(ignored=found.notes)
    answers, failures = _with_good_headers([Answer(scan, out, model, extras) for scan in scans])
    _require_free(answers, out, force, is_shared=shard is not None)
    model.require_coarse(given=coarse is not None)
    given = coarse if model.needs_coarse else None
    read_coarse = coarse_reader(given, [answer.scan.name for answer in answers], model.scheme)
    try:
        done = _predict_all(answers, read_coarse, force, replace(engine, shard=None))
    finally:
        beside = extras.beside and write_statistics(out)
    failures |= {answer.scan.shown: of for answer, of in done if isinstance(of, str)}
    made = {answer: of for answer, of in done if isinstance(of, Made)}
    return _summed_up(made, Predicted(failures=failures, ignored=found.notes), beside)


def _summed_up(made: Mapping[Answer, Made], but: Predicted, beside: bool) -> Predicted:
    """Say and return what was written, but for what was not."""
    files = [path for answer in made for path in answer.others]
    doubts = {answer.scan.shown: of.doubts for answer, of in made.items() if of.doubts}
    if made:
        out = next(iter(made)).out
        files += [out / STATISTICS] * beside
        also = f", with {STATISTICS} and {PREVIEWS}" if beside else ""
        lines = [f"{counted(len(made), 'label map')} written to {out}{also}"]
        lines += [f"{len(doubts)} in doubt"] * bool(doubts)
        lines += [f"{len(but.failures)} left out"] * bool(but.failures)
        say(f"predict: {'; '.join(lines)}")
    written = tuple(answer.path for answer in made)
    return replace(but, written=written, beside=tuple(files), doubts=doubts)


@dataclass(frozen=True, eq=False)
class Answer:
    """What a scan gets: where its label map and the files beside it lie."""

    scan: NewScan
    out: Path
    model: Model
    extras: Extras

    @property
    def path(self) -> Path:
        """Where the label map lies."""
        return self.out / f"{self.scan.name}{self.scan.suffix}"

    @property
    def maps(self) -> dict[Path, str | None]:
        """Where label maps and masks lie, and of which organ each is; the label map comes last."""
        maps: dict[Path, str | None] = {}
        if self.extras.nifti:
            maps[self.out / f"{self.scan.name}{NIFTI}"] = None
        if self.extras.per_organ:
            folder, suffix = self.out / self.scan.name, self.scan.mask_suffix
            names = mask_names(self.model.scheme)
            maps |= {folder / f"{name}{suffix}": organ for organ, name in names.items()}
        maps.pop(self.path, None)
        return {**maps, self.path: None}

    @property
    def others(self) -> list[Path]:
        """Where all files but the label map lie."""
        picture = [self.picture] if self.extras.beside else []
        return [path for path in self.maps if path != self.path] + picture

    @property
    def picture(self) -> Path:
        """Where the picture lies, if one is drawn."""
        return self.out / PREVIEWS / f"{self.scan.name}.png"

    def write(self, volume: Volume, segmented: Segmented, native: NativeFrame) -> list[str]:
        """Write what a scan gets, each file whole or not at all; return doubts about the files."""
        labels, doubts = segmented.label_map, list[str]()
        if self.extras.beside:
            about = volume.voxels, volume.grid.spacing_mm, segmented.window, labels.voxels
            with owned(self.picture) as temporary:
                temporary.write_bytes(preview(ShownScan(*about), labels.scheme.names))
        for path, organ in self.maps.items():
            shown = mask_alone(labels, organ) if organ else labels
            with owned(path) as temporary:
                doubts += self.scan.write(temporary, shown, native, self.model.members[0].name)
        return doubts


@dataclass(frozen=True)
class Made:
    """Of what a label map was made, as a hash; what speaks against believing it; its statistics."""

    key: str
    doubts: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


def _predict_all(
    answers: Sequence[Answer], read_coarse: ReadCoarse, force: bool, engine: Engine
) -> list[tuple[Answer, Made | str]]:
    """Predict the scans; return what is known of each, or why it was left out."""
    names, journal = [answer.scan.name for answer in answers], Journal(answers[0].out, Made)
    on_cpu = answers[0].model.members[0].predictor.device.type == "cpu"
    work, at_once = partial(_open_model, answers, read_coarse, force), 1 if on_cpu else _AT_ONCE
    outcomes = engine.each(work, names, journal, "predict", lambda _: False, at_once)
    return [(answer, of.result or of.reason) for answer, of in zip(answers, outcomes, strict=True)]


def _open_model(
    answers: Sequence[Answer], read_coarse: ReadCoarse, force: bool
) -> Callable[[str], Made]:
    """Return what writes all that a scan gets, unless it is there, made of the same."""
    by_name, known = {answer.scan.name: answer for answer in answers}, Journal(answers[0].out, Made)
    computing = threading.Lock()
    answers[0].model.choose_threads(len(answers))

    def predict_scan(name: str) -> Made:
        answer = by_name[name]
        scan, model = answer.scan, answer.model
        volume, native = scan.load()
        coarse = read_coarse(name, volume.grid)
        given = coarse.label_map if coarse else None
        key = model.key_of(volume, given, f"{native} {scan.images} {model.members[0].name}")
        made = None if force else known.find(name)
        is_there = all(path.is_file() for path in (answer.path, *answer.others))
        if made is None or made.key != key or not is_there:
            with computing:
                segmented = model.segment(volume, scan.shown, given)
            doubts = [native.contradiction] if native.contradiction else []
            doubts += [f"coarse map: {doubt}" for doubt in coarse.doubts] if coarse else []
            doubts += [*segmented.doubts, *answer.write(volume, segmented, native)]
            rows = [_row(name, organ) for organ in measure_organs(volume, segmented.label_map)]
            made = Made(key, tuple(doubts), tuple(rows))
        if made.doubts:
            say(f"  in doubt: {scan.shown}: {'; '.join(made.doubts)}")
        return made

    return predict_scan


def write_statistics(out: Path) -> bool:
    """Write the rows of all scans that were predicted into a folder, one per organ; tell if any.

    Volumes are in ml, mean and standard deviation in the scan's intensities, empty of an organ that
    was not found. Several processes may write it in turn: the last one knows of all.
    """
    with Journal(out, Made).alone() as journal:
        made = sorted(journal.results().items())
        if made:
            with (
                owned(out / STATISTICS) as path,
                path.open("w", newline="", encoding="utf-8") as to,
            ):
                csv.writer(to).writerows([_COLUMNS, *(row for _, of in made for row in of.rows)])
    return bool(made)


def _row(case: str, organ: OrganMeasures) -> tuple[str, ...]:
    numbers = (f"{organ.volume_ml:.3f}", f"{organ.mean:.2f}", f"{organ.sd:.2f}")
    return (cell_text(case), cell_text(organ.organ), *(n.replace("nan", "") for n in numbers))


def _with_good_headers(answers: Sequence[Answer]) -> tuple[list[Answer], dict[str, str]]:
    """Return those with a good header, and why others are bad; that all are is a `DataError`.

    Those are said, and how much memory the largest scan takes if much.
    """
    good, failures, most = list[Answer](), dict[str, str](), 0
    for answer in answers:
        try:
            most = max(most, math.prod(answer.scan.frame().grid.shape))
            good.append(answer)
        except SaclError as error:
            failures[answer.scan.shown] = str(error)
    if not good:
        Predicted(failures=failures).require_all()
    for reason in failures.values():
        say(f"  left out: {reason}")
    need = _BASE_GB + most * _BYTES_PER_VOXEL / 1e9
    if need > _SAY_ABOVE_GB:
        say(f"predict: the largest scan takes about {need:.1f} GB of memory")
    return good, failures


def _require_free(answers: Sequence[Answer], out: Path, force: bool, is_shared: bool) -> None:
    """Refuse to overwrite a scan, and whatever sacl did not write."""
    scans = {real(answer.scan.path) for answer in answers if answer.scan.path}
    by_folder: dict[Path, list[str]] = {}
    if answers[0].extras.beside:
        by_folder[out] = [STATISTICS]
    for path in (path for answer in answers for path in (answer.path, *answer.others)):
        if real(path) in scans:
            raise ConfigError(
                f"--out {out}: {path.name} would overwrite the scan; give another folder"
            )
        by_folder.setdefault(path.parent, []).append(path.name)
    for folder, names in by_folder.items():
        require_own(folder, names, force, is_shared)
