"""The images that wait for their prediction, on a disk that may be filled to a limit.

An image lies in the folder of its study, under hashes: no name of a file says whose it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import shutil
import threading
from pathlib import Path

import pydicom

from sacl.dicom.files import DAMAGE
from sacl.dicom.header import quiet
from sacl.errors import DataError
from sacl.files.atomic import remove_partials, replacing
from sacl_node.queue import Queue

log = logging.getLogger("sacl.node")
MODALITIES = ("CT", "MR")
_TAGS = ["StudyInstanceUID", "SOPInstanceUID", "Modality"]


TAKEN, FULL, DAMAGED = 0x0000, 0xA700, 0xC000
"""DICOM's statuses: success, out of resources, cannot understand (PS3.4, annex B)."""


def short(text: str) -> str:
    """Return the short hash that stands for a UID or path in names, logs and pages."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Store:
    """A folder of studies that holds `limit` bytes at most; threads may share it."""

    def __init__(self, root: Path, limit: int, queue: Queue) -> None:
        self.limit = limit
        self.late = 0
        self.queue = queue
        self._studies = root / "studies"
        self._studies.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        remove_partials(self._studies)
        self.used = 0
        self.count()
        over = {*queue.in_state("done"), *queue.in_state("unsuitable")}
        for path in self._studies.iterdir():
            if path.name in over:
                self._remove(path.name)

    def images(self, study: str) -> Path:
        """Return the folder of a study's images."""
        return self._studies / study / "images"

    def result(self, study: str) -> Path:
        """Return where a study's segmentation lies until it was sent."""
        return self._studies / study / "result.dcm"

    def add(self, image: bytes) -> tuple[int, str]:
        """Keep an image, a whole DICOM file, so that it outlives the program.

        Returns the status for its sender, and its study. Other objects than CT and MR images, and
        images that come too late, are a success, too, but are left out.
        """
        try:
            with quiet():
                header = pydicom.dcmread(io.BytesIO(image), specific_tags=list(_TAGS))
            study, name, modality = (str(header.get(tag) or "") for tag in _TAGS)
            name = name or str(header.file_meta.get("MediaStorageSOPInstanceUID") or "")
        except DAMAGE:
            return DAMAGED, ""
        if modality not in MODALITIES:
            return TAKEN, ""
        if not study or not name:
            return DAMAGED, ""
        return self._keep(image, short(study), short(name)), short(study)

    def _keep(self, image: bytes, study: str, name: str) -> int:
        with self._lock:
            if not self.queue.expect(study):
                self.late += 1
                return TAKEN
            path = self.images(study) / f"{name}.dcm"
            more = len(image) - (path.stat().st_size if path.exists() else 0)
            if self._has_room(more, study) and _write(path, image):
                self.used += more
                return TAKEN
            if not self.queue.lacks(study):
                log.warning("study %s: an image is refused, the disk is full", study)
            self.queue.lack(study)
            return FULL

    def count(self) -> None:
        """Count all bytes again, a result's too: it may be over the limit, and makes room soon."""
        with self._lock:
            self.used = _size(self._studies)

    def end(self, study: str, before: str, after: str, reason: str = "") -> bool:
        """Bring a study to a state that needs its files no more; False where images came since."""
        with self._lock:
            is_ended = self.queue.move(study, before, after, reason)
            if is_ended:
                self._remove(study)
            return is_ended

    def _remove(self, study: str) -> None:
        folder = self._studies / study
        self.used -= _size(folder)
        shutil.rmtree(folder, ignore_errors=True)

    def is_filling(self) -> bool:
        """Tell whether what can wait elsewhere should: over half of the disk is taken."""
        return self.used > self.limit / 2

    def _has_room(self, size: int, study: str) -> bool:
        """Tell whether so many bytes fit; the study that was set aside first makes room.

        It has to be sent again to be tried again.
        """
        if self.used + size <= self.limit:
            return True
        for aside in self.queue.in_state("aside"):
            if aside != study and self.images(aside).exists():
                log.warning("study %s: set aside, removed to make room", aside)
                self._remove(aside)
                return self._has_room(size, study)
        return False


def _write(path: Path, content: bytes) -> bool:
    """Write a file whole and to the disk itself; False where that has no room."""
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except DataError:
        return False
    return True


def _size(path: Path) -> int:
    """Return the bytes of all files below a folder; some may vanish meanwhile."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += Path(folder, name).stat().st_size
    return total
