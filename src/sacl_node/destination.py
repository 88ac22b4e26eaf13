"""Where results go: a DICOM node by C-STORE, an Orthanc by REST, or a folder."""

from __future__ import annotations

import base64
import http.client
import json
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom import AE

from sacl.errors import ConfigError, SaclError
from sacl.files.atomic import replacing

_TIMEOUT_S = 30.0
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Patients' images go through no proxy."""
_WARNINGS = range(0xB000, 0xC000)
_FULL = range(0xA700, 0xA800)
_OF_THE_OBJECT = (400, 404, 415)
"""HTTP's answers that say something of what was sent or asked for, not of who asks."""


class NotThereError(SaclError):
    """The receiver does not answer, or has no room now: later it may."""


class NotTakenError(SaclError):
    """The receiver answers, and refuses the object."""


Send = Callable[[Path], None]
"""Sends a DICOM file; raises NotThereError or NotTakenError."""


def destination(text: str, title: str) -> Send:
    """Return what sends to `AET@HOST:PORT`, an Orthanc's `http://...`, or a folder.

    `title` is the AE title under which it is sent.
    """
    if text.startswith(("http://", "https://")):
        return Orthanc(text).upload
    node = re.fullmatch(r"([^@/]{1,16})@([^@/:]+|\[[^@/]+\]):(\d{1,5})", text)
    if node:
        called, host, port = node.groups()
        return lambda path: _store(path, title, called, host.strip("[]"), int(port))
    if "@" in text:
        raise ConfigError(f"--send-to {text}: expected AET@HOST:PORT, http://HOST:PORT or a folder")
    return lambda path: _copy(path, Path(text))


def _store(path: Path, title: str, called: str, host: str, port: int) -> None:
    """Send an object by C-STORE."""
    result = pydicom.dcmread(path)
    node = AE(ae_title=title)
    node.acse_timeout = node.dimse_timeout = node.network_timeout = _TIMEOUT_S
    node.connection_timeout = _TIMEOUT_S
    syntaxes = [result.file_meta.TransferSyntaxUID, ImplicitVRLittleEndian]
    node.add_requested_context(result.SOPClassUID, syntaxes)
    link = node.associate(host, port, ae_title=called)
    if not link.is_established:
        raise NotThereError(
            "the receiver rejects the association; let it know this AE title"
            if link.is_rejected
            else "the receiver does not answer, or does not take segmentations"
        )
    try:
        status = link.send_c_store(result).get("Status")
    except RuntimeError:  # it ended between two of our steps
        status = None
    finally:
        link.release()
    if status is None:
        raise NotThereError("the receiver ended the association")
    if status in _FULL:
        raise NotThereError(f"the receiver is out of resources (status {status:04X})")
    if status != 0 and status not in _WARNINGS:
        raise NotTakenError(f"the receiver refuses it (status {status:04X})")


def _copy(path: Path, folder: Path) -> None:
    """Put a result into a folder, under a name that says nothing of the patient."""
    try:
        with replacing(folder / f"{path.parent.name}.seg.dcm") as temporary:
            shutil.copyfile(path, temporary)
    except SaclError as error:
        raise NotThereError(str(error)) from error


class Orthanc:
    """The REST interface of an Orthanc; user and password may stand in its URL."""

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url.rstrip("/"))
        if not parts.hostname:
            raise ConfigError("an Orthanc is given as http://HOST:PORT or https://HOST:PORT")
        self._head = {}
        if parts.username is not None:
            names = map(urllib.parse.unquote, (parts.username, parts.password or ""))
            secret = base64.b64encode(":".join(names).encode()).decode()
            self._head["Authorization"] = f"Basic {secret}"
        self._root = urllib.parse.urlunsplit((*parts[:1], parts.netloc.split("@")[-1], *parts[2:]))

    def get(self, path: str) -> bytes:
        """Return what lies at a path."""
        return self._ask(path, None)

    def json(self, path: str) -> Any:
        """Return the JSON at a path."""
        try:
            return json.loads(self.get(path))
        except ValueError as error:
            raise NotThereError("what answers is no Orthanc") from error

    def upload(self, path: Path) -> None:
        """Store a DICOM file; one that is there already is left as it is."""
        self._ask("/instances", path.read_bytes())

    def _ask(self, path: str, body: bytes | None) -> bytes:
        kind = {"Content-Type": "application/dicom"} if body is not None else {}
        request = urllib.request.Request(self._root + path, body, {**self._head, **kind})
        try:
            with _DIRECT.open(request, timeout=_TIMEOUT_S) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            words = f"the Orthanc refuses it (HTTP {error.code})"
            if error.code in _OF_THE_OBJECT:
                raise NotTakenError(words) from error
            raise NotThereError(words) from error
        except (OSError, http.client.HTTPException) as error:
            raise NotThereError("the Orthanc does not answer") from error
