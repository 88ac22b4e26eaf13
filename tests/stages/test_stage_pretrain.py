import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from toy_cohort import locate_toy_cohort

from sacl.cohort.manifest import read_cohort
from sacl.cohort.phases import ScanPhase, write_phases
from sacl.errors import ConfigError, DataError
from sacl.files.weights import read_weights
from sacl.losses.contrastive import semantic_relations
from sacl.networks.decoder import build_decoder
from sacl.networks.encoder import EncoderSpec, build_encoder
from sacl.patches.store import read_patches
from sacl.run.workspace import Workspace
from sacl.settings import AugmentSettings, ExtractSettings, PretrainSettings
from sacl.stages import pretrain as stage
from sacl.stages.extract import extract

SETTINGS = PretrainSettings(steps=4, batch=12, width=8, projector=(16, 8))


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    workspace = locate_toy_cohort(tmp_path_factory.mktemp("extracted"))
    extract(ExtractSettings(patch_size=16, dense_size=16), workspace)
    return workspace.root


@pytest.fixture
def workspace(extracted, tmp_path):
    shutil.copytree(extracted, tmp_path, dirs_exist_ok=True)
    return Workspace(tmp_path, device="cpu")


def results_of(folder):
    return json.loads((folder / "run.json").read_text())["results"]


@pytest.mark.parametrize(
    ("strategy", "channels"),
    [
        ("semantic", 2),
        ("organ", 2),
        ("correlation", 2),
        ("supcon", 1),
        ("simclr", 1),
        ("simclr-attention", 2),
    ],
)
def test_trains_an_encoder_under_every_strategy(workspace, strategy, channels):
    folder = stage.pretrain(replace(SETTINGS, strategy=strategy), workspace)

    state, meta = read_weights(folder, "encoder")
    spec = EncoderSpec(**meta)
    assert (spec.width, spec.in_channels) == (8, channels)
    build_encoder(spec).load_state_dict(state)
    losses = pd.read_csv(folder / "losses.csv")
    assert losses["step"].tolist() == [0, 1, 2, 3]
    assert np.isfinite(losses["loss"]).all()
    assert results_of(folder)["encoder_pixels"] == 4 * 12 * 2 * 16 * 16


@pytest.mark.parametrize(
    "changes",
    [
        {"strategy": "semantic", "query": "pooled"},
        {"strategy": "organ", "query": "pooled"},
        {"strategy": "semantic", "query": "parts"},
        {"strategy": "semantic", "query": "parts", "decoder": "linear"},
        {"strategy": "pixel"},
        {"strategy": "self-training"},
        {"strategy": "mim"},
    ],
)
def test_trains_encoder_and_decoder_on_dense_slices(workspace, changes):
    folder = stage.pretrain(replace(SETTINGS, slices=5, **changes), workspace)

    _, meta = read_weights(folder, "encoder")
    assert meta["in_channels"] == 1
    state, text = read_weights(folder, "decoder")
    name = changes.get("decoder", "unet")
    assert text["decoder"] == name
    decoder = build_decoder(name, build_encoder(EncoderSpec(**meta)).channels, (2, 4, 8, 16), 16)
    decoder.load_state_dict(state)
    assert results_of(folder)["encoder_pixels"] == 4 * 5 * 2 * 16 * 16
    assert (folder / "embedding.npz").is_file()


@pytest.mark.parametrize("query", ["pooled", "parts"])
def test_pooled_queries_are_those_of_the_strategies_with_organs_as_classes(query):
    pooled = replace(SETTINGS, query=query)
    on_patches = [replace(pooled, strategy=s).on_patches for s in ("semantic", "organ", "simclr")]
    assert on_patches == [False, False, True]
    assert SETTINGS.on_patches


def test_keeps_random_weights_where_nothing_is_to_be_pretrained(workspace):
    folder = stage.pretrain(replace(SETTINGS, strategy="none"), workspace)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        fresh = build_encoder(EncoderSpec(width=8)).state_dict()
    state, _ = read_weights(folder, "encoder")
    assert all(torch.equal(state[key], value) for key, value in fresh.items())
    assert len(pd.read_csv(folder / "losses.csv")) == 0
    assert results_of(folder)["encoder_pixels"] == 0


def test_writes_the_embedding_of_training_and_held_out_patches(workspace):
    folder = stage.pretrain(SETTINGS, workspace)

    with np.load(folder / "embedding.npz") as embedding:
        feature, organ, split = (embedding[key] for key in ("feature", "organ", "split"))
        labels, subject = embedding["scan_label"], embedding["subject_id"]
    assert feature.shape == (6 * 21, 64)
    np.testing.assert_allclose(np.linalg.norm(feature, axis=1), 1, rtol=1e-5)
    assert set(organ) == {"liver", "aorta"}
    assert set(labels) == {"native", "portal_venous"}
    assert set(subject[split == "test"]) == {"subject-4", "subject-5"}


def test_trains_on_the_training_split_only(workspace):
    found = results_of(stage.pretrain(SETTINGS, workspace))

    assert (found["patches"], found["scans"], found["classes"]) == (4 * 21, 4, 4)


def test_is_the_same_for_the_same_seed_and_another_for_another(workspace):
    first, again, other = (
        pd.read_csv(stage.pretrain(SETTINGS, w) / "losses.csv")["loss"].to_numpy()
        for w in (workspace, workspace, replace(workspace, seed=1))
    )

    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_learns_to_tell_the_classes_apart(workspace):
    settings = replace(SETTINGS, steps=60, batch=24, width=8, learning_rate=3e-3)

    losses = pd.read_csv(stage.pretrain(settings, workspace) / "losses.csv")["loss"]

    assert losses[-10:].mean() < losses[:10].mean() - 0.3


def test_names_the_remedy_where_no_scan_has_the_label_that_makes_a_class(workspace):
    settings = replace(SETTINGS, scan_label="scanner")

    with pytest.raises(DataError, match=r"'scanner'.*--ingest\.scan-labels.*strategy organ"):
        stage.pretrain(settings, workspace)

    assert not (workspace.folder("pretrain") / "run.json").exists()


@pytest.mark.parametrize("strategy", ["organ", "simclr"])
def test_needs_no_scan_label_where_classes_do_without(workspace, strategy):
    stage.pretrain(replace(SETTINGS, scan_label="scanner", strategy=strategy), workspace)


def test_pretrains_where_some_scans_have_no_label(workspace):
    index = workspace.folder("extract") / "index.csv"
    table = pd.read_csv(index)
    table.loc[table["case_id"].isin(["case-0", "case-1"]), "label_phase"] = "unknown"
    table.to_csv(index, index=False)

    found = results_of(stage.pretrain(SETTINGS, workspace))

    assert found["patches_with_unknown_label"] == 2 * 21
    assert found["classes"] == 6


def test_refuses_flips_where_organs_come_in_pairs(workspace):
    path = workspace.folder("extract") / "store.json"
    text = path.read_text().replace("liver", "left kidney").replace("aorta", "right kidney")
    path.write_text(text)
    index = workspace.folder("extract") / "index.csv"
    text = index.read_text().replace("liver", "left kidney").replace("aorta", "right kidney")
    index.write_text(text)

    with pytest.raises(ConfigError, match=r"augment\.flip"):
        stage.pretrain(replace(SETTINGS, augment=AugmentSettings(flip=True)), workspace)


def test_says_that_there_is_no_training_scan(workspace):
    index = workspace.folder("extract") / "index.csv"
    index.write_text(index.read_text().replace(",train,", ",test,"))

    with pytest.raises(DataError, match="no patch of a training scan"):
        stage.pretrain(SETTINGS, workspace)


def test_goes_on_from_an_interrupted_training_as_if_it_had_not_been(workspace, monkeypatch):
    whole = pd.read_csv(stage.pretrain(SETTINGS, workspace) / "losses.csv")["loss"]
    shutil.rmtree(workspace.folder("pretrain"))
    monkeypatch.setattr("sacl.training.loop._SAVE_EVERY_S", 0.0)
    steps = stage.ContrastiveTask.loss

    def dies_at_step_two(task, network, step):
        if step == 2:
            raise KeyboardInterrupt
        return steps(task, network, step)

    monkeypatch.setattr(stage.ContrastiveTask, "loss", dies_at_step_two)
    with pytest.raises(KeyboardInterrupt):
        stage.pretrain(SETTINGS, workspace)
    monkeypatch.setattr(stage.ContrastiveTask, "loss", steps)

    resumed = pd.read_csv(stage.pretrain(SETTINGS, workspace) / "losses.csv")["loss"]

    np.testing.assert_allclose(resumed, whole, rtol=1e-6)


def with_scanners(workspace, scanners):
    """Give the six scans of the store a second scan-wise label."""
    path = workspace.folder("extract") / "index.csv"
    table = pd.read_csv(path)
    table["label_scanner"] = table["case_id"].str[-1].astype(int).map(dict(enumerate(scanners)))
    table.to_csv(path, index=False)
    meta = workspace.folder("extract") / "store.json"
    text = json.loads(meta.read_text())
    meta.write_text(json.dumps({**text, "scan_labels": ["phase", "scanner"]}))


@pytest.mark.parametrize(
    "scan_label", [("phase", "scanner"), "phase,scanner", ["scanner", "phase"]]
)
def test_several_labels_make_a_class_of_each_combination(workspace, scan_label):
    # Phases alternate: scans 0 and 2 are native, 1 and 3 portal venous.
    with_scanners(workspace, ["x", "x", "y", "x", "x", "x"])
    found = results_of(stage.pretrain(replace(SETTINGS, scan_label=scan_label), workspace))
    assert found["classes"] == 2 * 3
    assert found["patches_with_unknown_label"] == 0


def test_unknown_in_one_label_is_unknown_for_the_class(workspace):
    with_scanners(workspace, ["x", "unknown", "x", "x", "x", "x"])
    folder = stage.pretrain(replace(SETTINGS, scan_label=("phase", "scanner")), workspace)
    assert results_of(folder)["patches_with_unknown_label"] == 21
    with np.load(folder / "embedding.npz") as embedding:
        labels, subject = embedding["scan_label"], embedding["subject_id"]
    assert set(labels[subject == "subject-1"]) == {"unknown"}
    assert set(labels) == {"unknown", "native / x", "portal_venous / x"}


def test_patches_attract_each_other_where_all_labels_agree_and_ignore_the_unknown(workspace):
    with_scanners(workspace, ["x", "unknown", "y", "x", "x", "x"])
    store = read_patches(workspace.folder("extract"))
    settings = replace(SETTINGS, scan_label=("phase", "scanner"))
    mine = stage._training_rows(store, settings)
    case = store.index["case_id"].to_numpy()[mine.rows]
    organ = store.index["organ"].to_numpy()[mine.rows]
    chosen = [int(np.flatnonzero((case == c) & (organ == "liver"))[0]) for c in np.unique(case)]
    chosen.append(int(np.flatnonzero((case == "case-0") & (organ == "liver"))[1]))
    chosen.append(int(np.flatnonzero((case == "case-1") & (organ == "aorta"))[0]))
    positive, candidate = semantic_relations(
        torch.from_numpy(mine.organ[chosen]), torch.from_numpy(mine.scan_label[chosen]), "semantic"
    )
    # 0: native x, 1: portal venous unknown, 2: native y, 3: portal venous x, 4: as 0, 5: aorta of 1
    assert positive.int().tolist() == [
        [1, 0, 0, 0, 1, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [1, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    assert candidate.int().tolist() == [
        [1, 0, 1, 1, 1, 1],
        [0, 1, 0, 0, 0, 1],
        [1, 0, 1, 1, 1, 1],
        [1, 0, 1, 1, 1, 1],
        [1, 0, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 1],
    ]


def test_estimated_phases_make_classes_where_nobody_gave_one(tmp_path):
    workspace = locate_toy_cohort(tmp_path, phases=False)
    cohort = read_cohort(workspace.folder("ingest"))
    phases = ["native", "portal_venous", "native", "portal_venous", "native", "unknown"]
    scans = [
        ScanPhase(c.case_id, p, "unknown" if p == "unknown" else "estimated", p, 0.9, False, "", {})
        for c, p in zip(cohort.cases, phases, strict=True)
    ]
    write_phases(workspace.folder("locate") / "phases.csv", scans, [])
    extract(ExtractSettings(patch_size=16, dense_size=16), workspace)
    store = read_patches(workspace.folder("extract"))
    assert store.scan_label("phase")[0] == "native"
    assert store.meta.scan_labels == ("phase",)
    assert results_of(stage.pretrain(SETTINGS, workspace))["classes"] == 4
