"""`python -m sacl_phantom LAYOUT --out DIR`: a generated cohort that lies as a download would."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sacl.errors import SaclError
from sacl.progress import say, track
from sacl_phantom.archives import LAYOUTS, ArchiveRequest, write_archive


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the archive that the command line asks for, and return the exit code."""
    usual = {f.name: f.default for f in dataclasses.fields(ArchiveRequest)}
    parser = argparse.ArgumentParser("python -m sacl_phantom", description=__doc__)
    parser.add_argument("layout", choices=tuple(LAYOUTS), help="whose names and traps to use")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    for name, kind, count, text in (
        ("scans", int, None, "scans with a label map"),
        ("unlabeled", int, None, "further scans without one"),
        ("shape", int, 3, "voxels of the largest scan; others have fewer slices"),
        ("spacing_mm", float, 3, "size of a voxel"),
        ("seed", int, None, "seed of everything random"),
    ):
        how: dict[str, Any] = {"type": kind, "nargs": count, "default": usual[name]}
        parser.add_argument(f"--{name.replace('_', '-')}", help=f"{text} (%(default)s)", **how)
    known = vars(parser.parse_args(arguments))
    out = known.pop("out")
    try:
        sides = {name: tuple(known[name]) for name in ("shape", "spacing_mm")}
        request = ArchiveRequest(**{**known, **sides})
        count = request.scans + request.unlabeled
        for _ in track(write_archive(out, request), request.layout, count):
            pass
    except SaclError as error:
        say(f"sacl_phantom: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
