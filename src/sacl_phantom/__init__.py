"""A seeded abdominal CT phantom: 13 organs, three contrast phases, at any spacing."""

from sacl_phantom.anatomy import ORGANS, SCHEME
from sacl_phantom.contrast import PHASES, Phase
from sacl_phantom.scan import PhantomScan, make_scan

__all__ = ["ORGANS", "PHASES", "SCHEME", "PhantomScan", "Phase", "make_scan"]
