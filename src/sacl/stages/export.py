"""export: predicted label maps, or what was trained -> the files that other programs read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib import import_module
from pathlib import Path

from sacl.cohort.label_names import map_files, scheme_of_folders
from sacl.cohort.manifest import read_cohort
from sacl.dicom.intake import Headers, ingested_series, series_named
from sacl.errors import ConfigError, DataError
from sacl.export.folder import Exported, OpenResults, Origin, write_export
from sacl.export.forms import FORMS, Export, Result, form_named
from sacl.files.atomic import folder_fingerprint, real
from sacl.files.nifti import read_label_map
from sacl.progress import say
from sacl.run.engine import HERE, Engine
from sacl.run.record import fingerprint, read_record, segmenter_of
from sacl.run.workspace import KEY, Workspace
from sacl.types import SPLITS, Case, LabelScheme


def export(  # noqa: PLR0913
    workspace: Workspace,
    out: Path,
    form: str = "nifti",
    *,
    splits: Sequence[str] = (),
    folds: int = 5,
    sources: Sequence[Path] = (),
    force: bool = False,
) -> Exported:
    """Write the predictions of a finished run in another form, one of `export.forms.FORMS`.

    They are those of the form's own splits where none are named. `folds` are those of nnU-Net's
    cross-validation, `sources` the folders or zips of DICOM that were ingested; `force` writes
    everything again. What the run does not have is refused, and an `out` that holds something else.
    """
    if form in FORMS and FORMS[form].needs_source and not (workspace.root / KEY).is_file():
        raise ConfigError(
            f"--form {form}: the run was not ingested from DICOM, no {KEY} is in {workspace.root};"
            " use --form nifti"
        )
    chosen = form_named(form, sources)
    allowed = () if chosen.network else SPLITS
    strange = next((name for name in splits if name not in allowed), None)
    if strange is not None:
        expected = f"one of {', '.join(allowed)}" if allowed else f"none with --form {form}"
        raise ConfigError(f"--splits {strange}: expected {expected}")
    if chosen.network:
        return export_model(workspace.root, out, form, force=force)
    if folds < 2:
        raise ConfigError(f"--folds {folds}: expected 2 or more")
    cohort = read_cohort(workspace.require("ingest"))
    wanted = tuple(splits) or chosen.splits
    cases = [case for case in cohort.cases if case.split in wanted]
    work: OpenResults | None = None
    if chosen.write is not None:
        maps = workspace.require("predict") / segmenter_of(workspace)
        cases = _predicted(cases, maps)
        paths = {case.case_id: maps / f"{case.case_id}.nii.gz" for case in cases}
        find = partial(ingested_series, sources, workspace.root / KEY) if sources else None
        work = partial(_open_maps, paths, cohort.scheme, workspace.name, find)
    elif not cases:
        raise DataError(f"{cohort.name}: no scan in the splits {', '.join(wanted)}")
    common = Export(out, cohort.scheme, workspace, cohort, tuple(cases), folds, force)
    stages = [s for s in ("ingest", "locate", "predict") if read_record(workspace.folder(s))]
    inputs = {stage: fingerprint(workspace.folder(stage)) for stage in stages}
    origin = Origin(form=form, run=workspace.name, splits=wanted, inputs=inputs)
    names, engine = [case.case_id for case in cases] if work else (), workspace.engine
    return write_export(chosen, common, origin, names, work, engine=engine)


def _open_maps(
    paths: Mapping[str, Path],
    scheme: LabelScheme,
    run: str,
    open_source: Callable[[], Callable[[str], Headers]] | None,
) -> Callable[[str], Result]:
    """Return what reads the label map of a case; the DICOM of all is listed here, once."""
    find = open_source() if open_source else None
    return lambda name: Result(name, *read_label_map(paths[name], scheme), run, find)


def export_folder(
    predicted: Path,
    out: Path,
    form: str = "nifti",
    *,
    source: Path | None = None,
    force: bool = False,
    engine: Engine = HERE,
) -> Exported:
    """Write any folder of label maps in another form, unless that needs a run's cohort.

    Organs are named as `sacl evaluate` names them. Matched by file name are the folders or zips in
    `source`, each with the one DICOM series of a scan.
    """
    chosen = form_named(form, [source] if source else [])
    if chosen.write is None:
        raise ConfigError(f"--form {form}: needs a run's cohort; give WORK instead of --predicted")
    if real(out) == real(predicted):
        raise ConfigError(f"--out {out.name}: this is the folder to export; give another one")
    paths = map_files(predicted)
    scheme = scheme_of_folders(predicted)
    find = partial(_open_series, source) if source else None
    work = partial(_open_maps, paths, scheme, predicted.name, find)
    origin = Origin(form=form, inputs={"predicted": folder_fingerprint(predicted)})
    common = Export(out, scheme, force=force)
    return write_export(chosen, common, origin, list(paths), work, engine=engine)


def _open_series(source: Path) -> Callable[[str], Headers]:
    return partial(series_named, source)


def export_model(path: Path, out: Path, form: str, *, force: bool = False) -> Exported:
    """Write the segmenter of a finished run, by its work directory, or of a pack, in a `form`.

    What a form has no place for is refused.
    """
    chosen, pack = form_named(form, ()), import_module("sacl.pack")
    if not chosen.network:
        raise ConfigError(
            f"--form {form}: exports label maps, which a pack does not have; give a run"
        )
    if path.is_dir():
        title, terms = path.resolve().name, pack.NO_LICENSE
        parts = pack.parts_of_run(Workspace(path))
        inputs = {"finetune": fingerprint(Workspace(path).folder("finetune"))}
    else:
        manifest, parts = pack.read_pack(path)
        title, terms, inputs = manifest.title, manifest.license, {"pack": folder_fingerprint(path)}
    restored = import_module("sacl.networks.segmenter").restored
    segmenter = restored(parts.state, pack.nameless(parts.text), title)
    recipe = asdict(parts.recipe)
    networks = import_module("sacl.export.networks")
    trained = networks.Trained(segmenter, title, terms, **recipe)
    write = getattr(networks, chosen.network)
    chosen = replace(chosen, finish=lambda export: write(trained, export.out))
    origin = Origin(form=form, run=title, inputs=inputs)
    common = Export(out, trained.segmenter.spec.label_scheme, force=force)
    return write_export(chosen, common, origin)


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
