"""An organ has one color, wherever it is shown."""

import re

import numpy as np
import pytest
from highdicom.color import CIELabColor

from sacl.dicom.result import rgb
from sacl.files.label_table import hex_color, label_color, label_table
from sacl.report.figures import palette


def test_255_colors_differ_and_the_first_forty_do_so_at_a_glance():
    colors = np.array([label_color(value) for value in range(1, 256)])
    assert len({hex_color(value) for value in range(1, 256)}) == 255
    lab = [
        np.array(CIELabColor.from_rgb(*(255 * c)).value) / 65535 * [100, 255, 255] for c in colors
    ]
    apart = np.linalg.norm(
        np.subtract.outer(lab[:40], lab[:40])[:, [0, 1, 2], :, [0, 1, 2]], axis=0
    )
    assert apart[~np.eye(40, dtype=bool)].min() > 20
    assert label_color(256) == label_color(1)


@pytest.mark.parametrize("count", [3, 9, 120])
def test_pictures_label_tables_and_dicom_agree(count):
    names = tuple(f"organ {n}" for n in range(count))
    found = re.findall(r'Red="(.*?)" Green="(.*?)" Blue="(.*?)"', label_table(names).decode())
    table = [tuple(round(255 * float(part)) for part in row) for row in found]
    shown = [tuple(bytes.fromhex(color[1:])) for color in palette(names).values()]
    assert shown == table == [rgb(value) for value in range(1, count + 1)]
