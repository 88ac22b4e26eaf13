import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from msgspec.structs import replace
from toy_cohort import interrupted_at_step_two, locate_toy_cohort

from sacl.cohort.manifest import ScanPhase, read_cohort, write_phases
from sacl.errors import ConfigError, DataError
from sacl.files.weights import read_weights
from sacl.losses.contrastive import semantic_relations
from sacl.methods.batches import PatchViews, training_patches
from sacl.networks.decoder import build_decoder
from sacl.networks.encoder import Encoder, EncoderSpec, PretrainedEncoder
from sacl.patches.store import read_patches
from sacl.run.record import recorded
from sacl.run.workspace import Workspace
from sacl.settings import ExtractSettings, PretrainSettings
from sacl.stages import pretrain as stage
from sacl.stages.extract import extract

SETTINGS = PretrainSettings(method="semantic", steps=4, batch=12, width=8)


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    workspace = locate_toy_cohort(tmp_path_factory.mktemp("extracted"))
    extract(ExtractSettings(patch_size=16, dense_size=16, region="slice"), workspace)
    return workspace.root


@pytest.fixture
def workspace(extracted, tmp_path):
    shutil.copytree(extracted, tmp_path, dirs_exist_ok=True)
    return Workspace(tmp_path, device="cpu")


def results_of(folder):
    return json.loads((folder / "run.json").read_text())["results"]


@pytest.mark.parametrize(
    ("method", "scan_label", "channels"),
    [("semantic", "phase", 2), ("semantic", "", 2), ("simclr", "phase", 1)],
)
def test_trains_an_encoder_under_every_method(workspace, method, scan_label, channels):
    folder = stage.pretrain(replace(SETTINGS, method=method, scan_label=scan_label), workspace)

    state, meta = read_weights(folder, "encoder")
    made = PretrainedEncoder.from_json(meta)
    assert (made.method, made.spec.width, made.spec.in_channels) == (method, 8, channels)
    assert (made.reads_attention, made.decoder) == (channels == 2, None)
    Encoder(made.spec).load_state_dict(state)
    losses = pd.read_csv(folder / "losses.csv")
    assert losses["step"].tolist() == [0, 1, 2, 3]
    assert np.isfinite(losses["loss"]).all()
    assert made.pixels_trained == 4 * 12 * 2 * 16 * 16


@pytest.mark.parametrize("scan_label", ["phase", ""])
def test_trains_encoder_and_decoder_on_dense_slices(workspace, scan_label):
    settings = replace(SETTINGS, method="pooled", batch=5, scan_label=scan_label)
    folder = stage.pretrain(settings, workspace)

    made = PretrainedEncoder.from_json(read_weights(folder, "encoder")[1])
    assert (made.spec.in_channels, made.decoder) == (1, "unet")
    state, text = read_weights(folder, "decoder")
    assert text["decoder"] == "unet"
    decoder = build_decoder("unet", Encoder(made.spec).channels, (2, 4, 8, 16), 16)
    decoder.load_state_dict(state)
    assert made.pixels_trained == 4 * 5 * 2 * 16 * 16


def test_keeps_random_weights_where_nothing_is_to_be_pretrained(workspace):
    folder = stage.pretrain(replace(SETTINGS, method="none"), workspace)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        fresh = Encoder(EncoderSpec(width=8)).state_dict()
    state, meta = read_weights(folder, "encoder")
    assert all(torch.equal(state[key], value) for key, value in fresh.items())
    assert len(pd.read_csv(folder / "losses.csv")) == 0
    assert PretrainedEncoder.from_json(meta).pixels_trained == 0


def test_trains_on_the_training_split_only(workspace):
    found = results_of(stage.pretrain(SETTINGS, workspace))

    assert (found["patches"], found["scans"], found["classes"]) == (4 * 21, 4, 4)


def test_is_the_same_for_the_same_seed_and_another_for_another(workspace):
    first, again, other = (
        pd.read_csv(stage.pretrain(SETTINGS, w) / "losses.csv")["loss"].to_numpy()
        for w in (workspace, workspace, dataclasses.replace(workspace, seed=1))
    )

    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_learns_to_tell_the_classes_apart(workspace, monkeypatch):
    monkeypatch.setattr(stage, "LEARNING_RATE", 3e-3)
    settings = replace(SETTINGS, steps=100, batch=24, width=8, augment="mild")

    losses = pd.read_csv(stage.pretrain(settings, workspace) / "losses.csv")["loss"]

    assert losses[-10:].mean() < losses[:10].mean() - 0.3


@pytest.mark.parametrize("method", ["semantic", "pooled"])
def test_classes_are_organs_alone_where_no_scan_has_the_label(workspace, method, capsys):
    stage.pretrain(replace(SETTINGS, scan_label="scanner", method=method), workspace)
    said = capsys.readouterr().err
    assert "no training scan has the scan-wise label 'scanner'" in said
    assert "classes are organs alone" in said


def test_pretrains_where_some_scans_have_no_label(workspace):
    def without_phase(case):
        return {"scan_labels": {}} if case["case_id"] in ("case-0", "case-1") else {}

    change_cases(workspace, without_phase)

    found = results_of(stage.pretrain(SETTINGS, workspace))

    assert found["patches_with_unknown_label"] == 2 * 21
    assert found["classes"] == 6


def test_an_unknown_method_is_refused_before_anything_is_written(workspace):
    with pytest.raises(ConfigError, match=r"pretrain\.method: expected one of .*got 'semantik'"):
        stage.pretrain(replace(SETTINGS, method="semantik"), workspace)
    assert not workspace.folder("pretrain").exists()


def test_a_damaged_checkpoint_is_set_aside(workspace, monkeypatch, capsys):
    whole = pd.read_csv(stage.pretrain(SETTINGS, workspace) / "losses.csv")["loss"]
    folder = workspace.folder("pretrain")
    shutil.rmtree(folder)
    mark = stage.inputs(SETTINGS, workspace)
    with pytest.raises(KeyboardInterrupt), recorded(workspace, "pretrain", SETTINGS, mark):
        raise KeyboardInterrupt
    (folder / "training.pt").write_bytes(b"PK\x03\x04 cut")

    again = pd.read_csv(stage.pretrain(SETTINGS, workspace) / "losses.csv")["loss"]

    np.testing.assert_array_equal(again, whole)
    assert "training.pt is damaged" in capsys.readouterr().err


def test_says_that_there_is_no_training_scan(workspace):
    change_cases(workspace, lambda _: {"split": "test"})

    with pytest.raises(DataError, match="no patch of a training scan"):
        stage.pretrain(SETTINGS, workspace)


def test_goes_on_from_an_interrupted_training_as_if_it_had_not_been(workspace, monkeypatch):
    whole = pd.read_csv(stage.pretrain(SETTINGS, workspace) / "losses.csv")["loss"]
    shutil.rmtree(workspace.folder("pretrain"))
    monkeypatch.setattr("sacl.training.loop._SAVE_EVERY_S", 0.0)
    with interrupted_at_step_two(PatchViews, monkeypatch):
        stage.pretrain(SETTINGS, workspace)

    resumed = pd.read_csv(stage.pretrain(SETTINGS, workspace) / "losses.csv")["loss"]

    np.testing.assert_allclose(resumed, whole, rtol=1e-6)


def change_cases(workspace, changes_of):
    """Change what the store says of its scans."""
    path = workspace.folder("extract") / "cases.json"
    cases = json.loads(path.read_text())
    path.write_text(json.dumps([{**case, **changes_of(case)} for case in cases]))


def with_scanners(workspace, scanners):
    """Give the six scans of the store a second scan-wise label."""

    def with_scanner(case):
        scanner = scanners[int(case["case_id"][-1])]
        return {"scan_labels": {**case["scan_labels"], "scanner": scanner}}

    change_cases(workspace, with_scanner)
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
    store = read_patches(workspace.folder("extract"))
    labels = store.joined_label(("phase", "scanner"))
    assert set(labels[store.index["subject_id"] == "subject-1"]) == {"unknown"}
    assert set(labels) == {"unknown", "native / x", "portal_venous / x"}


def test_patches_attract_each_other_where_all_labels_agree_and_ignore_the_unknown(workspace):
    with_scanners(workspace, ["x", "unknown", "y", "x", "x", "x"])
    store = read_patches(workspace.folder("extract"))
    patches = training_patches(store, ("phase", "scanner"))
    case = store.index["case_id"].to_numpy()[patches.rows]
    organ = store.index["organ"].to_numpy()[patches.rows]
    chosen = [int(np.flatnonzero((case == c) & (organ == "liver"))[0]) for c in np.unique(case)]
    chosen.append(int(np.flatnonzero((case == "case-0") & (organ == "liver"))[1]))
    chosen.append(int(np.flatnonzero((case == "case-1") & (organ == "aorta"))[0]))
    positive, candidate = semantic_relations(
        torch.from_numpy(patches.organ[chosen]), torch.from_numpy(patches.scan_label[chosen])
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
    extract(ExtractSettings(patch_size=16, dense_size=16, region="slice"), workspace)
    store = read_patches(workspace.folder("extract"))
    assert store.joined_label(("phase",))[0] == "native"
    assert store.meta.scan_labels == ("phase",)
    assert results_of(stage.pretrain(SETTINGS, workspace))["classes"] == 4
