"""Semantic-aware contrastive learning: from many scans and few annotations to a segmenter.

The stages are functions: `sacl.ingest(settings, workspace)`, and so on; `sacl.load_model(work)`
returns a trained segmenter. `import sacl` loads none of them before it is used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_STAGES = (
    *("ingest", "locate", "extract", "pretrain"),
    *("finetune", "predict", "evaluate", "report", "export"),
)
_HOME = {
    **{stage: f"sacl.stages.{stage}" for stage in _STAGES},
    "run": "sacl.run.pipeline",
    "load_model": "sacl.model",
    "load_config": "sacl.run.configure",
    "Workspace": "sacl.run.workspace",
}

__all__ = ["__version__", *_HOME]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'sacl' has no attribute '{name}'")
