"""What goes wrong with the paper's cohorts: one clear line each."""

import json
import shutil

import numpy as np
import pytest

from sacl.cli import main
from sacl.files.nifti import read_labels, write_volume
from sacl.types import Volume
from sacl_phantom.archives import LAYOUTS, ArchiveRequest, write_archive


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Return a small archive of each layout: two labeled scans and a further one."""
    root = tmp_path_factory.mktemp("originals")
    small = {"shape": (24, 20, 12), "spacing_mm": (16.0, 16.0, 28.0), "scans": 2, "unlabeled": 1}
    for layout in LAYOUTS:
        list(write_archive(root / layout, ArchiveRequest(layout=layout, **small)))
    return root


@pytest.fixture
def ingested(originals, tmp_path, capsys):
    """Return what copies an archive, spoils it, ingests it, and returns exit code and lines."""

    def ingest(layout, spoil=lambda root: None, *flags):
        root = tmp_path / layout
        shutil.copytree(originals / layout, root)
        spoil(root)
        words = ["ingest", "--data", str(root), "--work", str(tmp_path / "work"), *flags]
        code = main(words)
        return code, capsys.readouterr().err.splitlines()

    return ingest


def cervix_in(folder):
    """Return what lays two files of BTCV's cervix set into a folder."""

    def spoil(root):
        for kind, old, new in (("img", "img0001", "Image"), ("label", "label0001", "Mask")):
            (root / folder / kind).mkdir(parents=True, exist_ok=True)
            shutil.copy(
                root / "RawData" / "Training" / kind / f"{old}.nii.gz",
                root / folder / kind / f"0507688-{new}.nii.gz",
            )

    return spoil


def test_the_cervix_set_among_btcvs_scans_is_refused(ingested):
    code, lines = ingested("btcv", cervix_in("RawData/Training"))
    assert (code, lines[-1]) == (
        2,
        "sacl: btcv: 0507688-Image.nii.gz, 0507688-Mask.nii.gz among the abdominal scans are of"
        " BTCV's cervix set, which has other organs; move them to a folder of their own",
    )


def test_the_cervix_set_beside_the_abdomen_is_left_out_with_a_line(ingested):
    code, lines = ingested("btcv", cervix_in("Cervix/RawData/Training"))
    assert code == 0
    assert "ingest: Cervix: not read, a set of other organs" in lines
    assert any("train 2 scans, 2 with reference" in line for line in lines)


def test_validation_scans_without_labels_are_said_to_be_so(ingested):
    code, lines = ingested("flare21")
    assert code == 0
    assert lines[-2].endswith(
        "validation 1 scans, 0 with reference; test 0 scans, 0 with reference"
    )


def test_a_label_map_of_other_slices_than_its_scan_is_refused(ingested):
    def spoil(root):
        path = root / "RawData" / "Training" / "label" / "label0002.nii.gz"
        labels, grid, _ = read_labels(path)
        shorter = type(grid)((*grid.shape[:2], grid.shape[2] - 1), grid.affine)
        write_volume(path, Volume(labels[:, :, :-1], shorter))

    code, lines = ingested("btcv", spoil)
    assert code == 2
    assert lines[-1].startswith("sacl: case 0002: image and label map lie on different grids, 24 x")
    assert "other shape" in lines[-1]
    assert "--ingest.repair_grid nearest" in lines[-1]


def test_renamed_organs_are_named(ingested):
    def spoil(root):
        values = json.loads((root / "labels.json").read_text())
        values = {"Milz" if name == "spleen" else name: value for name, value in values.items()}
        (root / "labels.json").write_text(json.dumps(values))

    code, lines = ingested("hospital", spoil, "--ingest.organs", "liver,spleen")
    assert code == 2
    assert lines[-1].startswith("sacl: ingest.organs: no organ 'spleen' in hospital; it has Milz, ")


def test_a_label_value_beyond_the_organs_is_refused(ingested):
    def spoil(root):
        path = root / "TrainingMask" / "TrainingMask" / "train_001.nii.gz"
        labels, grid, _ = read_labels(path)
        labels = np.where(labels == 4, 5, labels).astype(np.uint8)
        write_volume(path, Volume(labels, grid))

    code, lines = ingested("flare21", spoil)
    assert code == 2
    assert "case train_001: label values [5] outside the dataset's scheme" in lines[-1]
