import base64
import io

import numpy as np
import pytest
from PIL import Image

from sacl.dicom.result import rgb
from sacl.report.pictures import (
    ShownScan,
    only_annotated,
    plane_seen,
    preview,
    reduced,
    reels,
    strip,
    telling_slices,
)
from sacl.types import Grid, LabelMap, LabelScheme

SHAPE, SPACING = (40, 30, 20), (2.0, 2.0, 3.0)


def _scan(reference=True, label=1):
    image = np.full(SHAPE, 30, np.int16)
    predicted, drawn = np.zeros((2, *SHAPE), np.uint16)
    predicted[20:34, 8:20, 5:15] = label
    drawn[22:36, 8:20, 5:15] = label
    return ShownScan(image, SPACING, (0.0, 100.0), predicted, drawn if reference else None)


def _opened(uri, kind):
    head, data = uri.split(",", 1)
    assert head == f"data:image/{kind};base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def _near(picture, color, by=70):
    return (np.abs(picture.astype(int) - np.array(color)) < by).all(axis=2)


def test_a_strip_has_three_planes_the_prediction_in_its_color_over_the_reference_in_white():
    at = telling_slices(_scan().predicted > 0)
    picture = np.asarray(Image.open(io.BytesIO(strip(_scan(), at, 200))))
    assert picture.shape == (200, 600, 3)
    for n in range(3):
        tile = picture[:, 200 * n : 200 * (n + 1)]
        assert _near(tile, rgb(1)).sum() > 100
    white, colored = (_near(picture[:, :200], color) for color in ((255, 255, 255), rgb(1)))
    assert white.sum() > 50
    # the reference lies further to the patient's right, which is on the left
    assert np.nonzero(white)[1].min() < np.nonzero(colored)[1].min()
    assert not _near(np.asarray(Image.open(io.BytesIO(strip(_scan(False), at)))), (255,) * 3).any()


def test_a_reel_has_the_slices_of_a_plane_and_outlines_that_lie_over_them():
    axial, coronal, sagittal = reels(_scan(), (25, 11, 7), side=100, most=6)
    assert [reel.plane for reel in (axial, coronal, sagittal)] == ["axial", "coronal", "sagittal"]
    assert (axial.slices, axial.depth) == ((0, 4, 7, 8, 11, 15, 19), 20)
    assert axial.slices[axial.first] == 7
    assert set(axial.layers) == {"scan", "reference", "prediction"}
    for layer, uri in axial.layers.items():
        size = _opened(uri, "webp" if layer == "scan" else "png").size
        assert size == (axial.width, axial.height * len(axial.slices))
    # 80 x 60 mm and 80 x 60 mm, each with a rim of one pixel
    assert (axial.width, axial.height) == (coronal.width, coronal.height) == (102, 77)
    assert (sagittal.width, sagittal.height) == (102, 102)


@pytest.mark.parametrize("label", [1, 3, 14, 300])
def test_outlines_have_the_colors_of_the_dicom_segmentation(label):
    layers = reels(_scan(label=label), (25, 11, 7), side=100, most=3)[0].layers
    picture = np.asarray(_opened(layers["prediction"], "png").convert("RGBA"))
    lines = picture[picture[..., 3] > 0]
    assert len(lines) > 20
    np.testing.assert_allclose(lines[:, :3], np.broadcast_to(rgb(label), (len(lines), 3)), atol=1)
    white = np.asarray(_opened(layers["reference"], "png").convert("RGBA"))
    assert (white[white[..., 3] > 0] == 255).all()


def test_an_outline_follows_the_mask_and_is_closed_at_the_edge():
    predicted = np.zeros(SHAPE, np.uint8)
    predicted[:20] = 1
    scan = ShownScan(np.zeros(SHAPE, np.int16), SPACING, (0.0, 1.0), predicted)
    uri = reels(scan, (0, 0, 0), side=80, most=1)[0].layers["prediction"]
    line = np.asarray(_opened(uri, "png").convert("RGBA"))[1:61, 1:81, 3] > 0
    assert line[:, 40].all()
    assert line[:, -1].all()
    assert line[0, 40:].all()
    assert not line[1:-1, 41:-1].any()
    assert not line[:, :40].any()


def test_right_front_and_head_are_on_the_left_or_at_the_top():
    voxels = np.zeros((5, 4, 3))
    voxels[4, 3, 2] = 1  # the highest i, j and k
    for axis, shape in enumerate([(3, 4), (3, 5), (4, 5)]):
        seen = plane_seen(voxels, axis, voxels.shape[axis] - 1)
        assert seen.shape == shape
        assert seen[0, 0] == 1


def test_the_fullest_slices_of_a_mask_are_telling_else_the_middle():
    where = np.zeros((6, 5, 4), bool)
    assert telling_slices(where) == (3, 2, 2)
    where[1, 2, :2] = where[1, 3, 1] = True
    assert telling_slices(where) == (1, 2, 1)


def test_reduced_voxels_are_few():
    voxels = np.arange(300 * 7 * 2).reshape(300, 7, 2)
    np.testing.assert_array_equal(reduced(voxels, 128), voxels[::3])


def test_an_organ_that_was_not_annotated_is_not_shown_as_a_mistake():
    scheme = LabelScheme("s", ("liver", "spleen", "aorta"))
    voxels = np.arange(8, dtype=np.uint8).reshape(2, 2, 2) % 4
    shown = only_annotated(LabelMap(voxels, Grid((2, 2, 2), np.eye(4)), scheme), ("aorta", "liver"))
    np.testing.assert_array_equal(shown.voxels, np.where(voxels == 2, 0, voxels))
    assert shown.voxels.dtype == np.uint8


def test_a_preview_has_a_key_of_the_organs_that_are_seen():
    names = [f"organ_{n}" for n in range(1, 8)]
    seen = preview(_scan(label=3), names, side=200)
    picture = np.asarray(Image.open(io.BytesIO(seen)))
    assert picture.shape == (222, 600, 3)
    assert seen.startswith(b"\x89PNG")
    key = picture[200:]
    assert (key == rgb(3)).all(axis=2).sum() > 100
    assert not any((key == rgb(n)).all(axis=2).any() for n in (1, 2, 4))
    assert _near(picture[:200], rgb(3)).sum() > 300
    empty = _scan()
    nothing = ShownScan(empty.image, SPACING, empty.window, empty.predicted * 0)
    assert Image.open(io.BytesIO(preview(nothing, names, side=200))).size == (600, 200)
