import math

import numpy as np
import pytest
from sklearn.metrics import silhouette_score
from sklearn.neighbors import KNeighborsClassifier

from sacl.report.results import Embedding, flat_map, separabilities


def _embedding(spread=0.1, phases=("native", "portal_venous"), splits=("train", "test")):
    generator = np.random.default_rng(0)
    organs = ("liver", "spleen", "aorta")
    rows = [(o, p, s) for o in organs for p in phases for s in splits for _ in range(20)]
    axis = {name: n for n, name in enumerate([*organs, *phases])}
    feature = np.array([np.eye(8)[axis[o]] + 0.7 * np.eye(8)[axis[p]] for o, p, _ in rows])
    feature += spread * generator.normal(size=feature.shape)
    feature /= np.linalg.norm(feature, axis=1, keepdims=True)
    organ, phase, split = (np.array(column) for column in zip(*rows, strict=True))
    return Embedding(feature.astype(np.float32), organ, phase, split, split)


def test_separated_classes_are_named_rightly():
    found = {row.what: row for row in separabilities(_embedding(0.05), "phase", seed=0)}
    assert list(found) == ["organ", "phase", "organ and phase"]
    assert [row.classes for row in found.values()] == [3, 2, 6]
    assert found["organ and phase"].accuracy == 1
    assert found["organ and phase"].chance == pytest.approx(1 / 6)
    assert found["organ and phase"].silhouette > 0.7


def test_noise_is_named_by_chance():
    found = separabilities(_embedding(50.0), "phase", seed=0)[-1]
    assert found.accuracy == pytest.approx(found.chance, abs=0.12)
    assert abs(found.silhouette) < 0.1


def test_figures_are_scikit_learns_on_held_out_subjects():
    embedding = _embedding(0.6)
    train, test = embedding.split == "train", embedding.split == "test"
    found = separabilities(embedding, "phase", seed=0)[0]
    feature, organ = embedding.feature, embedding.organ
    named = KNeighborsClassifier(15).fit(feature[train], organ[train]).predict(feature[test])
    # the classes are of one size, so that their mean is the plain accuracy
    assert found.accuracy == pytest.approx(np.mean(named == organ[test]))
    expected = silhouette_score(feature[test], organ[test], metric="cosine")
    assert found.silhouette == pytest.approx(expected)


def test_unknown_labels_do_not_count_as_a_class():
    embedding = _embedding(phases=("native", "portal_venous", "unknown"))
    found = {row.what: row.classes for row in separabilities(embedding, "phase", seed=0)}
    assert found == {"organ": 3, "phase": 2, "organ and phase": 6}


@pytest.mark.parametrize("phases", [("unknown",), ("native",), ("native", "unknown")])
def test_label_without_two_values_gives_no_line(phases):
    found = separabilities(_embedding(phases=phases), "phase", seed=0)
    assert [row.what for row in found] == ["organ"]


def test_without_held_out_subjects_nothing_is_claimed():
    found = separabilities(_embedding(splits=("train",)), "phase", seed=0)[0]
    assert math.isnan(found.accuracy)
    assert math.isnan(found.silhouette)


def test_map_is_the_same_for_the_same_seed_and_keeps_groups_together():
    embedding = _embedding(0.05).sample(100, seed=0)
    points = flat_map(embedding.feature, seed=1)
    np.testing.assert_array_equal(points, flat_map(embedding.feature, seed=1))
    assert points.shape == (100, 2)
    classes = np.char.add(embedding.organ, embedding.scan_label)
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
