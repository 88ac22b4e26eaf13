"""evaluate: two folders of label maps, whoever made them -> scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from sacl.cohort.label_names import left_unpaired, pair_maps, scheme_of_folders
from sacl.files.atomic import fingerprint_of, require_ours
from sacl.files.journal import Journal, remove_journal
from sacl.progress import say
from sacl.run.engine import HERE, Engine, ShardDone
from sacl.scores.organs_of_case import score_case
from sacl.scores.summary import COLUMNS, ScoreRow
from sacl.settings import EvaluateSettings
from sacl.stages.evaluate import SCORES, SUMMARY, Scored, read_map, rows_of, write_all
from sacl.types import LabelScheme


def evaluate_folders(  # noqa: PLR0913
    reference: Path,
    predicted: Path,
    out: Path,
    settings: EvaluateSettings,
    *,
    allow_missing: bool = False,
    force: bool = False,
    engine: Engine = HERE,
) -> Path:
    """Score any folder of label maps against another one, matched by file name; return `out`.

    `c7_0000.nii.gz` and `c7.nii` are the same case. Organs are named by the label table in the
    files, by `dataset.json` in the reference folder or beside it, or else `label_1`, `label_2` and
    so on; two names of a label are refused. Each scan counts as a subject of its own. A map without
    a counterpart is refused, or said with `allow_missing`, which scores the pairs there are. Files
    of the user's are overwritten with `force` alone. What an interrupted call has scored is kept
    for the next one, which goes on; so shards of the `engine` score their own scans, and the call
    without a shard writes the scores.
    """
    for name, mark in ((SCORES, ",".join(COLUMNS)), (SUMMARY, '"nsd_tolerance_mm"')):
        require_ours(out / name, mark, force)
    pairs = pair_maps(reference, predicted, allow_missing)
    for note in left_unpaired(reference, predicted, pairs) if allow_missing else ():
        say(f"evaluate: {note}")
    scheme = scheme_of_folders(reference, predicted)
    tolerance_mm = settings.nsd_tolerance_mm
    keys = {
        case_id: f"{fingerprint_of(paths, reference)} {scheme} {tolerance_mm}"
        for case_id, paths in pairs.items()
    }
    if force:
        remove_journal(out)
    before = Journal(out, Scored).results()
    known = {case_id for case_id, of in before.items() if of.key == keys.get(case_id)}
    work = partial(_open_pairs, pairs, keys, scheme, tolerance_mm)
    try:
        scored = engine.results_of(
            work, list(pairs), out, Scored, "evaluate", is_there=known.__contains__
        )
    except ShardDone:
        return out
    write_all(out, rows_of(scored), tolerance_mm, seed=0, rivals=())
    remove_journal(out)
    return out


def _open_pairs(
    pairs: Mapping[str, tuple[Path, Path]],
    keys: Mapping[str, str],
    scheme: LabelScheme,
    tolerance_mm: float,
) -> Callable[[str], Scored]:
    """Return what scores a label map of a folder."""

    def score(name: str) -> Scored:
        doubts: dict[str, str] = {}
        reference, predicted = (read_map(path, scheme, doubts) for path in pairs[name])
        scores = score_case(name, reference, predicted, scheme.names, tolerance_mm)
        rows = (ScoreRow("predicted", name, "test", score) for score in scores)
        return Scored(tuple(rows), doubts, keys[name])

    return score
