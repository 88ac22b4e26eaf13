"""A model in one file, made in a moment: an untrained segmenter of two organs on whole slices."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np

from sacl.networks.encoder import EncoderSpec
from sacl.networks.segmenter import SegmenterSpec, TrainedModel, build_segmenter
from sacl.pack import FORMAT, NO_LICENSE, Manifest, PackedOrgan, Parts, write_pack
from sacl.patches.region import Placement
from sacl.patches.window import WindowRule
from sacl.prediction.volume import MapRecipe


def write_tiny_model(
    path: Path, seed: int = 0, organs: tuple[str, ...] = ("liver", "spleen")
) -> Path:
    """Write a pack whose maps are noise; another seed gives others."""
    spec = SegmenterSpec(
        encoder=EncoderSpec("resnet18", 8, 1),
        decoder="unet",
        head="dense",
        scheme="tiny",
        organs=organs,
        image_size=32,
        window=WindowRule("ct", (-175.0, 275.0)),
        placement=Placement(region="slice"),
    )
    text = dict(TrainedModel(spec=spec, method="none", steps=0, seconds=0.0).to_json())
    state = build_segmenter(spec, seed).state_dict()
    state["head.bias"][0] += 0.3  # most is background, as in a scan
    parts = Parts(state, text, MapRecipe(), ())
    manifest = Manifest(
        sacl_pack=FORMAT,
        title="Tiny",
        license=NO_LICENSE,
        organs=tuple(PackedOrgan(label=n, name=o) for n, o in enumerate(spec.organs, start=1)),
        recipe=parts.recipe,
        segmenter=text,
        coarse=(),
        trained_on={},
        scores=None,
        settings={},
        plan=None,
        versions={},
    )
    write_pack(path, manifest, parts)
    return path


def write_scan(path: Path, seed: int = 0) -> Path:
    """Write a small scan, stored from right to left."""
    rng = np.random.default_rng(seed)
    voxels = rng.normal(40, 60, (32, 28, 4)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-2.0, 2.0, 5.0, 1.0])), path)
    return path
