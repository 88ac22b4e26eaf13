"""A MONAI bundle of a segmenter on volumes, which runs with MONAI and torch, without sacl.

MONAI's own transforms resample otherwise (Dice 0.82 to 0.94 between maps of one network),
so the bundle has scripts: transforms around the source of the modules that predict here.
"""

from __future__ import annotations

import ast
import inspect
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import torch
from monai.networks.nets import DynUNet

from sacl import __version__
from sacl.errors import ConfigError
from sacl.export.networks import (
    Trained,
    about,
    dynunet_arguments,
    dynunet_state,
    fits_monai,
    on_volumes,
    page,
)
from sacl.files.atomic import plain, replacing, write_text
from sacl.files.documents import JsonObject, write_json
from sacl.patches import coarse_grid, window
from sacl.patches.query import triangle
from sacl.patches.region import without_islands

_NEEDED = ("monai", "torch", "numpy", "scipy", "nibabel")
_ONLY_THERE = {"pytorch-ignite": "0.5.2", "fire": "0.6"}
"""What a bundle needs and this program does not."""
_LEFT_OUT = ("sacl", "jaxtyping", "__future__")


def write_bundle(trained: Trained, out: Path) -> list[Path]:
    """Write a bundle that `python -m monai.bundle run` runs on a folder of NIfTI scans.

    Raises:
        ConfigError: the segmenter works on slices, or MONAI's DynUNet cannot be its network.
    """
    why = "MONAI has neither its network nor transforms that cut its slices and put them back"
    segmenter = on_volumes(trained, "monai-bundle", why)
    if not fits_monai(trained):
        raise ConfigError("--form monai-bundle: its U-Net has two levels, MONAI's three; use onnx")
    arguments, facts = dynunet_arguments(segmenter.spec.network), about(trained)
    network = DynUNet(**arguments)
    network.load_state_dict(dynunet_state(segmenter), strict=False)
    needed = {name: version(name).partition("+")[0] for name in _NEEDED} | _ONLY_THERE
    with replacing(out / "models" / "model.pt") as temporary:
        torch.save(network.state_dict(), temporary)
    configuration = {
        "network": {"_target_": "DynUNet", **arguments},
        "spec": plain(asdict(segmenter.spec)),
        "keep_component": trained.keep_component,
    }
    sources = [_source_of(window), inspect.getsource(triangle), inspect.getsource(without_islands)]
    sources = [_source_of(coarse_grid), *sources]
    texts = {
        "configs/inference.json": page("inference.json", **configuration),
        "scripts/__init__.py": "",
        "scripts/transforms.py": page("transforms.txt", sources=sources, made_by=facts["made_by"]),
        "docs/README.md": page("bundle.md", facts=facts, trained=trained, needed=needed),
        "LICENSE": page("license.txt", facts=facts),
    }
    for name, text in texts.items():
        write_text(out / name, text)
    write_json(out / "configs" / "metadata.json", _metadata(trained, facts, needed))
    return [out / name for name in ("configs", "models", "scripts", "docs", "LICENSE")]


def _metadata(trained: Trained, facts: JsonObject, needed: dict[str, str]) -> JsonObject:
    """Return what the bundle's specification asks for."""
    crop = on_volumes(trained).spec.network.crop
    tensor: JsonObject = {
        "type": "image",
        "modality": trained.segmenter.spec.window.modality.upper(),
        "spatial_shape": list(crop),
        "dtype": "float32",
        "is_patch_data": True,
    }
    image = {"format": "magnitude", "num_channels": 1, "value_range": [0, 1]}
    pred = {"format": "segmentation", "num_channels": len(facts["labels"]), "value_range": []}
    return {
        "version": "0.1.0",
        "changelog": {"0.1.0": facts["made_by"]},
        "monai_version": needed["monai"],
        "pytorch_version": needed["torch"],
        "numpy_version": needed["numpy"],
        "required_packages_version": {
            name: needed[name] for name in ("nibabel", "pytorch-ignite", "scipy")
        },
        "name": trained.title,
        "task": "segmentation of organs",
        "description": f"{', '.join(trained.segmenter.spec.organs)}; {facts['intensity']}",
        "authors": "see LICENSE",
        "copyright": "see LICENSE",
        "intended_use": "research, not a medical device",
        "network_data_format": {
            "inputs": {"image": {**tensor, **image, "channel_def": {"0": "image"}}},
            "outputs": {"pred": {**tensor, **pred, "channel_def": facts["labels"]}},
        },
        "sacl": {"version": __version__, **facts},
    }


def _source_of(module: ModuleType) -> str:
    """Return what a module defines, without the imports that others have not."""
    text = inspect.getsource(module)
    lines, parts = text.splitlines(), []
    for node in ast.parse(text).body[1:]:  # the docstring is said by the script
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in _LEFT_OUT:
            continue
        first = min(n.lineno for n in (node, *getattr(node, "decorator_list", ())))
        parts.append("\n".join(lines[first - 1 : node.end_lineno]))
    return "\n".join(parts)
