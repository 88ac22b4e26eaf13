"""Which layout a dataset has: recognized by its files, or named by the user."""

from __future__ import annotations

from pathlib import Path

from sacl.cohort.dataset import Dataset, Layout, first_of
from sacl.cohort.layouts import dicom
from sacl.cohort.layouts.challenges import AMOS, BTCV, FLARE2021
from sacl.cohort.layouts.datalists import DECATHLON, MONAI_DATALIST
from sacl.cohort.layouts.nnssl import NNSSL
from sacl.cohort.layouts.nnunet import NNUNET
from sacl.cohort.layouts.plain import FOLDER, TABLE, refuse_a_part
from sacl.cohort.layouts.totalsegmentator import TOTALSEGMENTATOR
from sacl.dicom.verdict import DicomExport
from sacl.errors import DataError

LAYOUTS: dict[str, Layout] = {
    "nnssl": NNSSL,
    "nnunet": NNUNET,
    "amos": AMOS,
    "decathlon": DECATHLON,
    "btcv": BTCV,
    "flare2021": FLARE2021,
    "totalsegmentator": TOTALSEGMENTATOR,
    "table": TABLE,
    "monai_datalist": MONAI_DATALIST,
    "folder": FOLDER,
    "dicom": dicom.DICOM,
}
"""All layouts, the more specific one first."""


def find(
    root: Path, layout: str = "auto", export: DicomExport | None = None
) -> tuple[Dataset, str]:
    """List a dataset, and tell by what its layout was recognized."""
    name, reason = recognize(root, layout)
    dataset = dicom.read_export(root, export) if name == dicom.NAME else LAYOUTS[name].read(root)
    return dataset, reason


def recognize(root: Path, layout: str = "auto") -> tuple[str, str]:
    """Return the name of a dataset's layout, which is to be this one, and how it was recognized."""
    _require_there(root)
    for name in LAYOUTS if layout == "auto" else [layout]:
        if reason := LAYOUTS[name].recognize(root):
            if layout == "auto" and name == "folder":
                refuse_a_part(root)
            return name, reason
    if layout != "auto":
        expected = LAYOUTS[layout].expected
        raise DataError(f"data '{root}': not of the layout {layout}; expected {expected}")
    zips = [(path.name, "no DICOM file in it") for path in sorted(root.glob("*.zip"))]
    empty = f"; {first_of(zips, 'zips')}" if zips else ""
    raise DataError(
        f"data '{root}': of no known layout ({', '.join(LAYOUTS)}){empty}; list the scans in a"
        " cohort.csv with the columns case_id, image and label"
    )


def _require_there(root: Path) -> None:
    """Refuse a path that leads nowhere, in a circle, or to a pipe."""
    try:
        is_there = root.stat() and (root.is_dir() or root.is_file())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        shown = str(root) if len(str(root)) < 200 else f"{str(root)[:60]}..."
        printable = shown.encode(errors="backslashreplace").decode()
        raise DataError(f"data '{printable}': {(reason or 'no such path').lower()}") from error
    if not is_there:
        raise DataError(f"data '{root}': a pipe or device, expected a folder or a file")
