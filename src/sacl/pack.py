"""A trained segmenter as one file that predicts anywhere: safetensors and JSON in a zip.

Its members are stored as they are and read in memory, by known names only: nothing is extracted,
inflated or unpickled. It holds no path, no name of a case, subject, cohort or computer.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import msgspec
from torch import Tensor

from sacl.dicom.snomed import code_of
from sacl.errors import DataError, SaclError
from sacl.files.atomic import replacing, require_ours
from sacl.files.documents import JsonObject, as_record
from sacl.files.weights import packed, read_weights, unpacked
from sacl.networks.segmenter import SEGMENTER, spec_of
from sacl.plan.document import read_plan
from sacl.prediction.coarse import SavedNetwork, read_networks
from sacl.prediction.volume import USUAL_RECIPE, MapRecipe, read_recipe
from sacl.report.page import render
from sacl.run.configure import dotted_settings
from sacl.run.record import fingerprint, read_record, segmenter_of
from sacl.run.workspace import Workspace
from sacl.scores.summary import read_summary

FORMAT = 1
"""Version of what a pack holds; one of a later version is refused."""
NO_LICENSE = "none stated; ask who gave you this file"

_MANIFEST, _CARD, _WEIGHTS = "model.json", "README.md", f"{SEGMENTER}.safetensors"
_KNOWN = re.compile(r"model\.json|README\.md|segmenter\.safetensors|coarse-[0-9]{2}\.safetensors")
_MOST_TEXT = 16_000_000
"""A member that is text is smaller, in bytes."""
_ENCRYPTED = 1
"""A flag of a member of a zip."""
_LONG_AGO = (1980, 1, 1, 0, 0, 0)
_MARK = '"sacl_pack"'
_SCHEME = "pack"
"""Name of the label scheme in a pack, since that of a cohort may be a hospital's."""
_AGAIN = "make it again with `sacl pack`, or copy it again"
_OF_ZIP = (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, ValueError)
_STAGES = ("ingest", "locate", "extract", "pretrain", "finetune", "predict")


@dataclass(frozen=True, eq=False)
class Parts:
    """What a segmenter is made of: weights and description, recipe, and its coarse networks."""

    state: Mapping[str, Tensor]
    text: JsonObject
    recipe: MapRecipe
    coarse: Sequence[SavedNetwork]


@dataclass(frozen=True, kw_only=True)
class PackedOrgan:
    """An organ, its label value and its SNOMED CT code, None where none is known."""

    label: int
    name: str
    snomed_ct: str | None = None
    meaning: str | None = None
    laterality: str | None = None


@dataclass(frozen=True, kw_only=True)
class PackedNetwork:
    """The description of a coarse network; its weights are a member of their own."""

    kind: Literal["slices", "volumes"]
    description: JsonObject


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What `model.json` says of a pack.

    `segmenter` is what `segmenter.json` says in a run; `trained_on` counts cases, subjects and
    references by split; `scores` are those of held-out subjects, None where there are none;
    `settings` are by dotted name; `plan` says why they were chosen, None where nothing was planned.
    """

    sacl_pack: int
    title: str
    license: str
    organs: tuple[PackedOrgan, ...]
    recipe: MapRecipe
    segmenter: JsonObject
    coarse: tuple[PackedNetwork, ...]
    trained_on: JsonObject
    scores: JsonObject | None
    settings: JsonObject
    plan: JsonObject | None
    versions: Mapping[str, str]


def parts_of_run(workspace: Workspace) -> Parts:
    """Return the segmenter of a finished run, with its coarse networks where it reads their maps.

    Raises:
        WorkspaceError: the run is not finished.
        DataError: a file is missing or damaged.
    """
    recipe = read_recipe(workspace.folder("predict")) or USUAL_RECIPE
    folder = workspace.require("finetune") / segmenter_of(workspace)
    state, text = read_weights(folder, SEGMENTER)
    located = spec_of(text).needs_coarse or recipe.from_coarse
    coarse = read_networks(workspace.folder("locate")) if located else []
    return Parts(state, text, recipe, coarse)


def pack(
    workspace: Workspace,
    path: Path,
    *,
    title: str | None = None,
    license_text: str | None = None,
    force: bool = False,
) -> Manifest:
    """Write the segmenter of a finished run into one file, whole or not at all.

    The same run gives the same bytes. `title` is what the model is called, `license_text` under
    what terms others may use it; `force` overwrites a file that is no pack.

    Raises:
        WorkspaceError: the run is not finished.
        DataError: a file of it is missing or damaged, or an organ's name is no name for a file.
    """
    require_ours(path, _MARK, force)
    parts = parts_of_run(workspace)
    spec = spec_of(parts.text)
    _require_names(spec.organs, "pack")
    trained = read_record(workspace.require("finetune"))
    manifest = Manifest(
        sacl_pack=FORMAT,
        title=title or f"{len(spec.organs)} organs in {spec.window.modality.upper()}",
        license=license_text or NO_LICENSE,
        organs=tuple(_organ(*numbered) for numbered in enumerate(spec.organs, start=1)),
        recipe=parts.recipe,
        segmenter=nameless(parts.text),
        coarse=tuple(
            PackedNetwork(kind=n.kind, description=nameless(n.text)) for n in parts.coarse
        ),
        trained_on=_counts(workspace),
        scores=_scores(workspace),
        settings=_settings(workspace),
        plan=_plan(workspace),
        versions=trained.versions if trained else {},
    )
    write_pack(path, manifest, parts)
    return manifest


def write_pack(path: Path, manifest: Manifest, parts: Parts) -> None:
    """Write a pack: `model.json` first, by which it is known, then the card, then the weights."""
    states = {_WEIGHTS: parts.state} | {
        _coarse_name(number): network.state for number, network in enumerate(parts.coarse)
    }
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        archive.writestr(_member(_MANIFEST), text)
        archive.writestr(_member(_CARD), _card(manifest))
        for name, state in states.items():
            archive.writestr(_member(name), packed(state))


def read_pack(path: Path) -> tuple[Manifest, Parts]:
    """Return what a pack says of itself, and its parts; nothing of it is believed unchecked.

    Raises:
        DataError: it is no pack, not whole, of a later format, or holds what no pack does.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _require_plain(archive.infolist(), path)
            content = {info.filename: archive.read(info) for info in archive.infolist()}
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file or folder") from error
    except _OF_ZIP as error:
        raise DataError(
            f"{path.name}: not a model of sacl, or incomplete ({type(error).__name__}); {_AGAIN}"
        ) from error
    manifest = _manifest(content[_MANIFEST], path.name)
    names = [_coarse_name(number) for number in range(len(manifest.coarse))]
    if {_MANIFEST, _CARD, _WEIGHTS, *names} != content.keys():
        raise DataError(f"{path.name}: a network is missing, or one too many; {_AGAIN}")
    state, *states = (unpacked(content[n], f"{path.name}/{n}") for n in (_WEIGHTS, *names))
    coarse = [
        SavedNetwork(network.kind, state, network.description)
        for network, state in zip(manifest.coarse, states, strict=True)
    ]
    _require_one_scheme(manifest, coarse, path.name)
    return manifest, Parts(state, manifest.segmenter, manifest.recipe, coarse)


def _require_plain(members: Sequence[zipfile.ZipInfo], path: Path) -> None:
    """Refuse what no pack holds, before anything of it is read."""
    names = [member.filename for member in members]
    if strange := next((name for name in names if not _KNOWN.fullmatch(name)), None):
        raise DataError(f"{path.name}: not a model of sacl, it holds {strange[:80]!r}; {_AGAIN}")
    if len(set(names)) < len(names) or not {_MANIFEST, _CARD, _WEIGHTS} <= set(names):
        raise DataError(f"{path.name}: a part is missing or appears twice; {_AGAIN}")
    for member in members:
        plain = member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & _ENCRYPTED
        if not plain or member.file_size != member.compress_size:
            raise DataError(f"{path.name}: {member.filename} is compressed or encrypted; {_AGAIN}")
    texts = [m.file_size for m in members if not m.filename.endswith(".safetensors")]
    if sum(m.file_size for m in members) > path.stat().st_size or max(texts) > _MOST_TEXT:
        raise DataError(f"{path.name}: a part is larger than it can be; {_AGAIN}")


def _manifest(content: bytes, where: str) -> Manifest:
    """Return `model.json`, of which every field is checked."""
    try:
        document = msgspec.json.decode(content)
        version = document["sacl_pack"]
    except (msgspec.MsgspecError, KeyError, TypeError, RecursionError, ValueError):
        version = None
    if not isinstance(version, int):
        raise DataError(f"{where}: {_MANIFEST} is not that of a model of sacl; {_AGAIN}")
    if version > FORMAT:
        raise DataError(
            f"{where}: made by a newer sacl, in format {version}; this one reads formats up to"
            f" {FORMAT}: update it (`pip install --upgrade sacl`)"
        )
    manifest: Manifest = as_record(document, Manifest, f"{where}: damaged", _AGAIN)
    return manifest


def _require_one_scheme(manifest: Manifest, coarse: Sequence[SavedNetwork], where: str) -> None:
    """Refuse descriptions that are damaged, and organs that are not the same in all of them."""
    try:
        organs = spec_of(manifest.segmenter).organs
        others = {network.spec.organs for network in coarse}
    except SaclError as error:
        raise DataError(f"{where}: {error}") from error
    if {*others, tuple(organ.name for organ in manifest.organs)} != {organs}:
        raise DataError(f"{where}: its networks are for other organs than it lists; {_AGAIN}")
    _require_names(organs, where)


def _require_names(organs: Sequence[str], where: str) -> None:
    """Refuse names that a terminal or a file system would take for something else."""
    for name in organs:
        if not name.isprintable() or name.startswith(".") or set(name) & set("/\\:"):
            raise DataError(f"{where}: {name[:80]!r} is not a name for an organ; rename it")


def _member(name: str) -> zipfile.ZipInfo:
    """Return a member that is stored, with the same date, system and rights everywhere."""
    member = zipfile.ZipInfo(name, _LONG_AGO)
    member.create_system, member.external_attr = 3, 0o644 << 16
    return member


def _coarse_name(number: int) -> str:
    return f"coarse-{number:02d}.safetensors"


def _organ(label: int, name: str) -> PackedOrgan:
    code = code_of(name)
    if code is None:
        return PackedOrgan(label=label, name=name)
    of_snomed = {"snomed_ct": code.value, "meaning": code.meaning, "laterality": code.laterality}
    return PackedOrgan(label=label, name=name, **of_snomed)


def nameless(value: Any) -> Any:
    """Return a description in which the label scheme has no name of a cohort's."""
    if not isinstance(value, Mapping):
        return value
    return {key: _SCHEME if key == "scheme" else nameless(item) for key, item in value.items()}


def _counts(workspace: Workspace) -> JsonObject:
    """Return how many cases, subjects and references each split of the cohort has."""
    record = read_record(workspace.folder("ingest"))
    results = record.results.items() if record else ()
    return {k: v for k, v in results if isinstance(v, Mapping) and "with_reference" in v}


def _scores(workspace: Workspace) -> JsonObject | None:
    """Return the figures on held-out subjects; None where there are none of the segmenter."""
    folder = workspace.folder("evaluate")
    for stage, read in (("predict", "finetune"), ("evaluate", "predict")):
        record = read_record(workspace.folder(stage))
        if record is None or record.inputs.get(read) != fingerprint(workspace.folder(read)):
            return None
    summary, name = read_summary(folder / "summary.json"), segmenter_of(workspace)
    if name not in summary.runs:
        return None
    names = ("nsd_tolerance_mm", "rule_for_empty_organs", "confidence", "subjects", "cases")
    of_all = {name: getattr(summary, name) for name in names}
    return msgspec.json.decode(msgspec.json.encode({**of_all, "figures": summary.runs[name]}))


def _settings(workspace: Workspace) -> JsonObject:
    """Return the settings that the stages were done with, but for those of free text."""
    records = {stage: read_record(workspace.folder(stage)) for stage in _STAGES}
    done = {stage: record.settings.get(stage) for stage, record in records.items() if record}
    given = (pair for stage, settings in done.items() for pair in _flat(settings, stage))
    return {name: value for name, value in given if name in _closed()}


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}")
    else:
        yield name, value


def _closed() -> set[str]:
    """Return the names of settings that are numbers or one of given words.

    What is free text, such as a path or the name of a scan-wise label, may name a hospital.
    """
    return {n for n, known in dotted_settings().items() if not re.search("text|path", known.kind)}


def _plan(workspace: Workspace) -> JsonObject | None:
    plan = read_plan(workspace.root)
    if plan is None:
        return None
    names = _closed()
    choices = [
        {"setting": choice.setting, "value": choice.value, "reason": choice.reason}
        for choice in plan.choices
        if choice.setting and any(f"{name}.".startswith(f"{choice.setting}.") for name in names)
    ]
    return {"time": plan.time, "machine": asdict(plan.machine), "choices": choices}


def _card(manifest: Manifest) -> str:
    """Return the model card, in Markdown."""
    spec = spec_of(manifest.segmenter)
    needs_coarse = spec.needs_coarse or bool(manifest.recipe.from_coarse)
    values = {field.name: getattr(manifest, field.name) for field in fields(manifest)}
    return render("card.txt", modality=spec.window.modality, needs_coarse=needs_coarse, **values)
