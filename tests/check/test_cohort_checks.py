"""Every fault is planted once into a clean cohort: exactly its finding appears."""

import dataclasses

import numpy as np
import pytest

from planted import LABELS, SHAPE, clean_files, cohort_of, findings_of, write_files
from sacl.check.cohort_checks import check_cohort
from sacl.check.findings import RULES, Finding, count_by_level, grouped

nibabel = pytest.importorskip("nibabel")


def _image_path(root, case="c2"):
    return root / "imagesTr" / f"{case}_0000.nii"


def _truncated(files):
    files.afterwards = lambda root: _image_path(root).write_bytes(
        _image_path(root).read_bytes()[:2000]
    )


def _not_finite(files):
    image = files.scans["c2"].image.astype(np.float32)
    image[3, 3, 3] = np.nan
    files.scans["c2"].image = image


def _fractional_labels(files):
    labels = files.scans["c2"].labels.astype(np.float32)
    labels[12, 8, 8] = 2.5
    files.scans["c2"].labels = labels


def _labels_elsewhere(files):
    scan = files.scans["c2"]
    scan.label_affine = scan.affine + np.array([[0, 0, 0, 28.0]] + [[0.0] * 4] * 3)


def _unnamed_label(files):
    files.scans["c2"].labels[8, 8, 8] = 9


def _ignored_voxels(files):
    files.labels["ignore"] = 6
    files.scans["c2"].labels[8, 8, 8] = 6


def _no_organ(files):
    files.scans["c2"].labels[:] = 0


def _constant(files):
    files.scans["c2"].image[:] = 40


def _subject_twice(files):
    files.scans["c9"].subject = files.scans["c2"].subject


def _same_image(files, case):
    """Store one scan's voxels backward along x under another name: still the same voxels."""
    source, copy = files.scans["c2"], files.scans[case]
    copy.image, copy.labels = source.image[::-1], source.labels[::-1]
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = SHAPE[0] - 1
    copy.affine = source.affine @ flip


def _same_reference(files):
    files.scans["c3"].labels = files.scans["c2"].labels


def _kidneys_swapped(files):
    labels = files.scans["c2"].labels
    left, right = labels == LABELS["kidney_left"], labels == LABELS["kidney_right"]
    labels[left], labels[right] = LABELS["kidney_right"], LABELS["kidney_left"]


def _mirrored_affine(files):
    files.scans["c2"].affine[0] *= -1


def _no_intercept(files):
    files.scans["c2"].image += 1024


def _scaled(files):
    image = files.scans["c2"].image.astype(np.float32)
    files.scans["c2"].image = np.clip((image + 175) / 450, 0, 1)


def _no_soft_tissue(files):
    files.scans["c2"].image -= 1024


def _almost_constant(files):
    scan = files.scans["c2"]
    scan.image[:] = 40
    scan.image[0, 0, :10] = -900


def _hot_voxel(files):
    files.scans["c2"].image[12, 8, 8] = 32000


def _shifted_tissue(files):
    image = files.scans["c2"].image
    image[image > -200] += 120


def _unlabeled(files, spacing_mm, origin_mm=(1.0, 2.0, 3.0)):
    scan = files.scans["c2"]
    scan.labels = None
    scan.affine = np.diag([*spacing_mm, 1.0])
    scan.affine[:3, 3] = origin_mm


def _in_meters(files):
    def rewrite(root):
        image = nibabel.load(_image_path(root))
        image.header.set_xyzt_units("meter")
        nibabel.save(
            nibabel.Nifti1Image(image.get_fdata(), image.affine, image.header), _image_path(root)
        )

    files.afterwards = rewrite


def _contradict(path):
    raw = bytearray(path.read_bytes())
    raw[88:92] = np.float32(1.0).tobytes()  # pixdim[3], beside an sform of 14 mm
    path.write_bytes(raw)


def _other_pixdim(files):
    files.afterwards = lambda root: _contradict(_image_path(root))


def _other_pixdim_of_labels(files):
    files.afterwards = lambda root: _contradict(root / "labelsTr" / "c2.nii")


def _sheared(files):
    files.scans["c2"].affine[1, 2] = 2.0


def _turned(files):
    angle = np.deg2rad(10)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    files.scans["c2"].affine = turn @ files.scans["c2"].affine


def _few_slices(files):
    files.scans["c2"].image = files.scans["c2"].image[:, :, :2]
    files.scans["c2"].labels = None


def _no_origin(files):
    files.scans["c2"].affine[:3, 3] = 0


def _organ_without_voxels(files):
    files.labels["gallbladder"] = 6


def _tiny_spleen(files):
    labels = files.scans["c2"].labels
    labels[labels == LABELS["spleen"]] = 0
    labels[4:6, 6, 9] = LABELS["spleen"]


def _wide_aorta(files):
    files.scans["c2"].labels[8:13, 8:17, 1:15] = LABELS["aorta"]


def _aorta_at_the_border(files):
    files.scans["c2"].labels[10:12, 14:16, 0] = LABELS["aorta"]


def _two_spleens(files):
    files.scans["c2"].labels[3:7, 15:17, 2:5] = LABELS["spleen"]


def _sprinkled_liver(files):
    labels = files.scans["c2"].labels
    labels[2:21:2, 3, 1:6:2] = LABELS["liver"]


def _single_phase(files):
    files.scans["c2"].phase = "delayed"


def _unknown_phase(files):
    files.scans["c2"].phase = ""


@pytest.mark.parametrize(
    ("plant", "expected"),
    [
        (lambda files: None, set()),
        (_truncated, {("unreadable", "c2")}),
        (_not_finite, {("unreadable", "c2")}),
        (_fractional_labels, {("label-unreadable", "c2")}),
        (_labels_elsewhere, {("label-grid", "c2")}),
        (_unnamed_label, {("label-values", "c2")}),
        (_ignored_voxels, {("ignored-voxels", "c2")}),
        (_no_organ, {("empty-reference", "c2")}),
        (_constant, {("constant-image", "c2")}),
        (_subject_twice, {("subject-in-two-splits", "c2")}),
        (lambda files: _same_image(files, "c9"), {("leak", "c2")}),
        (lambda files: _same_image(files, "c3"), {("duplicate", "c2")}),
        (_same_reference, {("duplicate-reference", "c2")}),
        (_kidneys_swapped, {("sides-swapped", "c2")}),
        (_mirrored_affine, {("sides-swapped", "c2")}),
        (_no_intercept, {("not-hu", "c2")}),
        (_scaled, {("not-hu", "c2")}),
        (_no_soft_tissue, {("not-hu", "c2")}),
        (_almost_constant, {("nearly-constant", "c2")}),
        (_hot_voxel, {("extreme-values", "c2")}),
        (_shifted_tissue, {("intensity-outlier", "c2")}),
        (
            lambda files: _unlabeled(files, (1, 1, 1), (0, 0, 0)),
            {("lost-header", "c2"), ("spacing-outlier", "c2")},
        ),
        (
            lambda files: _unlabeled(files, (0.014, 0.014, 0.014)),
            {("implausible-size", "c2"), ("spacing-outlier", "c2")},
        ),
        (_in_meters, {("implausible-size", "c2")}),
        (_other_pixdim, {("contradictory-header", "c2")}),
        (_other_pixdim_of_labels, {("contradictory-header", "c2")}),
        (
            lambda files: _unlabeled(files, (14, 14, 3)),
            {("spacing-outlier", "c2")},
        ),
        (lambda files: _unlabeled(files, (14, 8, 8)), {("not-axial", "c2")}),
        (lambda files: _unlabeled(files, (8, 14, 8)), {("not-axial", "c2")}),
        # voxels coarser in plane than along the body are axial all the same
        (lambda files: _unlabeled(files, (9.8, 9.8, 5)), set()),
        (_sheared, {("sheared", "c2")}),
        (_turned, {("oblique", "c2")}),
        (_few_slices, {("few-slices", "c2")}),
        (_no_origin, {("zero-origin", "c2")}),
        (_organ_without_voxels, {("organ-never-seen", "")}),
        (_tiny_spleen, {("organ-volume", "c2")}),
        (_wide_aorta, {("organ-volume-outlier", "c2")}),
        (_aorta_at_the_border, {("cut-off", "")}),
        (_two_spleens, {("fragments", "c2")}),
        (_sprinkled_liver, {("small-pieces", "c2")}),
        (_single_phase, {("rare-scan-label", "c2")}),
        (_unknown_phase, {("unknown-scan-label", "")}),
    ],
)
def test_a_planted_fault_is_found_and_nothing_else(tmp_path, plant, expected):
    files = clean_files()
    plant(files)
    found = {(finding.code, finding.case_id) for finding in findings_of(files, tmp_path)}
    assert found == expected


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return cohort_of(write_files(clean_files(), tmp_path_factory.mktemp("clean") / "data"))


def _with(cohort, **changes):
    """Return the cohort with a part of every scan replaced by what a function makes of it."""
    scans = []
    for number, scan in enumerate(cohort.scans):
        parts = {part: change(number, getattr(scan, part)) for part, change in changes.items()}
        scans.append(dataclasses.replace(scan, **parts))
    return dataclasses.replace(cohort, scans=tuple(scans))


def _codes(cohort):
    return {finding.code for finding in check_cohort(cohort)}


def _as_mr(number, image):
    low, scale = 0.0, 1 + 0.05 * number
    return dataclasses.replace(image, low=low, p005=5 * scale, p995=400 * scale, high=700.0)


def test_a_ct_among_mr_is_found(clean):
    mr = dataclasses.replace(clean, modality="mr")
    assert _codes(_with(mr, image=_as_mr)) == set()
    mixed = _with(mr, image=lambda n, image: image if n == 4 else _as_mr(n, image))
    assert [(f.code, f.case_id) for f in check_cohort(mixed)] == [("ct-in-mr", "c4")]


def test_a_scan_that_is_said_to_be_of_another_modality_is_found_once(clean):
    mixed = _with(clean, modality=lambda n, _: "mr" if n == 4 else "ct")
    assert [(f.code, f.case_id) for f in check_cohort(mixed)] == [("other-modality", "c4")]


def test_scales_that_differ_wildly_between_mr_scans_are_one_note(clean):
    def wild(number, image):
        scale = 10.0 ** (number % 5)
        return dataclasses.replace(_as_mr(0, image), p995=400 * scale, high=700 * scale)

    mr = _with(dataclasses.replace(clean, modality="mr"), image=wild)
    assert [f.code for f in check_cohort(mr)] == ["intensity-scale"]


def test_one_spacing_for_many_sizes_is_told_as_nominal(clean):
    def sized(number, geometry):
        return dataclasses.replace(geometry, shape=(24 + 3 * number, 20, 16))

    assert _codes(_with(clean, geometry=sized)) == {"nominal-spacing"}


def test_a_cohort_resampled_to_1_mm_is_a_note_even_at_the_origin(clean):
    def unit(number, geometry):
        return dataclasses.replace(geometry, spacing_mm=(1.0, 1.0, 1.0), origin_mm=(0.0, 0.0, 0.0))

    assert _codes(_with(clean, geometry=unit)) == {"unit-spacing", "zero-origin"}


def test_every_rule_says_what_to_do_and_is_grouped_by_gravity():
    findings = [Finding(code, "c", "got 1, expected 2") for code in reversed(RULES)]
    levels = [group[0].level for group in grouped(findings).values()]
    assert levels == sorted(levels, key=["error", "warning", "note"].index)
    assert sum(count_by_level(findings).values()) == len(RULES)
    assert all(
        rule.remedy.endswith(".") and not rule.title.endswith(".") for rule in RULES.values()
    )


def test_a_header_that_contradicts_itself_is_a_warning_with_both_values(tmp_path):
    files = clean_files()
    _other_pixdim(files)
    (finding,) = findings_of(files, tmp_path)
    assert finding.level == "warning"
    assert "14 x 14 x 14 mm by the sform" in finding.message
    assert "14 x 14 x 1 mm by pixdim" in finding.message
