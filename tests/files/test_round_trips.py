"""Native to canonical and back through files, for any affine: bit for bit."""

from __future__ import annotations

import nibabel
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from sacl.files.nifti import read_labels, read_volume, write_label_map
from sacl.geometry import to_native
from sacl.types import LabelMap, LabelScheme

SCHEME = LabelScheme("two", ("first", "second"))
QUATERNION = ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
CODES = [(1, 1), (2, 0), (0, 1), (4, 2), (1, 3)]


@st.composite
def scans(draw):
    """A small scan on a rotated, permuted, flipped, anisotropic, perhaps sheared grid."""
    sform, qform = draw(st.sampled_from(CODES))
    shape = draw(st.tuples(*[st.integers(1, 4)] * 3))
    turn = np.zeros((3, 3))
    turn[draw(st.permutations(range(3))), range(3)] = draw(
        st.tuples(*[st.sampled_from([-1, 1])] * 3)
    )
    angle = draw(st.sampled_from([0, 15, 180]))
    angles = draw(st.tuples(*[st.floats(-angle, angle)] * 3))
    shear = np.eye(3)
    if sform:  # a quaternion holds no shear
        shear[np.triu_indices(3, 1)] = draw(st.tuples(*[st.floats(-0.5, 0.5)] * 3))
    affine = np.eye(4)
    rotation = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    affine[:3, :3] = rotation @ shear @ turn * draw(st.tuples(*[st.floats(0.2, 9.0)] * 3))
    affine[:3, 3] = draw(st.tuples(*[st.floats(-900, 900)] * 3))
    voxels = np.random.default_rng(draw(st.integers(0, 9))).integers(-9, 9, shape)
    image = nibabel.Nifti1Image(voxels.astype(np.int16), affine)
    image.set_sform(affine, code=sform)
    image.set_qform(affine, code=qform)
    return image


@settings(max_examples=150, deadline=None)
@given(scans())
def test_a_label_map_returns_to_exactly_its_scans_grid(tmp_path_factory, scan):
    folder = tmp_path_factory.getbasetemp()
    nibabel.save(scan, folder / "trip.nii")
    stored = np.asarray(scan.dataobj)
    volume, native = read_volume(folder / "trip.nii")
    assert np.array_equal(to_native(volume.voxels, native.grid), stored)

    labels = (volume.voxels > 0).astype(np.uint8) + (volume.voxels > 4)
    write_label_map(folder / "back.nii", LabelMap(labels, volume.grid, SCHEME), native)
    written = nibabel.load(folder / "back.nii")
    header = nibabel.load(folder / "trip.nii").header
    assert np.array_equal(written.dataobj, (stored > 0).astype(np.uint8) + (stored > 4))
    names = (*QUATERNION, "sform_code", "qform_code")
    names += ("srow_x", "srow_y", "srow_z") if header["sform_code"] else ()
    for name in names:
        assert header[name].tobytes() == written.header[name].tobytes(), name
    assert header["pixdim"][:4].tobytes() == written.header["pixdim"][:4].tobytes()

    again, grid, _ = read_labels(folder / "back.nii")
    assert np.array_equal(again, labels)
    assert np.array_equal(grid.affine, volume.grid.affine)
