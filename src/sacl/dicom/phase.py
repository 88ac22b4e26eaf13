"""Scan-wise labels from a header: contrast phase, scanner, kernel; nothing that names somebody.

The phase comes from words of the hospital and from the time since the injection.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from itertools import pairwise

from pydicom import Dataset

from sacl.dicom.header import one_number, text
from sacl.organs import snake_case, words_for
from sacl.types import PHASES, UNKNOWN

_WORDS = {name: frozenset(words) for name, words in words_for("dicom_phases").items()}
"""What hospitals write, in lower case without accents, by what it says."""
_ENDS_S = (10.0, 30.0, 50.0, 110.0)
"""Seconds after the start of the injection at which native, arterial early, arterial late and
portal venous end: usual abdominal timing; delayed follows."""
_LONGEST_S = 1800.0
_NO_AGENT = re.compile(r"no|none|non|without|ohne|kein\w*|sans|native?|0|n/?a", re.IGNORECASE)


@dataclass(frozen=True)
class Hint:
    """A phase, and what says so."""

    phase: str
    reason: str


def scan_labels(header: Dataset, modality: str) -> tuple[dict[str, str], str]:
    """Return a scan's labels, each `unknown` where the header does not tell, and why this phase.

    Names, dates and descriptions are not among them.
    """
    description, protocol = text(header, "SeriesDescription"), text(header, "ProtocolName")
    agent = _agent(header)
    hint = phase_hint(description, protocol, seconds_after_injection(header), agent)
    scanner = f"{text(header, 'Manufacturer')} {text(header, 'ManufacturerModelName')}"
    labels = {"phase": hint.phase, "contrast": _contrast(hint, agent)}
    labels["scanner"] = snake_case(scanner)
    if modality == "CT":
        labels["kernel"] = snake_case(text(header, "ConvolutionKernel").split("\\")[0])
        labels["kvp"] = _rounded(one_number(header, "KVP"), 0)
    else:
        labels["field_strength"] = _rounded(one_number(header, "MagneticFieldStrength"), 1)
    return {name: value or UNKNOWN for name, value in labels.items()}, hint.reason


def seconds_after_injection(header: Dataset) -> float | None:
    """Return the time from the start of the injection to the acquisition, None where unknown."""
    start = _seconds(text(header, "ContrastBolusStartTime"))
    scan = _seconds(text(header, "AcquisitionTime"))
    if scan is None:
        # A date and time in one: YYYYMMDDHHMMSS.
        scan = _seconds(text(header, "AcquisitionDateTime")[8:])
    if start is None or scan is None:
        return None
    delay = scan - start
    return delay + 86400 if delay < -43200 else delay


def phase_hint(description: str, protocol: str, delay_s: float | None, agent: bool | None) -> Hint:
    """Return a scan's phase, `unknown` where nothing tells it or hints contradict each other.

    The series description speaks first; the protocol's name, which often covers all phases of an
    examination, only where the description is silent. One text that names two phases tells none.
    The time since the injection and words may differ by one phase, then words win; by more they
    contradict each other. An agent alone tells that contrast was given, not when.
    """
    by_time = phase_of_delay(delay_s)
    for name, words in (("description", description), ("protocol", protocol)):
        named = phases_in(words)
        if len(named) > 1:
            both = " and ".join(f"'{word}'" for word in named.values())
            return Hint(UNKNOWN, f"{name} names two phases, {both}")
        for phase, word in named.items():
            apart = by_time and abs(PHASES.index(phase) - PHASES.index(by_time))
            if apart and apart > 1:
                return Hint(UNKNOWN, f"{name} says '{word}', the injection's time {by_time}")
            return Hint(phase, f"{name} says '{word}'")
    if by_time is not None:
        return Hint(by_time, f"{delay_s:.0f} s after the injection")
    if agent is None:
        return Hint(UNKNOWN, "nothing names the phase")
    return Hint(UNKNOWN, "contrast given, phase unstated") if agent else Hint("native", "no agent")


def phase_of_delay(delay_s: float | None) -> str | None:
    """Return the phase so long after the injection's start, None where it is unknown or absurd."""
    if delay_s is None or abs(delay_s) > _LONGEST_S:
        return None
    return PHASES[sum(delay_s > end for end in _ENDS_S)]


def phases_in(words: str) -> dict[str, str]:
    """Return the phases that a text names in whole words, and the word that does."""
    tokens = _tokens(words)
    named: dict[str, str] = {}
    is_plain = not _WORDS["with"] & set(tokens)
    for before, token in pairwise(["", *tokens]):
        for phase in _phases_of(token, set(tokens)):
            named.setdefault(phase, token)
        if before in _WORDS["without"] and token in _WORDS["contrast"] and is_plain:
            named.setdefault("native", f"{before} {token}".replace("w_o", "w/o"))
    # A `w/o` may be about other things, such as `w/o MAR`.
    others = any(a == "w_o" and b in _WORDS["not contrast"] for a, b in pairwise(tokens))
    if "w_o" in tokens and is_plain and not others:
        named.setdefault("native", "w/o")
    if not named and (late := _WORDS["late"] & set(tokens)):
        named["delayed"] = min(late)
    return named


def _phases_of(token: str, tokens: set[str]) -> tuple[str, ...]:
    """Return the phases that a word stands for; early and late in the text change some."""
    early, late = bool(_WORDS["early"] & tokens), bool(_WORDS["late"] & tokens)
    if token in _WORDS["arterial"]:
        both = ("arterial_early",) * early + ("arterial_late",) * late
        return both or ("arterial_late",)
    if token in _WORDS["venous"]:
        is_late = late and not _WORDS["arterial"] & tokens
        return ("delayed",) if is_late else ("portal_venous",)
    return tuple(phase for phase in PHASES if token in _WORDS.get(phase, ()))


def _tokens(words: str) -> list[str]:
    """Return words in lower case without accents; digits and signs separate them."""
    plain = unicodedata.normalize("NFKD", words.lower())
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    plain = re.sub(r"\bw\s*/\s*o\b", " w_o ", plain.replace("ß", "ss"))
    return re.findall(r"w_o|[a-z]+", plain)


def _seconds(clock: str) -> float | None:
    """Return a DICOM time, HHMMSS.FFFFFF, as seconds since midnight."""
    match = re.match(r"(\d\d):?(\d\d):?(\d\d(?:\.\d+)?)", clock)
    if match is None:
        return None
    hours, minutes, seconds = map(float, match.groups())
    return hours * 3600 + minutes * 60 + seconds


def _agent(header: Dataset) -> bool | None:
    """Tell whether contrast was given; None where the header does not say."""
    if header.get("ContrastBolusAgentSequence"):
        return True
    agent = text(header, "ContrastBolusAgent")
    return _NO_AGENT.fullmatch(agent) is None if agent else None


def _contrast(hint: Hint, agent: bool | None) -> str:
    """Return whether contrast is in the picture; `unknown` where phase and agent disagree."""
    by_phase = None if hint.phase == UNKNOWN else hint.phase != "native"
    known = {by_phase, agent} - {None}
    if len(known) != 1:
        return UNKNOWN
    return "yes" if known.pop() else "no"


def _rounded(value: float | None, digits: int) -> str:
    return "" if value is None else f"{round(value, digits):g}"
