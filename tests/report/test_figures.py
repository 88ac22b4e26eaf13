import re

import numpy as np
import pandas as pd

from sacl.report.figures import loss_curves, palette


def test_palette_gives_every_name_its_own_color():
    for count in (1, 7, 8, 13):
        assert len(set(palette([f"organ {n}" for n in range(count)]).values())) == count


def test_charts_take_the_text_color_of_the_page_and_no_script():
    text = loss_curves({"pretraining": [pd.Series(np.arange(9.0), name="x")]})
    assert text.startswith("<svg viewBox=")
    assert text.rstrip().endswith("</svg>")
    assert "currentColor" in text
    assert "#010203" not in text
    assert "#fdfcfb" not in text
    assert 'role="img"' in text


def test_names_in_charts_are_escaped():
    curves = [pd.Series(np.arange(9.0), name=name) for name in ("<liver & co>", "b")]
    text = loss_curves({"losses": curves})
    assert "<liver" not in text
    assert "&lt;liver &amp; co&gt;" in text


def test_a_chart_is_the_same_in_every_run():
    def draw():
        curves = {"fine-tuning": [pd.Series(np.arange(9.0), name=n) for n in "ab"]}
        return loss_curves(curves)

    first, second = draw(), draw()
    assert first == second
    assert re.search(r'id="\w+"', first), "there are ids that could differ"
