"""Work directories that tests of fine-tuning and of prediction share; no test may change one."""

import pytest
from block_cohort import copy_of, locate_blocks, settings_of

from sacl.settings import ExtractSettings, PredictSettings, PretrainSettings
from sacl.stages.extract import extract
from sacl.stages.finetune import finetune
from sacl.stages.predict import predict
from sacl.stages.pretrain import pretrain


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory):
    """Return a work directory that is done up to pretraining."""
    workspace = locate_blocks(tmp_path_factory.mktemp("runs") / "work")
    extract(ExtractSettings(patch_size=16, dense_size=32, region="slice"), workspace)
    pretrain(PretrainSettings(method="semantic", width=8, steps=2, batch=8), workspace)
    return workspace


@pytest.fixture(scope="session", params=["dense", "query"])
def finished(request, pretrained, tmp_path_factory):
    """Return a work directory that is done up to prediction, for either head."""
    workspace = copy_of(pretrained, tmp_path_factory.mktemp(request.param) / "work")
    finetune(settings_of(request.param), workspace)
    predict(PredictSettings(copies=0), workspace)
    return workspace
