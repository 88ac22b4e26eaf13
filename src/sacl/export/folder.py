"""The folder of an export: what was exported, and which files it wrote; no others are touched.

An interrupted export goes on; one that failed may be replaced by a corrected one; a finished one
only with `--force`, which removes the files that it wrote itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from sacl.cohort.dataset import first_of, in_short
from sacl.errors import ConfigError, DataError, NoSeriesError, SaclError
from sacl.export.forms import Export, Form, Result
from sacl.files.documents import read_if_there, write_json
from sacl.files.journal import remove_journal
from sacl.progress import say
from sacl.run.engine import HERE, Engine, ShardDone

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


OpenResults = Callable[[], Callable[[str], Result]]
"""Opens what reads a scan's result by its name."""


def write_export(
    form: Form,
    export: Export,
    origin: Origin,
    cases: Sequence[str] = (),
    open_results: OpenResults | None = None,
    *,
    engine: Engine = HERE,
) -> Exported:
    """Write all scans, then what is said of them together.

    Scans that are there already are skipped, unless `force` is set; those without a DICOM series
    that the form needs are left out, with a line that names them. Where one cannot be written, what
    is whole stays, for the same command to go on. Shards of the `engine` write their own scans, and
    the call without a shard what is said of all.
    """
    names = {case_id: f"{case_id}{form.suffix}" for case_id in cases}
    before = _claim(export.out, origin, set(names.values()), export.force)
    if engine.shard is None:
        _sweep(export.out)
    files = tuple(dict.fromkeys((*(before or ()), *names.values())))
    record = ExportRecord(origin=origin, files=files, state="started")
    write_json(export.out / RECORD, record)
    written, left_out, more = 0, tuple[str, ...](), tuple[str, ...]()
    try:
        if form.write is not None and open_results is not None:
            written, left_out = _write_each(form, export, names, open_results, engine)
        more = tuple(path.name for path in form.finish(export)) if form.finish else ()
    except ShardDone:
        return Exported(origin.form, str(export.out), len(names), written, ())
    except BaseException as error:
        with contextlib.suppress(OSError, SaclError):
            _give_up(export.out, record, before is None, isinstance(error, SaclError))
        raise
    scans = (len(export.cases) or len(cases)) - len(left_out)
    absent = {names[case_id] for case_id in left_out}
    files = tuple(name for name in dict.fromkeys((*files, *more)) if name not in absent)
    finished = dataclasses.replace(record, state="finished", files=files, scans=scans)
    write_json(export.out / RECORD, finished)
    remove_journal(export.out)
    earlier = f", {scans - written} of them before" if written < len(cases) - len(left_out) else ""
    done = ", ".join(more) if form.network else f"{scans} scans done{earlier}"
    say(f"export: {done}; {form.summary}")
    return Exported(origin.form, str(export.out), scans, written, more, left_out)


@dataclass(frozen=True)
class Written:
    """How a written scan's header contradicts itself, or why a scan was left out."""

    contradiction: str = ""
    left_out: str = ""


def _write_each(
    form: Form,
    export: Export,
    names: Mapping[str, str],
    open_results: OpenResults,
    engine: Engine,
) -> tuple[int, tuple[str, ...]]:
    """Write the scans that are not there; return how many were, and the names of those left out."""
    paths = {case_id: export.out / name for case_id, name in names.items()}
    if export.force:
        remove_journal(export.out)
    todo = [case_id for case_id, path in paths.items() if export.force or not path.exists()]
    work, out = partial(_open_writer, form, paths, open_results), export.out
    done = engine.results_of(work, todo, out, Written, "export", is_there=lambda _: False)
    without: dict[str, list[str]] = {}
    for case_id in (case_id for case_id, of in done.items() if of.left_out):
        without.setdefault(done[case_id].left_out, []).append(case_id)
    lines = [f"{reason}: {in_short(cases, _NAMED)}" for reason, cases in without.items()]
    left_out = tuple(case_id for cases in without.values() for case_id in cases)
    if left_out and len(left_out) == len(names):
        raise DataError(f"no scan has a DICOM series to refer to ({'; '.join(lines)})")
    if left_out:
        say(f"export: {len(left_out)} of {len(names)} scans are left out ({'; '.join(lines)})")
    doubts = [(f"case {name}", of.contradiction) for name, of in done.items() if of.contradiction]
    if doubts:
        say(f"export: {first_of(doubts)}")
    return len(done) - len(left_out), left_out


def _open_writer(
    form: Form, paths: Mapping[str, Path], open_results: OpenResults
) -> Callable[[str], Written]:
    """Return what writes a scan, unless it has no DICOM series that the form needs."""
    read, write = open_results(), form.write
    assert write is not None, "a form of scans"

    def write_case(name: str) -> Written:
        result = read(name)
        try:
            write(result, paths[name])
        except NoSeriesError as error:
            return Written(left_out=str(error))
        return Written(result.native.contradiction)

    return write_case


def _claim(out: Path, origin: Origin, names: set[str], force: bool) -> tuple[str, ...] | None:
    """Return the files that an export has in its folder, None of a new folder; refuse any other."""
    where = f"--out {out.name}"
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{where}: is a file; give a folder")
    before = _read(out)
    if before is None:
        stranger = next((path for path in out.glob("*") if not path.name.startswith(".")), None)
        if stranger is not None:
            raise ConfigError(
                f"{where}: holds {stranger.name}, which no export wrote; give a new folder"
            )
        return None
    known = vars(before.origin)
    changed = next((name for name, value in vars(origin).items() if value != known[name]), None)
    if changed and before.state != "failed" and not force:
        raise ConfigError(
            f"{where}: holds another export, with other {changed}; give another folder, or"
            " --force to overwrite it"
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
    remove_journal(out)
    if is_new and [path.name for path in out.iterdir()] == [RECORD]:
        _remove(out, [RECORD])
        out.rmdir()
    elif is_refused:
        write_json(out / RECORD, dataclasses.replace(record, state="failed"))


def _sweep(out: Path) -> None:
    """Remove what a killed process left half-written."""
    _remove(out, [path.name for path in out.glob(".partial-*")])


def _remove(out: Path, names: Iterable[str]) -> None:
    for path in (out / name for name in names):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _read(out: Path) -> ExportRecord | None:
    """Return the record of an export, None where there is none; refuse one that is damaged."""
    record = read_if_there(out / RECORD, ExportRecord, "give another folder")
    if record is None:
        return None
    names = tuple(Path(name).name for name in record.files)
    return dataclasses.replace(record, files=tuple(filter(None, names)))
