"""export: predicted label maps -> the files that other programs read."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sacl.cohort.label_names import scheme_of_folders
from sacl.cohort.manifest import read_cohort, read_reference
from sacl.dicom.intake import ingested_series, series_named
from sacl.dicom.pseudonyms import KEY
from sacl.errors import ConfigError, DataError, WorkspaceError
from sacl.export.form import Export, Form, Result
from sacl.files.atomic import folder_fingerprint, write_text
from sacl.files.nifti import is_nifti, read_label_map, stem
from sacl.progress import say, track
from sacl.run.record import fingerprint, read_record
from sacl.run.workspace import Workspace
from sacl.stages.export_forms import FORMS
from sacl.types import SPLITS, Case, Cohort, LabelMap

RECORD = "export.json"
"""Says of what an export is, so that an interrupted one goes on and no other is mixed into it."""


def export(  # noqa: PLR0913
    workspace: Workspace,
    out: Path,
    form: str = "nifti",
    *,
    arm: str | None = None,
    splits: Sequence[str] = (),
    folds: int = 5,
    sources: Sequence[Path] = (),
    force: bool = False,
) -> dict[str, Any]:
    """Write the predictions of a finished run in another form, and return what was written.

    Scans that are there already are skipped, unless `force` is set.

    Args:
        workspace: Work directory of the run.
        out: Folder for the files.
        form: One of `FORMS`.
        arm: Which segmenter's predictions; the pretrained one's where unset.
        splits: Splits to export, the form's own where empty. Training scans are scored only
            where their split is named.
        folds: nnU-Net: number of cross-validation folds.
        sources: DICOM forms: the folders or zips of DICOM that were ingested.
        force: Write everything anew.

    Raises:
        ConfigError: there is no such form, arm or split, or `out` holds something else.
        DataError: no scan of the splits was predicted.
        WorkspaceError: the run has not got as far as the form needs.
    """
    chosen = _form(form, sources)
    if folds < 2:
        raise ConfigError(f"--folds {folds}: expected 2 or more")
    cohort = read_cohort(workspace.require("ingest"))
    wanted = _splits(splits) or chosen.splits
    cases = [case for case in cohort.cases if case.split in wanted]
    load: dict[str, Callable[[], Result]] = {}
    if chosen.write is not None:
        arm = _arm(workspace, arm)
        folder = workspace.require("predict") / arm
        cases = _predicted(cases, folder)
        find = ingested_series(sources, workspace.root / KEY) if sources else None
        name = workspace.name
        load = {c.case_id: functools.partial(_read, folder, c, cohort, name, find) for c in cases}
    elif not cases:
        raise DataError(f"{cohort.name}: no scan in the splits {', '.join(wanted)}")
    scored = [case for case in cases if case.split != "train" or case.split in splits]
    common = Export(
        out,
        cohort.scheme,
        _references(workspace, cohort, scored),
        workspace,
        cohort,
        tuple(cases),
        folds,
        force,
    )
    of = {"form": form, "run": workspace.name, "arm": arm, "splits": list(wanted)}
    return _write(chosen, common, load, {**of, "inputs": _inputs(workspace)})


def export_folder(
    predicted: Path,
    out: Path,
    form: str = "nifti",
    *,
    reference: Path | None = None,
    source: Path | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Write any folder of label maps in another form, and return what was written.

    Organs are named as `sacl evaluate` names them. References are matched by file name; so are the
    folders or zips in `source`, each with the one DICOM series of a scan.

    Raises:
        ConfigError: there is no such form, the form needs a run, or `out` is the folder itself.
        DataError: there is no label map in the folder.
    """
    chosen = _form(form, [source] if source else [])
    if chosen.write is None:
        raise ConfigError(f"--form {form}: needs a run's cohort; give WORK instead of --predicted")
    if out.resolve() == predicted.resolve():
        raise ConfigError(f"--out {out.name}: this is the folder to export; give another one")
    paths = _maps(predicted)
    references = _maps(reference) if reference else {}
    scheme = scheme_of_folders(*(folder for folder in (reference, predicted) if folder))

    def read(case_id: str) -> Result:
        find = functools.partial(series_named, source, case_id) if source else None
        return Result(case_id, *read_label_map(paths[case_id], scheme), source=find)

    def read_other(case_id: str) -> tuple[LabelMap, tuple[str, ...]]:
        return read_label_map(references[case_id], scheme)[0], scheme.names

    pairs = {c: functools.partial(read_other, c) for c in references if c in paths}
    if len(pairs) < len(references):
        say(f"export: {len(references) - len(pairs)} references have no label map of their name")
    common = Export(out, scheme, pairs, force=force)
    folders = {"predicted": predicted, "reference": reference}
    inputs = {name: folder_fingerprint(folder) for name, folder in folders.items() if folder}
    load = {case_id: functools.partial(read, case_id) for case_id in paths}
    return _write(chosen, common, load, {"form": form, "inputs": inputs})


def _form(name: str, sources: Sequence[Path]) -> Form:
    if name not in FORMS:
        raise ConfigError(f"--form {name}: expected one of {', '.join(FORMS)}")
    form = FORMS[name]
    if form.needs_source and not sources:
        raise ConfigError(
            f"--form {name}: refers to the scans' own DICOM images; give their folder, --source"
        )
    if sources and not form.needs_source:
        raise ConfigError(f"--form {name}: refers to no DICOM images; leave out --source")
    return form


def _splits(wanted: Sequence[str]) -> Sequence[str]:
    strange = [name for name in wanted if name not in SPLITS]
    if strange:
        raise ConfigError(f"--splits {strange[0]}: expected one of {', '.join(SPLITS)}")
    return wanted


def _inputs(workspace: Workspace) -> dict[str, str]:
    """Return the fingerprints of the stages that have finished."""
    stages = ("ingest", "locate", "predict")
    return {s: fingerprint(workspace.folder(s)) for s in stages if read_record(workspace.folder(s))}


def _arm(workspace: Workspace, wanted: str | None) -> str:
    """Return the arm that is meant: the run's first where nobody says."""
    record = read_record(workspace.require("finetune")) or {}
    arms: list[str] = record.get("results", {}).get("arms", [])
    if not arms:
        raise WorkspaceError(
            f"work directory {workspace.root.name}: 5-segmenter names no arm; redo `sacl finetune`"
        )
    if wanted is not None and wanted not in arms:
        raise ConfigError(f"--arm {wanted}: {workspace.root.name} has {', '.join(arms)}")
    return wanted or arms[0]


def _predicted(cases: Sequence[Case], folder: Path) -> list[Case]:
    """Return the cases that were predicted, and say how many were not."""
    there = [case for case in cases if (folder / f"{case.case_id}.nii.gz").is_file()]
    if not there:
        raise DataError(
            f"{folder.name}: no prediction for any of {len(cases)} scans; run `sacl predict`"
        )
    if len(there) < len(cases):
        say(f"export: {len(cases) - len(there)} scans have no prediction by {folder.name}")
    return there


def _read(
    folder: Path,
    case: Case,
    cohort: Cohort,
    run: str,
    find: Callable[[str], Sequence[Any]] | None,
) -> Result:
    label_map, native = read_label_map(folder / f"{case.case_id}.nii.gz", cohort.scheme)
    source = functools.partial(find, case.case_id) if find else None
    return Result(case.case_id, label_map, native, case, run, source)


def _references(
    workspace: Workspace, cohort: Cohort, cases: Sequence[Case]
) -> dict[str, Callable[[], tuple[LabelMap, tuple[str, ...]]]]:
    home = workspace.folder("ingest")

    def read(case: Case) -> tuple[LabelMap, tuple[str, ...]]:
        reference = read_reference(home, case, cohort.scheme)
        assert reference is not None
        return reference, case.annotated

    return {c.case_id: functools.partial(read, c) for c in cases if c.reference is not None}


def _maps(folder: Path) -> dict[str, Path]:
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    found = {stem(path): path for path in paths if is_nifti(path)}
    if not found:
        raise DataError(f"{folder.name}: no NIfTI label map in this folder; name another one")
    return found


def _write(
    form: Form, common: Export, load: Mapping[str, Callable[[], Result]], of: dict[str, Any]
) -> dict[str, Any]:
    """Write all scans, then what is said of them together; leave a record of what it is of."""
    _require_own(common.out, of, common.force)
    write_text(common.out / RECORD, _text({**of, "finished": False}))
    written = 0
    for case_id, read in track(load.items(), "export", len(load)):
        path = common.out / f"{case_id}{form.suffix}"
        if form.write is not None and (common.force or not path.exists()):
            form.write(read(), path)
            written += 1
    more = form.finish(common) if form.finish is not None else []
    scans = len(common.cases) or len(load)
    write_text(common.out / RECORD, _text({**of, "finished": True, "scans": scans}))
    before = f", {len(load) - written} of them before" if written < len(load) else ""
    say(f"export: {scans} scans done{before}; {form.summary}")
    return {
        "form": of["form"],
        "folder": str(common.out),
        "scans": scans,
        "written": written,
        "files": [path.name for path in more],
    }


def _require_own(out: Path, of: dict[str, Any], force: bool) -> None:
    """Refuse a folder that holds something else; `force` allows to write over another export.

    Raises:
        ConfigError: in one line.
    """
    path = out / RECORD
    if not path.is_file():
        other = next((p for p in out.glob("*") if not p.name.startswith(".")), None)
        if other is not None:
            raise ConfigError(
                f"--out {out.name}: holds {other.name}, not of an export; give a new folder"
            )
        return
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        record = {}
    changed = next((key for key in of if record.get(key) != of[key]), None)
    if changed and not force:
        raise ConfigError(
            f"--out {out.name}: holds another export, of other {changed}; give another folder, or"
            " --force to write over it"
        )


def _text(record: Mapping[str, Any]) -> str:
    return json.dumps(record, indent=1) + "\n"
