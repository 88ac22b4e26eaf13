"""A model in memory: images of three kinds, threads, several models as one, what is refused."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from block_cohort import SCHEME
from test_native_grid import Oracle, affine_of, reorient, scan_voxels

import sacl
from sacl.cohort.manifest import read_cohort
from sacl.errors import ConfigError, DataError, WorkspaceError
from sacl.files.label_table import names_in_table
from sacl.files.nifti import read_label_map, read_volume
from sacl.model import Member, Model, load_model
from sacl.patches.window import WindowRule
from sacl.prediction.volume import MapRecipe, Predictor, slice_probabilities
from sacl.types import Grid, LabelMap, Volume

CPU = torch.device("cpu")


class Given:
    """Stands for coarse networks: it gives the map of the scan that is most like this one."""

    def __init__(self, scans):
        self.scans = scans

    def locate(self, volume, window):
        def unlikeness(scan):
            return np.abs(scan[0] - volume.voxels).sum()

        return min(self.scans, key=unlikeness)[1]


@pytest.fixture(scope="module")
def oracle() -> Model:
    """Return a model that segments by threshold, in the pixels' own place."""
    return Model((Member("oracle", Predictor(Oracle(), CPU), None),))


@pytest.fixture(scope="module")
def model(finished) -> Model:
    """Return the model of a run, with its coarse maps in the place of coarse networks."""
    folder, located = finished.folder("ingest"), []
    for case in read_cohort(folder).cases:
        volume, _ = read_volume(folder / case.image)
        path = finished.folder("locate") / "maps" / f"{case.case_id}.nii.gz"
        located.append((volume.voxels, read_label_map(path, SCHEME)[0]))
    [member] = sacl.load_model(finished.root, device="cpu").members
    return Model((replace(member, coarse=Given(located)),))


@pytest.fixture
def scans(finished):
    """Return the held-out scans in their native orientation, and what the stage predicted."""
    pairs = []
    for case in read_cohort(finished.folder("ingest")).of_split("test"):
        predicted = nibabel.load(finished.folder("predict") / "semantic" / f"{case.case_id}.nii.gz")
        voxels = np.asarray(nibabel.load(finished.folder("ingest") / case.image).dataobj)
        native = np.ascontiguousarray(voxels[::-1])
        pairs.append((nibabel.Nifti1Image(native, predicted.affine), predicted))
    return pairs


def test_an_image_gets_what_the_run_predicted(model, scans):
    for image, expected in scans:
        labels = model.predict(image)
        assert labels.get_data_dtype() == np.uint8
        assert np.array_equal(labels.dataobj, expected.dataobj)
        assert np.array_equal(labels.affine, image.affine)
        table = names_in_table(labels.header.extensions[0].get_content())
        assert table == {"liver": 1, "spleen": 2}


def test_threads_get_what_one_after_the_other_gives(model, scans):
    volumes = [np.asarray(image.dataobj) + n for image, _ in scans for n in range(4)]
    affine = scans[0][0].affine
    expected = [model.predict(voxels, affine=affine) for voxels in volumes]
    assert len({labels.tobytes() for labels in expected}) > 1
    with ThreadPoolExecutor(4) as pool:
        predicted = list(pool.map(lambda voxels: model.predict(voxels, affine=affine), volumes))
    assert all(map(np.array_equal, predicted, expected))


ORIENTATIONS = [((0, 1, 2), (0, 0, 0)), ((2, 0, 1), (1, 0, 1)), ((1, 2, 0), (0, 1, 1))]


@pytest.mark.parametrize(("axes", "flips"), ORIENTATIONS)
@pytest.mark.parametrize("angles", [(0, 0, 0), (0.3, -0.2, 0.4)], ids=["straight", "oblique"])
def test_simpleitk_nibabel_and_arrays_agree_in_every_orientation(
    oracle, tmp_path, axes, flips, angles
):
    voxels, affine = reorient(scan_voxels(), affine_of((0.7, 1.3, 5.0), angles), axes, flips)
    # The oracle: one file, read and written by SimpleITK (LPS) and by nibabel (RAS).
    nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / "scan.nii.gz")
    ours = nibabel.load(tmp_path / "scan.nii.gz")
    theirs = sitk.ReadImage(str(tmp_path / "scan.nii.gz"))
    labels = oracle.predict(theirs)
    assert type(labels) is sitk.Image
    assert labels.GetPixelID() == sitk.sitkUInt8
    assert labels.GetDirection() == theirs.GetDirection()
    assert (labels.GetOrigin(), labels.GetSpacing()) == (theirs.GetOrigin(), theirs.GetSpacing())
    sitk.WriteImage(labels, str(tmp_path / "labels.nii.gz"))
    written = nibabel.load(tmp_path / "labels.nii.gz")
    by_nibabel = oracle.predict(ours)
    assert len(np.unique(by_nibabel.dataobj)) == 3
    assert np.array_equal(written.dataobj, by_nibabel.dataobj)
    assert np.allclose(written.affine, ours.affine, atol=1e-4)
    assert np.array_equal(by_nibabel.affine, ours.affine)
    by_array = oracle.predict(voxels, affine=ours.affine)
    assert type(by_array) is np.ndarray
    assert np.array_equal(by_array, by_nibabel.dataobj)


def test_a_scale_factor_and_a_double_do_not_matter(oracle, tmp_path):
    voxels, affine = scan_voxels(), affine_of((1.0, 1.0, 2.0))
    image = nibabel.Nifti1Image(voxels // 4, affine)
    image.header.set_slope_inter(4, 0)
    nibabel.save(image, tmp_path / "scaled.nii")
    expected = oracle.predict(voxels, affine=affine)
    scaled = nibabel.load(tmp_path / "scaled.nii")
    assert scaled.dataobj.slope == 4
    assert np.array_equal(scaled.dataobj, voxels)
    assert np.array_equal(oracle.predict(scaled).dataobj, expected)
    assert np.array_equal(oracle.predict(voxels.astype(np.float64), affine=affine), expected)


def test_what_is_no_image_is_one_line(oracle):
    voxels, affine = scan_voxels(), np.eye(4)
    many = nibabel.Nifti1Image(np.zeros((4, 4, 4, 2)), affine)
    for given, words in (
        ((voxels,), "give affine="),
        ((voxels[0], affine), r"of shape \(17, 6\)"),
        ((voxels.astype(complex), affine), "complex"),
        ((np.full(voxels.shape, np.nan), affine), "NaN"),
        ((np.zeros_like(voxels), affine), "constant image"),
        ((many,), "2 volumes"),
        ((nibabel.Nifti1Image(voxels, affine), affine), "has its own"),
        ((sitk.Image([4, 4], sitk.sitkInt16),), "2-D"),
        ((sitk.Image([4, 4, 4], sitk.sitkVectorInt16, 2),), "vector of"),
        (("scan.nii.gz",), "got str"),
    ):
        with pytest.raises(DataError, match=words):
            oracle.predict(*given)


def test_a_doubt_is_a_warning(oracle):
    bright = np.pad(np.full((18, 16, 5), 200, np.int16), ((2, 0), (1, 0), (1, 0)))
    with pytest.warns(UserWarning, match="organs fill .* of the scan"):
        oracle.predict(bright, affine=np.diag([1, 1, 2, 1]))


def canonical(image):
    """Return a scan of this cohort as a canonical volume."""
    affine = np.diag([2.0, 2.0, 5.0, 1.0])
    affine[:3, 3] = (-39, -36, 7)
    return Volume(np.asarray(image.dataobj)[::-1], Grid(image.shape, affine))


def test_without_coarse_networks_a_map_has_to_be_given(finished, scans):
    loaded, volume = load_model(finished.root, device="cpu"), canonical(scans[0][0])
    if not loaded.needs_coarse:
        assert loaded.segment(volume, "scan").label_map.grid is volume.grid
        return
    with pytest.raises(DataError, match=r"no coarse network.*--coarse"):
        loaded.segment(volume, "scan")
    elsewhere = Grid(volume.grid.shape, np.diag([2.0, 2.0, 4.0, 1.0]))
    coarse = LabelMap(np.ones(volume.grid.shape, np.uint8), elsewhere, SCHEME)
    with pytest.raises(DataError, match=r"scan: .*different grids"):
        loaded.segment(volume, "scan", coarse)


def with_recipe(member, recipe):
    return replace(member, predictor=replace(member.predictor, recipe=recipe))


def test_the_largest_probability_is_the_class_of_the_map(model, scans):
    plain = with_recipe(model.members[0], MapRecipe())
    for volume in (canonical(image) for image, _ in scans):
        slices = list(slice_probabilities(plain.predictor, *plain.see(volume, "scan", None)))
        assert all(torch.allclose(p.sum(dim=0), torch.ones(p.shape[1:])) for p in slices)
        labels = np.stack([p.numpy().argmax(axis=0) for p in slices], axis=2)
        alone = Model((plain,)).segment(volume, "scan").label_map
        assert np.array_equal(labels, alone.voxels)
        assert len(np.unique(labels)) > 1


def test_several_models_predict_by_the_mean_of_their_probabilities():
    sure, unsure = (Member(name, Predictor(OfLogits(logits), CPU), None) for name, logits in LOGITS)
    image = np.zeros((32, 32, 3), np.int16)
    image[8:20, 4:25] = 200
    means = [np.mean([softmax(logits[v]) for _, logits in LOGITS], axis=0) for v in (0, 1)]
    expected = np.where(image > 0, np.argmax(means[1]), np.argmax(means[0]))
    assert np.unique(expected).tolist() == [0, 2], "the unsure one is outvoted where it says liver"
    labels = Model((sure, unsure)).predict(image, affine=np.eye(4))
    assert np.array_equal(labels, expected)
    assert np.unique(Model((unsure,)).predict(image, affine=np.eye(4))).tolist() == [0, 1]


LOGITS = (("sure", ((4, 0, 0), (0, 1, 5))), ("unsure", ((1, 0, 0), (0, 1, 0.5))))
"""Logits of a pixel of 0 and of a pixel of 1, by network."""


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum()


class OfLogits:
    """A network whose logits depend on whether a pixel is bright."""

    spec = Oracle.spec

    def __init__(self, logits):
        self.logits = torch.tensor(logits, dtype=torch.float32)

    def __call__(self, pixels):
        return self.logits[(pixels[:, 0] > 0.5).long()].permute(0, 3, 1, 2)


def test_an_organ_comes_from_the_coarse_map_where_all_models_take_it_from_there(model, scans):
    volume = canonical(scans[0][0])
    lost, kept = (
        with_recipe(model.members[0], MapRecipe(from_coarse=f)) for f in (SCHEME.names, ())
    )
    coarse = lost.see(volume, "scan", None)[2]
    both = Model((lost, lost)).segment(volume, "scan").label_map.voxels
    assert (both[coarse.voxels > 0] > 0).all()
    one = Model((lost, kept)).segment(volume, "scan").label_map.voxels
    neither = Model((kept,)).segment(volume, "scan", coarse).label_map.voxels
    assert np.array_equal(one, neither)


def test_models_of_other_organs_or_modality_are_one_line(oracle):
    [member] = oracle.members
    for changes, words in (
        ({"organs": ("spleen", "liver")}, "organs liver, spleen and spleen, liver"),
        ({"window": WindowRule("mr", (0.0, 200.0))}, "modality ct and mr"),
    ):
        network = OfLogits(((1, 0, 0), (0, 1, 0)))
        network.spec = replace(Oracle.spec, **changes)
        other = Member("other", Predictor(network, CPU), None)
        with pytest.raises(ConfigError, match=f"oracle and other: {words}"):
            Model((member, other))


def test_no_path_or_one_without_a_run_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="which model"):
        load_model()
    with pytest.raises(WorkspaceError, match="stage 'finetune' has no result"):
        load_model(tmp_path)
