"""Studies come in by C-STORE, are predicted once each, and their segmentations go back."""

import io
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest

pynetdicom = pytest.importorskip("pynetdicom")

import node_parts  # noqa: E402
from node_parts import SEG, free_port, health, labels_of, model, running, send, write_study  # noqa: E402
from pydicom.uid import generate_uid  # noqa: E402
from pynetdicom import AE, evt  # noqa: E402

from sacl.cli import main  # noqa: E402
from sacl.cohort.layouts import dicom  # noqa: E402
from sacl.dicom.segmentation import read_segmentation  # noqa: E402
from sacl.errors import ConfigError  # noqa: E402
from sacl_node import queue as queues  # noqa: E402
from sacl_node import serve as serving  # noqa: E402
from sacl_node.health import health_page  # noqa: E402
from sacl_node.serve import Node, bytes_of, serve  # noqa: E402

pytestmark = pytest.mark.filterwarnings(  # pynetdicom, where nobody answers
    "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Look and try again at once."""
    monkeypatch.setattr(queues, "_PAUSE_S", (0.1, 0.2))
    monkeypatch.setattr(serving, "_IDLE_S", 0.05)
    monkeypatch.setattr(serving, "_LOOK_EVERY_S", 0.2)


@pytest.fixture
def logged(caplog):
    """Return what the node's log has said until now."""
    caplog.set_level(logging.INFO, "sacl.node")
    return lambda: "\n".join(record.getMessage() for record in caplog.records)


class Archive:
    """A receiver of results that answers with given statuses, then with success."""

    def __init__(self, statuses=(), syntaxes=None):
        self.port, self.got, self.statuses = free_port(), [], list(statuses)
        node = AE(ae_title="PACS")
        node.add_supported_context(SEG, syntaxes)
        handlers = [(evt.EVT_C_STORE, self._store)]
        self._server = node.start_server(("127.0.0.1", self.port), False, evt_handlers=handlers)

    def _store(self, event):
        self.syntax = event.context.transfer_syntax
        status = self.statuses.pop(0) if self.statuses else 0
        if status == 0:
            self.got.append(pydicom.dcmread(io.BytesIO(event.encoded_dataset())))
        return status

    def close(self):
        self._server.shutdown()


@pytest.fixture
def archive():
    archive = Archive()
    yield archive
    archive.close()


def node_for(tmp_path, archive_port, **changes):
    given = dict(store=tmp_path / "store", port=free_port(), health_port=free_port())
    given |= dict(allowed=("SCANNER",), settle_s=0.5, send_to=f"PACS@127.0.0.1:{archive_port}")
    return Node(**given | changes)


def predicted(folder):
    """Return what the segmenter makes of a folder's one series, by another way than the node's."""
    (case,) = dicom.read_export(folder).cases
    volume, _ = case.load()
    return labels_of(volume.voxels), volume.grid


def images_in(store):
    return list((store / "studies").rglob("*.dcm"))


def test_a_study_gets_its_segmentation_back_by_c_store(tmp_path, archive, logged):
    study = write_study(tmp_path / "study")
    node = node_for(tmp_path, archive.port)
    with running(node, model()):
        assert send(study, node.port) == [0] * 8
        (result,) = node_parts.wait_for(lambda: archive.got)
        node_parts.wait_for(lambda: health(node.health_port)["studies"]["done"])
    source = pydicom.dcmread(next(study.iterdir()))
    assert result.StudyInstanceUID == source.StudyInstanceUID
    assert (result.PatientID, result.SOPClassUID) == (source.PatientID, SEG)
    voxels, grid = predicted(study)
    result.save_as(tmp_path / "seg.dcm", enforce_file_format=True)
    np.testing.assert_array_equal(read_segmentation(tmp_path / "seg.dcm", grid).voxels, voxels)
    assert images_in(node.store) == []
    for word in (source.PatientID, str(source.PatientName), source.StudyInstanceUID, "PIDX"):
        assert word not in logged()


def test_a_study_that_is_sent_again_stays_at_one_segmentation(tmp_path, archive):
    study = write_study(tmp_path / "study")
    late = []
    for fingerprint, results in (("abc", 1), ("abc", 1), ("new", 2)):
        node = node_for(tmp_path, archive.port)
        with running(node, model(fingerprint)):
            assert send(study, node.port) == [0] * 8
            node_parts.wait_for(lambda: len(archive.got) == results)  # noqa: B023
            time.sleep(0.8)
            state = health(node.health_port)
        late.append(state["late"])
    assert late == [0, 8, 0]
    assert len(archive.got) == 2
    assert archive.got[0].SOPInstanceUID != archive.got[1].SOPInstanceUID


def test_the_uids_come_from_the_series_and_the_model(tmp_path, archive):
    study = write_study(tmp_path / "study")
    for store in ("one", "two"):
        node = node_for(tmp_path / store, archive.port)
        with running(node, model()):
            send(study, node.port)
            node_parts.wait_for(lambda: health(node.health_port)["studies"]["done"])  # noqa: B023
    first, second = archive.got
    assert (
        first.SOPInstanceUID == second.SOPInstanceUID == second.file_meta.MediaStorageSOPInstanceUID
    )
    assert first.SeriesInstanceUID == second.SeriesInstanceUID


def test_only_the_allowed_may_send(tmp_path, archive):
    study = write_study(tmp_path / "study")
    node = node_for(tmp_path, archive.port)
    with running(node, model()):
        assert send(study, node.port, title="STRANGER") is None
        assert send(study, node.port, called="OTHER") is None
        scanner = AE(ae_title="SCANNER")
        scanner.add_requested_context("1.2.840.10008.1.1")
        link = scanner.associate("127.0.0.1", node.port, ae_title="SACL")
        assert link.send_c_echo().Status == 0
        link.release()
    assert images_in(node.store) == []


def test_a_study_waits_longer_where_its_sender_broke_off(tmp_path, archive):
    study = write_study(tmp_path / "study")
    datasets = node_parts.images_of(study)
    node = node_for(tmp_path, archive.port, settle_s=0.3)
    with running(node, model()):
        scanner = AE(ae_title="SCANNER")
        scanner.add_requested_context(datasets[0].SOPClassUID, "1.2.840.10008.1.2.1")
        link = scanner.associate("127.0.0.1", node.port, ae_title="SACL")
        assert [link.send_c_store(image).Status for image in datasets[:6]] == [0] * 6
        link.abort()
        time.sleep(1.5)
        assert health(node.health_port)["studies"]["receiving"] == 1
        assert send(study, node.port) == [0] * 8
        (result,) = node_parts.wait_for(lambda: archive.got)
    (series,) = result.ReferencedSeriesSequence
    assert len(series.ReferencedInstanceSequence) == 8


def test_a_full_disk_refuses_images_and_predicts_no_part_of_a_study(tmp_path, archive):
    study = write_study(tmp_path / "study")
    size = sum(path.stat().st_size for path in study.iterdir())
    node = node_for(tmp_path, archive.port, max_disk=int(0.8 * size))  # six slices would be a scan
    with running(node, model()):
        statuses = send(study, node.port)
        assert statuses[0] == 0
        assert statuses[-1] == 0xA700
        node_parts.wait_for(lambda: health(node.health_port)["studies"]["unsuitable"])
        node_parts.wait_for(lambda: not images_in(node.store))
    assert archive.got == []
    node = node_for(tmp_path, archive.port, max_disk=2 * size)
    with running(node, model()):
        send(study, node.port)
        node_parts.wait_for(lambda: archive.got)


def test_a_failing_study_is_set_aside_and_the_others_go_on(tmp_path, archive, logged):
    bad, good = (write_study(tmp_path / f"study{n}", n) for n in (1, 2))
    node = node_for(tmp_path, archive.port)
    with running(node, model(fails=queues.TRIES)):
        send(bad, node.port)
        node_parts.wait_for(lambda: health(node.health_port)["studies"]["aside"])
        send(good, node.port)
        node_parts.wait_for(lambda: health(node.health_port)["studies"]["done"])
        state = health(node.health_port)
        with _page(node.health_port) as page:
            text = page.read().decode()
    ((study, reason),) = state["aside"]
    assert state["status"] == "some studies were set aside"
    assert reason.startswith("RuntimeError in node_parts.py:")
    assert f"study {study}: set aside" in logged()
    assert study in text
    assert "Doe" not in text + logged()
    assert [result.PatientID for result in archive.got] == ["PIDX2"]


def _page(port):
    with pytest.raises(urllib.error.HTTPError, match="503") as told:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5)
    return told.value


def test_what_was_set_aside_makes_room(tmp_path, archive, logged):
    bad, good = (write_study(tmp_path / f"study{n}", n, slices=8 * n) for n in (1, 2))
    size = sum(path.stat().st_size for path in good.iterdir())
    node = node_for(tmp_path, archive.port, max_disk=int(1.2 * size))
    with running(node, model(fails=queues.TRIES)):
        send(bad, node.port)
        node_parts.wait_for(lambda: health(node.health_port)["studies"]["aside"])
        assert send(good, node.port) == [0] * 16
        node_parts.wait_for(lambda: archive.got)
    assert "set aside, removed to make room" in logged()


def test_a_study_without_a_scan_is_done_with(tmp_path, archive, logged):
    study = write_study(tmp_path / "study", slices=3)
    node = node_for(tmp_path, archive.port)
    with running(node, model()):
        send(study, node.port)
        node_parts.wait_for(lambda: health(node.health_port)["studies"]["unsuitable"])
    assert "1 too_few_slices" in logged()
    assert images_in(node.store) == []


def test_results_wait_for_a_receiver_that_is_not_there(tmp_path, logged):
    study = write_study(tmp_path / "study")
    archive = Archive([0xA700, 0xA701])
    port = archive.port
    archive.close()
    node = node_for(tmp_path, port)
    with running(node, model()):
        send(study, node.port)
        node_parts.wait_for(lambda: "the receiver does not answer" in logged())
        assert health(node.health_port)["status"] == "results wait for their receiver"
        handlers = [(evt.EVT_C_STORE, archive._store)]
        late = AE(ae_title="PACS")
        late.add_supported_context(SEG)
        server = late.start_server(("127.0.0.1", port), False, evt_handlers=handlers)
        node_parts.wait_for(lambda: archive.got)
        node_parts.wait_for(lambda: health(node.health_port)["studies"]["done"])
        server.shutdown()
    assert "out of resources (status A700)" in logged()
    assert len(archive.got) == 1


def test_a_result_that_is_refused_is_set_aside(tmp_path):
    archive = Archive([0xA900] * queues.TRIES)
    study = write_study(tmp_path / "study")
    node = node_for(tmp_path, archive.port)
    with running(node, model()):
        send(study, node.port)
        ((_, reason),) = node_parts.wait_for(lambda: health(node.health_port)["aside"])
    archive.close()
    assert reason == "the receiver refuses it (status A900)"


def test_a_receiver_of_implicit_little_endian_alone_gets_that(tmp_path):
    archive = Archive(syntaxes=["1.2.840.10008.1.2"])
    study = write_study(tmp_path / "study")
    node = node_for(tmp_path, archive.port)
    with running(node, model()):
        send(study, node.port)
        (result,) = node_parts.wait_for(lambda: archive.got)
    archive.close()
    assert archive.syntax == "1.2.840.10008.1.2"
    assert result.SegmentSequence[0].SegmentLabel == "Liver"


def test_a_watched_folder_is_read_and_left_as_it_is(tmp_path):
    watched = tmp_path / "in"
    write_study(watched / "a", 1)
    shutil.make_archive(str(watched / "b"), "zip", write_study(tmp_path / "zipped", 2))
    (watched / "notes.txt").write_text("no DICOM")
    before = sorted(watched.rglob("*"))
    for _ in range(2):  # a restart takes nothing twice
        node = node_for(
            tmp_path, 1, folder=watched, send_to=str(tmp_path / "out"), settle_s=0.3, allowed=()
        )
        with running(node, model()):
            node_parts.wait_for(lambda: health(node.health_port)["studies"]["done"] == 2)  # noqa: B023
            time.sleep(0.5)
            assert health(node.health_port)["late"] == 0
    results = sorted((tmp_path / "out").iterdir())
    assert len(results) == 2
    assert {pydicom.dcmread(path).PatientID for path in results} == {"PIDX1", "PIDX2"}
    assert sorted(watched.rglob("*")) == before


def test_a_growing_file_is_not_taken(tmp_path, archive):
    watched = tmp_path / "in"
    study = write_study(tmp_path / "study")
    watched.mkdir()
    whole = shutil.make_archive(str(tmp_path / "whole"), "zip", study)
    content = Path(whole).read_bytes()
    node = node_for(tmp_path, archive.port, folder=watched, settle_s=3.0)
    with running(node, model()), (watched / "a.zip").open("wb") as growing:
        for start in range(0, len(content), len(content) // 4):
            growing.write(content[start : start + len(content) // 4])
            growing.flush()
            time.sleep(0.7)
            assert health(node.health_port)["studies"]["receiving"] == 0
        node_parts.wait_for(lambda: archive.got)


def test_a_second_node_on_a_store_is_refused(tmp_path, archive):
    node = node_for(tmp_path, archive.port)
    other = node_for(tmp_path, archive.port)
    with running(node, model()), pytest.raises(ConfigError, match="another node uses it"):
        serve(other, model())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"allowed": ()}, "--allow"),
        ({"send_to": "PACS@nowhere"}, "AET@HOST:PORT"),
        ({"folder": Path(), "orthanc": "http://127.0.0.1:1"}, "one of them"),
        ({"folder": Path("/no/such")}, "no such folder"),
        ({"title": "a title that is too long"}, "AE title"),
        ({"max_disk": 0}, "--max-disk"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(tmp_path, changes, told):
    with pytest.raises(ConfigError, match=told):
        serve(node_for(tmp_path, 1, **changes), model())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "give --model, --store and --send-to"),
        (["--send-to", "P@h:1"], "name the AE titles with --allow"),
        (["--send-to", "P@h:1", "--allow", "A", "--max-disk", "much"], "a size such as 20GB"),
        (["--orthanc", "http://127.0.0.1:1"], "missing"),
    ],
)
def test_the_command_line_says_in_one_line_what_is_wrong(tmp_path, capsys, words, told):
    given = ["--model", str(tmp_path / "missing"), "--store", str(tmp_path / "store")]
    assert main(["serve", *given, *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_the_command_line_says_what_to_install(tmp_path, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("sacl_node", "pynetdicom"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pynetdicom", None)
    assert main(["serve"]) == 2
    assert "pip install 'sacl[node]'" in capsys.readouterr().err


def test_sizes_are_read():
    assert bytes_of("20GB") == 20 * 10**9
    assert bytes_of("512 mb") == 512 * 10**6
    with pytest.raises(ConfigError, match="such as 20GB"):
        bytes_of("a lot")


@pytest.fixture
def start_process():
    """Return what starts a node in a process of its own; none outlives the test."""
    started = []

    def start(node, pause_s):
        program = [sys.executable, node_parts.__file__, node.store, node.port, node.health_port]
        root = Path(__file__).parents[2]
        environment = os.environ | {"PYTHONPATH": str(root / "src")}
        words = [*map(str, program), node.send_to, str(pause_s)]
        started.append(subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL))
        node_parts.wait_for(lambda: health(node.health_port), 60)
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_killed_node_sends_each_study_once(tmp_path, archive, start_process):
    studies = [write_study(tmp_path / f"study{n}", n) for n in range(4)]
    node = node_for(tmp_path, archive.port)
    process = start_process(node, 0.4)
    for study in studies:
        send(study, node.port)
    rng = np.random.default_rng(0)
    for _ in range(3):
        time.sleep(1.0 + rng.uniform(0, 0.6))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process = start_process(node, 0.4)
    node_parts.wait_for(lambda: health(node.health_port)["studies"]["done"] == 4)
    process.terminate()
    assert process.wait(20) == 0
    by_study = {result.StudyInstanceUID: result.SOPInstanceUID for result in archive.got}
    assert len(by_study) == 4
    assert {result.SOPInstanceUID for result in archive.got} == set(by_study.values())


def test_signals_stop_it_however_often_and_whatever_they_interrupt():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        stop = serving.stopped_by_signals()
        with stop._cond:  # as while the main thread begins to wait, or a first signal sets it
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
                signal.raise_signal(number)
        assert stop.wait(10)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_terminated_node_takes_the_study_up_again(tmp_path, archive, start_process):
    study = write_study(tmp_path / "study")
    node = node_for(tmp_path, archive.port)
    process = start_process(node, 60.0)
    send(study, node.port)
    node_parts.wait_for(lambda: health(node.health_port)["studies"]["predicting"])
    process.terminate()
    assert process.wait(20) == 0
    with running(node, model()):
        node_parts.wait_for(lambda: archive.got)


@pytest.fixture
def orthanc(tmp_path):
    if shutil.which("Orthanc") is None:
        pytest.skip("no Orthanc is installed (apt-get install orthanc)")
    orthanc = node_parts.Orthanc(tmp_path / "orthanc")
    yield orthanc
    orthanc.close()


def test_an_orthanc_gets_its_studies_segmented(tmp_path, orthanc):
    node = node_for(tmp_path, 1, orthanc=orthanc.url, send_to=orthanc.url, allowed=())
    study = write_study(tmp_path / "study")
    with running(node, model()):
        orthanc.upload(study)
        node_parts.wait_for(lambda: health(node.health_port)["studies"]["done"], 60)
        time.sleep(4)  # the study is stable once more, with the segmentation
        state = health(node.health_port)
        assert (state["studies"]["done"], state["late"]) == (1, 0)
    _require_seg(orthanc, study, tmp_path)


def test_an_orthanc_is_sent_segmentations_by_c_store(tmp_path, orthanc):
    node = node_for(tmp_path, 1, send_to=f"ORTHANC@127.0.0.1:{orthanc.dicom_port}")
    study = write_study(tmp_path / "study")
    with running(node, model()):
        orthanc.upload(study)
        send(study, node.port)
        node_parts.wait_for(lambda: health(node.health_port)["studies"]["done"], 60)
    _require_seg(orthanc, study, tmp_path)


@pytest.mark.real_data
def test_a_real_series_gets_its_segmentation_in_an_orthanc(tmp_path, orthanc, real_data):
    study = tmp_path / "study"
    shutil.unpack_archive(real_data / "TotalSegmentator_CT" / "dicom_series.zip", tmp_path / "all")
    study.mkdir()
    uids = {name: generate_uid() for name in ("StudyInstanceUID", "SeriesInstanceUID")}
    for path in (tmp_path / "all").rglob("*.dcm"):
        image = pydicom.dcmread(path)  # an anonymizer emptied the UIDs; nobody can send it so
        for name, value in uids.items():
            setattr(image, name, value)
        image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID
        image.save_as(study / path.name)
    node = node_for(tmp_path, 1, send_to=f"ORTHANC@127.0.0.1:{orthanc.dicom_port}")
    with running(node, model()):
        orthanc.upload(study)
        assert send(study, node.port) == [0] * 20
        node_parts.wait_for(lambda: health(node.health_port)["studies"]["done"], 60)
    assert list(orthanc.segmentations()) == [uids["StudyInstanceUID"]]
    _require_seg(orthanc, study, tmp_path)


def _require_seg(orthanc, study, tmp_path):
    ((identifier,),) = orthanc.segmentations().values()
    (tmp_path / "seg.dcm").write_bytes(orthanc.get(f"/instances/{identifier}/file"))
    voxels, grid = predicted(study)
    np.testing.assert_array_equal(read_segmentation(tmp_path / "seg.dcm", grid).voxels, voxels)
    opened = highdicom.seg.segread(tmp_path / "seg.dcm")
    assert [opened.get_segment_description(n).segment_label for n in (1, 2)] == [
        "Liver",
        "Right kidney",
    ]


def test_a_health_port_that_is_taken_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        taken_already = f"port {port} of 127.0.0.1: Address already in use"
        with (
            pytest.raises(ConfigError, match=taken_already),
            health_page(dict, "127.0.0.1", port),
        ):
            pass
