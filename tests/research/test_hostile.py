"""The benchmark of broken inputs: what it calls wrong, and what it holds to be open."""

import mmap
import os
import signal

import pytest

from research.benchmarks.hostile import still_open
from research.benchmarks.hostile_parts.ended import GIGABYTE_KB, Ended, judged
from research.benchmarks.hostile_parts.kills import Whole, _counting, _differences, _files

FOUND = {"seed": 0, "findings": [{"case": 7}, {"case": 9}]}
KILLS = {"seed": 0, "findings": [{"round": 7}]}


def test_what_was_tried_again_and_came_out_well_is_open_no_more():
    first = {"inputs": FOUND, "kills": KILLS, "places": {"findings": ["no_home: wrong"]}}
    assert set(still_open([first])) == {
        ("inputs", 0, 7),
        ("inputs", 0, 9),
        ("kills", 0, 7),
        ("places", None, "no_home: wrong"),
    }
    again = {"inputs of seed 0": {"seed": 0, "numbers": [7, 9], "findings": [{"case": 9}]}}
    other_seed = {"kills of seed 1": {"seed": 1, "rounds": [7], "findings": []}}
    places = {"places": {"findings": []}}
    assert set(still_open([first, again, other_seed, places])) == {
        ("inputs", 0, 9),
        ("kills", 0, 7),
    }


@pytest.mark.parametrize(
    ("code", "errors", "peak_kb", "faults"),
    [
        (0, "ingest: 6 scans\n", 0, []),
        (2, "ingest ...\nsacl: c0: damaged\n", 0, []),
        (2, "research: no protocol\n", 0, []),
        (2, "sacl: one\nsacl: two\n", 0, ["exit 2 with 2 lines"]),
        (2, "", 0, ["exit 2 with 0 lines"]),
        (-11, "", 0, ["exit -11"]),
        (0, "DeprecationWarning: x\n", 0, ["a library warns"]),
        (0, "", 2 * GIGABYTE_KB, ["2048 MB"]),
        (1, "sacl: unexpected KeyError: 'a'\n", 0, ["unexpected: sacl: unexpected KeyError: 'a'"]),
        (None, "", 0, ["no end in 60 s of work or of standing still"]),
    ],
)
def test_a_command_that_ended_otherwise_than_it_should_is_judged(code, errors, peak_kb, faults):
    assert judged(Ended(code, errors, 1.0, peak_kb)) == faults


def test_what_a_killed_command_leaves_is_compared_without_its_times(tmp_path):
    def leave(name, record, table="a", more=()):
        root = tmp_path / name
        root.mkdir()
        (root / "run.json").write_text(record)
        (root / "scores.csv").write_text(table)
        for other in more:
            (root / other).touch()
        return root

    whole = leave("whole", '{"stage": "x", "started": "1", "results": {"seconds": 3}}')
    before = Whole(dict(_files(whole)), ("scores.csv",), 1.0)
    same = leave("same", '{"stage": "x", "started": "2", "results": {"seconds": 4}}', table="b")
    assert _differences(before, same) == []
    other = leave("other", '{"stage": "y", "started": "1"}', more=(".partial-x",))
    (other / "scores.csv").unlink()
    assert _differences(before, other) == [
        ".partial-x: left over",
        "run.json: other bytes",
        "scores.csv: missing",
    ]


def test_of_a_page_steps_are_compared_and_seconds_are_not(tmp_path):
    def hashed(steps, seconds):
        cells = f"<td>1</td><td>{steps}</td><td>{seconds}</td><td>0</td></tr>locate {seconds} s"
        (tmp_path / "comparison.html").write_text(cells)
        return dict(_files(tmp_path))

    assert hashed("2 + 4", 1) == hashed("2 + 4", 12)
    assert hashed("2 + 4", 1) != hashed("2 + 5", 1)


def test_a_process_is_killed_before_one_of_its_changes_of_files(tmp_path):
    counter = mmap.mmap(-1, 8)
    child = os.fork()
    if child == 0:
        os.setsid()
        _counting(counter, 3)()
        for name in "abcd":
            (tmp_path / name).mkdir()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert int.from_bytes(counter[:8], "little") == 3
