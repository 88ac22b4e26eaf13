"""An export's folder: what it is of and which files are its own, so that no other is touched.

An interrupted export goes on; one that failed may be replaced by a corrected one; a finished one
only with `--force`, which removes the files that it wrote itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sacl.cohort.dataset import first_of, in_short
from sacl.errors import ConfigError, DataError, NoSeriesError, SaclError
from sacl.export.forms import Export, Form, Result
from sacl.files.documents import read_if_there, write_json
from sacl.progress import say, track

RECORD = "export.json"
_NAMED = 20
"""Scans named in a line, of those left out for one reason."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What an export is of; `inputs` are fingerprints. A folder of label maps has no run."""

    form: str
    run: str = ""
    splits: tuple[str, ...] = ()
    inputs: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class ExportRecord:
    """What `export.json` says; `files` are the names of all that the export writes."""

    origin: Origin
    files: tuple[str, ...]
    state: Literal["started", "failed", "finished"]
    scans: int = 0


@dataclass(frozen=True)
class Exported:
    """What an export did: `written` of its `scans` now, the others before; `files` for all."""

    form: str
    folder: str
    scans: int
    written: int
    files: tuple[str, ...]
    left_out: tuple[str, ...] = ()


def write_export(
    form: Form, export: Export, load: Mapping[str, Callable[[], Result]], origin: Origin
) -> Exported:
    """Write all scans, then what is said of them together.

    Scans that are there already are skipped, unless `force` is set; those without a DICOM series
    that the form needs are left out, with a line that names them. Where one cannot be written, what
    is whole stays, for the same command to go on.
    """
    names = {case_id: f"{case_id}{form.suffix}" for case_id in load}
    before = _claim(export.out, origin, set(names.values()), export.force)
    _sweep(export.out)
    files = tuple(dict.fromkeys((*(before or ()), *names.values())))
    record = ExportRecord(origin=origin, files=files, state="started")
    _keep(export.out, record)
    try:
        written, left_out = _write_each(form, export, load, names)
        more = tuple(path.name for path in form.finish(export)) if form.finish else ()
    except BaseException as error:
        with contextlib.suppress(OSError, SaclError):
            _give_up(export.out, record, before is None, isinstance(error, SaclError))
        raise
    scans = (len(export.cases) or len(load)) - len(left_out)
    absent = {names[case_id] for case_id in left_out}
    files = tuple(name for name in dict.fromkeys((*files, *more)) if name not in absent)
    _keep(export.out, dataclasses.replace(record, state="finished", files=files, scans=scans))
    earlier = f", {scans - written} of them before" if written < len(load) - len(left_out) else ""
    done = ", ".join(more) if form.network else f"{scans} scans done{earlier}"
    say(f"export: {done}; {form.summary}")
    return Exported(origin.form, str(export.out), scans, written, more, left_out)


def _write_each(
    form: Form, export: Export, load: Mapping[str, Callable[[], Result]], names: Mapping[str, str]
) -> tuple[int, tuple[str, ...]]:
    """Write the scans that are not there; return how many were, and the names of those left out."""
    written = 0
    doubts: list[tuple[str, str]] = []
    without: dict[str, list[str]] = {}
    for case_id, read in track(load.items(), "export", len(load)):
        path = export.out / names[case_id]
        if form.write is None or (path.exists() and not export.force):
            continue
        try:
            form.write(result := read(), path)
        except NoSeriesError as error:
            without.setdefault(str(error), []).append(case_id)
            continue
        written += 1
        if result.native.contradiction:
            doubts.append((f"case {case_id}", result.native.contradiction))
    lines = [f"{reason}: {in_short(cases, _NAMED)}" for reason, cases in without.items()]
    left_out = tuple(case_id for cases in without.values() for case_id in cases)
    if left_out and len(left_out) == len(load):
        raise DataError(f"no scan has a DICOM series to write onto ({'; '.join(lines)})")
    if left_out:
        say(f"export: {len(left_out)} of {len(load)} scans are left out ({'; '.join(lines)})")
    if doubts:
        say(f"export: {first_of(doubts)}")
    return written, left_out


def _claim(out: Path, origin: Origin, names: set[str], force: bool) -> tuple[str, ...] | None:
    """Return the files that an export has in its folder, None of a new folder; refuse any other."""
    where = f"--out {out.name}"
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{where}: a file; give a folder")
    before = _read(out)
    if before is None:
        stranger = next((path for path in out.glob("*") if not path.name.startswith(".")), None)
        if stranger is not None:
            raise ConfigError(
                f"{where}: holds {stranger.name}, not of an export; give a new folder"
            )
        return None
    known = vars(before.origin)
    changed = next((name for name, value in vars(origin).items() if value != known[name]), None)
    if changed and before.state != "failed" and not force:
        raise ConfigError(
            f"{where}: holds another export, of other {changed}; give another folder, or --force to"
            " write over it"
        )
    foreign = {name for name in names if (out / name).exists()} - set(before.files)
    if foreign:
        raise ConfigError(
            f"{where}: holds {min(foreign)}, which no export wrote; give another folder"
        )
    if changed:
        _remove(out, before.files)
    return () if changed else before.files


def _give_up(out: Path, record: ExportRecord, is_new: bool, is_refused: bool) -> None:
    """Leave nothing of an export that wrote nothing, else a record that lets it go on."""
    _sweep(out)
    if is_new and [path.name for path in out.iterdir()] == [RECORD]:
        _remove(out, [RECORD])
        out.rmdir()
    elif is_refused:
        _keep(out, dataclasses.replace(record, state="failed"))


def _sweep(out: Path) -> None:
    """Remove what a killed process left half-written."""
    _remove(out, [path.name for path in out.glob(".partial-*")])


def _remove(out: Path, names: Iterable[str]) -> None:
    for path in (out / name for name in names):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _keep(out: Path, record: ExportRecord) -> None:
    write_json(out / RECORD, record)


def _read(out: Path) -> ExportRecord | None:
    """Return the record of an export, None where there is none; refuse one that is damaged."""
    record = read_if_there(out / RECORD, ExportRecord, "give another folder")
    if record is None:
        return None
    names = tuple(Path(name).name for name in record.files)
    return dataclasses.replace(record, files=tuple(filter(None, names)))
