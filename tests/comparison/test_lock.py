import json
import os
import subprocess
import sys
import threading
import time

from sacl.comparison import lock
from sacl.comparison.lock import is_held, locked


def test_a_lock_is_held_by_one_and_gone_afterwards(tmp_path):
    path = tmp_path / "x.lock"
    with locked(path, "x") as first, locked(path, "x", wait=False) as second:
        assert (first, second) == (True, False)
        assert is_held(path)
    assert not is_held(path)
    assert list(tmp_path.iterdir()) == []


def test_it_is_given_back_when_the_body_fails(tmp_path):
    path = tmp_path / "x.lock"
    try:
        with locked(path, "x"):
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert not path.exists()


def test_the_lock_of_a_process_that_is_gone_is_taken_over(tmp_path):
    path = tmp_path / "x.lock"
    program = (
        "import os, sys; from pathlib import Path; from sacl.comparison.lock import locked\n"
        "with locked(Path(sys.argv[1]), 'x'): os._exit(1)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert path.is_file()
    assert not is_held(path)
    with locked(path, "x", wait=False) as mine:
        assert mine
    assert list(tmp_path.iterdir()) == []


def test_a_lock_of_another_machine_is_stale_when_nobody_touches_it(tmp_path):
    path = tmp_path / "x.lock"
    path.write_text(json.dumps({"token": "t", "machine": "another", "process": 1}))
    with locked(path, "x", wait=False) as mine:
        assert not mine
    old = time.time() - lock.STALE_S - 1
    os.utime(path, (old, old))
    with locked(path, "x", wait=False) as mine:
        assert mine


def test_a_lock_that_is_being_written_is_nobodys_to_take(tmp_path):
    path = tmp_path / "x.lock"
    path.write_text("")
    with locked(path, "x", wait=False) as mine:
        assert not mine


def test_a_held_lock_is_touched_so_that_it_never_grows_stale(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_S", 0.02)
    path = tmp_path / "x.lock"
    with locked(path, "x"):
        os.utime(path, (0, 0))
        time.sleep(0.2)
        assert time.time() - path.stat().st_mtime < 60


def test_it_holds_no_name_of_the_machine(tmp_path):
    import platform

    path = tmp_path / "x.lock"
    with locked(path, "x"):
        assert platform.node() not in path.read_text()


def test_those_who_wait_go_one_after_the_other(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lock, "_POLL_S", 0.005)
    path, inside, most = tmp_path / "x.lock", [], []

    def work() -> None:
        with locked(path, "the coarse networks"):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.02)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 6
    assert "waiting for another process: the coarse networks" in capsys.readouterr().err
