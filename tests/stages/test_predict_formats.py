"""One scan in every format has one label map, which lies on its grid; and what lies beside it."""

import contextlib
import csv
import json
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
import torch
from tests.dicom.make_series import make_scan, oblique, tilted
from tests.prediction.test_new_scans import write_everywhere

from sacl.cli import main
from sacl.dicom.segmentation import read_segmentation
from sacl.errors import ConfigError
from sacl.files.itk import volume_in
from sacl.files.nifti import read_volume
from sacl.model import Member, Model
from sacl.networks.encoder import EncoderSpec
from sacl.networks.segmenter import SegmenterSpec
from sacl.patches.region import Placement
from sacl.patches.window import WindowRule
from sacl.prediction.volume import Predictor
from sacl.stages.predict_folder import Extras, predict_folder

WINDOW = (-100.0, 300.0)


class Threshold(torch.nn.Module):
    """A network that says liver of all that is bright, kidney of what is brighter."""

    spec = SegmenterSpec(
        encoder=EncoderSpec(),
        decoder="unet",
        head="dense",
        scheme="two",
        organs=("liver", "kidney_left"),
        image_size=32,
        window=WindowRule("ct", WINDOW),
        placement=Placement(region="slice", min_side_mm=8.0),
    )

    def forward(self, pixels):
        levels = torch.tensor([0.2, 0.5, 0.9])[None, :, None, None]
        return -20 * (pixels[:, :1] - levels).abs()


@pytest.fixture
def model():
    return Model((Member("oracle", Predictor(Threshold(), torch.device("cpu")), None),))


@pytest.fixture
def rng():
    return np.random.default_rng(8)


def native_labels(path, source):
    """Return label values as they lie in a file, or of a SEG on the grid of a NIfTI scan."""
    if path.suffix == ".dcm":
        volume, _ = read_volume(source)
        return read_segmentation(path, volume.grid).voxels, volume.grid.affine
    volume, _ = volume_in(path) if path.suffix in (".nrrd", ".mha") else read_volume(path)
    return volume.voxels, volume.grid.affine


@pytest.mark.parametrize("make", [make_scan, oblique, tilted])
def test_a_scan_has_the_same_label_map_in_every_format_on_its_own_grid(model, make, tmp_path, rng):
    folder = write_everywhere(make(rng), tmp_path / "in", rng)
    for name in ("packed.zip", "twice.zip"):
        (folder / name).unlink()
    predicted = predict_folder(model, folder, tmp_path / "out", extras=Extras(nifti=True))
    names = [path.name for path in predicted.written]
    assert names == [
        *("a.nii.gz", "b.seg.nrrd", "c.seg.nrrd", "d.mha", "e.mha"),
        *("frames.seg.dcm", "series.seg.dcm"),
    ]
    assert not predicted.failures
    expected, affine = native_labels(predicted.written[0], folder / "a.nii.gz")
    assert set(np.unique(expected)) == {0, 1, 2}
    also = [path for path in predicted.beside if path.name.endswith(".nii.gz")]
    assert [path.name[0] for path in also] == ["b", "c", "d", "e", "f", "s"]
    for path in (*predicted.written[1:], *also):
        labels, its = native_labels(path, folder / "a.nii.gz")
        np.testing.assert_array_equal(labels, expected, path.name)
        np.testing.assert_allclose(its, affine, atol=1e-5, err_msg=path.name)
    for scan, label_map in (("b.nrrd", "b.seg.nrrd"), ("e.mhd", "e.mha")):
        image, labels = (
            SimpleITK.ReadImage(p) for p in (folder / scan, tmp_path / "out" / label_map)
        )
        for what in ("GetSize", "GetOrigin", "GetSpacing", "GetDirection"):
            np.testing.assert_allclose(getattr(labels, what)(), getattr(image, what)(), atol=1e-9)


def test_statistics_are_those_of_the_voxels_and_grow_with_every_call(model, tmp_path, rng):
    folder = write_everywhere(make_scan(rng), tmp_path / "in", rng)
    out = tmp_path / "out"
    predict_folder(model, folder / "a.nii.gz", out)
    predict_folder(model, folder / "series", out)
    predict_folder(model, folder / "series", out)
    with (out / "statistics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    cases = [(row["case"], row["organ"]) for row in rows]
    assert cases == [(case, o) for case in ("a", "series") for o in ("liver", "kidney_left")]
    labels = np.asarray(nibabel.load(out / "a.nii.gz").dataobj)
    image = nibabel.load(folder / "a.nii.gz")
    for row in rows:
        inside = image.get_fdata()[labels == 1 + (row["organ"] == "kidney_left")]
        voxel_ml = abs(np.linalg.det(image.affine[:3, :3])) / 1000
        assert float(row["volume_ml"]) == pytest.approx(inside.size * voxel_ml, abs=1e-3)
        assert float(row["mean"]) == pytest.approx(inside.mean(), abs=0.01)
        assert float(row["sd"]) == pytest.approx(inside.std(), abs=0.01)
    (out / "statistics.csv").write_text("mine")
    with pytest.raises(ConfigError, match=r"statistics\.csv.*--force"):
        predict_folder(model, folder / "a.nii.gz", out)
    predict_folder(model, folder / "a.nii.gz", out, force=True)
    assert (out / "statistics.csv").read_text().count("\n") == 5, "of all scans that were predicted"


def test_every_scan_has_a_picture(model, tmp_path, rng):
    folder = write_everywhere(make_scan(rng), tmp_path / "in", rng)
    for path in folder.glob("[!ab]*"):
        path.rename(tmp_path / path.name)
    predicted = predict_folder(model, folder, tmp_path / "out")
    pictures = [path for path in predicted.beside if path.suffix == ".png"]
    assert len(pictures) == len(predicted.written)
    a, b = (path.read_bytes() for path in pictures[:2])
    assert a == b, "of the same scan in two formats"
    none = predict_folder(
        model, folder / "a.nii.gz", tmp_path / "none", extras=Extras(beside=False)
    )
    assert none.beside == ()
    assert [path.name for path in (tmp_path / "none").glob("[!.]*")] == ["a.nii.gz"]


@pytest.mark.parametrize("renamed", [0, 1])
@pytest.mark.parametrize("moment", range(5))
def test_a_prediction_that_is_killed_before_or_after_a_file_has_its_name_goes_on(
    model, rng, tmp_path, monkeypatch, moment, renamed
):
    """A picture gets its name, a map twice, and then the statistics."""
    scan, out = make_scan(rng), tmp_path / "out"
    path, values = tmp_path / "a.nii", scan.values.astype(np.int16)
    rename, moments = Path.replace, iter(range(99))

    def killed(self, target):
        if next(moments) == moment:
            if renamed:
                rename(self, target)
            raise KeyboardInterrupt
        return rename(self, target)

    for more in 0, 1:  # the second scan is another one, whose map replaces the first one's
        nibabel.save(nibabel.Nifti1Image(values + np.int16(more), scan.affine), path)
        moments = iter(range(99))
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", killed)
            with pytest.raises(KeyboardInterrupt) if moment < 4 else contextlib.nullcontext():
                predict_folder(model, path, out)
        assert moment < 4 or next(moments) == 4, "nothing else is renamed"
        assert len(predict_folder(model, path, out).written) == 1
    assert not list(out.glob("**/.partial-*"))


def test_masks_are_the_organs_of_the_label_map(model, tmp_path, rng):
    folder = write_everywhere(make_scan(rng), tmp_path / "in", rng)
    for name, suffix in (("a.nii.gz", ".nii.gz"), ("d.mha", ".mha"), ("series", ".nii.gz")):
        out = tmp_path / f"of {name}"
        predicted = predict_folder(model, folder / name, out, extras=Extras(per_organ=True))
        labels, _ = native_labels(predicted.written[0], folder / "a.nii.gz")
        masks = [
            path
            for path in predicted.beside
            if path.parent.name == predicted.written[0].name.partition(".")[0]
        ]
        assert [path.name for path in masks] == [f"liver{suffix}", f"kidney_left{suffix}"]
        for n, path in enumerate(masks, start=1):
            np.testing.assert_array_equal(native_labels(path, None)[0], labels == n)
        assert (
            len(predict_folder(model, folder / name, out, extras=Extras(per_organ=True)).beside)
            == 4
        )
        masks[0].write_bytes(b"corrected by hand")
        with pytest.raises(ConfigError, match="liver"):
            predict_folder(model, folder / name, out, extras=Extras(per_organ=True))


def test_a_segmentation_refers_to_its_series_and_nothing_else_names_the_patient(
    model, tmp_path, rng
):
    folder = write_everywhere(make_scan(rng), tmp_path / "in", rng)
    out = tmp_path / "out"
    extras = Extras(nifti=True, per_organ=True)
    predicted = predict_folder(model, folder / "series", out, extras=extras)
    source = pydicom.dcmread(next((folder / "series").iterdir()))
    (seg,) = map(pydicom.dcmread, predicted.written)
    assert seg.Modality == "SEG"
    assert (seg.PatientID, seg.StudyInstanceUID) == (source.PatientID, source.StudyInstanceUID)
    (series,) = seg.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == source.SeriesInstanceUID
    for path in out.rglob("*"):
        if path.is_file() and path not in predicted.written:
            assert not any(word in path.read_bytes() for word in (b"Zzyzx", b"PIDX", b"ACCX"))


def test_mr_series_are_not_predicted_by_a_ct_segmenter(model, tmp_path, rng):
    folder = write_everywhere(make_scan(rng), tmp_path / "in", rng)
    write_everywhere(make_scan(rng, modality="MR"), tmp_path / "mr", rng)
    (tmp_path / "mr" / "series").rename(folder / "mr")
    predicted = predict_folder(model, folder, tmp_path / "out")
    assert "mr.seg.dcm" not in [path.name for path in predicted.written]
    assert any("1 wrong_modality" in note for note in predicted.ignored)


@pytest.mark.real_data
def test_a_real_series_has_the_map_of_what_simpleitk_makes_of_it(model, real_data, tmp_path):
    packed = real_data / "TotalSegmentator_CT" / "dicom_series.zip"
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(tmp_path / "dicom")
    reader = SimpleITK.ImageSeriesReader()
    names = reader.GetGDCMSeriesFileNames(str(tmp_path / "dicom" / "series"))
    reader.SetFileNames(names)
    for name in ("scan.nii.gz", "scan.nrrd"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        SimpleITK.WriteImage(reader.Execute(), tmp_path / name)
    out = tmp_path / "out"
    found = [
        predict_folder(model, path, out) for path in (packed, *sorted(tmp_path.glob("scan.*")))
    ]
    paths = [path for predicted in found for path in predicted.written]
    assert [path.name for path in paths] == ["series.seg.dcm", "scan.nii.gz", "scan.seg.nrrd"]
    (segmented, its), *others = [native_labels(path, tmp_path / "scan.nii.gz") for path in paths]
    assert set(np.unique(segmented)) == {0, 1, 2}
    for labels, affine in others:
        np.testing.assert_array_equal(labels, segmented)
        np.testing.assert_allclose(affine, its, atol=1e-5)


def test_the_command_says_what_it_wrote_and_json_what_failed(finished, tmp_path, rng, capsys):
    if "dense" not in str(finished.root):
        pytest.skip("one head is enough")
    folder = tmp_path / "in"
    write_everywhere(make_scan(rng, slices=5), folder, rng)
    with zipfile.ZipFile(folder / "more.zip", "w") as archive:
        archive.write(folder / "packed.zip", "packed.zip")
    (folder / "f.mha").write_bytes((folder / "d.mha").read_bytes()[:400])
    words = [
        "predict",
        "--segmenter",
        str(finished.root),
        "--out",
        str(tmp_path / "out"),
        "--device=cpu",
    ]
    one = [*words, "--input", str(folder / "more.zip"), "--predict.copies", "0"]
    assert main(one) == 0
    err = capsys.readouterr().err
    assert f"predict: 1 label map written to {tmp_path / 'out'}" in err
    assert main([*one, "-q"]) == 0
    assert capsys.readouterr() == ("", "")
    two = [*words, "--images", str(folder / "f.mha"), "--json"]
    assert main(two) == 2
    out, err = capsys.readouterr()
    assert err.startswith("sacl: f.mha: not a readable NRRD or MetaImage")
    for name in ("a.nii.gz", "c.nhdr", "c.raw.gz", "e.mhd", "e.zraw", "more.zip", "twice.zip"):
        (folder / name).unlink()
    assert (
        main(
            [*words, "-i", str(folder), "--json", "--quiet", "--predict.copies", "0", "--per-organ"]
        )
        == 2
    )
    out, err = capsys.readouterr()
    said = json.loads(out)
    assert list(said["failures"]) == ["f.mha"]
    assert [path.rpartition("/")[2] for path in said["written"]] == [
        "b.seg.nrrd",
        "d.mha",
        "frames.seg.dcm",
        "packed.seg.dcm",
    ]
    assert err.count("\n") == 1
