"""Weights on disk: safetensors plus a JSON that says what they are; nothing is unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor, nn

from sacl.errors import DataError
from sacl.files.atomic import plain, replacing, write_text
from sacl.files.documents import JsonObject, Record, as_record


def save_weights(folder: Path, name: str, module: nn.Module, meta: JsonObject) -> None:
    """Write `name.safetensors` and `name.json`; the JSON last, so that it vouches for the weights.

    `meta` is what is needed to build the network again; settings dataclasses are fine.
    """
    state = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    with replacing(folder / f"{name}.safetensors") as temporary:
        save_file(state, temporary)
    write_text(folder / f"{name}.json", json.dumps(plain(meta), indent=1) + "\n")


def read_weights(folder: Path, name: str) -> tuple[dict[str, Tensor], JsonObject]:
    """Return the state dict, on the CPU, and what was saved beside it."""
    try:
        meta: JsonObject = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        state: dict[str, Tensor] = load_file(folder / f"{name}.safetensors")
    except FileNotFoundError as error:
        missing = Path(error.filename or f"{name}.safetensors").name
        raise DataError(
            f"{folder.name}: no {missing}; train the network first, or copy it there"
        ) from error
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise DataError(f"{folder.name}/{name}: weights are broken ({error})") from error
    return state, meta


def packed(state: Mapping[str, Tensor]) -> bytes:
    """Return weights as safetensors, without a file."""
    return save(dict(state))


def unpacked(content: bytes, where: str) -> dict[str, Tensor]:
    """Return what `packed` wrote; header, sizes and offsets are checked, nothing is unpickled."""
    try:
        return load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise DataError(f"{where}: no whole safetensors file ({error}); copy it again") from error


def described(kind: type[Record], document: JsonObject, where: str, remedy: str) -> Record:
    """Return the dataclass that was saved beside weights as JSON; errors end in the remedy."""
    remedy = f"it is damaged or was made by an older version, {remedy}"
    return as_record(document, kind, where, remedy)
