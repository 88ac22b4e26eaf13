"""A plan: choices with the facts they rest on; as `plan.json`, as YAML with reasons, in lines."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sacl.errors import WorkspaceError
from sacl.files.documents import read_if_there, write_json
from sacl.plan.facts import MachineFacts, TaskFacts, Tried
from sacl.plan.rules import Choice, Situation, Value, choose

USUAL_TIME = "2h"
"""What a run may take where the user says nothing of it."""
PLAN_FILE = "plan.json"
"""In the work directory."""
YOURS = "yours"
"""The reason of a choice that the user made."""

_PLAIN = re.compile(r"(?!(?:null|true|false)$)[a-z][\w/-]*", re.IGNORECASE)


@dataclass(frozen=True)
class RunPlan:
    """What a run was planned to do in a time with a cohort, whose hash as ingested is `cohort`.

    `given` is what the user set, `held` who would be held out otherwise, `tried` what a trial on
    the labeled scans has shown.
    """

    time: str
    cohort: str
    facts: TaskFacts
    machine: MachineFacts
    given: Mapping[str, Value]
    held: Choice
    choices: tuple[Choice, ...]
    tried: tuple[Tried, ...] = ()

    @property
    def settings(self) -> dict[str, Value]:
        """The chosen settings by dotted name, those of the user left out."""
        chosen = (c for c in self.choices if c.setting and c.reason != YOURS)
        return {choice.setting: choice.value for choice in chosen}

    @property
    def headline(self) -> str:
        """The cohort, the machine and the time in a line."""
        facts, machine = self.facts, self.machine
        cohort = [
            f"{facts.scans} {facts.modality.upper()} scans of {facts.subjects} subjects",
            f"{facts.labeled_scans} labeled (subjects: {facts.labeled_subjects})",
            f"{facts.unlabeled_scans} unlabeled",
            f"{facts.held_out_scans} held out" if facts.held_out_scans else "",
            f"{len(facts.organs)} organs" if len(facts.organs) > 1 else facts.organs[0],
        ]
        computes = f"{machine.device}, {machine.cores} cores, {machine.memory_gb:g} GB"
        counted = ", ".join(filter(None, cohort))
        return f"{facts.name}: {counted}; {computes}; at most {self.time} (--time)"

    def require_time(self, asked: str, work: Path) -> None:
        """Refuse another time than the planned one."""
        if asked != self.time:
            raise WorkspaceError(
                f"work directory {work}: was planned for {self.time}, and --time is {asked}; repeat"
                " the command with --force (plans and does all again), or take another --work"
            )

    def lines(self) -> Iterator[str]:
        """Yield what is said before a run: its headline, then a line per choice that matters."""
        yield self.headline
        for choice in self.choices:
            value = "" if choice.value is None else f" {_scalar(choice.value)}"
            named = f"{choice.setting}{value}: " if choice.setting else ""
            if choice.said:
                yield f"{named}{choice.reason}"


def make_plan(time: str, cohort: str, held: Choice, situation: Situation) -> RunPlan:
    """Return the plan: who is held out, what rules and trials choose, and what the user chose."""
    given = situation.given
    yours = [Choice(name, value, YOURS) for name, value in given.items()]
    choices = (*[held] * (held.setting not in given), *choose(situation), *yours)
    measured = (situation.facts, situation.machine)
    return RunPlan(time, cohort, *measured, given, held, choices, situation.tried)


def write_plan(root: Path, plan: RunPlan) -> None:
    """Write `plan.json` into a work directory."""
    write_json(root / PLAN_FILE, plan)


def read_plan(root: Path) -> RunPlan | None:
    """Return the plan of a work directory, None where it has none; a damaged one is refused."""
    return read_if_there(root / PLAN_FILE, RunPlan, "plan again with `sacl run DIR --force`")


def as_yaml(plan: RunPlan, told: Mapping[str, Any]) -> str:
    """Return settings `told` by the user, then the plan's, as YAML with reasons as comments."""
    tree: dict[str, Any] = {}
    chosen = [choice for choice in plan.choices if choice.setting]
    for name, value in [*told.items(), *((c.setting, c.value) for c in chosen)]:
        (*blocks, leaf), inner = name.split("."), tree
        for block in blocks:
            inner = inner.setdefault(block, {})
        inner.setdefault(leaf, {} if value is None and name not in told else value)
    remarks = [choice.because for choice in plan.choices if not choice.setting]
    comments = {choice.setting: choice.because for choice in chosen}
    head = [line for text in [plan.headline, *remarks] for line in _comment(text, "")]
    return "\n".join([*head, *_block(tree, comments)]) + "\n"


def _block(tree: Mapping[str, Any], comments: Mapping[str, str], where: str = "") -> Iterator[str]:
    pad = "  " * where.count(".")
    for name, value in tree.items():
        yield from _comment(comments.get(where + name, ""), pad)
        if isinstance(value, dict) and value:
            yield f"{pad}{name}:"
            yield from _block(value, comments, f"{where}{name}.")
        else:
            yield f"{pad}{name}: {_scalar(value)}"


def _comment(text: str, pad: str) -> list[str]:
    return textwrap.wrap(text, 98, initial_indent=f"{pad}# ", subsequent_indent=f"{pad}#   ")


def _scalar(value: Any) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        return value
    return json.dumps(value, ensure_ascii=False)
