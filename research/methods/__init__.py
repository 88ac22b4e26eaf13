"""Pretraining methods that lost, or that are controls; importing this enters them into the table.

`supcon`, `simclr-attention`, `correlation`, `semantic-hidden-half` (query patches), `parts`,
`simclr-slices`, `pixel`, `self-training`, `mim` (dense slices), and the decoder `linear`.
"""

from research.methods import linear, patches, pixels, regions

__all__ = ["linear", "patches", "pixels", "regions"]
