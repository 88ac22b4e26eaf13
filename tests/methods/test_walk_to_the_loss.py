"""How many files a reader walks through, from the command line to the loss of a step."""

import inspect
import sys
from pathlib import Path

import pytest
from tests.stages.toy_cohort import locate_toy_cohort

import sacl
from sacl.cli import main
from sacl.settings import ExtractSettings
from sacl.stages import pretrain as stage
from sacl.stages.extract import extract

ROOT = Path(sacl.__file__).parent


def own(paths):
    """Return the files of the package among some, relative to it."""
    return {str(Path(p).relative_to(ROOT)) for p in paths if Path(p).is_relative_to(ROOT)}


def files_of_calls(work):
    """Return what a call returns, and the files of all functions that it called."""
    files = set()
    sys.setprofile(lambda frame, event, _: files.add(frame.f_code.co_filename))
    try:
        value = work()
    finally:
        sys.setprofile(None)
    return value, own(files)


@pytest.mark.parametrize("method", ["semantic", "simclr", "pooled"])
def test_a_step_is_few_files_from_the_command_line(tmp_path, monkeypatch, method):
    workspace = locate_toy_cohort(tmp_path / "work")
    extract(ExtractSettings(patch_size=16, dense_size=16, region="slice"), workspace)
    above, within = set(), set()
    train = stage.train

    def watched(network, loss, *rest, **options):
        def step(trained, number):
            above.update(own(frame.filename for frame in inspect.stack(context=0)))
            value, files = files_of_calls(lambda: loss(trained, number))
            within.update(files)
            return value

        return train(network, step, *rest, **options)

    monkeypatch.setattr(stage, "train", watched)
    flags = {"method": method, "steps": "1", "batch": "8", "width": "8"}
    given = [word for key, value in flags.items() for word in (f"--pretrain.{key}", value)]
    assert main(["pretrain", "--work", str(workspace.root), "--device", "cpu", *given]) == 0
    assert "losses/contrastive.py" in within
    assert f"methods/{method}.py" in within
    to_the_loss = above | {"methods/__init__.py", f"methods/{method}.py", "losses/contrastive.py"}
    assert len(to_the_loss) <= 8, sorted(to_the_loss)
    assert len(to_the_loss | within) <= 15, sorted(to_the_loss | within)
    assert len(within) <= 10, sorted(within)
