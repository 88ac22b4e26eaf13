"""A journal of a folder's cases: the newest line counts, whoever wrote it."""

from __future__ import annotations

import pickle
import platform
import time
from pathlib import Path

import pytest

from sacl.files.journal import Journal


def read(folder: Path) -> Journal[int]:
    return Journal(folder, int)


def test_a_slow_clock_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose clock is an hour late does what another one has refused."""
    read(tmp_path).note("a", "refused", "cannot be read")
    journal, now = read(tmp_path), time.time()
    assert journal.results() == {}
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    worker = pickle.loads(pickle.dumps(journal))
    worker.note("a", "begun")
    worker.note("a", "done", 3)
    assert read(tmp_path).results() == {"a": 3}


def test_what_was_done_before_it_could_be_stopped_is_done(tmp_path: Path) -> None:
    journal = read(tmp_path)
    for event, result in (("begun", None), ("done", 3), ("stopped", None)):
        journal.note("a", event, result)
    assert read(tmp_path).results() == {"a": 3}
    journal.note("a", "begun")
    journal.note("a", "stopped")
    assert read(tmp_path).results() == {}


def test_what_was_stopped_blames_nobody(tmp_path: Path) -> None:
    for event in ("begun", "stopped", "begun", "stopped", "begun"):
        read(tmp_path).note("a", event)
    assert not read(tmp_path).is_deadly("a")
    read(tmp_path).note("a", "begun")
    assert read(tmp_path).is_deadly("a")


@pytest.mark.parametrize("host", ["", "Jane's Mac/2", "node-7.example.org", "x" * 300])
def test_a_machine_may_have_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setattr(platform, "node", lambda: host)
    read(tmp_path).note("a", "done", 3)
    assert read(tmp_path).results() == {"a": 3}
