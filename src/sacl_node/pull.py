"""Fetch studies where they lie: a folder that is watched, or an Orthanc that is asked."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from sacl.dicom.files import DAMAGE, Opener, Refused, sources
from sacl_node.destination import NotTakenError, NotThereError, Orthanc
from sacl_node.store import MODALITIES, Store, short

log = logging.getLogger("sacl.node")
_SINCE = "orthanc since"
_PAGE = 100


class Folder:
    """A folder whose files, zips too, are taken once they have not changed for a while.

    Nothing in it is changed or removed.
    """

    def __init__(self, root: Path, store: Store, quiet_s: float) -> None:
        self._root, self._store, self._quiet_s = root, store, quiet_s
        self._seen: dict[str, tuple[str, float]] = {}

    def look(self) -> None:
        """Take the files that have not changed since they were first seen as they are now."""
        now, waiting, studies = time.monotonic(), {}, set()
        with Opener() as opener:
            for path in sorted(self._root.rglob("*")):
                name = f"file {short(str(path.relative_to(self._root)))}"
                state = _state(path)
                if state is None or self._store.queue.noted(name) == state:
                    continue
                seen = self._seen.get(name, ("", 0.0))
                waiting[name] = seen if seen[0] == state else (state, now)
                if now - waiting[name][1] >= self._quiet_s and not self._store.is_filling():
                    studies |= self._take(path, opener)
                    self._store.queue.note(name, state)
                    del waiting[name]
        self._seen = waiting
        for study in studies:
            self._store.queue.close(study)

    def _take(self, path: Path, opener: Opener) -> set[str]:
        """Take the images of a file or zip, and return their studies."""
        studies = set()
        for source in sources(path):
            if isinstance(source, Refused):
                log.warning("a zip is left out: %s", source.fault.code)
                continue
            try:
                with opener.stream(source, whole=True) as stream:
                    studies.add(self._store.add(stream.read())[1])
            except DAMAGE:
                log.warning("a file cannot be read and is left out")
        return studies


class Archive:
    """An Orthanc whose studies are taken when it calls them stable, from the first start on."""

    def __init__(self, orthanc: Orthanc, store: Store) -> None:
        self._orthanc, self._store = orthanc, store

    def look(self) -> None:
        """Take the studies that became stable since the last look; a restart goes on from there."""
        queue = self._store.queue
        try:
            since = queue.noted(_SINCE)
            if since is None:
                since = str(self._orthanc.json("/changes?last")["Last"])
                queue.note(_SINCE, since)
            for change in self._orthanc.json(f"/changes?since={since}&limit={_PAGE}")["Changes"]:
                if self._store.is_filling():
                    return
                if change["ChangeType"] == "StableStudy":
                    self._take(change["ID"])
                queue.note(_SINCE, str(change["Seq"]))
        except (NotThereError, NotTakenError) as error:
            log.warning("nothing can be fetched: %s", error)

    def _take(self, identifier: str) -> None:
        """Take the CT and MR images of a study."""
        try:
            tags = self._orthanc.json(f"/studies/{identifier}")["MainDicomTags"]
            series = self._orthanc.json(f"/studies/{identifier}/series")
        except NotTakenError:  # deleted meanwhile
            return
        study = short(tags["StudyInstanceUID"])
        images = [
            instance
            for each in series
            if each["MainDicomTags"].get("Modality") in MODALITIES
            for instance in each["Instances"]
        ]
        if images and self._store.queue.expect(study):
            for instance in images:
                self._store.add(self._orthanc.get(f"/instances/{instance}/file"))
            self._store.queue.close(study, settled=True)


def _state(path: Path) -> str | None:
    """Return the size and time of a file, None where it is none or vanishes."""
    try:
        stat = path.stat()
        return f"{stat.st_size} {stat.st_mtime_ns}" if path.is_file() else None
    except OSError:
        return None
