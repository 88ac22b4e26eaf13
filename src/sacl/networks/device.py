"""Which device computes, in which precision, from which seed, and on a CPU in how many threads."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sacl import ranks
from sacl.errors import DeviceError
from sacl.run.machine import available_cores

_LONG = 3000
"""Steps of a training that wins back the minute or two that compiling its networks takes."""
_AT_FIRST = torch.get_num_threads()
_THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_chosen = {_AT_FIRST}


def resolve_device(name: str) -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda`, `cuda:N` or `mps`, if this machine has it."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"device '{name}': expected auto, cpu, cuda, cuda:N or mps") from None
    if ranks.started() > 1 and device.index is not None:
        raise DeviceError(f"device '{name}': each rank has its own GPU; give --device cuda or auto")
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(device.type, False):
        raise DeviceError(
            f"device '{name}' is not there (this machine has {torch.cuda.device_count()} CUDA"
            " devices); use --device auto"
        )
    return device


def mixed_dtype(device: torch.device) -> torch.dtype | None:
    """Return bfloat16 where the device computes in it fast, None (float32) elsewhere."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else None
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return None


def autocast(device: torch.device) -> torch.autocast:
    """Return the mixed-precision context of a device; it does nothing where there is none."""
    dtype = mixed_dtype(device)
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def compile_for(steps: int, networks: Iterable[nn.Module], device: torch.device) -> None:
    """Compile networks in place for a long training on a GPU; elsewhere leave them as they are.

    Weights and their names stay. Where compiling fails, as it does without a C compiler, they run
    uncompiled.
    """
    if device.type == "cuda" and steps >= _LONG and find_spec("triton") is not None:
        torch._dynamo.config.suppress_errors = True
        logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
        for network in networks:
            network.compile(dynamic=False)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let networks that are built in the body start from weights that the seed decides."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def thread_choices(device: torch.device) -> tuple[int, ...]:
    """Return the numbers of threads that a training on the device may choose from, rising.

    They are 1 and as many as there are cores; on a GPU, on one core, or where the user has said how
    many (`OMP_NUM_THREADS`, `torch.set_num_threads`), there is only the number that is set.
    """
    set_now = torch.get_num_threads()
    said = set_now not in _chosen or _said_threads()
    if said or device.type != "cpu":
        return (set_now,)
    return tuple(sorted({1, _AT_FIRST}))


def _said_threads() -> bool:
    return any(name in os.environ for name in _THREAD_SETTINGS)


def compute_in(threads: int) -> None:
    """Compute in so many threads from now on."""
    _chosen.add(threads)
    torch.set_num_threads(threads)


if available_cores() < _AT_FIRST and not _said_threads():
    # torch counts the cores that it sees, which in a container may be more than it has.
    _AT_FIRST = available_cores()
    compute_in(_AT_FIRST)


def in_own_order(pixels: Float[Tensor, "n channel ..."]) -> bool:
    """Tell whether networks choose the memory order: on a CPU, but not for an export to ONNX."""
    return pixels.device.type == "cpu" and not torch.compiler.is_compiling()


def channels_last(pixels: Float[Tensor, "n channel ..."]) -> Float[Tensor, "n channel ..."]:
    """Return images in the memory order that convolutions are fastest in.

    Volumes stay as they are on a GPU, and in inference mode: a norm in that order depends on the
    number of threads in its last digit, which label maps must not. Of one channel both orders are
    the same but for the strides, by which torch tells them apart.
    """
    if pixels.ndim == 4:
        return pixels.contiguous(memory_format=torch.channels_last)
    if not in_own_order(pixels) or torch.is_inference_mode_enabled():
        return pixels
    if pixels.shape[1] > 1:
        return pixels.contiguous(memory_format=torch.channels_last_3d)
    _, _, i, j, k = pixels.shape
    return pixels.contiguous().as_strided(pixels.shape, (i * j * k, 1, j * k, k, 1))
