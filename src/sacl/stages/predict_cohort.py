"""predict: an ingested cohort's labeled scans by any model; what is there is not made again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sacl.cohort.manifest import read_cohort, read_image
from sacl.cohort.references import merged_into
from sacl.files.atomic import owned, require_own
from sacl.files.nifti import read_label_map, write_label_map
from sacl.model import Model
from sacl.prediction.given import coarse_reader, given_fingerprint
from sacl.prediction.made import Made, MadeMaps, key_of
from sacl.progress import track


def predict_cohort(
    model: Model, home: Path, kept: Path, out: Path, coarse: Path | None, force: bool = False
) -> dict[str, tuple[str, ...]]:
    """Predict an ingested cohort's labeled scans; return by scan what speaks against its map.

    Args:
        model: Its scheme has the organs of the cohort's scheme, whole or in parts.
        home: The ingested cohort.
        kept: Gets the complete label maps. Those of the same model and scan that are there are not
            made again.
        out: Gets the organs of the cohort's scheme alone.
        coarse: Given coarse label maps, for a model that reads them and has no coarse network.
        force: Whether to make all label maps again, over files of the user's too.

    Raises:
        ConfigError: a file in `kept` is not as sacl wrote it.
        DataError: a scan is bad, or a coarse label map missing.
    """
    cohort = read_cohort(home)
    cases = [case for case in cohort.cases if case.reference is not None]
    paths = {case.case_id: kept / f"{case.case_id}.nii.gz" for case in cases}
    require_own(kept, [path.name for path in paths.values()], force)
    model.require_coarse(given=coarse is not None)
    read_coarse = coarse_reader(coarse if model.needs_coarse else None, list(paths), model.scheme)
    maps, doubts = MadeMaps(kept, forget=force), dict[str, tuple[str, ...]]()
    for case in track(cases, f"predict ({kept.name})"):
        volume, path = read_image(home, case), paths[case.case_id]
        read = read_coarse(case.case_id, volume.grid)
        given = read.label_map if read else None
        key = key_of(model.fingerprint, volume, given)
        made = maps.find(case.case_id, key)
        if made is not None and path.is_file():
            whole = read_label_map(path, model.scheme)[0]
        else:
            segmented = model.segment(volume, f"case {case.case_id}", given)
            whole = segmented.label_map
            with owned(path) as temporary:
                write_label_map(temporary, whole, case.native)
            made = Made(case.case_id, key, segmented.doubts)
            maps.add(made)
        doubts[case.case_id] = made.doubts
        write_label_map(out / path.name, merged_into(whole, cohort.scheme), case.native)
    return doubts


def fingerprints_of(models: Mapping[str, Model], coarse: Path | None) -> dict[str, str]:
    """Return the hashes of what label maps are made by: models by name, and given coarse maps."""
    given = {} if coarse is None else {"coarse": given_fingerprint(coarse)}
    return {f"model {name}": model.fingerprint for name, model in models.items()} | given
