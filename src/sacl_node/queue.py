"""The state of every study, in a database that a killed process leaves whole.

A study is `receiving` until it has not changed for a while, then `predicting`, `sending`, `done`;
it is `unsuitable` where no series is a scan, `aside` where it failed too often. What a killed
process was at is taken up again; a result has the same UID each time, so that a study has one.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path

TRIES = 3
"""So many errors, and a study is set aside; so are twice as many ends of the program within it."""
PATIENCE = 10
"""How many times longer a study waits whose sender broke off: it may send it again."""
_PAUSE_S = (5.0, 600.0)
"""The first and the longest pause before something is tried again; each is twice the one before."""
_AGAIN = "state = 'receiving', changed = 0, open = 0"
_TABLES = """
CREATE TABLE IF NOT EXISTS study (
    name TEXT PRIMARY KEY, state TEXT NOT NULL, model TEXT NOT NULL, changed REAL NOT NULL,
    due REAL NOT NULL DEFAULT 0, tries INTEGER NOT NULL DEFAULT 0,
    starts INTEGER NOT NULL DEFAULT 0, lacks INTEGER NOT NULL DEFAULT 0,
    open INTEGER NOT NULL DEFAULT 1, reason TEXT NOT NULL DEFAULT ''
);
CREATE TABLE IF NOT EXISTS noted (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


class Queue:
    """Studies by a short hash of their UID, and what of them is to be done next.

    `model` is the fingerprint of the segmenter: what another one did is done again when it comes
    again. Threads may share a queue.
    """

    def __init__(self, path: Path, model: str) -> None:
        self.model = model
        self._lock = threading.RLock()
        self._base = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._base.row_factory = sqlite3.Row
        self._base.execute("PRAGMA journal_mode = WAL")
        self._base.execute("PRAGMA synchronous = FULL")
        self._base.executescript(_TABLES)
        # Nobody knows what came while nothing listened: what was arriving waits its time again.
        self._do("UPDATE study SET changed = ? WHERE state = 'receiving'", time.time())
        self._do(f"UPDATE study SET {_AGAIN} WHERE state = 'predicting'")

    def expect(self, study: str) -> bool:
        """Note that an image of a study arrives, and that it is `open`: more are to come.

        False where its result is made, or was sent.
        """
        with self._lock:
            row = self._one("SELECT state, model FROM study WHERE name = ?", study)
            if row and row["state"] in ("sending", "done") and row["model"] == self.model:
                return False
            if row and row["state"] == "receiving":
                what = "UPDATE study SET changed = ?, open = 1 WHERE name = ?"
                self._do(what, time.time(), study)
            else:
                values = "(name, state, model, changed) VALUES (?, 'receiving', ?, ?)"
                self._do(f"INSERT OR REPLACE INTO study {values}", study, self.model, time.time())
            return True

    def take_settled(self, quiet_s: float) -> str | None:
        """Return a study that has not changed for a while, to be predicted now; None where none is.

        One that is still open has to be quiet for longer. The ones that made least trouble come
        first. What ended the program too often is set aside.
        """
        now = time.time()
        with self._lock:
            self._do(
                "UPDATE study SET state = 'aside', reason = 'the program ended within it'"
                " WHERE state = 'receiving' AND starts >= ?",
                2 * TRIES,
            )
            row = self._one(
                "SELECT name FROM study WHERE state = 'receiving' AND due <= ?"
                " AND changed + ? * CASE WHEN open THEN ? ELSE 1 END <= ?"
                " ORDER BY tries + starts, changed LIMIT 1",
                now,
                quiet_s,
                PATIENCE,
                now,
            )
            if row is None:
                return None
            name: str = row["name"]
            what = "state = 'predicting', starts = starts + 1, model = ?"
            self._do(f"UPDATE study SET {what} WHERE name = ?", self.model, name)
            return name

    def take_predicted(self) -> str | None:
        """Return a study whose result is to be sent now; None where none is."""
        due = "SELECT name FROM study WHERE state = 'sending' AND due <= ? ORDER BY due, changed"
        row = self._one(f"{due} LIMIT 1", time.time())
        return row["name"] if row else None

    def move(self, study: str, before: str, after: str, reason: str = "") -> bool:
        """Bring a study from one state to another; False where it is not in the first any more."""
        what = "state = ?, reason = ?, tries = 0, starts = 0, due = 0"
        where = "name = ? AND state = ?"
        moved = self._do(f"UPDATE study SET {what} WHERE {where}", after, reason, study, before)
        return moved == 1

    def failed(self, study: str, before: str, again: str, reason: str, *, forgive: bool) -> bool:
        """Bring a study back to a state after a pause; True where it is set aside instead.

        It is never set aside for what is forgiven, such as a receiver that is not there.
        """
        with self._lock:
            row = self._one("SELECT state, tries FROM study WHERE name = ?", study)
            if row is None or row["state"] != before:  # more images came meanwhile
                return False
            tries = row["tries"] + 1
            if tries >= TRIES and not forgive:
                return self.move(study, before, "aside", reason)
            due = time.time() + min(_PAUSE_S[0] * 2.0 ** min(tries - 1, 20), _PAUSE_S[1])
            what = "state = ?, reason = ?, tries = ?, due = ?, starts = MAX(starts - 1, 0)"
            self._do(f"UPDATE study SET {what} WHERE name = ?", again, reason, tries, due, study)
            return False

    def release(self) -> None:
        """Give back what is being predicted: the program ends as it was asked to."""
        what = f"{_AGAIN}, starts = MAX(starts - 1, 0)"
        self._do(f"UPDATE study SET {what} WHERE state = 'predicting'")

    def close(self, study: str, settled: bool = False) -> None:
        """Note that a study's sender ended well; one that is settled waits no longer at all."""
        what = "open = 0" + ", changed = 0" * settled
        self._do(f"UPDATE study SET {what} WHERE name = ? AND state = 'receiving'", study)

    def lack(self, study: str) -> None:
        """Note that an image of a study was refused: no result would be whole."""
        self._do("UPDATE study SET lacks = 1 WHERE name = ?", study)

    def lacks(self, study: str) -> bool:
        """Tell whether an image of a study was refused."""
        return self._one("SELECT 1 FROM study WHERE name = ? AND lacks", study) is not None

    def in_state(self, state: str) -> dict[str, str]:
        """Return the studies in a state, the longest unchanged first, each with the reason."""
        rows = self._all("SELECT name, reason FROM study WHERE state = ? ORDER BY changed", state)
        return dict(map(tuple, rows))

    def counts(self) -> dict[str, int]:
        """Return how many studies are in each state."""
        return dict(map(tuple, self._all("SELECT state, COUNT(*) FROM study GROUP BY state")))

    def is_waiting(self) -> bool:
        """Tell whether some result could not be sent yet."""
        return self._one("SELECT 1 FROM study WHERE state = 'sending' AND tries > 0") is not None

    def noted(self, name: str) -> str | None:
        """Return what was noted under a name."""
        row = self._one("SELECT value FROM noted WHERE name = ?", name)
        return row["value"] if row else None

    def note(self, name: str, value: str) -> None:
        """Note something that a restart has to know."""
        self._do("INSERT OR REPLACE INTO noted VALUES (?, ?)", name, value)

    def end(self) -> None:
        """Close the database."""
        with self._lock:
            self._base.close()

    def _do(self, words: str, *values: str | float) -> int:
        with self._lock:
            return self._base.execute(words, values).rowcount

    def _one(self, words: str, *values: str | float) -> sqlite3.Row | None:
        rows = self._all(words, *values)
        return rows[0] if rows else None

    def _all(self, words: str, *values: str | float) -> list[sqlite3.Row]:
        with self._lock:
            return self._base.execute(words, values).fetchall()
