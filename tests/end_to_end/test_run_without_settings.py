"""`sacl run DIR` on a folder that nobody wrote settings for; flags cut the trainings short."""

import json
import shutil

import pytest
from tests.planted import LABELS, clean_files, write_files

from sacl.cli import main
from sacl.files.nifti import write_label_map
from sacl.plan.document import PLAN_FILE
from sacl.prediction.guard import read_findings
from sacl.run.record import read_record
from sacl.run.workspace import FOLDERS
from sacl.types import Grid, LabelMap, LabelScheme

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(900)]

SHORT = (
    *("--locate.maps.source", "maps", "--extract.dense_size", "32", "--predict.copies", "0"),
    *("--finetune.steps", "6", "--finetune.dense.teacher_steps", "4", "--pretrain.width", "8"),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        files = clean_files()
        for case, scan in files.scans.items():
            grid = Grid(scan.labels.shape, scan.affine)
            label_map = LabelMap(scan.labels, grid, LabelScheme("all", tuple(LABELS)))
            write_label_map(root / "maps" / f"{case}.nii.gz", label_map)
            if scan.split == "train" and case not in ("c0", "c2"):
                scan.labels = None
        write_files(files, root / "clinic")
        yield root


def run(*more):
    return main(["run", "clinic", "--device", "cpu", *SHORT, *more])


def test_a_folder_alone_gives_maps_scores_and_a_page_that_says_why(finished, capsys):
    assert run("--time", "1h") == 0
    told = capsys.readouterr().err
    work = finished / "work" / "clinic"
    assert "plan: planted: 10 CT scans of 9 subjects, 2 labeled" in told
    assert "plan: finetune.steps 6: yours" in told
    assert told.index("plan: ") < told.index("[2/8] locate")
    assert len(list((work / FOLDERS["predict"]).glob("*/c*.nii.gz"))) == 10
    *_, doubted, _ = told.splitlines()
    doubts = [*read_record(work / FOLDERS["evaluate"]).results["doubts"]]
    doubts += [doubt.text for doubt in read_findings(work / FOLDERS["predict"]).doubts]
    assert doubted == f"ATTENTION, the label maps are in doubt ({len(doubts)}), first {doubts[0]}"
    page = (work / FOLDERS["report"] / "report.html").read_text()
    assert "Fine-tuning did 10 of at most 10 steps: more time alone will give little." in page
    assert "It learned from 2 labeled subjects and " in page
    assert "What was chosen, and why" in page
    assert "its head start of 3 points is gone" in page
    assert "<dt>finetune.steps 6</dt><dd>yours</dd>" in page
    settings = json.loads((work / FOLDERS["pretrain"] / "run.json").read_text())["settings"]
    assert settings["pretrain"]["method"] == "none"


def test_the_same_command_finds_everything_up_to_date(finished, capsys):
    assert run() == 0
    assert capsys.readouterr().err.count("up to date") == len(FOLDERS)


def test_its_file_of_settings_is_the_same_run_and_what_is_changed_in_it_counts(finished, capsys):
    assert main(["plan", "clinic", "--device", "cpu", *SHORT]) == 0
    text = capsys.readouterr().out
    (finished / "cohort.yaml").write_text(text)
    assert main(["run", "cohort.yaml"]) == 0
    assert capsys.readouterr().err.count("up to date") == len(FOLDERS) - 1
    (finished / "cohort.yaml").write_text(text.replace("patch_size: 48", "patch_size: 32"))
    assert main(["run", "cohort.yaml", "--work", "other"]) == 0
    record = json.loads((finished / "other" / FOLDERS["extract"] / "run.json").read_text())
    assert record["settings"]["extract"]["patch_size"] == 32
    shutil.copy(finished / "work" / "clinic" / PLAN_FILE, finished / "other")
    assert main(["report", "cohort.yaml", "--work", "other", "--force"]) == 0
    page = (finished / "other" / FOLDERS["report"] / "report.html").read_text()
    assert "<dt>extract.patch_size 32</dt><dd>yours; the plan had 48, since" in page


def test_thin_slices_are_segmented_as_volumes_and_so_are_new_scans(finished, capsys):
    short = ("--locate.volume.steps", "3", "--locate.channels", "8", "--finetune.steps", "3")
    contrast = ("--pretrain.method", "pooled", "--pretrain.steps", "3")
    flags = (*short, *contrast, "--finetune.volume.teacher_steps", "2", "--work", "volumes")
    assert main(["run", "clinic", "--device", "cpu", "--time", "1h", *flags]) == 0
    told = capsys.readouterr().err
    assert "plan: finetune.volume.teacher_steps 2: yours" in told
    assert "predict.keep_component 1.0: organs are drawn in one piece" in told
    assert "[7/7] report: done" in told
    work = finished / "volumes"
    assert not (work / FOLDERS["extract"]).exists()
    segmenter = json.loads((work / FOLDERS["finetune"] / "volume" / "segmenter.json").read_bytes())
    assert segmenter["training"]["method"] == "pooled"
    own = {p.name: p.read_bytes() for p in (work / FOLDERS["predict"] / "volume").glob("*.nii.gz")}
    assert len(own) == 10
    scans = finished / "clinic" / "imagesTs"
    words = ("--segmenter", "volumes", "--images", str(scans), "--out", "new", "--device", "cpu")
    assert main(["predict", *words]) == 0
    for path in (finished / "new").glob("*.nii.gz"):
        assert path.read_bytes() == own[path.name]
