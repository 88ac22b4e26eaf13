"""How large organs of adults are: a wide range, beyond which a label map deserves a look."""

from __future__ import annotations

from sacl.organs import canonical_name

_FACTOR = 5.0
"""A volume is believed from the smaller sex's mean divided by this to the larger one's times it."""

_MEAN_ML = {
    "liver": (1411.0, 1710.0),
    "spleen": (179.8, 238.4),
    "kidney_left": (156.5, 193.1),
    "kidney_right": (156.5, 193.1),
    "kidneys": (313.0, 386.2),
    "pancreas": (64.4, 87.4),
}
"""Mean volume of women and of men on CT: Geraghty, Boone, McGahan and Jain, Abdominal Imaging 29,
482-490, 2004 (149 adults; both kidneys are twice the one)."""
_LARGEST_MEAN_ML = {
    "gallbladder": 68.0,
    "stomach": 400.0,
    "urinary_bladder": 250.0,
}
"""Hollow organs with their content, men: ICRP Publication 89 (2002), reference masses at 1 g per
mL. They can be empty, so that they have no lower end."""


def adult_range_ml(organ: str) -> tuple[float, float] | None:
    """Return the smallest and the largest volume that is believed of an adult's whole organ.

    None for organs of which no volume is published, or whose volume depends on how much of them
    the scan shows (vessels, esophagus, bowel).

    Example:
        >>> adult_range_ml("Liver"), adult_range_ml("aorta")
        ((282.2, 8550.0), None)
    """
    name = canonical_name(organ)
    if name in _LARGEST_MEAN_ML:
        return 0.0, _LARGEST_MEAN_ML[name] * _FACTOR
    if name not in _MEAN_ML:
        return None
    women, men = _MEAN_ML[name]
    return women / _FACTOR, men * _FACTOR


def is_whole_pair(organ: str) -> bool:
    """Tell whether a name means both of two paired organs: these have two pieces."""
    return canonical_name(organ) in ("kidneys", "lungs", "adrenal_glands")
