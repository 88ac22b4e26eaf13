"""Run the Python examples of README and docs as tests."""

from __future__ import annotations

import os
import runpy
import tempfile
from pathlib import Path
from typing import Any

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser


def _enter_a_folder_with_models(namespace: dict[str, Any]) -> None:
    """Make what `docs/how-to/share.md` has at hand: two models and a scan."""
    # Here and not above: tests install their checks of types before they import the program.
    tiny = runpy.run_path(str(Path(__file__).parent / "tests" / "tiny_model.py"))
    namespace["_left"], namespace["_folder"] = Path.cwd(), tempfile.TemporaryDirectory()
    os.chdir(namespace["_folder"].name)
    tiny["write_scan"](Path("scan.nii.gz"))
    for seed, name in enumerate(("clinic.sacl", "hospital.sacl")):
        tiny["write_tiny_model"](Path(name), seed)


def _leave_it(namespace: dict[str, Any]) -> None:
    os.chdir(namespace["_left"])
    namespace["_folder"].cleanup()


_SHARE = "docs/how-to/share.md"
_PARSERS = [PythonCodeBlockParser()]
pytest_collect_file = (
    Sybil(parsers=_PARSERS, pattern="*.md", excludes=["work/*", ".venv/*", _SHARE])
    + Sybil(
        parsers=_PARSERS,
        pattern=_SHARE,
        setup=_enter_a_folder_with_models,
        teardown=_leave_it,
    )
).pytest()
