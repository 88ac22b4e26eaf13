"""predict: an ingested cohort's labeled scans by any model; what is there is not made again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from sacl.cohort.manifest import read_cohort, read_image
from sacl.cohort.references import merged_into
from sacl.files.atomic import owned, require_own, write_text
from sacl.files.documents import as_record, read_json
from sacl.files.nifti import read_label_map, write_label_map
from sacl.model import Model
from sacl.prediction.given import coarse_reader, given_fingerprint
from sacl.progress import track
from sacl.types import LabelMap, Volume

_MADE = ".made-by-sacl.json"


@dataclass(frozen=True)
class _Made:
    """Of what a label map was made, as a hash, and what speaks against believing it."""

    key: str
    doubts: tuple[str, ...]


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
    note, made = kept / _MADE, dict[str, _Made]()
    if note.is_file() and not force:
        made = as_record(read_json(note), dict[str, _Made], note.name, "repeat with --force")
    for case in track(cases, f"predict ({kept.name})"):
        volume, path = read_image(home, case), paths[case.case_id]
        read = read_coarse(case.case_id, volume.grid)
        given = read.label_map if read else None
        key, old = _key_of(model, volume, given), made.get(case.case_id)
        if old is None or old.key != key or not path.is_file():
            segmented = model.segment(volume, f"case {case.case_id}", given)
            with owned(path) as temporary:
                write_label_map(temporary, segmented.label_map, case.native)
            made[case.case_id] = _Made(key, segmented.doubts)
            write_text(note, json.dumps({name: asdict(of) for name, of in made.items()}) + "\n")
        whole = read_label_map(path, model.scheme)[0]
        write_label_map(out / path.name, merged_into(whole, cohort.scheme), case.native)
    return {case_id: made[case_id].doubts for case_id in paths}


def fingerprints_of(models: Mapping[str, Model], coarse: Path | None) -> dict[str, str]:
    """Return the hashes of what label maps are made by: models by name, and given coarse maps."""
    given = {} if coarse is None else {"coarse": given_fingerprint(coarse)}
    return {f"model {name}": model.fingerprint for name, model in models.items()} | given


def _key_of(model: Model, volume: Volume, coarse: LabelMap | None) -> str:
    """Return a hash of all that decides a label map."""
    digest = hashlib.sha256(f"{model.fingerprint} {volume.grid.affine.tolist()}".encode())
    for voxels in (volume.voxels, *([] if coarse is None else [coarse.voxels])):
        for k in range(voxels.shape[2]):
            digest.update(np.ascontiguousarray(voxels[:, :, k]).data)
    return digest.hexdigest()
