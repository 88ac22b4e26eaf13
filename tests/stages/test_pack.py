"""A model in one file: the same maps elsewhere, nobody's name in it, nothing of it believed."""

import json
import pickle
import struct
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from block_cohort import copy_of
from test_predict_folder import write_scans

from sacl.cli import main
from sacl.errors import ConfigError, DataError
from sacl.files.weights import packed
from sacl.model import load_model
from sacl.networks.coarse import CoarseNetwork, CoarseSpec, plan_levels
from sacl.pack import FORMAT, pack, read_pack
from sacl.plan.facts import MachineFacts
from sacl.plan.rules import Choice
from sacl.prediction.coarse import Ensemble, save_network
from sacl.prediction.volume import MapRecipe, write_recipe
from sacl.settings import EvaluateSettings
from sacl.stages.evaluate import evaluate

HOSPITAL = "Sankt_Gallen_Hospital"


def coarse_network(seed):
    crop, kernels, strides = plan_levels((16, 16, 4), (4.0, 4.0, 5.0))
    torch.manual_seed(seed)
    spec = CoarseSpec(
        scheme=HOSPITAL,
        organs=("liver", "spleen"),
        spacing_mm=(4.0, 4.0, 5.0),
        in_plane_size=None,
        crop=crop,
        channels=8,
        kernels=kernels,
        strides=strides,
    )
    return Ensemble(spec, (CoarseNetwork(spec).eval(),), torch.device("cpu"))


@pytest.fixture(scope="module")
def run(finished, tmp_path_factory):
    """Return a run with scores, two coarse networks, and an organ that is taken from their map."""
    workspace = copy_of(finished, tmp_path_factory.mktemp("packed") / HOSPITAL)
    for seed, name in enumerate(("fold-0", "all")):
        save_network(workspace.folder("locate"), name, coarse_network(seed))
    write_recipe(workspace.folder("predict"), MapRecipe(1, 0.1, ("spleen",)))
    evaluate(EvaluateSettings(), workspace)
    return workspace


@pytest.fixture(scope="module")
def model(run):
    """Return the run as one file."""
    path = run.root.parent / "elsewhere" / "model.sacl"
    pack(run, path)
    return path


def members_of(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_members(path, members, compression=zipfile.ZIP_STORED):
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as archive:
        warnings.simplefilter("ignore")  # of a name that is given twice
        for name, content in members:
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("finished", ["query"], indirect=True)
def test_a_pack_has_the_fingerprint_of_its_run(run, model):
    given = load_model(run.root, device="cpu")
    assert load_model(model, device="cpu").fingerprint == given.fingerprint
    other = load_model(run.root, device="cpu", copies=2)
    assert other.fingerprint != given.fingerprint


@pytest.mark.parametrize("finished", ["query"], indirect=True)
def test_a_fresh_process_in_an_empty_folder_writes_the_same_bytes(run, model, tmp_path):
    scans = write_scans(run, tmp_path / "scans")
    assert main(["predict", "--segmenter", str(run.root), *_to(scans, tmp_path / "here")]) == 0
    (tmp_path / "empty").mkdir()
    where = run.root.rename(run.root.with_name("away"))
    try:
        command = [sys.executable, "-m", "sacl", "predict", "--model", str(model)]
        done = subprocess.run(
            [*command, *_to(scans, tmp_path / "there")],
            check=False,
            cwd=tmp_path / "empty",
            capture_output=True,
            text=True,
        )
    finally:
        where.rename(run.root)
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in (tmp_path / "here").glob("*.nii.gz"))
    assert names == ["case-3.nii.gz", "case-4.nii.gz"]
    for name in names:
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()
        assert 2 in np.asarray(nibabel.load(tmp_path / "here" / name).dataobj)
    assert not any((tmp_path / "empty").iterdir())


def _to(scans, out):
    return ["--images", str(scans), "--out", str(out), "--device", "cpu"]


def test_a_pack_predicts_as_its_run_and_both_together(run, model, tmp_path):
    scans = write_scans(run, tmp_path / "scans")
    for out, models in (("run", [run.root]), ("pack", [model]), ("both", [model, run.root])):
        arguments = ["--model", *map(str, models), *_to(scans, tmp_path / out)]
        assert main(["predict", *arguments]) == 0
    name = "case-3.nii.gz"
    assert (tmp_path / "pack" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    one, both = (np.asarray(nibabel.load(tmp_path / o / name).dataobj) for o in ("pack", "both"))
    assert np.array_equal(one, both)


def test_the_same_run_gives_the_same_bytes(run, model, tmp_path):
    pack(run, tmp_path / "again.sacl")
    assert (tmp_path / "again.sacl").read_bytes() == model.read_bytes()


def test_it_says_what_it_is_and_how_good(run, tmp_path):
    told = ["--title", "Two blocks", "--license", "CC-BY-4.0"]
    assert main(["pack", str(run.root), str(tmp_path / "a.sacl"), *told]) == 0
    manifest, parts = read_pack(tmp_path / "a.sacl")
    assert [(o.label, o.name, o.snomed_ct) for o in manifest.organs] == [
        (1, "liver", "10200004"),
        (2, "spleen", "78961009"),
    ]
    assert manifest.trained_on == {}, "this cohort was ingested by hand"
    assert manifest.scores["subjects"] == {"test": 2}
    assert 0 <= manifest.scores["figures"]["organs"]["liver"]["dice"]["mean"] <= 1
    assert manifest.settings["ingest.window_hu"] == [-50.0, 250.0]
    assert manifest.settings["pretrain.steps"] == 2
    assert manifest.recipe == MapRecipe(1, 0.1, ("spleen",))
    assert len(parts.coarse) == 2
    assert manifest.versions["torch"] == torch.__version__
    card = members_of(tmp_path / "a.sacl")["README.md"].decode()
    assert card.startswith("# Two blocks\n")
    assert "License: CC-BY-4.0" in card
    assert "| 1 | liver | 10200004, Liver | 0." in card
    assert "Scored on subjects held out of training, 2 of test" in card


def test_scores_of_another_segmenter_are_left_out(run, tmp_path):
    workspace = copy_of(run, tmp_path / "work")
    record = workspace.folder("finetune") / "run.json"
    record.write_text(record.read_text().replace('"seed": 1', '"seed": 2'))
    assert pack(workspace, tmp_path / "a.sacl").scores is None
    assert "Not scored on subjects" in members_of(tmp_path / "a.sacl")["README.md"].decode()


def test_it_holds_no_path_and_no_name_of_a_case_a_cohort_or_a_hospital(run, tmp_path):
    workspace = copy_of(run, tmp_path / "work")
    choices = (
        Choice("ingest.labeled_order", f"/data/{HOSPITAL}/order.json", "yours"),
        Choice("pretrain.scan_label", "site", f"training scans by site: {HOSPITAL} 4"),
        Choice("", None, f"not annotated: {HOSPITAL}"),
        Choice("finetune.steps", 7, "as far as the time allows"),
    )
    plan = SimpleNamespace(time="2h", machine=MachineFacts("cpu", 2, 8.0, 0.0), choices=choices)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sacl.pack.read_plan", lambda root: plan)
        manifest = pack(workspace, tmp_path / "a.sacl")
    assert manifest.plan["choices"] == [
        {"setting": "finetune.steps", "value": 7, "reason": "as far as the time allows"}
    ]
    content = b"".join(members_of(tmp_path / "a.sacl").values())
    names = [HOSPITAL, "case-", "blocks", "site", "/home", "/tmp", str(tmp_path), "images/"]
    assert [name for name in names if name.encode() in content] == []
    assert b"finetune.steps" in content


def test_it_is_written_whole_or_not_at_all_and_overwrites_nothing_of_others(run, tmp_path):
    path = tmp_path / "model.sacl"
    path.write_bytes(b"by hand")
    with pytest.raises(DataError, match=r"model\.sacl: exists.*--force"):
        pack(run, path)
    pack(run, path, force=True)
    whole = path.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sacl.pack.packed", lambda state: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pack(run, path)
    assert path.read_bytes() == whole
    assert [p.name for p in tmp_path.iterdir()] == ["model.sacl"]


class Planted:
    """What a pickle runs when it is read."""

    def __reduce__(self):
        return Path.touch, (Path("run-by-a-pickle"),)


def changed(members, **changes):
    """Return members with a manifest in which some fields are others."""
    document = json.loads(members["model.json"])
    for name, value in changes.items():
        (*blocks, leaf), inner = name.split("__"), document
        for block in blocks:
            inner = inner[int(block) if block.isdigit() else block]
        inner[leaf] = value
    return {**members, "model.json": json.dumps(document).encode()}.items()


ORGANS_OF_COARSE = ("coarse__0__description", "coarse__1__description")


def hostile(members):
    """Yield members of packs that nobody should believe, and what is said of them."""
    weights = "segmenter.safetensors"
    yield [*members.items(), ("../../evil", b"x")], r"it holds '../../evil'"
    yield [*members.items(), ("/etc/passwd", b"x")], "it holds '/etc/passwd'"
    yield [*members.items(), ("data.pkl", pickle.dumps(Planted()))], r"it holds 'data\.pkl'"
    yield [*members.items(), ("model.json", b"{}")], "appears twice"
    yield {**members, weights: pickle.dumps(Planted())}.items(), "no whole safetensors file"
    yield {**members, weights: struct.pack("<Q", 1 << 62)}.items(), "no whole safetensors file"
    yield {**members, weights: packed({"a": torch.zeros(2)})}.items(), "the weights do not fit"
    yield [(n, c) for n, c in members.items() if n != weights], "a part is missing"
    yield [(n, c) for n, c in members.items() if n != "coarse-01.safetensors"], "network is missing"
    yield [*members.items(), ("coarse-02.safetensors", b"")], "one too many"
    yield {**members, "model.json": b"[1]"}.items(), "not that of a model of sacl"
    yield {**members, "model.json": b"[" * 100_000}.items(), "not that of a model of sacl"
    yield {**members, "model.json": b"\xff\xfe"}.items(), "not that of a model of sacl"
    newer = rf"newer sacl, in format {FORMAT + 1}.*pip install --upgrade"
    yield changed(members, sacl_pack=FORMAT + 1, organs="another way"), newer
    yield changed(members, organs=[]), "other organs than it lists"
    yield changed(members, recipe__copies=10**9), "damaged: expected `int` <= 100"
    yield changed(members, segmenter__image_size=10**9), "expected `int` <= 4096"
    yield changed(members, segmenter__encoder__width=10**7), "the weights do not fit"
    yield changed(members, segmenter__encoder__width="wide"), "expected `int`"
    yield changed(members, coarse__0__description__spacing_mm=[1e-9, 1, 1]), "`float` >= 0.01"
    yield changed(members, coarse__1__description__channels=16), "the weights do not fit"
    for name in ("../liver", "\x1b[31mliver", ".liver", "c:liver"):
        organs = [{"label": n, "name": o} for n, o in enumerate((name, "spleen"), 1)]
        both = {f"{key}__organs": [name, "spleen"] for key in ("segmenter", *ORGANS_OF_COARSE)}
        renamed = changed(members, organs=organs, **both)
        yield renamed, "is not a name for an organ"


def test_a_foreign_or_hostile_pack_is_one_line_and_runs_nothing(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    members = members_of(model)
    for content, words in hostile(members):
        path = write_members(tmp_path / "evil.sacl", content)
        with pytest.raises((DataError, ConfigError), match=rf"^evil\.sacl.*{words}") as caught:
            load_model(path, device="cpu")
        assert "\n" not in str(caught.value)
        assert "\x1b" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["evil.sacl"]
    assert not (tmp_path.parent / "evil").exists()


def test_a_bomb_is_refused_before_anything_is_inflated(model, tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("it was read"))
    members = [
        ("model.json", bytes(50_000_000)),
        ("README.md", b""),
        ("segmenter.safetensors", b""),
    ]
    bomb = write_members(tmp_path / "bomb.sacl", members, zipfile.ZIP_DEFLATED)
    with pytest.raises(DataError, match=r"model\.json is compressed"):
        load_model(bomb)
    large = write_members(tmp_path / "large.sacl", members)
    with pytest.raises(DataError, match="larger than it can be"):
        load_model(large)
    content = bytearray(model.read_bytes())
    first = content.index(b"PK\x01\x02")  # the directory's entry of model.json: 4 GB, as stored
    content[first + 20 : first + 28] = struct.pack("<II", 0xFFFFFFF0, 0xFFFFFFF0)
    (tmp_path / "liar.sacl").write_bytes(content)
    with pytest.raises(DataError, match="larger than it can be"):
        load_model(tmp_path / "liar.sacl")


def test_a_damaged_pack_is_one_line(model, tmp_path):
    whole, path = model.read_bytes(), tmp_path / "damaged.sacl"
    for cut in (0, 10, 4000, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"damaged\.sacl: not a model of sacl, or incomplete"):
            load_model(path)
    for place in (2000, len(whole) // 2, len(whole) * 3 // 4):
        content = bytearray(whole)
        content[place] ^= 255
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"incomplete \(BadZipFile\)"):
            load_model(path)
    with pytest.raises(DataError, match="no such file or folder"):
        load_model(tmp_path / "nothing.sacl")


def test_a_file_or_word_too_many_or_too_few_is_one_line(run, tmp_path, capsys):
    assert main(["pack", str(run.root)]) == 2
    assert "the file to write: MODEL.sacl" in capsys.readouterr().err
    assert main(["pack", str(run.root), "a.sacl", "b.sacl"]) == 2
    assert "got also 'b.sacl'" in capsys.readouterr().err
    assert main(["predict", "--images", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "--model" in capsys.readouterr().err
