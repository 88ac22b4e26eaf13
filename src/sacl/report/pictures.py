"""The page's sections with pictures: scans, training curves, the map of embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sacl.report.embedding import Embedding, flat_map, separabilities
from sacl.report.figures import Curve, loss_curves, overlay, palette, scatter_maps
from sacl.report.overlay import ORIENTATION, as_seen, fullest_slice
from sacl.report.page import Section, chart, legend, pictures
from sacl.report.tables import Cell, html_table, number
from sacl.types import UNKNOWN, LabelMap, Volume


@dataclass(frozen=True, eq=False)
class ShownScan:
    """A scan to show: its role (best, median, worst), its score, and all that is drawn."""

    role: str
    case_id: str
    dice: float
    image: Volume
    window: tuple[float, float]
    reference: LabelMap
    predicted: LabelMap


def scan_section(run: str, scans: Sequence[ShownScan]) -> Section:
    """Return one slice of each scan with the outlines of reference and prediction."""
    organs = scans[0].reference.scheme.names
    colors = palette(organs)
    shown: set[int] = set()
    items = []
    for scan in scans:
        uri, labels = _picture(scan, {n + 1: colors[name] for n, name in enumerate(organs)})
        shown |= labels
        items.append((scan.role.capitalize(), f"{scan.case_id}, mean Dice {scan.dice:.3f}", uri))
    key = [("reference (white)", "#ffffff")]
    key += [(organs[n - 1].replace("_", " "), colors[organs[n - 1]]) for n in sorted(shown)]
    note = f"{ORIENTATION} The slice with the largest organ area of each scan; run: {run}."
    return Section("Best, median and worst scan", legend(key) + pictures(items), note)


def _picture(scan: ShownScan, colors: Mapping[int, str]) -> tuple[str, set[int]]:
    """Return the overlay of one scan, and the labels that it shows."""
    k = fullest_slice(scan.reference.voxels, scan.predicted.voxels)
    low, high = scan.window
    gray = np.clip((np.asarray(scan.image.voxels[:, :, k], np.float32) - low) / (high - low), 0, 1)
    reference, predicted = (as_seen(m.voxels[:, :, k]) for m in (scan.reference, scan.predicted))
    spacing = scan.image.grid.spacing_mm
    uri = overlay(as_seen(gray), reference, predicted, colors, spacing[1] / spacing[0])
    return uri, {int(n) for n in np.union1d(reference, predicted) if n}


def training_section(panels: Mapping[str, Sequence[Curve]], colors: Mapping[str, str]) -> Section:
    """Return the loss curves of all networks, those of the runs in the runs' colors."""
    title = "How training went"
    if not panels:
        return Section(title, note="Left out: no losses.csv is in the work directory.")
    note = "Thin: loss of every step. Thick: running mean; one that still falls wants more steps."
    return Section(title, chart(loss_curves(panels, colors)), note)


def embedding_section(
    embedding: Embedding, organs: Sequence[str], label_name: str, shown_patches: int, seed: int
) -> Section:
    """Return how well the encoder separates organs and scan-wise labels, as table and map."""
    body: list[list[str | Cell]] = [
        [
            row.what,
            str(row.classes),
            _or_dash(row.silhouette, 2),
            Cell(_or_dash(100 * row.accuracy, 0) + " %", "best"),
            _or_dash(100 * row.chance, 0) + " %",
        ]
        for row in separabilities(embedding, label_name, seed)
    ]
    head = ["Query patches told apart by", "classes", "silhouette", "named rightly", "by guessing"]
    shown = embedding.sample(shown_patches, seed)
    groups, colors = {"by organ": shown.organ.tolist()}, {"by organ": palette(organs)}
    labels = sorted(set(shown.scan_label.tolist()) - {UNKNOWN})
    if len(labels) > 1:
        groups[f"by {label_name}"] = shown.scan_label.tolist()
        colors[f"by {label_name}"] = {**palette(labels), UNKNOWN: "#9aa0a6"}
    drawing = scatter_maps(flat_map(shown.feature, seed), groups, colors)
    note = (
        "Silhouette (cosine, from -1 to 1) over held-out subjects' patches. Named rightly: the"
        " share of held-out subjects' patches whose class the nearest training patches give, mean"
        f" over classes. Map: t-SNE of {len(shown.feature)} patches of"
        " all splits; only neighborhoods mean something, not distances between groups."
    )
    return Section("What the encoder learned", html_table(head, body) + chart(drawing), note)


def _or_dash(value: float, digits: int) -> str:
    return number(value if np.isfinite(value) else None, digits)
