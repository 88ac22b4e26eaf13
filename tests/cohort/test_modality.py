from __future__ import annotations

import dataclasses
from pathlib import Path

import nibabel
import numpy as np
import pytest

from sacl.cohort.dataset import Dataset, SourceCase
from sacl.cohort.merging import of_one_modality, read_scan, with_modality
from sacl.errors import ConfigError
from sacl.types import Grid, NativeFrame, Volume


def found(*modalities, of_dataset=None):
    cases = tuple(
        SourceCase(f"c{n}", Path(f"c{n}.nii"), modality=modality)
        for n, modality in enumerate(modalities)
    )
    return Dataset("folder", "mine", {}, cases, modality=of_dataset)


def test_a_case_knows_better_than_its_dataset():
    told = with_modality(found("mr", None, of_dataset="ct"), "auto")
    assert [case.modality for case in told.cases] == ["mr", "ct"]


@pytest.mark.parametrize(
    ("lows", "modality", "why"),
    [
        ([-1024], "ct", "c0 is -1024"),
        ([0, -1024, -1024, 0, -900], "ct", "c2 is -1024, against 1 of 3 scans read"),
        ([-30, -1024], "mr", "c0 is -30, against 1 of 2 scans read"),
        ([3, 1024], "mr", "c0 is 3"),
    ],
)
def test_what_nobody_says_is_guessed_from_most_of_three_scans(tmp_path, lows, modality, why):
    cases = []
    for case, low in zip(found(*[None] * len(lows)).cases, lows, strict=True):
        cases.append(dataclasses.replace(case, image=tmp_path / f"{case.case_id}.nii"))
        nibabel.save(
            nibabel.Nifti1Image(np.full((2, 2, 2), low, np.int16), np.eye(4)), cases[-1].image
        )
    mixed = (SourceCase("known", Path("none.nii"), modality="mr"), *cases)
    told = with_modality(Dataset("folder", "mine", {}, mixed), "auto")
    assert [case.modality for case in told.cases] == ["mr", *[modality] * len(lows)]
    (note,) = told.notes
    assert note.startswith(f"taken as {modality.upper()}, since the lowest intensity of {why}; set")


def test_what_nobody_says_is_what_is_wanted_and_nothing_is_read():
    told = with_modality(found(None, None), "mr")
    assert [case.modality for case in told.cases] == ["mr", "mr"]
    assert told.notes == ()


def test_a_mixed_cohort_is_refused_with_its_numbers_and_the_remedy():
    with pytest.raises(ConfigError) as error:
        of_one_modality(found("ct", "mr", "ct"), "auto")
    assert str(error.value) == (
        "ingest.modality: mine has 2 CT and 1 MR scans, but a cohort has one modality; keep one"
        " with --ingest.modality ct or mr"
    )


def test_of_a_mixed_cohort_the_wanted_scans_are_kept_aloud():
    modality, kept = of_one_modality(found("ct", "mr", "ct"), "ct")
    assert (modality, [case.case_id for case in kept.cases]) == ("ct", ["c0", "c2"])
    assert kept.notes == ("2 CT scans are kept, 1 left out",)


def test_a_cohort_of_one_modality_is_read_as_the_user_says():
    modality, kept = of_one_modality(found("mr", "mr"), "ct")
    assert (modality, len(kept.cases)) == ("ct", 2)
    assert kept.notes == ("read as CT, as ingest.modality says; the data says MR",)
    assert of_one_modality(found("mr"), "auto") == ("mr", found("mr"))


def test_a_case_with_a_reader_of_its_own_is_read_by_it():
    volume = Volume(np.zeros((2, 2, 2), np.int16), Grid((2, 2, 2), np.eye(4)))
    frame = NativeFrame(volume.grid)
    case = SourceCase("a", Path("series"), load=lambda: (volume, frame))
    assert read_scan(case) == (volume, frame)
