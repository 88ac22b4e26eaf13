"""Run the Python examples of README and docs as tests."""

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser()], pattern="*.md", excludes=["work/*", ".venv/*"]
).pytest()
