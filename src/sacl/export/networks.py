"""A trained segmenter as other programs load it: safetensors, ONNX, for nnU-Net, a MONAI bundle.

The U-Net on volumes is nnU-Net's plain one of MONAI's blocks, so its weights fit MONAI's `DynUNet`
and nnU-Net's `PlainConvUNet` by other names. The networks on slices fit neither.

A bundle runs with MONAI and torch, without sacl. MONAI's own transforms resample otherwise (Dice
0.82 to 0.94 between maps of one network), so it has scripts: transforms around the source of the
modules that predict here.
"""

from __future__ import annotations

import ast
import inspect
import json
import logging
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch
from jaxtyping import Float
from jinja2 import Environment, PackageLoader, StrictUndefined
from monai.networks.nets import DynUNet
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from sacl import __version__
from sacl.errors import ConfigError
from sacl.files.atomic import plain, replacing, write_text
from sacl.files.documents import JsonObject, write_json
from sacl.networks.coarse import CoarseNetwork, CoarseSpec
from sacl.networks.encoder import State
from sacl.networks.segmenter import Segmenter, VolumeSegmenter, VolumeSegmenterSpec
from sacl.patches import coarse_grid, window
from sacl.patches.query import triangle
from sacl.patches.region import without_islands

OPSET = 18
"""Of ONNX's operators; onnxruntime knows it since 1.14."""
_WEIGHTS, _ABOUT, _README = "weights.safetensors", "about.json", "README.md"
_CHECKPOINT, _PLAN = "checkpoint_final.pth", "adaptation_plan.json"
_NEEDED = ("monai", "torch", "numpy", "scipy", "nibabel")
_ONLY_THERE = {"pytorch-ignite": "0.5.2", "fire": "0.6"}
"""What a bundle needs and this program does not."""
_LEFT_OUT = ("sacl", "jaxtyping", "__future__")


@dataclass(frozen=True, eq=False)
class Trained:
    """A segmenter in eval mode on the CPU, and what its label maps are made with beside it.

    These are the turned copies, the removal of small components, and organs of the coarse maps.
    `license` says under what terms others may use it.
    """

    segmenter: Segmenter | VolumeSegmenter
    title: str
    license: str
    copies: int = 0
    keep_component: float = 0.0
    from_coarse: tuple[str, ...] = ()


def about(trained: Trained) -> JsonObject:
    """Return what has to be known to use the network: its input, its output and its organs.

    `spec` has all of it for programs, the other fields say it in words.
    """
    spec = trained.segmenter.spec
    window, (low, high) = spec.window, spec.window.window_hu
    if window.modality == "mr":
        low, high = window.percentiles
    scale = "HU" if window.modality == "ct" else "percentile of the voxels above the lowest"
    if isinstance(spec, VolumeSegmenterSpec):
        grid = spec.network
        voxels = f"voxels of {' x '.join(f'{size:g}' for size in grid.spacing_mm)} mm"
        if grid.in_plane_size:
            voxels = f"{grid.in_plane_size} pixels along the smallest square around a slice"
        where = f"crops {list(grid.crop)} of a scan resampled to {voxels}"
    elif spec.head == "dense":
        square = {"organs": "the square around all organs", "slice": "the whole slice"}
        where = f"axial slices, {square[spec.placement.region]} at {spec.image_size} pixels a side"
    else:
        where = f"an organ's patches of axial slices at {spec.image_size} pixels a side; channel 1"
        where += " is the share of each pixel that the organ covers in a coarse label map"
    one = "of the organ" if spec.head == "query" else "per class, background first"
    return {
        "made_by": f"sacl {__version__}",
        "title": trained.title,
        "license": trained.license,
        "labels": {"0": "background"} | {str(n): o for n, o in enumerate(spec.organs, start=1)},
        "input": f"{where}; i to the right, j to the front, k to the head (RAS+)",
        "intensity": f"{window.modality}: {low:g} {scale} becomes 0, {high:g} becomes 1, clipped",
        "output": f"logits {one}",
        "spec": plain(asdict(spec)),
    }


def write_weights(trained: Trained, out: Path) -> list[Path]:
    """Write weights as safetensors, what they are of, and how to load them."""
    segmenter, facts = trained.segmenter, about(trained)
    state = segmenter.state_dict()
    if isinstance(segmenter, VolumeSegmenter) and fits_monai(segmenter):
        state = dynunet_state(segmenter)
        facts = {**facts, "network": dynunet_arguments(segmenter.spec.network)}
    with replacing(out / _WEIGHTS) as temporary:
        save_file({name: value.contiguous() for name, value in state.items()}, temporary)
    write_json(out / _ABOUT, facts)
    write_text(out / _README, page("weights.md", facts=facts))
    return [out / _WEIGHTS, out / _ABOUT, out / _README]


class _Finest(nn.Module):
    """A segmenter on volumes without the levels that only its training reads."""

    def __init__(self, network: VolumeSegmenter) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Float[Tensor, "n 1 i j k"]) -> Float[Tensor, "n class i j k"]:
        """Return the logits of the finest level."""
        return self.network(image)[0]


def write_onnx(trained: Trained, out: Path) -> list[Path]:
    """Write the network as ONNX, from `image` to `logits`, of any batch and one size of image.

    Raises:
        ConfigError: the packages for it are not installed.
    """
    missing = next((name for name in ("onnx", "onnxscript") if find_spec(name) is None), None)
    if missing is not None:
        raise ConfigError(f"--form onnx: needs {missing}; pip install 'sacl[onnx]'")
    segmenter = trained.segmenter
    if isinstance(segmenter, VolumeSegmenter):
        network: nn.Module = _Finest(segmenter)
        size = [1, *segmenter.spec.network.crop]
    else:
        network, side = segmenter, segmenter.spec.image_size
        size = [segmenter.spec.encoder.in_channels, side, side]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # which speaks of torchvision
    program = torch.onnx.export(
        network.eval(),
        (torch.zeros([2, *size]),),
        input_names=["image"],
        output_names=["logits"],
        opset_version=OPSET,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    facts = {**about(trained), "opset": str(OPSET)}
    told = {k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()}
    program.model.metadata_props.update(told)
    with replacing(out / "segmenter.onnx") as temporary:
        program.save(temporary)
    return [out / "segmenter.onnx"]


def write_nnunet(trained: Trained, out: Path) -> list[Path]:
    """Write a checkpoint that nnU-Net starts a training from, and the plan to adapt to it.

    nnU-Net reads images as [k, j, i], and so do the kernels that are written.

    Raises:
        ConfigError: the segmenter works on slices.
    """
    network = on_volumes(trained, "nnunet-encoder", "nnU-Net has no network like it")
    plan = json.loads(page("adaptation_plan.json", spec=network.spec.network))
    checkpoint = {"network_weights": nnunet_state(network), "nnssl_adaptation_plan": plan}
    with replacing(out / _CHECKPOINT) as temporary:
        torch.save(checkpoint, temporary)
    write_json(out / _PLAN, plan)
    write_text(out / _README, page("nnunet.md", facts=about(trained)))
    return [out / name for name in (_CHECKPOINT, _PLAN, _README)]


def write_bundle(trained: Trained, out: Path) -> list[Path]:
    """Write a bundle that `python -m monai.bundle run` runs on a folder of NIfTI scans.

    Raises:
        ConfigError: the segmenter works on slices, or MONAI's DynUNet cannot be its network.
    """
    why = "MONAI has neither its network nor transforms that cut its slices and put them back"
    segmenter = on_volumes(trained, "monai-bundle", why)
    if not fits_monai(segmenter):
        raise ConfigError("--form monai-bundle: its U-Net has two levels, MONAI's three; use onnx")
    arguments, facts = dynunet_arguments(segmenter.spec.network), about(trained)
    network, spec = DynUNet(**arguments), segmenter.spec
    network.load_state_dict(dynunet_state(segmenter), strict=False)
    with replacing(out / "models" / "model.pt") as temporary:
        torch.save(network.state_dict(), temporary)
    needed = {name: version(name).partition("+")[0] for name in _NEEDED} | _ONLY_THERE
    described = {"network": {"_target_": "DynUNet", **arguments}, "spec": plain(asdict(spec))}
    run = page("inference.json", **described, keep_component=trained.keep_component)
    told = {"version": __version__, **facts}
    sources = [_source_of(coarse_grid), _source_of(window)]
    sources += [inspect.getsource(triangle), inspect.getsource(without_islands)]
    texts = {
        "configs/inference.json": run,
        "configs/metadata.json": page("metadata.json", spec=spec, about=told, needed=needed),
        "scripts/__init__.py": "",
        "scripts/transforms.py": page("transforms.txt", sources=sources, made_by=facts["made_by"]),
        "docs/README.md": page("bundle.md", facts=facts, trained=trained, needed=needed),
        "LICENSE": page("license.txt", facts=facts),
    }
    for name, text in texts.items():
        write_text(out / name, text)
    return [out / name for name in ("configs", "models", "scripts", "docs", "LICENSE")]


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


def fits_monai(segmenter: VolumeSegmenter) -> bool:
    """Tell whether MONAI's DynUNet, which has three levels at least, is the same network."""
    return len(segmenter.spec.network.strides) >= 3


def dynunet_arguments(spec: CoarseSpec) -> JsonObject:
    """Return what MONAI's DynUNet is made of, to be the same network."""
    return {
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 1 + len(spec.organs),
        "kernel_size": spec.kernels,
        "strides": spec.strides,
        "upsample_kernel_size": spec.strides[1:],
        "filters": spec.widths,
    }


def dynunet_state(network: CoarseNetwork) -> State:
    """Return the weights by DynUNet's names, each once, without the heads of coarser levels.

    Its upward convolutions have the kernels of the level below, which may be wider than ours (and
    nnU-Net's): these get a border of zeros.
    """
    last = len(network.down) - 1
    state: dict[str, Tensor] = {}
    for name, value in network.state_dict().items():
        kind, level, rest = name.split(".", 2)
        n = int(level)
        if kind == "down":
            inner = "bottleneck" if n == last else f"downsamples.{n - 1}"
            state[f"{inner if n else 'input_block'}.{rest}"] = value
        elif kind == "up":
            below = network.down[n + 1].conv1.conv.kernel_size
            sides = zip(reversed(below), reversed(value.shape[2:]), strict=False)
            border = [(wide - own) // 2 for wide, own in sides for _ in range(2)]
            is_kernel = "conv_block.conv" in rest
            place = f"upsamples.{last - 1 - n}.{rest}"
            state[place] = functional.pad(value, border) if is_kernel else value
        elif n == 0:
            state[f"output_block.conv.conv.{rest}"] = value
    return state


def nnunet_state(network: CoarseNetwork) -> State:
    """Return the weights by PlainConvUNet's names, which name most of them twice or four times.

    Kernels read [k, j, i]. The head of the coarsest level is left out: nnU-Net has none.
    """
    last = len(network.down) - 1
    state: dict[str, Tensor] = {}
    for name, value in network.state_dict().items():
        kind, level, *rest = name.split(".")
        n, turned = int(level), value.permute(0, 1, 4, 3, 2) if value.ndim == 5 else value
        stage, leaf = last - 1 - n, rest[-1]
        if kind == "heads" and n < last:
            places = [f"decoder.seg_layers.{stage}.{leaf}"]
        elif rest[0] == "transp_conv":
            places = [f"decoder.transpconvs.{stage}.{leaf}"]
        elif kind == "up":
            places = _twice(f"decoder.stages.{stage}", rest[1], leaf)
        elif kind == "down":
            inner = _twice(f"encoder.stages.{n}.0", rest[0], leaf)
            places = [*inner, *(f"decoder.{place}" for place in inner)]
        else:
            places = []
        state |= dict.fromkeys(places, turned.contiguous())
    return state


def _twice(block: str, part: str, leaf: str) -> list[str]:
    """Return both names of a weight of a block's part, which is `conv1` or `norm1` with us."""
    of = f"{block}.convs.{int(part[-1]) - 1}"
    module = {"conv": 0, "norm": 1}[part[:-1]]
    return [f"{of}.{part[:-1]}.{leaf}", f"{of}.all_modules.{module}.{leaf}"]


def on_volumes(trained: Trained, form: str, reason: str) -> VolumeSegmenter:
    """Return a segmenter on volumes; refuse one on slices for a form, with the reason."""
    if not isinstance(trained.segmenter, VolumeSegmenter):
        raise ConfigError(
            f"--form {form}: the segmenter of {trained.title} works on slices, and {reason}; use"
            " --form onnx or weights"
        )
    return trained.segmenter


def page(template: str, **values: object) -> str:
    """Return what a file of `templates/` makes of some values."""
    loader, undefined = PackageLoader("sacl.export"), StrictUndefined
    made = Environment(
        loader=loader, undefined=undefined, trim_blocks=True, keep_trailing_newline=True
    )
    return made.get_template(template).render(**values)
