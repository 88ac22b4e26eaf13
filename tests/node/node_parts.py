"""What tests of the node need around it: a segmenter, a scanner that sends, an Orthanc.

As a program it is a node with that segmenter, to be killed: `node_parts.py STORE PORT HEALTH
SEND_TO [PAUSE]`.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pynetdicom import AE

sys.path.insert(0, str(Path(__file__).parents[1] / "dicom"))

from make_series import Patient, make_scan, uid, write_scan

from sacl.types import LabelMap, LabelScheme
from sacl_node.serve import Node, log_to_stderr, serve
from sacl_node.work import Model

SCHEME = LabelScheme("test", ("liver", "kidney_right"))
SEG = "1.2.840.10008.5.1.4.1.1.66.4"


@dataclass
class Segmented:
    label_map: LabelMap
    doubts: tuple[str, ...] = ()


@dataclass
class Threshold:
    """Calls liver what is bright, right kidney what is less so; waits a while before."""

    pause_s: float = 0.0
    fails: int = 0

    def segment(self, volume, name):
        if self.fails:
            self.fails -= 1
            raise RuntimeError("Doe^Jane cannot be segmented")
        time.sleep(self.pause_s)
        return Segmented(LabelMap(labels_of(volume.voxels), volume.grid, SCHEME))


def labels_of(voxels):
    return np.where(voxels > 200, 1, np.where(voxels > 0, 2, 0)).astype(np.uint8)


def model(fingerprint="abc", **options):
    return Model(Threshold(**options), fingerprint, "ct")


def patient(number):
    return Patient(patient_id=f"PIDX{number}", study_uid=f"1.2.826.0.1.777.5.{number}")


def write_study(folder, number=1, slices=8, size=56):
    """Write a CT study of one series of noise, 8 slices of 56 to 64 pixels a side."""
    rng = np.random.default_rng(number)
    scan = make_scan(rng, slices, size, patient=patient(number), series_uid=uid(rng))
    return write_scan(scan, folder, rng)


def send(folder, port, title="SCANNER", called="SACL", links=1):
    """Send a folder by C-STORE and return the statuses; None where nobody listens."""
    datasets = images_of(folder)
    statuses = []
    for part in np.array_split(np.arange(len(datasets)), links):
        node = AE(ae_title=title)
        for each in {(datasets[n].SOPClassUID, _syntax(datasets[n])) for n in part}:
            node.add_requested_context(*each)
        link = node.associate("127.0.0.1", port, ae_title=called)
        if not link.is_established:
            return None
        with contextlib.suppress(RuntimeError):  # the other side has gone
            statuses += [link.send_c_store(datasets[n]).get("Status") for n in part]
        link.release()
    return statuses


def images_of(folder):
    """Return the images of a folder, one slice after the other."""
    images = map(pydicom.dcmread, folder.iterdir())
    return sorted(images, key=lambda image: image.InstanceNumber)


def _syntax(dataset):
    return dataset.file_meta.TransferSyntaxUID


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_for(what, seconds=30.0):
    """Return what a function returns as soon as it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            found = what()
            if found:
                return found
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


def health(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        return json.load(error)


@contextlib.contextmanager
def running(node, segmenter):
    """Run a node in a thread while the body runs."""
    stop = threading.Event()
    thread = threading.Thread(target=serve, args=(node, segmenter, stop))
    thread.start()
    try:
        wait_for(lambda: health(node.health_port))
        yield
    finally:
        stop.set()
        thread.join(20)
        assert not thread.is_alive()


class Orthanc:
    """An Orthanc that listens on loopback only, and forgets all at the end."""

    def __init__(self, folder, stable_s=1):
        self.dicom_port, http_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{http_port}"
        config = dict(
            Name="test",
            StorageDirectory=str(folder / "db"),
            IndexDirectory=str(folder / "db"),
            Plugins=[],
            HttpPort=http_port,
            DicomPort=self.dicom_port,
            RemoteAccessAllowed=False,
            AuthenticationEnabled=False,
            StableAge=stable_s,
            DicomModalities={},
        )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "orthanc.json").write_text(json.dumps(config))
        with (folder / "log.txt").open("w") as log:
            self.process = subprocess.Popen(
                [shutil.which("Orthanc"), str(folder / "orthanc.json")], stdout=log, stderr=log
            )
        wait_for(lambda: self.get("/system"))

    def get(self, path):
        with urllib.request.urlopen(self.url + path, timeout=20) as answer:
            content = answer.read()
        return content if path.endswith("/file") else json.loads(content)

    def upload(self, folder):
        for path in folder.iterdir():
            request = urllib.request.Request(f"{self.url}/instances", path.read_bytes())
            urllib.request.urlopen(request, timeout=20).close()

    def segmentations(self):
        """Return the identifiers of SEG instances by the UID of their study."""
        found = {}
        for study in self.get("/studies?expand"):
            uid_ = study["MainDicomTags"]["StudyInstanceUID"]
            series = [self.get(f"/series/{name}") for name in study["Series"]]
            segs = [each for each in series if each["MainDicomTags"]["Modality"] == "SEG"]
            found[uid_] = [instance for each in segs for instance in each["Instances"]]
        return found

    def close(self):
        self.process.terminate()
        self.process.wait(30)


def main():
    store, port, health_port, send_to = sys.argv[1:5]
    pause_s = float(sys.argv[5]) if len(sys.argv) > 5 else 0.1
    log_to_stderr()
    node = Node(
        store=Path(store),
        send_to=send_to,
        port=int(port),
        health_port=int(health_port),
        allowed=("SCANNER",),
        settle_s=0.5,
    )
    serve(node, model(pause_s=pause_s))


if __name__ == "__main__":
    main()
