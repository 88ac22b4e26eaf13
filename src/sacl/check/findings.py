"""What a check of a cohort can say: the rules with their levels are in `rules.yaml`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from sacl.files.documents import packaged

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Rule:
    """One kind of fault: how grave it is, what it is called, and what to do about it."""

    level: Level
    title: str
    remedy: str


_OF_LEVEL = packaged("sacl.check", "rules.yaml", dict[Level, dict[str, dict[str, str]]])
RULES: Mapping[str, Rule] = {
    code: Rule(level, **rule) for level in LEVELS for code, rule in _OF_LEVEL[level].items()
}
"""All rules by their code, the graver ones first."""


@dataclass(frozen=True)
class Finding:
    """Where a rule is broken: its code, the case (empty for all of them), what is the matter."""

    code: str
    case_id: str
    message: str

    @property
    def rule(self) -> Rule:
        """The rule that was broken."""
        return RULES[self.code]

    @property
    def level(self) -> Level:
        """How grave it is."""
        return self.rule.level

    @property
    def line(self) -> str:
        """The message behind the case's name."""
        return f"{self.case_id}: {self.message}" if self.case_id else self.message


def grouped(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    """Return the findings by code, the graver codes first, in the order of `RULES`."""
    listed = list(findings)
    groups = {code: [finding for finding in listed if finding.code == code] for code in RULES}
    return {code: group for code, group in groups.items() if group}


def count_by_level(findings: Iterable[Finding]) -> dict[Level, int]:
    """Return how many kinds of findings there are of each level."""
    codes = {finding.code for finding in findings}
    return {level: sum(RULES[code].level == level for code in codes) for level in LEVELS}
