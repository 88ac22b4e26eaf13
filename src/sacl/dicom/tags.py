"""Scan-wise labels from a header: contrast phase, scanner, kernel; nothing that names somebody."""

from __future__ import annotations

import re

from pydicom import Dataset

from sacl.dicom.phase import Hint, phase_of
from sacl.dicom.values import number, text
from sacl.organs import snake_case
from sacl.types import UNKNOWN

_NO_AGENT = re.compile(r"no|none|non|without|ohne|kein\w*|sans|native?|0|n/?a", re.IGNORECASE)


def scan_labels(header: Dataset, modality: str) -> tuple[dict[str, str], str]:
    """Return a scan's labels, each `unknown` where the header does not tell, and why this phase.

    `phase` and `contrast` (yes, no), `scanner` (manufacturer and model), and of CT `kernel` and
    `kvp`, of MR `field_strength` in tesla. Names, dates and descriptions are not among them.
    """
    agent = _agent(header)
    words = [text(header, "SeriesDescription"), text(header, "ProtocolName")]
    hint = phase_of(words[0], words[1], seconds_after_injection(header), agent)
    labels = {"phase": hint.phase, "contrast": _contrast(hint, agent), "scanner": _scanner(header)}
    if modality == "CT":
        kernel = text(header, "ConvolutionKernel").split("\\")[0]
        labels |= {"kernel": snake_case(kernel), "kvp": _rounded(number(header, "KVP"), 0)}
    else:
        tesla = number(header, "MagneticFieldStrength")
        labels["field_strength"] = _rounded(tesla, 1)
    return {name: value or UNKNOWN for name, value in labels.items()}, hint.reason


def seconds_after_injection(header: Dataset) -> float | None:
    """Return the time from the start of the injection to the acquisition, None if not told."""
    start = _seconds(text(header, "ContrastBolusStartTime"))
    scan = _seconds(text(header, "AcquisitionTime"))
    if scan is None:
        # A date and time in one: YYYYMMDDHHMMSS.
        scan = _seconds(text(header, "AcquisitionDateTime")[8:])
    if start is None or scan is None:
        return None
    delay = scan - start
    return delay + 86400 if delay < -43200 else delay


def _seconds(clock: str) -> float | None:
    """Return a DICOM time, HHMMSS.FFFFFF, as seconds since midnight."""
    found = re.match(r"(\d\d):?(\d\d):?(\d\d(?:\.\d+)?)", clock)
    if found is None:
        return None
    hours, minutes, seconds = map(float, found.groups())
    return hours * 3600 + minutes * 60 + seconds


def _agent(header: Dataset) -> bool | None:
    """Tell whether contrast was given; None where the header does not say."""
    if "ContrastBolusAgent" not in header and "ContrastBolusAgentSequence" not in header:
        return None
    agent = text(header, "ContrastBolusAgent")
    if header.get("ContrastBolusAgentSequence"):
        return True
    if not agent:
        return None
    return _NO_AGENT.fullmatch(agent) is None


def _contrast(hint: Hint, agent: bool | None) -> str:
    """Return whether contrast is in the picture; `unknown` where phase and agent disagree."""
    by_phase = None if hint.phase == UNKNOWN else hint.phase != "native"
    known = {answer for answer in (by_phase, agent) if answer is not None}
    if len(known) != 1:
        return UNKNOWN
    return "yes" if known.pop() else "no"


def _scanner(header: Dataset) -> str:
    maker, model = text(header, "Manufacturer"), text(header, "ManufacturerModelName")
    return snake_case(f"{maker} {model}".strip())


def _rounded(value: float | None, digits: int) -> str:
    return "" if value is None else f"{round(value, digits):g}"
