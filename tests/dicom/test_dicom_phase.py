from __future__ import annotations

import pytest
from pydicom import Dataset

from sacl.dicom.phase import (
    phase_hint,
    phase_of_delay,
    phases_in,
    scan_labels,
    seconds_after_injection,
)


@pytest.mark.parametrize(
    ("words", "phase"),
    [
        ("Abdomen nativ 5.0", "native"),
        ("Thorax NON-CONTRAST", "native"),
        ("Abd w/o", "native"),
        ("CT ABDOMEN W/O CONTRAST", "native"),
        ("ohne KM", "native"),
        ("Leber unenhanced", "native"),
        ("Leber früharteriell 1.0", "arterial_early"),
        ("early arterial", "arterial_early"),
        ("Abd art 3.0 B30f", "arterial_late"),
        ("late arterial phase", "arterial_late"),
        ("SPÄTARTERIELL", "arterial_late"),
        ("Oberbauch spaetarteriell", "arterial_late"),
        ("Thx_Abd_pv_1.0", "portal_venous"),
        ("ven70s", "portal_venous"),
        ("Abdomen portal-venös", "portal_venous"),
        ("portalvenöse Phase", "portal_venous"),
        ("PORTAL VENOUS", "portal_venous"),
        ("delayed 5 min", "delayed"),
        ("Spätphase", "delayed"),
        ("Abdomen spät", "delayed"),
        ("spätvenös", "delayed"),
        ("nephrographic", "delayed"),
    ],
)
def test_words_of_hospitals_tell_the_phase(words, phase):
    assert list(phases_in(words)) == [phase]
    assert phase_hint(words, "", None, None).phase == phase


@pytest.mark.parametrize(
    "words",
    ["prevention", "Party", "Startup 3.0", "adventure", "smart MAR", "chest w/o MAR", "Abdomen 5.0",
     "with and without contrast", "W/WO CONTRAST", "inventory", "plaintext", ""],
)  # fmt: skip
def test_parts_of_words_and_other_words_tell_nothing(words):
    assert phases_in(words) == {}


def test_the_reason_is_the_word():
    assert phase_hint("Abd ven", "", None, None).reason == "description says 'ven'"
    assert phase_hint("", "Leber_art", None, None).reason == "protocol says 'art'"


def test_the_description_speaks_before_the_protocol_of_all_phases():
    assert phase_hint("ven", "nativ art ven", None, None).phase == "portal_venous"
    hint = phase_hint("", "nativ art ven", None, True)
    assert (hint.phase, "two phases" in hint.reason) == ("unknown", True)


def test_conflicting_words_are_unknown():
    hint = phase_hint("nativ ven", "", None, None)
    assert hint.phase == "unknown"
    assert "'nativ' and 'ven'" in hint.reason


def test_time_and_words_may_differ_by_one_phase():
    assert phase_hint("ven", "", 45.0, None).phase == "portal_venous"
    hint = phase_hint("ven", "", 20.0, None)
    assert hint.phase == "unknown"
    assert "arterial_early" in hint.reason
    assert phase_hint("nativ", "", 70.0, True).phase == "unknown"


@pytest.mark.parametrize(
    ("delay_s", "phase"),
    [(-60, "native"), (5, "native"), (20, "arterial_early"), (40, "arterial_late"),
     (70, "portal_venous"), (180, "delayed"), (4000, None), (-4000, None), (None, None)],
)  # fmt: skip
def test_the_time_since_the_injection_tells_the_phase(delay_s, phase):
    assert phase_of_delay(delay_s) == phase


def test_an_agent_alone_tells_that_contrast_was_given_not_when():
    hint = phase_hint("Abdomen", "", None, True)
    assert (hint.phase, hint.reason) == ("unknown", "contrast given, phase unstated")
    assert phase_hint("Abdomen", "", None, False).phase == "native"
    assert phase_hint("Abdomen", "", None, None).phase == "unknown"


def header(**values):
    dataset = Dataset()
    for name, value in values.items():
        setattr(dataset, name, value)
    return dataset


def test_labels_are_all_there_and_unknown_where_nobody_tells():
    labels, _ = scan_labels(header(), "CT")
    assert labels == dict.fromkeys(("phase", "contrast", "scanner", "kernel", "kvp"), "unknown")
    labels, _ = scan_labels(header(), "MR")
    assert labels == dict.fromkeys(("phase", "contrast", "scanner", "field_strength"), "unknown")


def test_labels_come_from_the_tags():
    ct = header(
        Manufacturer="SIEMENS",
        ManufacturerModelName="Biograph40_mCT 4R",
        ConvolutionKernel=["Br38f", "3"],
        KVP="120",
        ContrastBolusAgent="Ultravist",
        SeriesDescription="Abd ven",
    )
    assert scan_labels(ct, "CT")[0] == {
        "phase": "portal_venous",
        "contrast": "yes",
        "scanner": "siemens_biograph40_mct_4r",
        "kernel": "br38f",
        "kvp": "120",
    }
    assert scan_labels(header(MagneticFieldStrength=2.89362), "MR")[0]["field_strength"] == "2.9"
    assert scan_labels(header(MagneticFieldStrength=1.494), "MR")[0]["field_strength"] == "1.5"


@pytest.mark.parametrize(
    ("agent", "description", "contrast"),
    [("Ultravist", "", "yes"), ("none", "", "no"), ("OHNE", "Abdomen", "no"), ("", "", "unknown"),
     ("", "nativ", "no"), ("Imeron", "nativ", "unknown"), (None, "ven", "yes")],
)  # fmt: skip
def test_contrast_is_told_by_agent_and_phase_unless_they_disagree(agent, description, contrast):
    values = {"SeriesDescription": description}
    if agent is not None:
        values["ContrastBolusAgent"] = agent
    assert scan_labels(header(**values), "CT")[0]["contrast"] == contrast


@pytest.mark.filterwarnings("ignore:Invalid value")
def test_the_delay_is_from_injection_to_acquisition_also_over_midnight():
    plain = header(ContrastBolusStartTime="140216.694022", AcquisitionTime="140352.457000")
    assert seconds_after_injection(plain) == pytest.approx(95.763, abs=1e-3)
    late = header(ContrastBolusStartTime="235930", AcquisitionTime="000040")
    assert seconds_after_injection(late) == 70
    both = header(ContrastBolusStartTime="101500", AcquisitionDateTime="20200101101610.5")
    assert seconds_after_injection(both) == 70.5
    assert seconds_after_injection(header(AcquisitionTime="101500")) is None
    assert seconds_after_injection(header(AcquisitionTime="x", ContrastBolusStartTime="y")) is None
