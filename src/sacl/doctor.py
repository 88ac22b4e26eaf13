"""What a bug report needs: versions, devices, threads, disk, and a self-test of a few seconds.

Nothing of the user's is read, and no name of a machine, person or folder is told.
"""

from __future__ import annotations

import multiprocessing
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from sacl.files.nifti import read_label_map, write_label_map
from sacl.networks.coarse import CoarseNetwork
from sacl.networks.device import compute_in, mixed_dtype, probed_rate, resolve_device
from sacl.networks.encoder import Encoder, EncoderSpec
from sacl.plan.facts import measure_machine
from sacl.run.machine import SAFE, environment_with
from sacl.run.record import versions
from sacl.training.coarse import volume_spec
from sacl.types import Grid, LabelMap, LabelScheme, NativeFrame

_MORE = ("pandas", "simpleitk", "highdicom", "safetensors", "msgspec", "matplotlib")
"""Packages beside those that every record of a run names."""
_EXTRAS = {
    "jpeg (JPEG-compressed DICOM)": ("pylibjpeg-libjpeg",),
    "node (sacl serve)": ("pynetdicom",),
    "onnx (sacl export --form onnx)": ("onnx", "onnxscript", "onnxruntime"),
}
_SCHEME = LabelScheme("self-test", ("liver", "spleen"))
_STEPS = 8
_TOLERANCE = 1e-3
_LITTLE_DISK_GB = 5.0


@dataclass(frozen=True)
class Trial:
    """One part of the self-test: what went wrong, nothing where it is sound."""

    name: str
    seconds: float
    fault: str = ""


@dataclass(frozen=True)
class Health:
    """What `sacl doctor` says; `missing` are the packages of extras that are not installed."""

    versions: Mapping[str, str]
    missing: Mapping[str, tuple[str, ...]]
    device: str
    precision: str
    cores: int
    memory_gb: float
    gpu_gb: float
    operations_per_s: Mapping[str, float]
    free_disk_gb: Mapping[str, float]
    trials: tuple[Trial, ...]

    @property
    def faults(self) -> list[str]:
        """What is wrong, one line each."""
        return [f"{trial.name}: {trial.fault}" for trial in self.trials if trial.fault]

    def lines(self) -> list[str]:
        """Return the whole as text to put into a bug report."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        rates = ", ".join(f"{name} {rate:,.0f}" for name, rate in self.operations_per_s.items())
        disk = ", ".join(
            f"{name} {gb:,.1f} GB{' (little)' if gb < _LITTLE_DISK_GB else ''}"
            for name, gb in self.free_disk_gb.items()
        )
        gpu = f", {self.gpu_gb} GB on it" if self.gpu_gb else ""
        return [
            f"versions: {versions}",
            *(f"not installed: {extra}: {', '.join(n)}" for extra, n in self.missing.items()),
            f"device: {self.device}{gpu}, trains in {self.precision}",
            f"cores: {self.cores}; short operations a second: {rates}",
            f"memory: {self.memory_gb:,.1f} GB; free disk: {disk}",
            *(f"{t.name}: {t.fault or 'sound'} ({t.seconds:.1f} s)" for t in self.trials),
        ]


def examine(device_name: str, work: Path) -> Health:
    """Return what this machine and installation are like.

    `device_name` is one of the settings' `device`; one that is not there is refused. Free disk is
    that of `work`'s nearest folder, and of temporary files.

    Raises:
        DeviceError: the machine does not have the device.
    """
    machine, processor = measure_machine(device_name), torch.backends.cpu.get_cpu_capability()
    system = f"{platform.system()} {platform.machine()}, {processor}"
    precision = str(mixed_dtype(torch.device(machine.device)) or torch.float32)
    before = torch.get_num_threads()
    rates = {f"{n} thread{'s'[: n > 1]}": probed_rate(n) for n in {1, machine.cores}}
    compute_in(before)
    there = next(folder for folder in (work, *work.resolve().parents) if folder.is_dir())
    installed = versions([name for names in _EXTRAS.values() for name in names])
    disk = {"work": there, "temporary files": Path(tempfile.gettempdir())}
    return Health(
        versions={"system": system, **versions(_MORE)},
        missing={
            extra: lacking
            for extra, names in _EXTRAS.items()
            if (lacking := tuple(name for name in names if name not in installed))
        },
        **vars(machine),
        precision=precision.removeprefix("torch."),
        operations_per_s=rates,
        free_disk_gb={name: shutil.disk_usage(path).free / 1e9 for name, path in disk.items()},
        trials=_tried(device_name),
    )


def _tried(device_name: str) -> tuple[Trial, ...]:
    """Try all parts in a process of their own, since a broken library may end it."""
    trials: list[Trial] = []
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, context)
    for name, fault_of in TRIALS.items():
        since = time.perf_counter()
        try:
            with environment_with(SAFE):
                fault = pool.submit(fault_of, device_name).result()
        except BrokenProcessPool:
            fault = "it ended its process (a processor or library that torch does not work with)"
            pool = ProcessPoolExecutor(1, context)
        except Exception as error:
            fault = f"{type(error).__name__}: {str(error)[:200]}"
        trials.append(Trial(name, round(time.perf_counter() - since, 2), fault))
    pool.shutdown()
    return tuple(trials)


def arithmetic_fault(device_name: str) -> str:
    """Compare a convolution's output and gradients on the device with float64 on the CPU."""
    device, generator = resolve_device(device_name), torch.Generator().manual_seed(0)
    image = torch.randn(2, 8, 24, 24, generator=generator)
    kernel = torch.randn(16, 8, 3, 3, generator=generator) / 8

    def outcome(where: torch.device, kind: torch.dtype) -> list[Tensor]:
        x = image.to(where, kind).requires_grad_()
        w = kernel.to(where, kind).requires_grad_()
        y = torch.nn.functional.conv2d(x, w, stride=2, padding=1)
        gradients = torch.autograd.grad(y.square().sum(), (x, w))
        return [part.detach().cpu().double() for part in (y, *gradients)]

    exact, got = outcome(torch.device("cpu"), torch.float64), outcome(device, torch.float32)
    worst = max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(exact, got, strict=True))
    return "" if worst < _TOLERANCE else f"a convolution is wrong by {worst:.1e} of its values"


def slices_fault(device_name: str) -> str:
    """Train an encoder on slices for a few steps."""
    encoder = Encoder(EncoderSpec(width=8, in_channels=1))
    image = torch.randn(4, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    return _training_fault(encoder, image, device_name)


def volumes_fault(device_name: str) -> str:
    """Train a network on volumes for a few steps."""
    spec = volume_spec(_SCHEME, [(1.0, 1.0, 2.0)], (32, 32, 16), None, 8)
    image = torch.rand(2, 1, *spec.crop, generator=torch.Generator().manual_seed(0))
    return _training_fault(CoarseNetwork(spec), image, device_name)


def _training_fault(network: nn.Module, image: Float[Tensor, "n c ..."], device_name: str) -> str:
    """Say whether the loss does not fall when a network's maps are to become 1 everywhere."""
    device = resolve_device(device_name)
    network, image = network.to(device), image.to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(_STEPS):
        maps = network(image)
        loss = torch.stack([(output - 1).square().mean() for output in maps]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    falls = np.isfinite(losses).all() and losses[-1] < losses[0]
    return "" if falls else f"the loss went from {losses[0]:.3g} to {losses[-1]:.3g}"


def files_fault(_: str) -> str:
    """Write a label map onto an oblique grid and read it again."""
    turned = np.array([[0.8, -0.6, 0, 5], [0.6, 0.8, 0, -3], [0, 0, 2.5, 1], [0, 0, 0, 1]])
    grid = Grid((9, 7, 5), turned)
    labels = np.random.default_rng(0).integers(0, 3, grid.shape, dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "map.nii.gz"
        write_label_map(path, LabelMap(labels, grid, _SCHEME), NativeFrame(grid))
        again, _frame = read_label_map(path, _SCHEME)
    same = np.array_equal(labels, again.voxels) and np.allclose(grid.affine, again.grid.affine)
    return "" if same else "a label map is another one after writing and reading"


TRIALS: Mapping[str, Callable[[str], str]] = {
    "arithmetic": arithmetic_fault,
    "training on slices": slices_fault,
    "training on volumes": volumes_fault,
    "files": files_fault,
}
"""The parts of the self-test, each from the device's name to a fault."""
