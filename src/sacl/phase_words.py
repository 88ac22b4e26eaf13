"""The words for a scan's contrast phase, and what hospitals and other tools call the same."""

from __future__ import annotations

from sacl.organs import snake_case
from sacl.types import UNKNOWN

PHASE = "phase"
"""Name of the scan-wise label that holds the contrast phase."""
PHASES = ("native", "arterial_early", "arterial_late", "portal_venous", "delayed")
"""The contrast phases in the order of time after the injection."""

_ALIASES = {
    "native": "non_contrast noncontrast non_enhanced unenhanced without_contrast"
    " pre_contrast precontrast plain nc ncct",
    "arterial_early": "early_arterial eap",
    # Without a further word the abdomen's arterial phase is the late one.
    "arterial_late": "late_arterial arterial hepatic_arterial corticomedullary lap",
    "portal_venous": "portal portalvenous portovenous venous pv pvp",
    "delayed": "delay equilibrium excretory urographic",
}
_PHASE_OF = {alias: phase for phase, aliases in _ALIASES.items() for alias in aliases.split()}


def phase_word(text: str) -> str:
    """Return the one word for a contrast phase; another word is only put into snake case.

    Example:
        >>> phase_word("Portal-venous phase"), phase_word("non-contrast"), phase_word("ED")
        ('portal_venous', 'native', 'ed')
    """
    word = snake_case(text)
    if not word:
        return UNKNOWN
    short = word.removesuffix("_phase")
    return short if short in PHASES else _PHASE_OF.get(short, word)
