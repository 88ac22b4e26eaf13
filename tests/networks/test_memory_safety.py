"""No network that the settings allow meets the kernel that writes beyond its buffer.

On processors with AVX2 and without AVX-512, torch 2.13's float32 backward pass of a 1 x 1
convolution of stride 2 with fewer than 8 input channels corrupts the heap in channels-last order.
"""

import ctypes
import os
import subprocess
import sys

import pytest
from torch import nn

from sacl.networks.encoder import LEAST_WIDTH, Encoder, EncoderSpec

NETWORKS = ["resnet18", "resnet34", "resnet50"]
CHECKER = "libc_malloc_debug.so.0"

TRAINING = """
import torch
from torch import nn
from sacl.networks.decoder import build_decoder
from sacl.networks.encoder import LEAST_WIDTH, Encoder, EncoderSpec

torch.set_num_threads(1)
network, channels = {network!r}, {channels}
for decoder in ("unet", "aspp"):
    encoder = Encoder(EncoderSpec(network, LEAST_WIDTH, channels))
    head = build_decoder(decoder, encoder.channels, encoder.strides, 32)
    whole = nn.ModuleList([encoder, head]).to(memory_format=torch.channels_last)
    for batch in (2, 10):
        pixels = torch.rand(batch, channels, 32, 32).contiguous(memory_format=torch.channels_last)
        head(encoder(pixels)).sum().backward()
print("whole")
"""


ON_VOLUMES = """
import torch
from sacl.networks.coarse import CoarseNetwork, CoarseSpec, Down, plan_levels
from sacl.networks.encoder import LEAST_WIDTH

torch.set_num_threads(1)
for crop, spacing_mm in (((16, 16, 8), (1.0, 1.0, 1.0)), ((20, 24, 4), (1.0, 1.0, 4.0))):
    crop, kernels, strides = plan_levels(crop, spacing_mm)
    spec = CoarseSpec(
        scheme="one", organs=("liver",), spacing_mm=spacing_mm, in_plane_size=None, crop=crop,
        channels=LEAST_WIDTH, kernels=kernels, strides=strides,
    )
    for inputs in (1, 2):
        network = CoarseNetwork(spec)
        network.down = Down(spec, in_channels=inputs)
        for batch in (1, 3):
            sum(logit.sum() for logit in network(torch.rand(batch, inputs, *crop))).backward()
print("whole")
"""


def checks_the_heap():
    try:
        ctypes.CDLL(CHECKER)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("width", [LEAST_WIDTH, LEAST_WIDTH + 2, 64])
def test_no_strided_convolution_of_one_pixel_has_fewer_than_eight_inputs(network, width):
    encoder = Encoder(EncoderSpec(network, width))
    strided = [
        module
        for module in encoder.modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) != module.stride
    ]
    assert strided, "the residual levels change their stride somewhere"
    assert min(module.in_channels for module in strided) >= 8


@pytest.mark.skipif(not checks_the_heap(), reason=f"glibc's {CHECKER} is not installed")
@pytest.mark.parametrize(
    "training",
    [
        TRAINING.format(network="resnet18", channels=1),
        TRAINING.format(network="resnet50", channels=2),
        ON_VOLUMES,
    ],
    ids=["resnet18", "resnet50", "volumes"],
)
def test_the_smallest_networks_train_with_an_intact_heap_without_avx512(training):
    environment = {
        **os.environ,
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "LD_PRELOAD": CHECKER,
        "GLIBC_TUNABLES": "glibc.malloc.check=3",
    }
    done = subprocess.run(
        [sys.executable, "-c", training],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "whole"), done.stderr[-500:]
