"""Several items at a time, in order, and no further than the first that fails."""

from __future__ import annotations

import threading
import time

import pytest

from sacl.errors import DataError
from sacl.files.ahead import in_threads


def test_results_come_in_the_items_order_however_long_each_takes():
    def work(n):
        time.sleep(0.01 * (n % 3))
        return n * n

    assert list(in_threads(work, range(12), 3)) == [n * n for n in range(12)]


def test_items_are_worked_on_at_the_same_time_and_no_more_than_asked_for():
    both, running, most = threading.Barrier(2, timeout=10), [], []

    def work(n):
        running.append(n)
        most.append(len(running))
        both.wait()  # passes only where two are here
        running.remove(n)

    list(in_threads(work, range(6), 2))
    assert max(most) <= 2


def test_the_first_failure_is_raised_and_no_further_item_is_begun():
    begun = []

    def work(n):
        begun.append(n)
        if n == 3:
            raise DataError("case 3: damaged")
        return n

    done = in_threads(work, range(100), 2)
    assert [next(done) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match="case 3: damaged"):
        next(done)
    assert max(begun) <= 6


def test_nothing_gives_nothing():
    assert list(in_threads(lambda n: n, [], 2)) == []
