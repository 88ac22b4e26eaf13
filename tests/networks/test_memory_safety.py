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
@pytest.mark.parametrize(("network", "channels"), [("resnet18", 1), ("resnet50", 2)])
def test_the_smallest_networks_train_with_an_intact_heap_without_avx512(network, channels):
    environment = {
        **os.environ,
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "LD_PRELOAD": CHECKER,
        "GLIBC_TUNABLES": "glibc.malloc.check=3",
    }
    done = subprocess.run(
        [sys.executable, "-c", TRAINING.format(network=network, channels=channels)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "whole"), done.stderr[-500:]
