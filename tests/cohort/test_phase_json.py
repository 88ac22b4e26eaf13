from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sacl.cohort.dataset import Dataset, SourceCase
from sacl.cohort.tables import phase_word, read_phases, with_table
from sacl.errors import DataError
from sacl.types import PHASES

FOUND = Dataset(
    "nnunet",
    "two",
    {1: "liver"},
    tuple(SourceCase(c, Path(f"{c}.nii.gz"), split="train", origin="imagesTr") for c in "ab"),
)


def written(phase, probability=1.0):
    """Return what `totalseg_get_phase` writes of a scan."""
    return {
        "pi_time": 74.21,
        "phase": phase,
        "probability": probability,
        "pi_time_min": 70.1,
        "pi_time_max": 77.9,
        "stddev": 2.1234,
    }


def phases(found):
    return {case.case_id: case.scan_labels for case in found.cases}


@pytest.mark.parametrize("name", ["{}.json", "{}_phase.json"])
def test_a_folder_has_a_file_per_case(tmp_path, name):
    (tmp_path / name.format("a")).write_text(json.dumps(written("native")))
    (tmp_path / name.format("b")).write_text(json.dumps(written("portal_venous")))
    (tmp_path / "._a.json").write_text("no JSON")
    found = with_table(FOUND, tmp_path)
    assert phases(found) == {"a": {"phase": "native"}, "b": {"phase": "portal_venous"}}


def test_one_file_has_an_entry_per_case(tmp_path):
    path = tmp_path / "phases.json"
    path.write_text(json.dumps({"a": written("arterial_early"), "b": "non-contrast"}))
    found = with_table(FOUND, path)
    assert phases(found) == {"a": {"phase": "arterial_early"}, "b": {"phase": "native"}}


def test_other_texts_are_labels_and_numbers_are_not(tmp_path):
    path = tmp_path / "labels.json"
    entry = {"phase": "Venous", "Scanner": "Some Maker", "split": "val", "age": 61}
    path.write_text(json.dumps({"a": entry}))
    (a, b) = with_table(FOUND, path).cases
    assert a.scan_labels == {"phase": "portal_venous", "scanner": "some_maker"}
    assert (a.split, b.scan_labels) == ("validation", {"phase": "unknown", "scanner": "unknown"})


def test_a_phase_that_its_writer_doubts_is_unknown(tmp_path):
    path = tmp_path / "phases.json"
    entries = {"a": written("portal_venous", 0.3), "b": written("portal_venous", 0.7)}
    path.write_text(json.dumps(entries))
    found = with_table(FOUND, path)
    assert phases(found) == {"a": {"phase": "unknown"}, "b": {"phase": "portal_venous"}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"phases\.json: not readable as JSON"),
        ("[1]", "expected a JSON object, got a list"),
        (json.dumps(written("native")), "the phase of one scan, without its case id"),
        ('{"a": 3}', "case a has 3, expected a phase"),
        ("{}", "no case in it"),
        ('{"z": "native"}', "no row names a case of two"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, text, message):
    path = tmp_path / "phases.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        with_table(FOUND, path)


def test_a_folder_with_two_files_of_a_case_or_none_is_refused(tmp_path):
    with pytest.raises(DataError, match="no case in it"):
        read_phases(tmp_path)
    for name in ("a.json", "a_phase.json"):
        (tmp_path / name).write_text(json.dumps(written("native")))
    with pytest.raises(DataError, match="case a has two files"):
        read_phases(tmp_path)
    (tmp_path / "a.json").write_text('{"pi_time": 3}')
    with pytest.raises(DataError, match=r"/a\.json: has no text 'phase'"):
        read_phases(tmp_path)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("venous", "portal_venous"),
        ("PV", "portal_venous"),
        ("portal-venous", "portal_venous"),
        ("Portal venous phase", "portal_venous"),
        ("non-contrast", "native"),
        ("Late arterial", "arterial_late"),
        ("early arterial phase", "arterial_early"),
        ("Equilibrium", "delayed"),
        ("End diastole", "end_diastole"),
        ("unknown", "unknown"),
        ("", "unknown"),
        (" - ", "unknown"),
    ],
)
def test_a_phase_has_one_word(text, word):
    assert phase_word(text) == word


@given(st.text())
def test_a_word_stays_as_it_is_once_found(text):
    assert phase_word(phase_word(text)) == phase_word(text)
    assert all(phase_word(phase) == phase for phase in PHASES)
