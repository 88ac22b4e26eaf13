"""Which layout a dataset has: recognized by its files, or named by the user."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from sacl.cohort.layouts import (
    amos,
    btcv,
    decathlon,
    dicom,
    flare2021,
    folder,
    monai_datalist,
    nnssl,
    nnunet,
    table,
    totalsegmentator,
)
from sacl.cohort.layouts.found import Found
from sacl.errors import DataError

LAYOUTS: dict[str, ModuleType] = {
    "nnssl": nnssl,
    "nnunet": nnunet,
    "amos": amos,
    "decathlon": decathlon,
    "btcv": btcv,
    "flare2021": flare2021,
    "totalsegmentator": totalsegmentator,
    "table": table,
    "monai_datalist": monai_datalist,
    "folder": folder,
    "dicom": dicom,
}
"""All layouts, the more specific one first."""


def find(
    root: Path, layout: str = "auto", export: dicom.DicomExport | None = None
) -> tuple[Found, str]:
    """List a dataset, and tell by what its layout was recognized.

    Args:
        root: folder, table or zip.
        layout: name of a layout, `auto` to recognize it.
        export: how DICOM is read, where it is DICOM.

    Raises:
        DataError: there is no such folder, its layout is not the named one or none that is known,
            or the listing itself fails.
    """
    name, reason = recognize(root, layout)
    found: Found = dicom.read(root, export) if name == dicom.NAME else LAYOUTS[name].read(root)
    return found, reason


def recognize(root: Path, layout: str = "auto") -> tuple[str, str]:
    """Return the name of a dataset's layout and by what it was recognized.

    Raises:
        DataError: there is no such folder, or its layout is not the named one or none that is
            known.
    """
    if not root.exists():
        raise DataError(f"data '{root.name}': no such file or folder")
    names = list(LAYOUTS) if layout == "auto" else [layout]
    for name in names:
        reason = LAYOUTS[name].recognize(root)
        if reason:
            return name, reason
    if layout != "auto":
        expected = (LAYOUTS[layout].__doc__ or layout).splitlines()[0]
        raise DataError(f"data '{root.name}': not of the layout {layout}; expected {expected}")
    raise DataError(
        f"data '{root.name}': of no known layout ({', '.join(names)}); list the scans in a"
        " cohort.csv with the columns case_id, image and label"
    )
