import math

import numpy as np
import pytest
from msgspec.structs import replace
from sklearn.metrics import silhouette_score
from sklearn.neighbors import KNeighborsClassifier
from tests.stages.toy_cohort import locate_toy_cohort

from research.__main__ import main
from research.embedding import Embedding, embedding_of_work, flat_map, scatter_maps, separabilities
from sacl.settings import ExtractSettings, PretrainSettings
from sacl.stages.extract import extract
from sacl.stages.pretrain import pretrain

SETTINGS = PretrainSettings(method="semantic", steps=2, batch=12, width=8)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    workspace = locate_toy_cohort(tmp_path_factory.mktemp("work"))
    extract(ExtractSettings(patch_size=16, dense_size=16, region="slice"), workspace)
    return workspace


def _embedding(spread=0.1, phases=("native", "portal_venous"), splits=("train", "test")):
    generator = np.random.default_rng(0)
    organs = ("liver", "spleen", "aorta")
    rows = [(o, p, s) for o in organs for p in phases for s in splits for _ in range(20)]
    axis = {name: n for n, name in enumerate([*organs, *phases])}
    feature = np.array([np.eye(8)[axis[o]] + 0.7 * np.eye(8)[axis[p]] for o, p, _ in rows])
    feature += spread * generator.normal(size=feature.shape)
    feature /= np.linalg.norm(feature, axis=1, keepdims=True)
    organ, phase, split = (np.array(column) for column in zip(*rows, strict=True))
    return Embedding(feature.astype(np.float32), organ, phase, split)


def test_separated_classes_are_named_rightly():
    found = {row.what: row for row in separabilities(_embedding(0.05))}
    assert list(found) == ["organ", "phase", "organ and phase"]
    assert [row.classes for row in found.values()] == [3, 2, 6]
    assert found["organ and phase"].accuracy == 1
    assert found["organ and phase"].chance == pytest.approx(1 / 6)
    assert found["organ and phase"].silhouette > 0.7


def test_noise_is_named_by_chance():
    found = separabilities(_embedding(50.0))[-1]
    assert found.accuracy == pytest.approx(found.chance, abs=0.12)
    assert abs(found.silhouette) < 0.1


def test_figures_are_scikit_learns_on_held_out_subjects():
    embedding = _embedding(0.6)
    train, test = embedding.split == "train", embedding.split == "test"
    found = separabilities(embedding)[0]
    feature, organ = embedding.feature, embedding.organ
    named = KNeighborsClassifier(15).fit(feature[train], organ[train]).predict(feature[test])
    # the classes are of one size, so that their mean is the plain accuracy
    assert found.accuracy == pytest.approx(np.mean(named == organ[test]))
    expected = silhouette_score(feature[test], organ[test], metric="cosine")
    assert found.silhouette == pytest.approx(expected)


def test_unknown_labels_do_not_count_as_a_class():
    embedding = _embedding(phases=("native", "portal_venous", "unknown"))
    found = {row.what: row.classes for row in separabilities(embedding)}
    assert found == {"organ": 3, "phase": 2, "organ and phase": 6}


@pytest.mark.parametrize("phases", [("unknown",), ("native",), ("native", "unknown")])
def test_label_without_two_values_gives_no_line(phases):
    found = separabilities(_embedding(phases=phases))
    assert [row.what for row in found] == ["organ"]


def test_without_held_out_subjects_nothing_is_claimed():
    found = separabilities(_embedding(splits=("train",)))[0]
    assert math.isnan(found.accuracy)
    assert math.isnan(found.silhouette)


def test_map_is_the_same_for_the_same_seed_and_keeps_groups_together():
    embedding = _embedding(0.05).sample(100, seed=0)
    points = flat_map(embedding.feature, seed=1)
    np.testing.assert_array_equal(points, flat_map(embedding.feature, seed=1))
    assert points.shape == (100, 2)
    classes = np.char.add(embedding.organ, embedding.phase)
    assert KNeighborsClassifier(3).fit(points, classes).score(points, classes) == 1


@pytest.mark.parametrize("count", [1, 2, 4, 5, 6])
def test_few_patches_have_a_map_too(count):
    points = flat_map(_embedding().feature[:count], seed=0)
    assert points.shape == (count, 2)
    assert np.isfinite(points).all()


def test_sample_is_drawn_once_each():
    embedding = _embedding().sample(30, seed=0)
    assert len(embedding.feature) == len(embedding.organ) == 30
    assert len(np.unique(embedding.feature, axis=0)) == 30
    assert _embedding().sample(10**6, seed=0).feature.shape == _embedding().feature.shape


def test_patches_of_training_and_of_held_out_subjects_are_embedded(workspace, tmp_path, capsys):
    pretrain(SETTINGS, workspace)
    embedding = embedding_of_work(workspace.root)
    assert embedding.feature.shape == (6 * 21, 64)
    np.testing.assert_allclose(np.linalg.norm(embedding.feature, axis=1), 1, rtol=1e-5)
    assert set(embedding.organ) == {"liver", "aorta"}
    assert set(embedding.phase) == {"native", "portal_venous"}
    assert set(embedding.split) == {"train", "test"}
    assert main(["embedding", str(workspace.root), "--out", str(tmp_path / "map.svg")]) == 0
    assert "organ and phase" in capsys.readouterr().out
    text = (tmp_path / "map.svg").read_text()
    assert text.startswith("<svg xmlns=")
    assert ">by phase<" in text


def test_an_encoder_of_images_alone_is_read_too(workspace):
    pretrain(replace(SETTINGS, method="pooled", batch=4), workspace)
    assert np.isfinite(embedding_of_work(workspace.root).feature).all()


def test_a_map_takes_the_text_color_of_the_page():
    points = np.random.default_rng(0).normal(size=(6, 2))
    colors = {"by organ": {"a_b": "#ff0000", "c": "#00ff00"}}
    text = scatter_maps(points, {"by organ": ["a_b"] * 3 + ["c"] * 3}, colors)
    assert ">by organ<" in text
    assert text.count("stroke: var(--paper)") == 2, "a name for each class"
    assert "#fdfcfb" not in text
