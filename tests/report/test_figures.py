import base64
import io
import re

import numpy as np
import pandas as pd
from matplotlib.image import imread

from sacl.report.figures import (
    as_seen,
    box_plots,
    dot_rows,
    loss_curves,
    overlay,
    palette,
)

RED = "#ff0000"


def _pixels(uri):
    head, data = uri.split(",", 1)
    assert head == "data:image/png;base64"
    return imread(io.BytesIO(base64.b64decode(data)))[..., :3]


def _near(pixels, color):
    return (np.abs(pixels - color) < 0.15).all(axis=2)


def test_palette_gives_every_name_its_own_color():
    for count in (1, 7, 8, 13):
        assert len(set(palette([f"organ {n}" for n in range(count)]).values())) == count


def test_charts_take_the_text_color_of_the_page_and_no_script():
    charts = [
        box_plots({"liver": {"a": [0.5, 0.7, 0.9]}}, {"a": RED}, "Dice"),
        loss_curves({"pretraining": [pd.Series(np.arange(9.0), name="x")]}),
    ]
    for text in charts:
        assert text.startswith("<svg viewBox=")
        assert text.rstrip().endswith("</svg>")
        assert "currentColor" in text
        assert "#010203" not in text
        assert "#fdfcfb" not in text
        assert 'role="img"' in text


def test_names_in_charts_are_escaped():
    text = box_plots({"<liver & co>": {"a": [0.5]}}, {"a": RED}, "Dice")
    assert "<liver" not in text
    assert "&lt;liver &amp; co&gt;" in text


def test_undefined_scores_are_not_drawn():
    nothing = box_plots({"liver": {}}, {"a": RED}, "Dice")
    undefined = box_plots({"liver": {"a": [np.nan]}}, {"a": RED}, "Dice")
    assert RED not in nothing
    assert RED not in undefined


def test_overlay_outlines_the_reference_in_white_and_the_prediction_in_color():
    image = np.full((40, 60), 0.3, np.float32)
    reference, predicted = np.zeros((2, 40, 60), np.uint8)
    reference[5:15, 5:15] = 1
    predicted[25:35, 40:55] = 1
    pixels = _pixels(overlay(image, reference, predicted, {1: RED}, 1.0))
    rows, columns = np.nonzero(_near(pixels, (1, 0, 0)))
    height, width = pixels.shape[:2]
    assert 0.6 < rows.min() / height < rows.max() / height < 0.9
    assert 0.62 < columns.min() / width < columns.max() / width < 0.95
    corner = _near(pixels, (1, 1, 1))[: height // 2 - 20, : width // 2]
    assert corner.any()


def test_overlay_keeps_the_proportions_of_thick_pixels():
    image = np.zeros((20, 40), np.float32)
    labels = np.zeros((20, 40), np.uint8)
    height, width = _pixels(overlay(image, labels, labels, {}, 3.0)).shape[:2]
    assert height / width == 20 * 3 / 40


def test_a_chart_is_the_same_in_every_run():
    def draw():
        curves = {"fine-tuning": [pd.Series(np.arange(9.0), name=n) for n in "ab"]}
        return loss_curves(curves), dot_rows({"liver": [1.0, 20.0]}, "mL")

    first, second = draw(), draw()
    assert first == second
    assert re.search(r'id="\w+"', first[0]), "there are ids that could differ"


def test_right_is_on_the_left_and_front_is_at_the_top():
    plane = np.zeros((5, 4))
    plane[4, 3] = 1  # the patient's right (largest i), front (largest j)
    seen = as_seen(plane)
    assert seen.shape == (4, 5)
    assert seen[0, 0] == 1


def test_an_axis_within_one_power_of_ten_has_numbers():
    assert ">2<" in dot_rows({"liver": [1.1, 2.9]}, "mL")
    assert ">2<" not in dot_rows({"liver": [1.1, 290.0]}, "mL")
