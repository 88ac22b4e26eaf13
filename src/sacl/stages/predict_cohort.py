"""predict: the labeled scans of an ingested cohort by any model; existing label maps are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from sacl.cohort.dataset import Dataset, by_kind, first_of, in_short
from sacl.cohort.manifest import MANIFEST, read_cohort, read_image
from sacl.cohort.references import merged_into
from sacl.files.atomic import owned, require_own
from sacl.files.journal import Journal
from sacl.files.nifti import read_label_map, write_label_map
from sacl.model import Model
from sacl.prediction.given import ReadCoarse, coarse_reader, given_fingerprint
from sacl.prediction.guard import Doubt
from sacl.run.engine import HERE, Engine
from sacl.run.workspace import Workspace
from sacl.stages.predict_folder import Made


def predict_cohort(  # noqa: PLR0913
    model: Model,
    home: Path,
    kept: Path,
    out: Path,
    coarse: Path | None,
    *,
    force: bool = False,
    engine: Engine = HERE,
) -> dict[str, tuple[str, ...]]:
    """Predict an ingested cohort's labeled scans; return by scan what speaks against its map.

    The model has the organs of the cohort in `home`, whole or in parts. `kept` gets the complete
    label maps, of which those of the same model and scan are not made again, unless by `force`,
    over files of the user's too; `out` gets the cohort's organs alone. `coarse` are label maps for
    a model that reads them and has no coarse network.
    """
    names = [case.case_id for case in read_cohort(home).cases if case.reference is not None]
    require_own(kept, [f"{name}.nii.gz" for name in names], force)
    model.require_coarse(given=coarse is not None)
    read_coarse = coarse_reader(coarse if model.needs_coarse else None, names, model.scheme)
    work = partial(_open_model, model, home, kept, out, read_coarse, force)
    what = f"predict ({kept.name})"
    done = engine.results_of(work, names, kept, Made, what, is_there=lambda _: False)
    return {case: made.doubts for case, made in done.items()}


def _open_model(
    model: Model, home: Path, kept: Path, out: Path, read_coarse: ReadCoarse, force: bool
) -> Callable[[str], Made]:
    """Return what writes a scan's label maps; the complete one unless it is there."""
    cohort, known = read_cohort(home), Journal(kept, Made)
    cases = {case.case_id: case for case in cohort.cases}
    model.choose_threads(len(cases))

    def predict_case(name: str) -> Made:
        case, path = cases[name], kept / f"{name}.nii.gz"
        volume = read_image(home, case)
        read = read_coarse(name, volume.grid)
        given = read.label_map if read else None
        key, made = model.key_of(volume, given), None if force else known.find(name)
        if made is not None and made.key == key and path.is_file():
            whole = read_label_map(path, model.scheme)[0]
        else:
            segmented = model.segment(volume, f"case {name}", given)
            whole, made = segmented.label_map, Made(key, segmented.doubts)
            with owned(path) as temporary:
                write_label_map(temporary, whole, case.native)
        write_label_map(out / path.name, merged_into(whole, cohort.scheme), case.native)
        return made

    return predict_case


def fingerprints_of(models: Mapping[str, Model], coarse: Path | None) -> dict[str, str]:
    """Return the hashes of what label maps are made by: models by name, and given coarse maps."""
    given = {} if coarse is None else {"coarse": given_fingerprint(coarse)}
    return {f"model {name}": model.fingerprint for name, model in models.items()} | given


def doubts_of_training(paths: Mapping[str, Path], dataset: Dataset) -> Iterator[Doubt]:
    """Yield which runs were trained on scans of these names, of a cohort of this name."""
    for name, path in paths.items():
        home = Workspace(path).folder("ingest")
        if not (home / MANIFEST).is_file():
            continue
        cohort = read_cohort(home)
        seen = {case.case_id for case in cohort.of_split("train")}
        scans = tuple(case.case_id for case in dataset.cases if case.case_id in seen)
        if scans and cohort.name == dataset.name:
            text = (
                f"{name} was trained on {cohort.name}, on scans named like {len(scans)} of these"
                f" ({in_short(scans)}), so scores on them are too good"
            )
            yield Doubt("", "unlike_training", scans, text)


def summed_up(model: str, against: Mapping[str, Sequence[str]]) -> Iterator[Doubt]:
    """Yield every kind of doubt about a model's label maps once, with its scans."""
    told = ((case_id, text) for case_id, texts in against.items() for text in texts)
    for remarks in by_kind(told):
        scans = tuple(case_id for case_id, _ in remarks)
        yield Doubt("", "unlike_training", scans, f"{model}, {first_of(remarks)}")
