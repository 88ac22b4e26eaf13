"""What the memory order of a CPU is worth: training steps in it and in torch's own.

`python -m research benchmark memory_order` times steps of forward pass, loss and backward pass of
the network on volumes (two crops, 13 organs) and of that on slices (16 slices, 3 organs), as plans
for a CPU have them, with random images and labels. The other ways take turns with it in one run:
the same network with torch's norms and in the order that they leave, and for volumes MONAI's
`DynUNet` of the same sizes. Writes `results/memory_order.json`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from monai.networks.nets import DynUNet
from torch import nn

from research.benchmarks.circumstances import circumstances
from sacl.export.networks import dynunet_arguments
from sacl.files.documents import write_json
from sacl.losses.segmentation import dense_loss
from sacl.networks.coarse import CoarseNetwork
from sacl.networks.device import autocast, channels_last
from sacl.networks.encoder import EncoderSpec
from sacl.networks.segmenter import SegmenterSpec, build_segmenter
from sacl.patches.region import Placement
from sacl.patches.window import WindowRule
from sacl.training.coarse import volume_spec
from sacl.types import LabelScheme

RESULT = Path(__file__).parents[1] / "results" / "memory_order.json"
_CPU = torch.device("cpu")
_CROP, _SIDE, _CHANNELS = (48, 48, 32), 96, 16
_ASKED = [f"sacl.networks.{name}.in_own_order" for name in ("device", "decoder")]


@contextmanager
def torchs_order() -> Iterator[None]:
    """Let networks in the body use torch's own norms, and the order that these leave."""
    patches = [mock.patch(name, return_value=False) for name in _ASKED]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def step_of(network: nn.Module, image: torch.Tensor, organs: int) -> Callable[[], None]:
    """Return a step of training on random labels; of several levels the finest alone counts."""
    labels = torch.randint(1 + organs, (len(image), *image.shape[2:])).flatten(2)
    annotated = torch.ones(len(image), organs, dtype=torch.bool)
    network.train()

    def step() -> None:
        with autocast(_CPU):
            logits = network(image)
        finest = logits[0] if isinstance(logits, list) else logits
        dense_loss(finest.flatten(3), labels, annotated).backward()

    return step


def in_turns(ways: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Return the median seconds of ways that take turns; the first round is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, work in ways.items():
            begun = time.perf_counter()
            work()
            taken[name].append(time.perf_counter() - begun)
    return {name: round(statistics.median(of[1:]), 4) for name, of in taken.items()}


def main() -> None:
    """Time all ways and write what they took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=20)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)

    def left(step: Callable[[], None]) -> Callable[[], None]:
        def work() -> None:
            with torchs_order():
                step()

        return work

    scheme = LabelScheme("abdomen", tuple(f"organ {n}" for n in range(13)))
    spec = volume_spec(scheme, [(4.0, 4.0, 4.0)], _CROP, None, _CHANNELS)
    crops = torch.rand(2, 1, *spec.crop)
    own = step_of(CoarseNetwork(spec), crops, 13)
    monai = step_of(DynUNet(**dynunet_arguments(spec)), crops, 13)
    volumes = in_turns({"own": own, "torch": left(own), "monai": monai}, given.repeats)

    heart = SegmenterSpec(
        encoder=EncoderSpec("resnet18", 32, 1),
        decoder="unet",
        head="dense",
        scheme="heart",
        organs=("right ventricle", "myocardium", "left ventricle"),
        image_size=_SIDE,
        window=WindowRule("mr", (0.0, 1.0)),
        placement=Placement(region="slice"),
    )
    segmenter = build_segmenter(heart, 0).to(memory_format=torch.channels_last)
    own = step_of(segmenter, channels_last(torch.rand(16, 1, _SIDE, _SIDE)), 3)
    slices = in_turns({"own": own, "torch": left(own)}, given.repeats)
    record = {
        "seconds": {"volumes": volumes, "slices": slices},
        "ratio": {
            name: {way: round(of["own"] / of[way], 3) for way in of if way != "own"}
            for name, of in {"volumes": volumes, "slices": slices}.items()
        },
        "threads": given.threads,
        "repeats": given.repeats,
        **circumstances(),
    }
    write_json(RESULT, record)
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
