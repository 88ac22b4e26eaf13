"""Exports of what a run trained, by the command line; a bundle against the program's own maps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from toy_cohort import SPACING_MM, locate_toy_cohort, toy_scan

from sacl.cli import main
from sacl.model import load_model
from sacl.prediction import windows
from sacl.run.workspace import Workspace
from sacl.settings import FinetuneSettings, LocateSettings, VolumeHeadSettings, VolumeSettings
from sacl.stages.finetune import finetune
from sacl.stages.locate import locate


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Workspace:
    """Return the work directory of a segmenter on volumes, trained for a few steps."""
    workspace = locate_toy_cohort(tmp_path_factory.mktemp("volumes"))
    volume = VolumeSettings(spacing_mm=(2.5, 2.5, 5.0), crop=(16, 16, 8), steps=2)
    locate(LocateSettings(volume=volume, channels=8), workspace)
    finetune(FinetuneSettings(volume=VolumeHeadSettings(teacher_steps=0), steps=20), workspace)
    return workspace


def export(work, out, form, *more) -> int:
    return main(["export", str(work.root), "--out", str(out), "--form", form, *more])


def write_scan(folder, name, codes):
    """Write a scan that is stored in another direction than RAS."""
    folder.mkdir(exist_ok=True)
    affine = np.diag([*SPACING_MM, 1.0])
    affine[:3, 3] = (-31.5, 12.0, 7.0)
    image = nibabel.Nifti1Image(toy_scan(7)[0], affine)
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(affine), nibabel.orientations.axcodes2ornt(codes)
    )
    nibabel.save(image.as_reoriented(turn), folder / name)


def test_a_bundle_predicts_what_the_program_does_and_without_it(work, tmp_path, monkeypatch):
    pytest.importorskip("ignite")
    pytest.importorskip("fire")
    write_scan(tmp_path / "scans", "left.nii.gz", "LPS")
    write_scan(tmp_path / "scans", "turned.nii.gz", "AIR")
    assert export(work, tmp_path / "bundle", "monai-bundle") == 0
    monkeypatch.setattr(windows, "autocast", lambda device: torch.autocast("cpu", enabled=False))
    (tmp_path / "without" / "sacl").mkdir(parents=True)
    (tmp_path / "without" / "sacl" / "__init__.py").write_text("raise ImportError('sacl')\n")
    files = ("--config_file", "configs/inference.json", "--meta_file", "configs/metadata.json")
    folders = ("--dataset_dir", str(tmp_path / "scans"), "--output_dir", str(tmp_path / "maps"))
    done = subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", *files, *folders],
        cwd=tmp_path / "bundle",
        env={**os.environ, "PYTHONPATH": str(tmp_path / "without"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    model = load_model(work.root, device="cpu", copies=0)
    for name in ("left.nii.gz", "turned.nii.gz"):
        scan = nibabel.load(tmp_path / "scans" / name)
        ours, theirs = model.predict(scan), nibabel.load(tmp_path / "maps" / name)
        found, expected = np.asarray(theirs.dataobj), np.asarray(ours.dataobj)
        assert found.dtype == np.uint8
        assert len(np.unique(expected)) > 1
        assert np.array_equal(theirs.affine, scan.affine)
        assert np.mean(found != expected) < 1e-3


def test_monai_finds_the_bundles_network_to_be_as_its_metadata_says(work, tmp_path):
    bundle = pytest.importorskip("monai.bundle")
    pytest.importorskip("ignite")
    assert export(work, tmp_path / "bundle", "monai-bundle") == 0
    configs = tmp_path / "bundle" / "configs"
    parser = bundle.ConfigParser()
    parser.read_config(configs / "inference.json")
    parser.read_meta(configs / "metadata.json")
    network = parser.get_parsed_content("network_def")
    state = torch.load(tmp_path / "bundle" / "models" / "model.pt", weights_only=True)
    network.load_state_dict(state)
    told = parser["_meta_"]["network_data_format"]
    crop = told["inputs"]["image"]["spatial_shape"]
    with torch.no_grad():
        logits = network(torch.zeros(1, told["inputs"]["image"]["num_channels"], *crop))
    assert logits.shape == (1, told["outputs"]["pred"]["num_channels"], *crop)


def test_an_export_of_a_network_is_recorded_and_keeps_to_its_folder(work, tmp_path, capsys):
    assert export(work, tmp_path / "out", "weights") == 0
    said = capsys.readouterr().err
    assert "export: weights.safetensors, about.json, README.md; the segmenter's weights" in said
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert record["origin"]["form"] == "weights"
    assert record["files"] == ["weights.safetensors", "about.json", "README.md"]
    assert export(work, tmp_path / "out", "weights") == 0
    assert export(work, tmp_path / "out", "nnunet-encoder") == 2
    assert "holds another export, with other form" in capsys.readouterr().err
    assert export(work, tmp_path / "out", "nnunet-encoder", "--force") == 0
    assert not (tmp_path / "out" / "weights.safetensors").exists()
    for path in filter(Path.is_file, tmp_path.rglob("*")):  # no path, no name of the cohort
        assert not [t for t in (str(work.root), '"toy"') if t.encode() in path.read_bytes()]


@pytest.mark.parametrize("flags", [("--splits", "test"), ("--source", "dicom")])
def test_flags_of_label_maps_are_refused_beside_a_network(work, tmp_path, flags, capsys):
    assert export(work, tmp_path / "out", "weights", *flags) == 2
    assert flags[0] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_pack_is_exported_as_its_run_is_with_its_title_and_terms(work, tmp_path, capsys):
    pack = tmp_path / "model.sacl"
    terms = ("--title", "Toy organs", "--license", "CC0-1.0")
    assert main(["pack", str(work.root), str(pack), *terms]) == 0
    assert main(["export", str(pack), "--form", "weights", "--out", str(tmp_path / "pack")]) == 0
    assert export(work, tmp_path / "run", "weights") == 0
    of_pack, of_run = (tmp_path / name / "weights.safetensors" for name in ("pack", "run"))
    assert of_pack.read_bytes() == of_run.read_bytes()
    about = json.loads((tmp_path / "pack" / "about.json").read_text())
    assert (about["title"], about["license"]) == ("Toy organs", "CC0-1.0")
    for more in (["--form", "nifti"], ["--form", "weights", "--splits", "test"]):
        assert main(["export", str(pack), "--out", str(tmp_path / "no"), *more]) == 2
    assert "a pack does not have" in capsys.readouterr().err
    (tmp_path / "other.sacl").write_text("no pack")
    arguments = ["export", str(tmp_path / "other.sacl"), "--form", "onnx"]
    assert main([*arguments, "--out", str(tmp_path / "no")]) == 2
    assert not (tmp_path / "no").exists()


def test_a_folder_of_label_maps_has_no_network(work, tmp_path, capsys):
    arguments = ["--predicted", str(tmp_path), "--form", "onnx", "--out", str(tmp_path / "out")]
    assert main(["export", *arguments]) == 2
    assert "give WORK instead of --predicted" in capsys.readouterr().err
