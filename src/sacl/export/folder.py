"""An export's folder: what it is of and which files are its own, so that no other is touched.

`export.json` says both. An interrupted export goes on; one that failed may be replaced by a
corrected one; a finished one only with `--force`, which removes the files that it wrote itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from sacl.cohort.dataset import first_of
from sacl.errors import ConfigError, SaclError
from sacl.export.forms import Export, Form, Result
from sacl.files.atomic import write_text
from sacl.progress import say, track

RECORD = "export.json"
"""Says of what an export is, so that an interrupted one goes on and no other is mixed into it."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What an export is of; `inputs` are fingerprints. A folder of label maps has no run."""

    form: str
    run: str = ""
    arm: str | None = None
    splits: tuple[str, ...] = ()
    inputs: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class ExportRecord:
    """What `export.json` says; `files` are the names of all that the export writes.

    `state` is `started`, `failed` (refused in one line, with a remedy) or `finished`.
    """

    origin: Origin
    files: tuple[str, ...]
    state: str
    scans: int = 0


@dataclass(frozen=True)
class Exported:
    """What an export did: `written` of its `scans` now, the others before; `files` for all."""

    form: str
    folder: str
    scans: int
    written: int
    files: tuple[str, ...]


def write_export(
    form: Form, export: Export, load: Mapping[str, Callable[[], Result]], origin: Origin
) -> Exported:
    """Write all scans, then what is said of them together.

    Scans that are there already are skipped, unless `force` is set.

    Raises:
        ConfigError: the folder holds something else.
        DataError: a scan cannot be written; what is whole stays, for the same command to go on.
    """
    names = {case_id: f"{case_id}{form.suffix}" for case_id in load}
    before = _claim(export.out, origin, set(names.values()), export.force)
    files = tuple(dict.fromkeys((*(before or ()), *names.values())))
    record = ExportRecord(origin=origin, files=files, state="started")
    _keep(export.out, record)
    written = 0
    doubts: list[tuple[str, str]] = []
    try:
        for case_id, read in track(load.items(), "export", len(load)):
            path = export.out / names[case_id]
            if form.write is not None and (export.force or not path.exists()):
                form.write(result := read(), path)
                written += 1
                if result.native.contradiction:
                    doubts.append((f"case {case_id}", result.native.contradiction))
        more = tuple(path.name for path in form.finish(export)) if form.finish else ()
    except BaseException as error:
        _give_up(export.out, record, before is None, isinstance(error, SaclError))
        raise
    if doubts:
        say(f"export: {first_of(doubts)}")
    scans = len(export.cases) or len(load)
    files = tuple(dict.fromkeys((*files, *more)))
    _keep(export.out, dataclasses.replace(record, state="finished", files=files, scans=scans))
    earlier = f", {len(load) - written} of them before" if written < len(load) else ""
    say(f"export: {scans} scans done{earlier}; {form.summary}")
    return Exported(origin.form, str(export.out), scans, written, more)


def _claim(out: Path, origin: Origin, names: set[str], force: bool) -> tuple[str, ...] | None:
    """Return the files that an export has in its folder, None of a new folder; refuse any other.

    What another export wrote is removed, where that is allowed.
    """
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
    with contextlib.suppress(OSError, SaclError):
        _remove(out, [path.name for path in out.glob(".partial-*")])
        if is_new and [path.name for path in out.iterdir()] == [RECORD]:
            (out / RECORD).unlink()
            out.rmdir()
        elif is_refused:
            _keep(out, dataclasses.replace(record, state="failed"))


def _remove(out: Path, names: Iterable[str]) -> None:
    for path in (out / name for name in names):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _keep(out: Path, record: ExportRecord) -> None:
    document = msgspec.json.format(msgspec.json.encode(record), indent=1)
    write_text(out / RECORD, document.decode() + "\n")


def _read(out: Path) -> ExportRecord | None:
    """Return the record of an export, None where there is none; refuse one that is damaged."""
    try:
        record = msgspec.json.decode((out / RECORD).read_bytes(), type=ExportRecord)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(
            f"--out {out.name}: {RECORD} is damaged or of an older version; give another folder"
        ) from error
    names = tuple(Path(name).name for name in record.files)
    return dataclasses.replace(record, files=tuple(filter(None, names)))
