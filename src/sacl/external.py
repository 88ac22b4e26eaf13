"""evaluate --model --data: the external test of trained segmenters, on another cohort.

The test is a work directory of its own. Its cohort has the organs that the segmenters and the data
share, so that the stages `evaluate` and `report` do in it what they do in any other.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from sacl.cohort.annotation import choose_scheme, only_labeled
from sacl.cohort.dataset import Dataset, Modality, in_short, told_apart
from sacl.errors import ConfigError, DataError
from sacl.model import Model, load_model
from sacl.organs import SharedOrgans, shared_organs
from sacl.prediction.guard import Doubt, Findings, write_findings
from sacl.progress import say
from sacl.run.engine import HERE, Engine
from sacl.run.pipeline import run_stage, summary, workspace_of
from sacl.run.record import Tree, fingerprint, recorded
from sacl.run.workspace import Workspace
from sacl.settings import IngestSettings, PredictSettings, RunConfig
from sacl.stages import ingest
from sacl.stages.predict_cohort import (
    doubts_of_training,
    fingerprints_of,
    predict_cohort,
    summed_up,
)

MAPS = "label-maps"
"""Folder of the complete label maps, by model; those in `6-predictions` have the shared organs."""


def external_test(  # noqa: PLR0913
    paths: Sequence[Path],
    config: RunConfig,
    out: Path | None = None,
    *,
    coarse: Path | None = None,
    changes: Tree | None = None,
    force: bool = False,
    engine: Engine = HERE,
) -> Tree:
    """Predict and score the labeled scans of `ingest.data`; return where the results are.

    Args:
        paths: Models as `load_model` takes them; the first is compared with each of the others.
        config: Where the data lie, and how they are read and scored.
        out: The test's work directory; `WORK/NAME-external/COHORT` where unset.
        coarse: Label maps to locate by, for a run without coarse networks.
        changes: Of how label maps are made (`copies`, `keep_component`); as in the run where unset.
        force: Whether to do again what is done, and to overwrite files of the user's.
        engine: Where the scans are worked on.

    Raises:
        DataError: no scan has a label map, no organ is shared, or a scan is bad.
        ConfigError: a model is named twice, or `out` is the work directory of a run.
    """
    own = [path.resolve().name.removesuffix(".sacl") for path in paths]
    longer = [f"{path.resolve().parent.name}-{name}" for path, name in zip(paths, own, strict=True)]
    names = told_apart(own, longer)
    if len(set(names)) < len(names):
        raise ConfigError(f"--model: {names[0]} is named twice; name each model once")
    path_of = dict(zip(names, paths, strict=True))
    models = {
        name: load_model(path, device=config.device, **(changes or {}))
        for name, path in path_of.items()
    }
    dataset, modality = ingest.list_cohort(config.ingest)
    title = re.sub(r"[^\w.+-]+", "-", dataset.name).strip("-.") or "data"
    root = out or config.work / f"{names[0]}-external" / title
    if Workspace(root).folder("finetune").exists():
        raise ConfigError(f"--out {root}: is the work directory of a run; give another folder")
    recipe = models[names[0]].members[0].predictor.recipe
    config = msgspec.structs.replace(
        config,
        work=root,
        name=f"{names[0]} on {dataset.name}",
        predict=PredictSettings(copies=recipe.copies, keep_component=recipe.keep_component),
    )
    test = _Test.of(models, dataset, modality, config.ingest)
    doubts = [*test.doubts(), *doubts_of_training(path_of, dataset)]
    for line in (*test.lines(), *(f"ATTENTION, {doubt.text}" for doubt in doubts)):
        say(f"evaluate: {line}")
    stages = {"ingest": _Ingest(test), "predict": _Predict(test, doubts, coarse, force)}
    with workspace_of(config).locked():
        for stage in ("ingest", "predict", "evaluate", "report"):
            workspace = workspace_of(config, engine)
            run_stage(config, stage, workspace=workspace, force=force, by=stages.get(stage))
    return summary(config) | dataclasses.asdict(test.shared)


@dataclass(frozen=True, eq=False)
class _Test:
    """What is tested on what: the models by name, the labeled scans, and what they share."""

    models: Mapping[str, Model]
    dataset: Dataset
    modality: Modality
    shared: SharedOrgans
    unlabeled: tuple[str, ...]

    @classmethod
    def of(
        cls,
        models: Mapping[str, Model],
        dataset: Dataset,
        modality: Modality,
        settings: IngestSettings,
    ) -> _Test:
        """Leave out the scans without a label map, and match the organs."""
        labeled, unlabeled = only_labeled(dataset)
        data = dataset.name if dataset.name not in models else f"{dataset.name} (data)"
        schemes = {name: model.scheme.names for name, model in models.items()}
        shared = shared_organs(schemes | {data: choose_scheme(labeled, settings.organs)[0].names})
        if not shared.parts:
            raise DataError(
                f"{dataset.name}: no organ in common with {', '.join(models)};"
                f" {'; '.join(shared.lines())}"
            )
        return cls(models, labeled, modality, shared, unlabeled)

    def lines(self) -> Iterator[str]:
        """Yield what is scored and what is left out."""
        if self.unlabeled:
            n, scans = len(self.unlabeled), len(self.unlabeled) + len(self.dataset.cases)
            yield f"{n} of {scans} scans have no label map, left out: {in_short(self.unlabeled)}"
        yield from self.shared.lines()

    def doubts(self) -> Iterator[Doubt]:
        """Yield which models are of another modality than the scans."""
        scans = tuple(case.case_id for case in self.dataset.cases)
        for name, model in self.models.items():
            if model.modality != self.modality:
                text = (
                    f"{name} was trained on {model.modality.upper()}, and {self.dataset.name} is"
                    f" {self.modality.upper()}: its label maps cannot be trusted"
                )
                yield Doubt("", "unlike_training", scans, text)


@dataclass(frozen=True, eq=False)
class _Ingest:
    """In place of the stage: the labeled scans alone, with the shared organs."""

    test: _Test

    def inputs(self, settings: IngestSettings, workspace: Workspace) -> dict[str, str]:
        """Return the fingerprints of the data, and the organs."""
        organs = ", ".join(self.test.shared.parts)
        return ingest.inputs(settings, workspace) | {"organs": organs}

    def ingest(self, settings: IngestSettings, workspace: Workspace) -> Path:
        """Write the cohort, and record which organs are compared with which."""
        test, inputs = self.test, self.inputs(settings, workspace)
        with recorded(workspace, "ingest", settings, inputs) as (folder, done):
            wanted = msgspec.structs.replace(settings, organs=tuple(test.shared.parts))
            about = (test.dataset, test.modality, wanted, workspace)
            done.update(ingest.write_listed(folder, *about))
            done.update(compared=dataclasses.asdict(test.shared), unlabeled=list(test.unlabeled))
        return folder


@dataclass(frozen=True, eq=False)
class _Predict:
    """In place of the stage: the label maps of every model, in the cohort's organs."""

    test: _Test
    doubts: Sequence[Doubt]
    coarse: Path | None
    force: bool

    def inputs(self, settings: PredictSettings, workspace: Workspace) -> dict[str, str]:
        """Return the fingerprints of the cohort and of the models."""
        read = {"ingest": fingerprint(workspace.require("ingest"))}
        return read | fingerprints_of(self.test.models, self.coarse)

    def predict(self, settings: PredictSettings, workspace: Workspace) -> Path:
        """Write all label maps, and what speaks against believing them."""
        inputs = self.inputs(settings, workspace)
        with recorded(workspace, "predict", settings, inputs) as (folder, done):
            home, scans, doubts = workspace.require("ingest"), {}, list(self.doubts)
            for name, model in self.test.models.items():
                where = home, workspace.root / MAPS / name, folder / name
                against = predict_cohort(
                    model, *where, self.coarse, force=self.force, engine=workspace.engine
                )
                doubts += summed_up(name, against)
                scans[name] = len(against)
            write_findings(folder, Findings(tuple(doubts)))
            done.update(scans=scans, doubts=[doubt.text for doubt in doubts])
        return folder
